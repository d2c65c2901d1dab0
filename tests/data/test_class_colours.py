"""Mean colours of classes, and which of them look alike."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.class_colours import class_colours, colour_differences, similar_colours
from fashion_jax.data.photos import decode_photo
from fashion_jax.system.cielab import product_pixels


def test_means_are_those_of_the_training_photos(prepared):
    ours = class_colours(prepared, "colour")
    column = prepared.attributes.index("colour")
    rows = prepared.indices("train")
    for number in range(len(prepared.vocabularies["colour"])):
        own = rows[prepared.labels[rows, column] == number]
        photos = [decode_photo(prepared.read_photo(int(row)), 80, 60) for row in own]
        np.testing.assert_allclose(ours[number], np.mean([product_pixels(p).mean(0) for p in photos], 0), rtol=1e-5)
    assert len({tuple(row) for row in ours.round()}) == len(ours)


def test_similar_colours_share_by_their_difference():
    colours = np.array([[50, 60, 40], [52, 58, 41], [30, -20, 10], [np.nan] * 3], np.float32)
    differences = colour_differences(colours)
    assert np.isinf(differences[3, :3]).all() and not np.diag(differences).any()
    np.testing.assert_allclose(differences, differences.T)
    shares = similar_colours(differences, 5.0)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert shares[3, 3] == 1  # of the unknown colour nothing is known
    near = np.exp(-differences[0, 1] / 5)
    assert shares[0, 0] == pytest.approx(1 / (1 + near), rel=1e-4) and shares[0, 3] == 0
    assert shares[0, 1] == pytest.approx(near / (1 + near), rel=1e-4)
    expected = np.exp(-differences[2, 0] / 20) / (1 + np.exp(-differences[2, :2] / 20).sum())
    assert similar_colours(differences, 20.0)[2, 0] == pytest.approx(expected, rel=1e-5)


def test_a_colour_that_nothing_looks_like_keeps_its_probability():
    differences = np.array([[0, 60, 62], [60, 0, 2], [62, 2, 0]], np.float32)
    shares = similar_colours(differences, 5.0)
    assert shares[0, 0] > 0.999 and shares[1, 2] > 0.4
