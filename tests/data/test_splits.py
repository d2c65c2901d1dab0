"""Splits: groups stay whole, classes stay in proportion, and the same seed splits the same way."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.splits import named_split, random_split, read_splits, split_groups, write_splits
from fashion_jax.system.errors import UserError

FRACTIONS = (0.7, 0.1, 0.2)


def catalogue(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, count * 3 // 4, count))
    weights = 1 / np.arange(1, 31) ** 1.5
    labels = np.stack([rng.choice(30, count, p=weights / weights.sum()), rng.integers(-1, 4, count)], 1)
    return labels.astype(np.int32), groups


def test_no_group_falls_apart():
    labels, groups = catalogue()
    sides = split_groups(labels, groups, FRACTIONS, 0)
    for group in np.unique(groups):
        assert len(set(sides[groups == group])) == 1


def test_sizes_and_classes_are_in_proportion():
    labels, groups = catalogue()
    sides = split_groups(labels, groups, FRACTIONS, 0)
    for side, share in enumerate(FRACTIONS):
        assert abs((sides == side).mean() - share) < 0.01
        for column in range(labels.shape[1]):
            for number in range(labels[:, column].max() + 1):
                rows = labels[:, column] == number
                if rows.sum() >= 30:
                    assert abs((sides[rows] == side).mean() - share) < 0.08
    random_error, our_error = [], []
    for number in range(30):
        rows = labels[:, 0] == number
        if rows.any():
            our_error.append(abs((sides[rows] == 2).mean() - 0.2))
            random_error.append(abs((random_split(len(labels), FRACTIONS, 1)[rows] == 2).mean() - 0.2))
    assert np.mean(our_error) < np.mean(random_error)


def test_rare_classes_are_trained_on():
    labels, groups = catalogue()
    sides = split_groups(labels, groups, FRACTIONS, 0)
    for number in np.unique(labels[:, 0]):
        rows = labels[:, 0] == number
        if len(np.unique(groups[rows])) >= 3:
            assert (sides[rows] == 0).any()


def test_seed_decides_and_nothing_else():
    labels, groups = catalogue()
    first = split_groups(labels, groups, FRACTIONS, 0)
    assert np.array_equal(first, split_groups(labels, groups, FRACTIONS, 0))
    assert not np.array_equal(first, split_groups(labels, groups, FRACTIONS, 1))


def test_labels_may_all_be_missing():
    sides = split_groups(np.full((1000, 2), -1, np.int32), np.arange(1000), FRACTIONS, 0)
    assert np.allclose(np.bincount(sides, minlength=3) / 1000, FRACTIONS, atol=0.005)


def test_random_split_has_exact_sizes():
    assert np.bincount(random_split(1000, FRACTIONS, 0)).tolist() == [700, 100, 200]


def test_lists_are_written_and_read(tmp_path):
    sides = np.array([0, 1, 2, 0], np.int8)
    path = tmp_path / "splits.csv"
    write_splits(path, ["a", "b", "c", "d,e"], sides, np.arange(4))
    assert np.array_equal(read_splits(path, ["d,e", "b", "c", "a"]), sides[[3, 1, 2, 0]])
    with pytest.raises(UserError, match=r"lacks 1 .*'x'"):
        read_splits(path, ["a", "x"])
    path.write_text("id,side\na,train\n")
    with pytest.raises(UserError, match="columns id and split"):
        read_splits(path, ["a"])


def test_names_of_splits():
    assert named_split(["Train", "val", "testing"], "it").tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="'holdout'"):
        named_split(["train", "holdout"], "it")
