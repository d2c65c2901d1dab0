"""Calibration: recovered where it is known, and as defined where it is computed slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special

from fashion_jax.decision.calibration import calibration_error, fit_label_sets, fit_temperature, fit_threshold
from fashion_jax.decision.decisions import label_sets


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that follow softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 6)) * 3
    chances = scipy.special.softmax(logits / temperature, axis=1)
    labels = (random.random((count, 1)) > np.cumsum(chances, axis=1)).sum(1)
    return logits.astype(np.float32), np.minimum(labels, 5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits, labels = drawn(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_the_error_is_what_its_definition_says():
    random = np.random.default_rng(0)
    confidences, correct = np.append(random.random(500), [0.0, 1.0]), random.random(502) < 0.6
    slowly = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (confidences > low) & (confidences <= high) | ((number == 0) & (confidences == 0))
        if inside.any():
            slowly += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    assert calibration_error(confidences, correct) == pytest.approx(slowly)
    assert calibration_error(np.ones(10), np.ones(10, bool)) == 0
    assert calibration_error(np.ones(10), np.zeros(10, bool)) == 1
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0


def test_a_threshold_accepts_as_many_as_the_precision_allows():
    random = np.random.default_rng(0)
    confidences = np.round(random.random(400), 2)  # with ties
    correct = random.random(400) < confidences
    found = fit_threshold(confidences, correct, 0.9)
    every = [confidences >= candidate for candidate in np.unique(confidences)]
    best = max(accepted.mean() for accepted in every if correct[accepted].mean() >= 0.9)
    accepted = confidences >= found
    assert accepted.mean() == pytest.approx(best) and correct[accepted].mean() >= 0.9
    assert fit_threshold(confidences, np.zeros(400, bool), 0.9) == math.inf
    assert fit_threshold(confidences, np.ones(400, bool), 1.0) == confidences.min()


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_hold_the_truth_as_often_as_asked(coverage):
    inside = []
    for seed in range(40):
        logits, labels = drawn(300, 2.0, seed=seed)
        probabilities = scipy.special.softmax(logits, axis=1)  # overconfident, and still
        threshold = fit_label_sets(probabilities[:150], labels[:150], coverage)
        sets = label_sets(probabilities[150:], threshold)
        assert sets.any(1).all()
        inside.append(sets[np.arange(150), labels[150:]].mean())
    assert coverage - 0.01 < np.mean(inside) < coverage + 0.03
    # Too few rows put every class into the set.
    probabilities = np.full((3, 3), 1 / 3)
    assert fit_label_sets(probabilities, np.zeros(3, int), coverage) == 0
    assert label_sets(probabilities, 0.0).all()
