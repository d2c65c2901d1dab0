"""Splits into train, validation and test. A product's photos stay together, and every class keeps its proportion."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.system import files
from fashion_jax.system.errors import UserError

SPLITS = ("train", "validation", "test")
# Spellings in a column or a file -> place in SPLITS.
SPLIT_NAMES = {name: number for number, names in enumerate((
    ("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing"),
)) for name in names}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How products are divided into train, validation and test."""

    # All photos of a product are always in one part. "group" also keeps near-duplicates together and every class in
    # proportion; "random" does neither. "column" takes the table's split column, which the schema names. "file:PATH"
    # takes a splits.csv (id, split).
    kind: str = "group"
    # the shares of train, validation and test, which sum to 1; for "group" and "random"
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2)
    seed: int = 0  # another seed gives another split; for "group" and "random"

    def key(self) -> str:
        """Returns the kind, with a hash of the content in place of a file's path; UserError for an unknown kind."""
        if self.kind in ("group", "random", "column"):
            return self.kind
        if not self.kind.startswith("file:"):
            raise UserError(f"--split={self.kind} is not group, random, column or file:PATH")
        path = Path(self.kind.removeprefix("file:"))
        if not path.is_file():
            raise UserError(f"there is no list of splits at {path}")
        return "file:" + files.file_digest(path)


def choose_splits(
    options: SplitOptions,
    labels: Int32[np.ndarray, "n attributes"],
    groups: Int64[np.ndarray, " n"],
    *,
    ids: list[str],
    column: list[str] | None,
) -> Int8[np.ndarray, " n"]:
    """Returns the split of every record: its place in SPLITS.

    Args:
        labels: class numbers, negative where missing.
        groups: photos of one product, and near-duplicates, have equal numbers.
        ids: of the products; photos of one product share theirs.
        column: the table's split column; None where there is none.

    Raises:
        UserError: there is no split column, a name in it or in the file is unknown, the file lacks a product, no
            product is left for training, or fractions leave a part without a product.
    """
    products, numbers = np.unique(np.array(ids, dtype=str), return_inverse=True)
    numbers = numbers.reshape(-1)
    if options.kind == "group":
        splits = split_groups(labels, groups, options.fractions, options.seed)
    elif options.kind == "random":
        # Products are numbered as they come, so that the split does not change with the spelling of ids.
        first = np.unique(numbers, return_index=True)[1]
        place = np.argsort(np.argsort(first))
        splits = random_split(len(products), options.fractions, options.seed)[place[numbers]]
    elif options.kind == "column":
        if column is None:
            raise UserError("--split=column needs a schema that names split_column")
        splits = named_split(column, "the split column")
    else:
        splits = read_splits(Path(options.kind.removeprefix("file:")), ids)
    counts = [len(np.unique(numbers[splits == part])) for part in range(len(SPLITS))]
    if options.kind in ("group", "random") and not all(counts):
        units = len(np.unique(groups)) if options.kind == "group" else len(products)
        found = ", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, counts, strict=True))
        what = f" in {units:,} groups of near-duplicates, which stay together" if units < len(products) else ""
        raise UserError(
            f"the split leaves a part empty: {found} of {len(products):,} products{what}, with the shares "
            f"{', '.join(f'{share:g}' for share in options.fractions)} (--split-fractions); add products, or "
            "change the shares"
        )
    if not counts[0]:
        raise UserError(
            "the split puts no product into the training part; write train into the split column (or file) for "
            "some products"
        )
    return splits


def split_groups(
    labels: Int32[np.ndarray, "n attributes"], groups: Int64[np.ndarray, " n"], fractions: tuple[float, ...], seed: int
) -> Int8[np.ndarray, " n"]:
    """Splits whole groups so that each class of each attribute keeps its proportion.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) over groups: the rarest class comes first, and each
    of its groups goes to the split that still lacks most of the class.

    Args:
        labels: class numbers, negative where missing.
        groups: rows with the same number stay together.
        fractions: shares of train, validation and test, which sum to 1.
        seed: of the order among equals.

    Returns:
        0, 1 or 2 for each row: its place in SPLITS.
    """
    rng = np.random.default_rng(seed)
    names, group = np.unique(groups, return_inverse=True)
    # One number for each (attribute, class), and a last one that every row has, for the sizes of the splits.
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
            split = int(best[np.argmax(wanted[best, -1])])
            chosen[place] = split
            values = numbers[members[place]]
            np.subtract.at(wanted[split], values[values >= 0], 1)
    return chosen[group]


def random_split(count: int, fractions: tuple[float, ...], seed: int) -> Int8[np.ndarray, " n"]:
    """Splits products one by one. Near-duplicates may land in two splits, which makes scores look better."""
    ends = np.rint(np.cumsum(fractions) * count).astype(int)
    splits = np.empty(count, np.int8)
    for number, part in enumerate(np.split(np.random.default_rng(seed).permutation(count), ends[:-1])):
        splits[part] = number
    return splits


def named_split(values: list[str], where: str) -> Int8[np.ndarray, " n"]:
    """Reads split names such as train, val or test; UserError for others, with `where` they stand."""
    splits = [SPLIT_NAMES.get(value.strip().lower(), -1) for value in values]
    if -1 in splits:
        wrong = values[splits.index(-1)]
        raise UserError(f"{where} holds {wrong!r} for a split; write train, validation or test in every row")
    return np.array(splits, np.int8)


def write_splits(path: Path, ids: list[str], splits: Int8[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]) -> None:
    """Writes splits.csv: id, split, group of each product."""
    rows = dict.fromkeys(zip(ids, [SPLITS[split] for split in splits], groups.tolist(), strict=True))
    files.write_text(path, files.format_csv([("id", "split", "group"), *rows]))


def read_splits(path: Path, ids: list[str]) -> Int8[np.ndarray, " n"]:
    """Reads the splits of products from a splits.csv; UserError where the file cannot be read or lacks a product."""
    try:
        table = {row["id"]: row["split"] for row in files.read_csv(path)}
    except OSError as error:
        raise UserError(f"the splits {path} cannot be read: {error.strerror}") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no list of splits; it needs the columns id and split") from error
    missing = [i for i in ids if i not in table]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} of the catalogue's products, among them {missing[:3]}")
    return named_split([table[i] for i in ids], str(path))
