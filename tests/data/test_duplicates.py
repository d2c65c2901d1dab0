"""Near-duplicates: twins are found, strangers are not, and the order of rows does not matter."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fashion_jax.data.drawn.catalogue import draw, plan
from fashion_jax.data.duplicates import find_groups, perceptual_hash, similar_pairs, thumbnail, title_pairs
from fashion_jax.data.photos import decode_photo, encode_photo


def photos(count: int = 150) -> list[np.ndarray]:
    specs = [s for s in plan(600, 3) if not s.copy_of and s.shift == (0.0, 0.0)]
    return [draw(spec) for spec in specs[:count]]


def groups_of(images: list[np.ndarray], **kwargs) -> np.ndarray:
    count = len(images)
    ids, digests = [str(i * 100) for i in range(count)], [str(i) for i in range(count)]
    hashes = np.array([perceptual_hash(i) for i in images])
    given = {"ids": ids, "titles": [""] * count, "digests": digests, **kwargs}
    return find_groups(**given, hashes=hashes, thumbnails=np.array([thumbnail(i) for i in images]))[0]


def test_twins_are_found_and_strangers_stay_apart():
    images = photos()
    assert np.array_equal(groups_of(images), np.arange(len(images)))
    twins = [decode_photo(encode_photo(image, 85), 80, 60) for image in images]
    small = [np.asarray(Image.fromarray(i).resize((45, 60)).resize((60, 80))) for i in images[:60]]
    encoded, scaled = groups_of([*images, *twins]), groups_of([*images[:60], *small])
    assert (encoded[: len(images)] == encoded[len(images) :]).mean() > 0.95
    assert len(np.unique(encoded)) >= len(images) - 5
    assert (scaled[:60] == scaled[60:]).mean() > 0.8


def test_another_colour_is_another_product():
    image = photos(1)[0].astype(int)
    other = np.clip(image[..., ::-1] * 0.9, 0, 255).astype(np.uint8)
    assert len(set(groups_of([image.astype(np.uint8), other]))) == 2


def test_bytes_and_titles_join_and_links_chain():
    assert groups_of(photos(3), digests=["x", "y", "x"]).tolist() == [0, 1, 0]
    ids = ["10", "20", "31", "500", "x", "505", "12"]
    titles = ["Red Shirt", "red shirt", "Red Shirt", "Red Shirt", "Red Shirt", "Blue Shirt", ""]
    assert sorted(map(tuple, title_pairs(ids, titles).tolist())) == [(0, 1)]
    assert groups_of(photos(7), ids=ids, titles=titles).tolist() == [0, 0, 2, 3, 4, 5, 6]
    assert groups_of(photos(4), ids=["1", "9", "17", "40"], titles=["a"] * 4).tolist() == [0, 0, 0, 3]


def test_order_of_rows_does_not_matter():
    images = photos(40)
    images += [decode_photo(encode_photo(image, 70), 80, 60) for image in images[:20]]
    first = groups_of(images)
    order = np.random.default_rng(0).permutation(len(images))
    second = groups_of([images[i] for i in order])
    same = first[:, None] == first[None]
    assert np.array_equal(same[np.ix_(order, order)], second[:, None] == second[None])


def test_few_photos():
    assert similar_pairs(np.zeros((1, 2), np.uint64), np.zeros((1, 20, 15, 3), np.uint8)).shape == (0, 2)
    assert groups_of(photos(1)).tolist() == [0]
