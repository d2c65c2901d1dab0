"""Finds near-duplicates, so that a split cannot put one of them into training and the other into the test.

Two records are near-duplicates if their photos have identical bytes, if their photos look alike (candidates come from
a perceptual hash, and the distance of their pixels decides), or if they have the same title and neighbouring ids, which
is what shops give to several photos of one product. Photos of one product are in one group too.
"""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64
from PIL import Image

THUMBNAIL = (20, 15)  # height, width
_BITS_APART = 12  # of 128 hash bits
# Thumbnails of one product differ by 1.5 grey levels on average, and hardly anywhere by more than 16. On Kaggle's small
# photos this joins 2,157 photos, of which 1,259 have identical bytes. Looser limits join hundreds of black watches.
_MEAN_APART = 1.5
_MOST_APART = 16
_WINDOW = 12  # each photo is compared with so many neighbours in the order of brightness
_IDS_APART = 10
# A photo that more products share shows none of them, if they have other photos: it is a size chart or a logo.
_MOST_PRODUCTS = 10


def perceptual_hash(image: UInt8[np.ndarray, "height width 3"]) -> UInt64[np.ndarray, "2"]:
    """Returns 128 bits that small changes of a photo do not change: signs of brightness differences on an 8x8 grid.

    The difference hash (Krawetz 2013), along rows and along columns.
    """
    grey = Image.fromarray(image).convert("L")
    across = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    down = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), np.int16)
    # Two grey levels of tolerance, so that the noise of compression does not change the bits of a flat background.
    bits = [np.diff(across, axis=1) > 2, np.diff(down, axis=0) > 2]
    return np.array([np.packbits(b).view(np.uint64)[0] for b in bits], np.uint64)


def thumbnail(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "20 15 3"]:
    """Returns a small copy; the pixels of two such copies decide whether photos look alike."""
    small = Image.fromarray(image).resize((THUMBNAIL[1], THUMBNAIL[0]), Image.Resampling.BOX)
    return np.asarray(small)


def find_groups(
    ids: list[str],
    titles: list[str],
    digests: list[str],
    hashes: UInt64[np.ndarray, "n 2"],
    thumbnails: UInt8[np.ndarray, "n 20 15 3"],
) -> tuple[Int64[np.ndarray, " n"], int]:
    """Numbers the groups of near-duplicates.

    Args:
        ids: of the products; only ids that are whole numbers can be neighbours.
        titles: of the products; an empty title equals no other.
        digests: of the photos' bytes.
        hashes: from `perceptual_hash`.
        thumbnails: from `thumbnail`.

    Returns:
        The group of each record: the smallest place in it. And the number of photos that many products share.
    """
    alike = np.concatenate([equal_pairs(digests), similar_pairs(hashes, thumbnails)])
    products = np.unique(np.array(ids, dtype=str), return_inverse=True)[1].reshape(-1)
    shared = _shared_photos(_join(len(ids), alike), products)
    alike = alike[~shared[alike].any(1)]
    groups = _join(len(ids), np.concatenate([alike, equal_pairs(ids), title_pairs(ids, titles)]))
    return groups, int(shared.sum())


def _shared_photos(looks: Int64[np.ndarray, " n"], products: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Returns which photos more than 10 products share, of products that have photos of another look.

    Args:
        looks: equal for photos that look alike.
        products: equal for photos of one product.
    """
    pairs = np.unique(np.stack([looks, products], 1), axis=0)
    num_products = np.bincount(pairs[:, 0], minlength=len(looks))  # by look
    num_looks = np.bincount(pairs[:, 1], minlength=products.max(initial=0) + 1)  # by product
    return np.asarray((num_products[looks] > _MOST_PRODUCTS) & (num_looks[products] > 1))


def equal_pairs(values: list[str]) -> Int64[np.ndarray, "pairs 2"]:
    """Returns (first row, other row) for every row whose value an earlier row has; an empty value equals no other."""
    first: dict[str, int] = {}
    pairs = [(first[v], row) for row, v in enumerate(values) if v and first.setdefault(v, row) != row]
    return np.array(pairs, np.int64).reshape(-1, 2)


def title_pairs(ids: list[str], titles: list[str]) -> Int64[np.ndarray, "pairs 2"]:
    """Returns pairs of rows with one title whose ids are neighbours and at most 10 apart."""
    rows = [row for row, (i, t) in enumerate(zip(ids, titles, strict=True)) if t and i.isdecimal() and len(i) < 18]
    rows.sort(key=lambda row: (titles[row].casefold(), int(ids[row])))
    pairs = [
        (a, b)
        for a, b in itertools.pairwise(rows)
        if titles[a].casefold() == titles[b].casefold() and int(ids[b]) - int(ids[a]) <= _IDS_APART
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def similar_pairs(
    hashes: UInt64[np.ndarray, "n 2"], thumbnails: UInt8[np.ndarray, "n 20 15 3"]
) -> Int64[np.ndarray, "pairs 2"]:
    """Returns pairs of photos that look alike.

    Two hashes that differ in at most 12 of 128 bits mostly agree in one of their eight parts of 16 bits. Rows that
    agree in a part are sorted by brightness, which hardly differs between near-duplicates, and compared with their next
    neighbours. The work grows as n log n.
    """
    count = len(hashes)
    if count < 2:
        return np.empty((0, 2), np.int64)
    pixels = thumbnails.reshape(count, -1).astype(np.int16)
    brightness = pixels.mean(1)
    blocks = np.ascontiguousarray(hashes).view(np.uint16).reshape(count, 8)
    found = []
    for block in blocks.T:
        order = np.lexsort((brightness, block))
        for gap in range(1, min(_WINDOW, count - 1) + 1):
            a, b = order[:-gap], order[gap:]
            close = (block[a] == block[b]) & (np.abs(brightness[a] - brightness[b]) <= _MEAN_APART)
            a, b = a[close], b[close]
            near = np.bitwise_count(hashes[a] ^ hashes[b]).sum(1) <= _BITS_APART
            found.append(np.stack([a[near], b[near]], 1))
    pairs = np.unique(np.sort(np.concatenate(found), 1), axis=0)
    chunks = np.array_split(pairs, max(1, len(pairs) // 50_000))
    return pairs[np.concatenate([_alike(pixels[c[:, 0]], pixels[c[:, 1]]) for c in chunks])]


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    apart = np.abs(a - b)
    return (apart.mean(1) <= _MEAN_APART) & (np.percentile(apart, 98, axis=1) <= _MOST_APART)


def _join(count: int, pairs: Int64[np.ndarray, "pairs 2"]) -> Int64[np.ndarray, " n"]:
    """Returns the connected component of each row, by union-find; its number is its smallest row."""
    parent = list(range(count))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in pairs.tolist():
        left, right = find(a), find(b)
        parent[max(left, right)] = min(left, right)
    return np.array([find(row) for row in range(count)], np.int64)
