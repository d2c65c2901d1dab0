"""Mean colours of classes, and how much they differ."""

from __future__ import annotations

import numpy as np

from fashion_jax.data.class_colours import class_colours, colour_differences
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


def test_unlike_colours_differ_more_and_an_unknown_colour_is_unlike_all():
    colours = np.array([[50, 60, 40], [52, 58, 41], [30, -20, 10], [np.nan] * 3], np.float32)
    differences = colour_differences(colours)
    assert np.isinf(differences[3, :3]).all() and not np.diag(differences).any()
    np.testing.assert_allclose(differences, differences.T)
    assert 0 < differences[0, 1] < 5 < differences[0, 2]
