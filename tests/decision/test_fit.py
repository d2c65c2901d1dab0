"""Decisions are fitted on some rows and hold on others: calibration, operating points, what is no product."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
import scipy.special

from fashion_jax.data.drawn.not_products import KINDS, draw_not_products
from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import calibration_error, fit_label_sets, fit_temperature, fit_threshold
from fashion_jax.decision.decisions import Decision, HeadDecision, choose_sets, label_sets, log_probabilities
from fashion_jax.decision.fit import OUTSIDE_SHARE, fit_decision, score_decision
from fashion_jax.decision.operating_points import STRENGTHS, best_strength, sweep_strengths
from fashion_jax.decision.out_of_catalogue import auroc, fit_out_of_catalogue, score_detection, threshold_above
from fashion_jax.decision.report import format_accepted, format_report
from fashion_jax.evaluation.evaluate import RowOutputs

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])


class Rows(NamedTuple):
    outputs: RowOutputs
    labels: dict[str, np.ndarray]


def drawn(count: int, seed: int, *, sharp: float = 2.0) -> Rows:
    """Rows of two heads; `group` follows from `kind`. Logits are `sharp` times as large as calibrated ones."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, count, p=PRIOR)
    centres = np.random.default_rng(99).normal(size=(4, 8)) * 0.6
    seen = centres[kind] + rng.normal(size=(count, 8))
    true = seen @ centres.T - 0.5 * (centres**2).sum(1) + np.log(PRIOR)
    group = (kind >= 2).astype(int)
    coarse = np.stack([scipy.special.logsumexp(true[:, :2], axis=1), scipy.special.logsumexp(true[:, 2:], axis=1)], 1)
    logits = {"kind": sharp * true, "group": coarse + rng.normal(size=(count, 2))}
    labels = {"kind": kind.copy(), "group": group.copy()}
    labels["kind"][::17] = MISSING
    return Rows(RowOutputs(logits, seen, -scipy.special.logsumexp(true, axis=1), logits), labels)


def fit(validation: Rows, training: Rows, products: np.ndarray | None = None):
    products = np.arange(len(validation.labels["kind"])) if products is None else products
    reference = training.outputs.features
    return fit_decision(*validation, training.labels, reference, products=products, precision=0.95, coverage=0.9)


@pytest.fixture(scope="module")
def fitted():
    validation, test = drawn(6000, 0), drawn(6000, 1)
    return *fit(validation, drawn(4000, 2)), validation, test


def test_what_is_fitted_holds_on_other_rows(fitted):
    decision, pairs, _, test = fitted
    report = score_decision(decision, pairs, *test).report
    kind, group = report["heads"]["kind"], report["heads"]["group"]
    assert decision.heads["kind"].temperature == pytest.approx(2, rel=0.1)
    assert kind["ece"]["before"] > 0.05 and kind["ece"]["after"] < 0.02
    for name in ("kind", "group"):
        losses = report["heads"][name]["nll"]
        assert losses["after"] <= losses["temperature"] + 1e-3 <= losses["before"] + 2e-3
    assert group["hierarchy"]["finer"] == "kind"
    assert group["operating_points"]["accuracy"]["accuracy"] > group["plain"]["accuracy"] + 0.02
    best, rare = (kind["operating_points"][point] for point in ("accuracy", "macro_f1"))
    assert best["accuracy"] >= rare["accuracy"] - 0.002 and rare["macro_f1"] >= best["macro_f1"] - 0.002
    log_probs = log_probabilities(decision, test.outputs.logits)["kind"]  # nothing but a temperature
    assert np.array_equal(log_probs.argmax(1), test.outputs.logits["kind"].argmax(1))
    taken = best["accepted"]
    assert taken["precision"] > 0.94 and taken["coverage"] > 0.3
    assert kind["label_sets"]["coverage"] == pytest.approx(0.9, abs=0.02)
    assert 1 <= kind["label_sets"]["mean_size"] < 2
    found = report["contradictions"]
    assert found["before"]["any"]["contradictions"] > 100
    assert all(found[f"after ({point})"]["any"]["contradictions"] == 0 for point in ("accuracy", "macro_f1"))
    assert report["out_of_catalogue"]["products_above_threshold"] == pytest.approx(OUTSIDE_SHARE, abs=0.005)


def test_rows_without_the_label_do_not_count(fitted):
    decision, pairs, validation, test = fitted
    known = test.labels["kind"] != MISSING
    outputs, labels = jax.tree.map(lambda values: values[known], (dataclasses.asdict(test.outputs), test.labels))
    some = score_decision(decision, pairs, RowOutputs(**outputs), labels).report
    assert some["heads"]["kind"] == score_decision(decision, pairs, *test).report["heads"]["kind"]
    strange = {name: values.copy() for name, values in validation.outputs.logits.items()}
    strange["kind"][validation.labels["kind"] == MISSING] = 37.0
    outputs = dataclasses.replace(validation.outputs, logits=strange)
    other = fit(Rows(outputs, validation.labels), drawn(4000, 2))[0].heads["kind"]
    head = decision.heads["kind"]
    assert (other.temperature, other.thresholds, other.label_set) == (head.temperature, head.thresholds, head.label_set)


def test_a_head_without_validation_labels_is_left_alone():
    outputs, labels = drawn(300, 0)
    rows = Rows(outputs, {**labels, "kind": np.full(300, MISSING)})
    decision, pairs = fit(rows, drawn(300, 2))
    head = decision.heads["kind"]
    assert (head.temperature, head.strengths, head.label_set) == (1.0, {"accuracy": 0.0, "macro_f1": 0.0}, 0.0)
    assert head.thresholds == {"accuracy": math.inf, "macro_f1": math.inf}
    report = score_decision(decision, pairs, *rows).report
    assert report["heads"]["kind"]["plain"]["accuracy"] is None
    assert "kind" in format_report(report, fitted_here=True)
    assert "no threshold reaches it" in format_accepted(report)


def test_strength_zero_is_plain_and_one_is_for_even_classes():
    rng = np.random.default_rng(0)
    log_probs = scipy.special.log_softmax(rng.normal(size=(500, 4)), axis=1)
    labels, rows = rng.integers(0, 4, 500), np.array([600, 250, 100, 50])
    points = {point["strength"]: point for point in sweep_strengths(log_probs, labels, rows)}
    assert tuple(points) == STRENGTHS
    assert points[0]["accuracy"] == np.mean(log_probs.argmax(1) == labels)
    assert points[0]["won"] == points[0]["lost"] == 0
    balanced = np.exp(log_probs) / (rows / rows.sum())
    assert points[1]["accuracy"] == np.mean(balanced.argmax(1) == labels)


def test_the_adjustment_of_a_loss_is_undone(fitted):
    """The most accurate strength is near 0. For a network that was trained with equal classes it is -1."""
    _, _, validation, _ = fitted
    known = validation.labels["kind"] != MISSING
    true, labels = validation.outputs.logits["kind"][known] / 2, validation.labels["kind"][known]
    rows = (PRIOR * 10_000).astype(int)
    sweep = sweep_strengths(scipy.special.log_softmax(true, axis=1), labels, rows)
    assert 0 <= best_strength(sweep, "accuracy") <= 0.25
    even = scipy.special.log_softmax(true - np.log(PRIOR), axis=1)
    assert best_strength(sweep_strengths(even, labels, rows), "accuracy") == pytest.approx(-1, abs=0.35)
    assert best_strength(sweep, "macro_f1") > 0
    scores = {point["strength"]: point["macro_f1"] for point in sweep}
    assert scores[best_strength(sweep, "macro_f1")] > max(scores.values()) - 0.01


STEPS = tuple(np.arange(-2, 7) / 10)


def made_sweep(accuracy, macro_f1, supported) -> list[dict]:
    """Scores at the strengths of STEPS."""
    names = ("strength", "accuracy", "macro_f1", "macro_f1_supported")
    rows = zip(STEPS, accuracy, macro_f1, supported, strict=True)
    return [{**dict(zip(names, row, strict=True)), "won": 0, "lost": 5} for row in rows]


def test_an_accuracy_that_chance_explains_changes_nothing():
    sweep = made_sweep([0.5 - 0.03 * s for s in STEPS], [0.5] * 9, [0.4] * 9)
    sweep[1].update(won=8, lost=5)
    assert best_strength(sweep, "accuracy") == best_strength([], "accuracy") == 0
    sweep[1].update(won=40, lost=5, accuracy=0.535)
    assert best_strength(sweep, "accuracy") == -0.1


def test_little_accuracy_is_given_for_much_macro_f1():
    for score, gain, supported_gain, lost, wanted in (
        # At most 0.002 of accuracy is lost, and the strength is at most 0.25 higher.
        ("accuracy", 0.1, 0.1, 0.001, 0.2), ("accuracy", 0.1, 0.1, 0.015, 0.1), ("accuracy", 0.1, 0.1, 0.05, 0),
        # Neither for little, nor by classes of a few rows alone, and never against rare classes.
        ("accuracy", 0.04, 0.1, 0.001, 0), ("accuracy", 0.1, 0.01, 0.001, 0), ("accuracy", -0.1, -0.1, 0.001, 0),
        # The other operating point is another one only where that is worth something, and loses 0.05 at most.
        ("macro_f1", 0.1, 0.1, 0.05, 0.6), ("macro_f1", 0.005, 0.005, 0.05, 0), ("macro_f1", 0.005, 0.1, 0.05, 0),
        ("accuracy", 0.005, 0.1, 0.001, 0), ("macro_f1", 0.1, 0.1, 0.001, 0.6), ("macro_f1", 0.1, 0.1, 0.11, 0.4),
    ):  # fmt: skip
        scores = [[start + rise * s for s in STEPS] for start, rise in ((0.3, gain), (0.4, supported_gain))]
        sweep = made_sweep([0.7 - lost * max(s, 0) for s in STEPS], *scores)
        assert best_strength(sweep, score) == wanted, (score, gain, supported_gain, lost)


def test_what_is_given_is_given_on_the_rows_themselves():
    """Not on the mean with the neighbouring strengths alone, in which a single bad one is lost."""

    for at_peak, score, peak, wanted in (
        (0.7, "accuracy", 3, 0.1), (0.7, "macro_f1", 3, 0.1), (0.695, "accuracy", 3, 0.2),
        (0.66, "macro_f1", 6, 0.4), (0.6, "macro_f1", 6, 0.5),
    ):  # fmt: skip
        accuracy, macro_f1 = [0.7] * 9, [0.3] * 9
        accuracy[peak], macro_f1[peak : peak + 2] = at_peak, (0.5, 0.4)
        assert best_strength(made_sweep(accuracy, macro_f1, macro_f1), score) == wanted


def test_what_is_said_is_in_its_label_set():
    head = HeadDecision(1.0, np.array([90, 9, 1]), {}, {}, label_set=0.3)
    log_probs = {"kind": np.log(np.array([[0.8, 0.15, 0.05], [0.45, 0.35, 0.2]]))}
    sets = choose_sets(Decision({"kind": head}), log_probs, {"kind": np.array([2, 2])})["kind"]
    assert sets.tolist() == [[True, False, True], [True, True, True]]


def drawn_logits(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 6)) * 3
    chances = scipy.special.softmax(logits / temperature, axis=1)
    labels = (rng.random((count, 1)) > np.cumsum(chances, axis=1)).sum(1)
    return logits.astype(np.float32), np.minimum(labels, 5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    logits, labels = drawn_logits(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(logits[:0], labels[:0]) == 1.0


def test_the_error_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    confidences, correct = np.append(rng.random(500), [0.0, 1.0]), rng.random(502) < 0.6
    slowly = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (confidences > low) & (confidences <= high) | ((number == 0) & (confidences == 0))
        if inside.any():
            slowly += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    assert calibration_error(confidences, correct) == pytest.approx(slowly)
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0


def test_a_threshold_accepts_as_many_as_the_precision_allows():
    rng = np.random.default_rng(0)
    confidences = np.round(rng.random(400), 2)  # with ties
    correct = rng.random(400) < confidences
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
        logits, labels = drawn_logits(300, 2.0, seed=seed)
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


def test_few_rows_promise_no_precision():
    sure, right = np.linspace(0.5, 1, 400), np.ones(400, bool)
    assert fit_threshold(sure[:40], right[:40], 0.98) == fit_threshold(sure, right, 0.98, level=0.9) == 0.5
    assert fit_threshold(sure[:40], right[:40], 0.98, level=0.9) == math.inf
    # As often as the level says, what is accepted has the precision on all rows like these.
    rng, kept = np.random.default_rng(0), 0
    for _ in range(200):
        confidence = rng.random(1000)
        found = fit_threshold(confidence, rng.random(1000) < 0.8 + 0.2 * confidence, 0.95, level=0.9)
        # Above t, right rows are a share of .8 + .1 (1 + t).
        kept += not math.isfinite(found) or 0.9 + 0.1 * found >= 0.95
    assert kept > 0.8 * 200


def test_the_auroc_is_the_chance_of_a_higher_score():
    rng = np.random.default_rng(0)
    inside, outside = np.round(rng.normal(size=60), 1), np.round(rng.normal(size=40) + 0.7, 1)  # with ties
    slowly = np.mean([(b > a) + 0.5 * (b == a) for a in inside for b in outside])
    assert auroc(inside, outside) == pytest.approx(slowly)
    assert auroc(np.zeros(3), np.ones(3)) == 1
    # The threshold flags no more than asked.
    flagged = []
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(size=400)
        flagged.append(np.mean(scores[200:] > threshold_above(scores[:200], 0.05)))
    assert 0.03 < np.mean(flagged) <= 0.055


def test_strange_photos_score_higher(fitted):
    score, outputs = fitted[0].out_of_catalogue, fitted[3].outputs
    far = np.random.default_rng(0).normal(size=(200, 8)) * 6
    scores = score.scores(outputs.features, outputs.energies), score.scores(far, np.full(200, outputs.energies.mean()))
    found = score_detection(*scores, ["x"] * 200, {"x": "group"}, score.threshold)["others"]
    assert found["all"]["auroc"] > 0.9
    assert found["x"] == found["group"] == found["all"]


def test_the_distance_is_mahalanobis_where_all_directions_are_kept():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    score = fit_out_of_catalogue(rows, rows, np.zeros(500), 0.05)
    cov, mean = np.cov(rows.T), rows.mean(0)
    wanted = [np.log((r - mean) @ np.linalg.inv(cov) @ (r - mean) / 6) for r in rows[:20]]
    assert np.allclose(score.log_distances(rows[:20]), wanted, atol=1e-6)
    score = fit_out_of_catalogue(np.zeros((10, 4)), np.zeros((5, 4)), np.zeros(5), 0.1)
    assert np.isfinite(score.scores(np.ones((3, 4)), np.ones(3))).all()
    assert fit_out_of_catalogue(np.zeros((1, 4)), np.zeros((5, 4)), np.zeros(5), 0.1) is None


def test_not_products_are_drawn_anew_and_alike():
    images, kinds = draw_not_products(2, 32, 24)
    assert images.shape == (2 * len(KINDS), 32, 24, 3) and images.dtype == np.uint8
    assert np.array_equal(images, draw_not_products(2, 32, 24)[0])
    assert kinds[::2] == list(KINDS)
    assert all(not np.array_equal(a, b) for a, b in zip(images[::2], images[1::2], strict=True))
    assert (images.std(axis=(1, 2, 3)) > 5).all()  # nothing is left blank
    for count, height, width in ((0, 32, 24), (20, 8, 8)):  # 8 pixels are the smallest photos of a model
        assert draw_not_products(count, height, width)[0].shape == (count * len(KINDS), height, width, 3)
