"""Who trains and who judges: splits that keep near-duplicates together and every class in proportion."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.system import files
from fashion_jax.system.errors import UserError

SPLITS = ("train", "validation", "test")
_NAMES = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}


def split_groups(
    labels: Int32[np.ndarray, "n attributes"],
    groups: Int64[np.ndarray, " n"],
    fractions: tuple[float, float, float],
    seed: int,
) -> Int8[np.ndarray, " n"]:
    """Splits whole groups, each class of each attribute in proportion.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) over groups: the rarest class first, each of its
    groups to the split that still lacks most of it.

    Args:
        labels: class numbers, negative where missing.
        groups: rows with the same number stay together.
        fractions: shares of train, validation and test, which sum to 1.
        seed: of the order among equals.

    Returns:
        0, 1 or 2 per row: its place in SPLITS.
    """
    rng = np.random.default_rng(seed)
    names, group = np.unique(groups, return_inverse=True)
    # One number per (attribute, class), and a last one that every row has, for the sizes of the splits.
    width = labels.max(initial=0) + 1
    flat = np.where(labels >= 0, labels + width * np.arange(labels.shape[1]), -1)
    flat = np.concatenate([flat, np.full((len(labels), 1), width * labels.shape[1])], 1)
    used, numbers = np.unique(flat, return_inverse=True)
    numbers = numbers.reshape(flat.shape) - int(used[0] == -1)  # missing becomes -1 and the rest 0, 1, ...
    counts = np.bincount(numbers[numbers >= 0])
    wanted = np.asarray(fractions)[:, None] * counts[None, :]

    members: list[list[int]] = [[] for _ in names]
    for row, place in enumerate(group.tolist()):
        members[place].append(row)
    in_class: list[list[int]] = [[] for _ in counts]
    for place, rows in enumerate(members):
        for number in np.unique(numbers[rows]):
            if number >= 0:
                in_class[number].append(place)
    chosen = np.full(len(names), -1, np.int8)
    for number in np.argsort(counts, kind="stable"):
        places = np.array(in_class[number])
        # Large groups first, while there is room for them everywhere; the order among equals is random.
        places = places[rng.permutation(len(places))]
        places = places[np.argsort([-len(members[p]) for p in places], kind="stable")]
        for place in places:
            if chosen[place] >= 0:
                continue
            lack = wanted[:, number]
            best = np.flatnonzero(lack >= lack.max() - 1e-9)
            side = int(best[np.argmax(wanted[best, -1])])
            chosen[place] = side
            values = numbers[members[place]]
            np.subtract.at(wanted[side], values[values >= 0], 1)
    return chosen[group]


def random_split(count: int, fractions: tuple[float, float, float], seed: int) -> Int8[np.ndarray, " n"]:
    """Splits rows one by one; near-duplicates may fall apart, so scores will flatter."""
    ends = np.rint(np.cumsum(fractions) * count).astype(int)
    sides = np.empty(count, np.int8)
    for number, part in enumerate(np.split(np.random.default_rng(seed).permutation(count), ends[:-1])):
        sides[part] = number
    return sides


def named_split(values: list[str], what: str) -> Int8[np.ndarray, " n"]:
    """Reads split names such as train, val or test; UserError for others."""
    sides = [_NAMES.get(value.strip().lower(), -1) for value in values]
    if -1 in sides:
        wrong = values[sides.index(-1)]
        raise UserError(f"{what} holds {wrong!r} for a split; write train, validation or test in every row")
    return np.array(sides, np.int8)


def write_splits(path: Path, ids: list[str], sides: Int8[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]) -> None:
    """Writes splits.csv: id, split, group."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "split", "group"])
    writer.writerows(zip(ids, [SPLITS[s] for s in sides], groups.tolist(), strict=True))
    files.write_text(path, text.getvalue())


def read_splits(path: Path, ids: list[str]) -> Int8[np.ndarray, " n"]:
    """Reads the splits of products from a splits.csv; UserError when it lacks one of them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        table = {row["id"]: row["split"] or "" for row in rows}
    except OSError as error:
        raise UserError(f"the splits {path} cannot be read: {error.strerror}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of splits; it needs the columns id and split") from error
    missing = [i for i in ids if i not in table]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} of the catalogue's products, among them {missing[:3]}")
    return named_split([table[i] for i in ids], str(path))
