"""From a catalogue to records: read, repair, group, split, write; one atomic rename at the end."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.data.catalog import Catalog, Product, Rejected, open_catalog
from fashion_jax.data.catalog_report import make_report
from fashion_jax.data.corrections import escape_cell
from fashion_jax.data.duplicates import find_groups
from fashion_jax.data.records import FORMAT, Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import MISSING, Schema, save_schema
from fashion_jax.data.splits import SPLITS, named_split, random_split, read_splits, split_groups, write_splits
from fashion_jax.data.staging import Staged, stage_photos
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

_MIN_PRODUCTS = 3  # one for each split
_CONTENT = {"fashion_products", "manifest.json", "products.csv", "quarantine.csv", "schema.json", "splits.csv"}


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    schema: Schema | None = None,
    max_side: int = 256,
    max_bad_fraction: float = 0.05,
    split: str = "group",
    split_fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    split_seed: int = 0,
    corrections: str | Path | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    before_replacing: Callable[[Prepared, Prepared], None] | None = None,
) -> Prepared:
    """Writes a catalogue's records, or finds them there already.

    A killed preparation goes on where it was. Beside the records stand `schema.json`, `splits.csv`,
    `quarantine.csv` (row, id, reason of every row that was left out), `products.csv` and `manifest.json`.

    Args:
        source: anything that `open_catalog` reads.
        out: folder for the records; an empty, absent, or earlier prepared one.
        schema: how to read the table; None: known or inferred.
        max_side: pixels; larger photos are scaled down.
        max_bad_fraction: share of rows without a usable photo or row above which nothing is written.
        split: "group", "random", "column" (the schema's), or "file:PATH" (a splits.csv).
        split_fractions: of train, validation and test.
        split_seed: of the split.
        corrections: a table of corrected labels, such as an audit's findings after a person has been over them.
        num_workers: threads; None for one per core.
        progress: whether to show a bar.
        before_replacing: called with the records that are there and those that are to take their place, where they
            differ; what it raises leaves the old ones there.

    Raises:
        UserError: the source cannot be read, too many rows are bad, an option is out of range, or `out` holds
            something else.
    """
    begin, out = time.monotonic(), Path(out).resolve()
    _check_out(out)
    _check_options(max_side, max_bad_fraction, split_seed)
    fractions = _check_fractions(split_fractions)
    catalog = open_catalog(source, schema, corrections=corrections)
    options = {
        "max_side": max_side,
        "split": _split_key(split),
        "fractions": list(fractions),
        "seed": split_seed,
        "format": FORMAT,
    }
    source_stamp = catalog.stamp()  # asks the system about every photo
    stamp = hashlib.sha256(json.dumps([source_stamp, options]).encode()).hexdigest()
    before = None
    if is_prepared(out):
        with contextlib.suppress(UserError):  # damaged or of another version: made again
            before = open_prepared(out)
            if before.stamp == stamp:
                return before
    _check_enough(catalog, max_bad_fraction)
    with _locked(out):
        files.remove_stale(out)
        folder = out.parent / f".{out.name}.staging"
        key = json.dumps([source_stamp, max_side, FORMAT])
        try:
            staged = stage_photos(catalog, folder, key, max_side=max_side, num_workers=num_workers, progress=progress)
            _quarantine_photos(catalog, staged)
            _check_enough(catalog, max_bad_fraction)
            records = _Records(catalog, staged, split, fractions, split_seed)
            with files.replace_directory(out) as aside:
                _write(aside, catalog, staged, records, stamp, options, begin)
                if before is not None and before_replacing is not None:
                    before_replacing(before, open_prepared(aside))
        except UserError:
            # A source that is refused leaves nothing behind; a kill or a full disk leaves the work that is done.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    return open_prepared(out)


class _Records:
    """The usable rows with their labels, groups and sides, in the order of the records."""

    def __init__(
        self, catalog: Catalog, staged: Staged, split: str, fractions: tuple[float, float, float], seed: int
    ) -> None:
        # An attribute without a single class cannot be learnt, and is left out.
        self.vocabularies: Mapping[str, tuple[str, ...]] = {n: v for n, v in catalog.vocabularies.items() if v}
        if not self.vocabularies:
            raise UserError(f"{catalog.source} has no attribute with a class; there is nothing to learn")
        products, self._staged = catalog.products, staged
        numbers = {name: {c: i for i, c in enumerate(v)} for name, v in self.vocabularies.items()}
        places = [(i, a.name) for i, a in enumerate(catalog.schema.attributes) if a.name in self.vocabularies]
        self.vocabularies = {name: self.vocabularies[name] for _, name in places}
        labels = np.array(
            [[numbers[n].get(p.labels[i] or "", MISSING) for i, n in places] for p in products], np.int32
        ).reshape(len(products), len(places))
        rows = [p.row for p in products]
        self.digests = [staged.digests[row] for row in rows]
        groups = find_groups(
            [p.id for p in products],
            [p.title for p in products],
            self.digests,
            np.array([staged.hashes[row] for row in rows], np.uint64),
            np.array([staged.thumbnails[row] for row in rows], np.uint8),
        )
        sides = _choose_split(catalog, labels, groups, split, fractions, seed)
        order = np.argsort(sides, kind="stable")
        self.products: list[Product] = [products[i] for i in order]
        self.labels, self.groups, self.sides = labels[order], groups[order], sides[order]
        self.digests = [self.digests[i] for i in order]

    def splits(self) -> dict[str, int]:
        counts = {name: int((self.sides == number).sum()) for number, name in enumerate(SPLITS)}
        return {name: count for name, count in counts.items() if count}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for i in np.flatnonzero(self.sides == SPLITS.index(split))[start:stop]:
            product = self.products[i]
            yield {
                "id": product.id,
                "title": product.title,
                "image": self._staged.read(product.row),
                "labels": dict(zip(self.vocabularies, self.labels[i].tolist(), strict=True)),
            }


def _write(
    aside: Path,
    catalog: Catalog,
    staged: Staged,
    records: _Records,
    stamp: str,
    options: dict[str, Any],
    begin: float,
) -> None:
    from fashion_jax.data.builder import write_records

    save_schema(catalog.schema, aside / "schema.json")
    write_splits(aside / "splits.csv", [p.id for p in records.products], records.sides, records.groups)
    files.write_text(aside / "quarantine.csv", format_quarantine(catalog.rejected))
    table = _format_products(records)
    files.write_text(aside / "products.csv", table)
    write_records(records, aside)
    report = make_report(
        catalog,
        staged.repairs,
        vocabularies=records.vocabularies,
        labels=records.labels,
        groups=records.groups,
        sides=records.sides,
        digests=records.digests,
        seconds=time.monotonic() - begin,
    )
    manifest = {
        "format": FORMAT,
        "fingerprint": _fingerprint(records, table, options["max_side"]),
        "stamp": stamp,
        "source": Path(catalog.source).name,
        "options": options,
        "num_products": len(records.products),
        "schema": catalog.schema.to_dict(),
        "vocabularies": {name: list(classes) for name, classes in records.vocabularies.items()},
        "report": report,
    }
    files.write_json(aside / "manifest.json", manifest)


def _fingerprint(records: _Records, table: str, max_side: int) -> str:
    """Returns a hash of all that records consist of; a photo is what its bytes and `max_side` make of it."""
    content = [FORMAT, max_side, table, records.digests, {n: list(v) for n, v in records.vocabularies.items()}]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def format_quarantine(rejected: Iterable[Rejected]) -> str:
    """Returns the CSV of rows that were left out: row, id, reason; no cell is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "id", "reason"])
    writer.writerows((item.row, escape_cell(item.id), escape_cell(item.reason)) for item in rejected)
    return text.getvalue()


def _format_products(records: _Records) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "id", "title", "split", "group", *(f"label_{name}" for name in records.vocabularies)])
    classes = list(records.vocabularies.values())
    for product, side, group, labels in zip(
        records.products, records.sides, records.groups, records.labels.tolist(), strict=True
    ):
        names = [classes[i][label] if label >= 0 else "" for i, label in enumerate(labels)]
        writer.writerow([product.row, product.id, product.title, SPLITS[side], group, *names])
    return text.getvalue()


def _quarantine_photos(catalog: Catalog, staged: Staged) -> None:
    """Moves products whose photo is bad from the usable to the rejected rows."""
    bad = [p for p in catalog.products if p.row in staged.bad]
    catalog.rejected += [Rejected(p.row, p.id, staged.bad[p.row]) for p in bad]
    catalog.rejected.sort(key=lambda item: item.row)
    catalog.products = [p for p in catalog.products if p.row not in staged.bad]


def _check_enough(catalog: Catalog, max_bad_fraction: float) -> None:
    """Raises UserError when too many rows are unusable; rows that the schema drops on purpose do not count."""
    bad = len(catalog.rejected) - sum(catalog.dropped.values())
    if bad > max_bad_fraction * max(catalog.num_rows, 1):
        outside = [r for r in catalog.rejected if not r.by_schema]
        examples = "; ".join(f"row {r.row} (id {r.id!r}): {r.reason}" for r in outside[:5])
        raise UserError(
            f"{bad:,} of {catalog.num_rows:,} rows of {catalog.source} are unusable ({bad / catalog.num_rows:.1%}, "
            f"more than --max-bad-fraction={max_bad_fraction}), for instance {examples}"
        )
    if len(catalog.products) < _MIN_PRODUCTS:
        raise UserError(f"{catalog.source} has {len(catalog.products)} usable products; at least 3 are needed")


def _choose_split(
    catalog: Catalog,
    labels: np.ndarray,
    groups: np.ndarray,
    split: str,
    fractions: tuple[float, float, float],
    seed: int,
) -> np.ndarray:
    products = catalog.products
    if split == "group":
        sides = split_groups(labels, groups, fractions, seed)
    elif split == "random":
        sides = random_split(len(products), fractions, seed)
    elif split == "column":
        if not catalog.schema.split_column:
            raise UserError("split=column needs a schema that names split_column")
        sides = named_split([p.split for p in products], f"the column {catalog.schema.split_column!r}")
    else:
        sides = read_splits(Path(split.removeprefix("file:")), [p.id for p in products])
    if not (sides == 0).any():
        raise UserError("the split leaves no products for training")
    return sides


def _split_key(split: str) -> str:
    """Returns what the split depends on: its name, and the content of its file."""
    if split in ("group", "random", "column"):
        return split
    if not split.startswith("file:"):
        raise UserError(f"--split={split} is not group, random, column or file:PATH")
    path = Path(split.removeprefix("file:"))
    if not path.is_file():
        raise UserError(f"there is no list of splits at {path}")
    return "file:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _check_out(out: Path) -> None:
    if out.is_dir():
        odd = sorted({path.name for path in out.iterdir()} - _CONTENT)
        if odd or (any(out.iterdir()) and not is_prepared(out)):
            raise UserError(
                f"{out} holds something else than records{f', such as {odd[0]}' if odd else ''}; give a new folder"
            )
    elif out.exists():
        raise UserError(f"{out} is a file; give a new folder")
    if os.path.ismount(out) or Path.cwd().is_relative_to(out):
        raise UserError(f"{out} cannot be replaced in one step; give a folder inside of it, such as {out / 'records'}")


def _check_options(max_side: int, max_bad_fraction: float, split_seed: int) -> None:
    for name, value, low, high in (
        ("max-side", max_side, 16, 8192),
        ("max-bad-fraction", max_bad_fraction, 0, 1),
        ("split-seed", split_seed, 0, 2**32 - 1),
    ):
        if not low <= value <= high:  # false for NaN too
            raise UserError(f"--{name}={value} is out of range: expected {low} to {high}")


def _check_fractions(fractions: tuple[float, ...]) -> tuple[float, float, float]:
    if len(fractions) != 3 or not all(0 < f < 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"the split fractions {fractions} are not three shares between 0 and 1 that sum to 1")
    return fractions[0], fractions[1], fractions[2]


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lets one preparation at a time write a folder; the operating system lets go of the lock however it ends."""
    lock = out.parent / f".{out.name}.lock"
    busy = f"another preparation is writing {out}; wait for it"
    with files.hold_lock(lock, what=str(out.parent), busy=busy):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
