"""Colours by family and by looks."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.drawn.colours import COLOURS
from fashion_jax.data.photos import decode_photo
from fashion_jax.evaluation.colour_report import (
    FAMILIES,
    class_colours,
    colour_differences,
    colour_families,
    colour_scores,
)
from fashion_jax.system.cielab import product_pixels


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


def test_means_are_those_of_the_training_photos(prepared):
    ours = class_colours(prepared, "colour")
    column = prepared.attributes.index("colour")
    rows = prepared.indices("train")
    for number in range(len(prepared.vocabularies["colour"])):
        own = rows[prepared.labels[rows, column] == number]
        photos = [decode_photo(prepared.read_photo(int(row)), 80, 60) for row in own]
        np.testing.assert_allclose(ours[number], np.mean([product_pixels(p).mean(0) for p in photos], 0), rtol=1e-5)
    assert len({tuple(row) for row in ours.round()}) == len(ours)


def test_unlike_colours_differ_more_and_an_unknown_colour_is_unlike_all():
    colours = np.array([[50, 60, 40], [52, 58, 41], [30, -20, 10], [np.nan] * 3], np.float32)
    differences = colour_differences(colours)
    assert np.isinf(differences[3, :3]).all() and not np.diag(differences).any()
    np.testing.assert_allclose(differences, differences.T)
    assert 0 < differences[0, 1] < 5 < differences[0, 2]
