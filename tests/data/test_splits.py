"""Splits: groups stay whole, classes stay in proportion, and the same seed splits the same way."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.splits import named_split, random_split, read_splits, split_groups, write_splits
from fashion_jax.system.errors import UserError

FRACTIONS = (0.7, 0.1, 0.2)


@pytest.fixture(scope="module")
def catalogue() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and groups of 3,000 rows, and their splits."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 2250, 3000))
    weights = 1 / np.arange(1, 31) ** 1.5
    labels = np.stack([rng.choice(30, 3000, p=weights / weights.sum()), rng.integers(-1, 4, 3000)], 1).astype(np.int32)
    return labels, groups, split_groups(labels, groups, FRACTIONS, 0)


def test_sizes_and_classes_are_in_proportion(catalogue):
    labels, groups, splits = catalogue
    at_random = random_split(len(labels), FRACTIONS, 1)
    assert np.allclose(np.bincount(splits) / len(splits), FRACTIONS, atol=0.01)
    errors, random_errors = [], []
    for column, number in {(c, n) for c in range(2) for n in labels[:, c].tolist() if n >= 0}:
        rows = labels[:, column] == number
        if rows.sum() >= 30:
            assert np.allclose(np.bincount(splits[rows], minlength=3) / rows.sum(), FRACTIONS, atol=0.08)
        if len(np.unique(groups[rows])) >= 3:
            assert (splits[rows] == 0).any()  # rare classes, too, are trained on
        errors.append(abs((splits[rows] == 2).mean() - 0.2))
        random_errors.append(abs((at_random[rows] == 2).mean() - 0.2))
    assert np.mean(errors) < np.mean(random_errors)


def test_no_group_falls_apart_and_the_seed_decides(catalogue):
    labels, groups, splits = catalogue
    assert len(np.unique(np.stack([groups, splits], 1), axis=0)) == len(np.unique(groups))
    assert np.array_equal(splits, split_groups(labels, groups, FRACTIONS, 0))
    assert not np.array_equal(splits, split_groups(labels, groups, FRACTIONS, 1))


def test_labels_may_all_be_missing_and_a_random_split_has_exact_sizes():
    splits = split_groups(np.full((1000, 2), -1, np.int32), np.arange(1000), FRACTIONS, 0)
    assert np.allclose(np.bincount(splits, minlength=3) / 1000, FRACTIONS, atol=0.005)
    assert np.bincount(random_split(1000, FRACTIONS, 0)).tolist() == [700, 100, 200]


def test_lists_are_written_and_read(tmp_path):
    splits, path = np.array([0, 1, 2, 0], np.int8), tmp_path / "splits.csv"
    write_splits(path, ["a", "b", "c", "d,e"], splits, np.arange(4))
    assert np.array_equal(read_splits(path, ["d,e", "b", "c", "a"]), splits[[3, 1, 2, 0]])
    with pytest.raises(UserError, match=r"lacks 1 .*'x'"):
        read_splits(path, ["a", "x"])
    path.write_text("id,side\na,train\n")
    with pytest.raises(UserError, match="columns id and split"):
        read_splits(path, ["a"])
    assert named_split(["Train", "val", "testing"], "it").tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="'holdout'"):
        named_split(["train", "holdout"], "it")
