"""Colours by family and by looks."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.drawn.colours import COLOURS
from fashion_jax.evaluation.colour_report import FAMILIES, colour_families, colour_scores


def test_all_documented_colours_have_one_of_fourteen_families():
    families, number = colour_families(COLOURS)
    assert len(COLOURS) == 44
    assert families == sorted(FAMILIES) and len(families) == 14
    assert families[number[COLOURS.index("Navy Blue")]] == families[number[COLOURS.index("Blue")]] == "blue"
    names = [name for group in FAMILIES.values() for name in group]
    assert len(names) == len(set(names))


def test_other_colours_are_families_of_their_own():
    families, number = colour_families(["sand", "BLACK", "off white", "White"])
    assert families == ["black", "sand", "white"]
    np.testing.assert_array_equal(number, [1, 0, 2, 2])


def test_scores_by_hand():
    classes = ["Blue", "Navy Blue", "Red", "Green"]
    probabilities = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.30, 0.29, 0.41, 0.0], [0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9]]
    )
    labels, said = np.array([0, 0, 1, 2]), np.array([0, 2, 0, 3])
    differences = np.full((4, 4), 40.0)
    differences[0, 1] = differences[1, 0] = 4.0
    np.fill_diagonal(differences, 0.0)
    scores = colour_scores(probabilities, said, labels, classes, differences)
    assert scores["accuracy"] == 0.25
    assert scores["family_accuracy"] == 0.75  # the second row is blue by the sum of two blues
    assert scores["tolerant_accuracy"] == 0.5
    assert scores["mean_difference"] == pytest.approx((0 + 40 + 4 + 40) / 4)
    # A shift by the frequencies may say less likely ones; families stay sums of probabilities.
    shifted = colour_scores(probabilities, labels, labels, classes, differences)
    assert shifted == {**scores, "accuracy": 1.0, "tolerant_accuracy": 1.0, "mean_difference": 0.0}
    differences[0, 2] = np.inf
    assert colour_scores(probabilities, said, labels, classes, differences)["mean_difference"] == pytest.approx(44 / 3)
    assert np.isnan(colour_scores(probabilities[:0], said[:0], labels[:0], classes, differences)["accuracy"])
