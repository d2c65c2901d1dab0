"""From a catalogue to records: read, repair, find near-duplicates, split, write; then one rename puts them in place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.catalog import Catalog, Record, Rejected, open_catalog
from fashion_jax.data.catalog_report import describe_split, make_report
from fashion_jax.data.duplicates import find_groups
from fashion_jax.data.records import FORMAT, LONGEST_NAME, LONGEST_TEXT, Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import MISSING, Schema, save_schema
from fashion_jax.data.splits import SPLITS, SplitOptions, choose_splits, write_splits
from fashion_jax.data.staging import Staged, stage_photos
from fashion_jax.data.tags import split_tags, tag_text, tag_vectors
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UnreadableError, UserError

_SHOWN = 100  # characters of a text that is too long
_MIN_PRODUCTS = 3  # one for each split
_CONTENT = {"fashion_products", "manifest.json", "products.csv", "quarantine.csv", "schema.json", "splits.csv"}


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How a catalogue becomes records."""

    # how to read the table; None: the known schema, or one that is inferred from the table
    schema: Schema | None = None
    max_side: int = 256  # longest side of a stored photo, in pixels; larger photos are scaled down
    max_bad_fraction: float = 0.05  # if a larger share of the rows cannot be used, nothing is written
    # how the products are divided into train, validation and test
    split: SplitOptions = field(default_factory=SplitOptions)
    # path of a table of corrected labels, such as an audit's findings that a person has edited
    corrections: str | Path | None = None

    def check(self) -> None:
        """Raises UserError where a number is out of range."""
        for name, value, low, high in (
            ("max-side", self.max_side, 16, 8192),
            ("max-bad-fraction", self.max_bad_fraction, 0, 1),
            ("split-seed", self.split.seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:  # NaN is outside too
                raise UserError(f"--{name}={value} is out of range: expected {low} to {high}")
        fractions = self.split.fractions
        if len(fractions) != 3 or not all(0 < f < 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
            raise UserError(f"--split-fractions={fractions} must be three shares between 0 and 1 that sum to 1")


def prepare(
    source: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    progress: bool = True,
    before_replacing: Callable[[Prepared], None] | None = None,
) -> Prepared:
    """Writes a catalogue's records into a folder. If the folder holds these records already, they are opened.

    Records that are damaged are made anew. Records that cannot be opened are not put in place.

    A preparation that was killed goes on where it stopped. The folder also gets `products.csv`, `schema.json`,
    `splits.csv`, `quarantine.csv` (row, id and reason of every row that was left out) and `manifest.json`.

    Args:
        source: the catalogue, as `open_catalog` takes it.
        out: the folder for the records. It must be absent or empty, or hold earlier records.
        options: how to prepare them; None: the defaults.
        before_replacing: is called with the new records before they replace what is in the folder. If it raises an
            error, the folder stays as it is.

    Raises:
        UserError: the source cannot be read, too many rows are unusable, an option is out of range, or the folder
            holds something else.
    """
    begin, out, options = time.monotonic(), Path(out).resolve(), options or PrepareOptions()
    _check_out(out)
    options.check()
    catalog = open_catalog(source, options.schema, corrections=options.corrections)
    written_options = {
        "max_side": options.max_side,
        "split": options.split.key(),
        "fractions": list(options.split.fractions),
        "seed": options.split.seed,
        "format": FORMAT,
    }
    source_stamp = catalog.stamp()  # asks the file system about every photo
    stamp = files.digest([source_stamp, written_options])
    if (before := _find_whole(out, stamp)) is not None:
        return before
    _check_enough(catalog, options.max_bad_fraction)
    with _lock(out):
        files.remove_stale(out)
        if (before := _find_whole(out, stamp)) is not None:  # put back after a kill
            return before
        _quarantine_long_texts(catalog)
        folder = out.parent / f".{out.name}.staging"
        key = json.dumps([source_stamp, options.max_side, FORMAT])
        try:
            staged = stage_photos(catalog, folder, key, max_side=options.max_side, progress=progress)
            _quarantine_photos(catalog, staged)
            _check_enough(catalog, options.max_bad_fraction)
            records = _make_records(catalog, staged, options.split)
            with files.replace_directory(out) as aside:
                _write(
                    aside, catalog, records, repairs=staged.repairs, stamp=stamp, options=written_options, begin=begin
                )
                made = _open_written(aside, catalog, records)
                if before_replacing is not None:
                    before_replacing(made)
        except UnreadableError:
            raise
        except UserError:
            # A source that is refused leaves nothing behind. After a kill or on a full disk the finished work stays.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    return open_prepared(out)


def _find_whole(out: Path, stamp: str) -> Prepared | None:
    """Returns the records in a folder if they have this stamp and are undamaged."""
    try:
        prepared = open_prepared(out)
        if prepared.stamp == stamp:
            prepared.check_photos()
            return prepared
    except UnreadableError:
        raise  # they may be undamaged, and are not made anew
    except UserError:
        pass
    return None


def _open_written(folder: Path, catalog: Catalog, records: _Records) -> Prepared:
    """Opens what was written and compares it; UserError where it cannot be used."""
    try:
        made = open_prepared(folder)
        for split in SPLITS:
            for row in made.indices(split)[:1]:
                made.read_photo(int(row))
        same = made.ids.tolist() == [r.id for r in records.records] and np.array_equal(made.labels, records.labels)
        same &= all(np.array_equal(made.tags[name], vectors) for name, vectors in records.tags.items())
        if not same:
            raise UserError("other ids or labels are read than were written")
    except UserError as error:
        raise UserError(
            f"the records of {catalog.source} cannot be opened after they were written, so they are not used: {error}. "
            "Check the disk and the texts of the table; if both are fine, report a defect"
        ) from error
    return made


@dataclass(frozen=True, slots=True)
class _Records:
    """The usable records in their final order; arrays and lists have one entry for each record."""

    vocabularies: Mapping[str, tuple[str, ...]]  # attribute -> class names; attributes without a class are left out
    records: list[Record]  # as the table has them
    labels: Int32[np.ndarray, "n attributes"]  # class numbers, or MISSING
    tag_vocabularies: Mapping[str, tuple[str, ...]]  # multi-valued attribute -> class names, at least one
    tags: Mapping[str, Int8[np.ndarray, "n classes"]]  # multi-valued attribute -> as `tag_vectors` returns them
    groups: Int64[np.ndarray, " n"]  # photos of one product, and near-duplicates, have equal numbers
    shared: int  # number of photos that many products share; they join no groups
    splits: Int8[np.ndarray, " n"]  # place in SPLITS, ascending
    digests: list[str]  # hash of the photo's bytes before its repair
    staged: Staged  # the repaired photos

    def split_sizes(self) -> dict[str, int]:
        counts = {name: int((self.splits == number).sum()) for number, name in enumerate(SPLITS)}
        return {name: count for name, count in counts.items() if count}

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        for i in np.flatnonzero(self.splits == SPLITS.index(split))[start:stop]:
            record = self.records[i]
            yield {
                "id": record.id,
                "title": record.title,
                "image": self.staged.read(record.number),
                "labels": dict(zip(self.vocabularies, self.labels[i].tolist(), strict=True)),
                "tags": {name: _tag_numbers(vectors[i]) for name, vectors in self.tags.items()},
            }


def _tag_numbers(vector: Int8[np.ndarray, " classes"]) -> list[int]:
    """Returns the numbers of a row's tags; MISSING alone where nothing is known."""
    return [MISSING] if (vector == MISSING).any() else np.flatnonzero(vector).tolist()


def _make_records(catalog: Catalog, staged: Staged, split: SplitOptions) -> _Records:
    records = catalog.records
    # An attribute without a class cannot be learnt.
    places = [(i, a.name) for i, a in enumerate(catalog.schema.attributes) if catalog.vocabularies[a.name]]
    if not places:
        raise UserError(
            f"{catalog.source} has no column of labels that can be learnt; name the label columns in a schema.json"
            + (" (beside multi_valued it needs attributes of one value)" if catalog.schema.multi_valued else "")
        )
    vocabularies = {name: catalog.vocabularies[name] for _, name in places}
    numbers = {name: {c: i for i, c in enumerate(classes)} for name, classes in vocabularies.items()}
    labels = np.array(
        [[numbers[name].get(r.labels[i] or "", MISSING) for i, name in places] for r in records], np.int32
    ).reshape(len(records), len(places))
    tag_vocabularies = {name: column.classes for name, column in catalog.tags.items() if column.classes}
    tags = {
        a.name: tag_vectors([r.tags[i] for r in records], tag_vocabularies[a.name])
        for i, a in enumerate(catalog.schema.multi_valued)
        if a.name in tag_vocabularies
    }
    ordinals = [r.number for r in records]
    digests = [staged.digests[n] for n in ordinals]
    groups, shared = find_groups(
        [r.id for r in records],
        [r.title for r in records],
        digests,
        np.array([staged.hashes[n] for n in ordinals], np.uint64),
        np.array([staged.thumbnails[n] for n in ordinals], np.uint8),
    )
    # Each tag keeps its proportion too: it is a label of one class.
    present = [(vectors == 1).astype(np.int32) - 1 for vectors in tags.values()]
    splits = choose_splits(
        split,
        np.concatenate([labels, *present], 1),
        groups,
        ids=[r.id for r in records],
        column=[r.split for r in records] if catalog.schema.split_column else None,
    )
    order = np.argsort(splits, kind="stable")
    return _Records(
        vocabularies,
        [records[i] for i in order],
        labels[order],
        tag_vocabularies,
        {name: vectors[order] for name, vectors in tags.items()},
        groups[order],
        shared,
        splits[order],
        [digests[i] for i in order],
        staged,
    )


def _write(
    aside: Path,
    catalog: Catalog,
    records: _Records,
    *,
    repairs: Mapping[str, int],
    stamp: str,
    options: dict[str, Any],
    begin: float,
) -> None:
    from fashion_jax.data.builder import RecordSource, write_records

    save_schema(catalog.schema, aside / "schema.json")
    write_splits(aside / "splits.csv", [r.id for r in records.records], records.splits, records.groups)
    files.write_text(aside / "quarantine.csv", format_quarantine(catalog.rejected))
    table = _format_products(records)
    files.write_text(aside / "products.csv", table)
    sizes = records.split_sizes()
    write_records(RecordSource(records.vocabularies, sizes, records.examples, records.tag_vocabularies), aside)
    report = make_report(
        catalog,
        repairs,
        vocabularies=records.vocabularies,
        labels=records.labels,
        products=[r.id for r in records.records],
        groups=records.groups,
        shared_photos=records.shared,
        splits=records.splits,
        digests=records.digests,
    )
    if column := catalog.schema.split_column:
        report["columns"]["split"] = describe_split(column, options["split"])
    report["seconds"] = round(time.monotonic() - begin, 1)
    manifest = {
        "format": FORMAT,
        "fingerprint": _fingerprint(records, table, options["max_side"]),
        "stamp": stamp,
        "source": Path(catalog.source).name,
        "options": options,
        "num_products": catalog.num_products,
        "num_records": len(records.records),
        "schema": catalog.schema.to_dict(),
        "vocabularies": {name: list(classes) for name, classes in records.vocabularies.items()},
        "tag_vocabularies": {name: list(classes) for name, classes in records.tag_vocabularies.items()},
        "report": report,
        "files": stored.list_files(aside),
    }
    stored.write_document(aside / "manifest.json", manifest)


def _fingerprint(records: _Records, table: str, max_side: int) -> str:
    """Returns a hash of all that the records hold; `max_side` and a photo's bytes decide what is stored of a photo."""
    content = [FORMAT, max_side, table, records.digests, {n: list(v) for n, v in records.vocabularies.items()}]
    tags = {n: list(v) for n, v in records.tag_vocabularies.items()}
    return files.digest([*content, tags] if tags else content)


def format_quarantine(rejected: Iterable[Rejected]) -> str:
    """Returns the rows that were left out as CSV: row, id, reason."""
    rows = ((item.row, item.id, item.reason) for item in rejected)
    return files.format_csv([("row", "id", "reason"), *rows])


def _format_products(records: _Records) -> str:
    classes = list(records.vocabularies.values())
    columns = [*(f"label_{n}" for n in records.vocabularies), *(f"tags_{n}" for n in records.tags)]
    rows: list[list[object]] = [["row", "id", "title", "split", "group", *columns]]
    for place, (record, split, group, labels) in enumerate(
        zip(records.records, records.splits, records.groups, records.labels.tolist(), strict=True)
    ):
        names = [classes[i][label] if label >= 0 else "" for i, label in enumerate(labels)]
        names += [tag_text(vectors[place], records.tag_vocabularies[name]) for name, vectors in records.tags.items()]
        rows.append([record.row, record.id, record.title, SPLITS[split], group, *names])
    return files.format_csv(rows)


def _quarantine_long_texts(catalog: Catalog) -> None:
    """Rejects records with a text that is too long to be stored, and forgets such classes."""
    kept: list[Record] = []
    for record in catalog.records:
        names = [("id", record.id), *(("label", label) for label in record.labels if label)]
        names += [("label", tag) for text in record.tags for tag in split_tags(text) or ()]
        limits = [(what, text, LONGEST_NAME) for what, text in names]
        limits += [
            (what, text, LONGEST_TEXT)
            for what, text in (("title", record.title), *(("labels", t) for t in record.tags))
        ]
        long = next((item for item in limits if len(item[1]) > item[2]), None)
        if long is None:
            kept.append(record)
        else:
            what, text, most = long
            reason = f"the {what} has {len(text):,} characters; at most {most:,} can be stored"
            kind = f"the {what} is too long"
            catalog.rejected.append(Rejected(record.row, record.id[:_SHOWN], reason, kind))
    catalog.rejected.sort(key=lambda item: item.row)
    catalog.records = kept
    for name, classes in catalog.vocabularies.items():
        catalog.vocabularies[name] = tuple(label for label in classes if len(label) <= LONGEST_NAME)
    for column in catalog.tags.values():
        column.classes = tuple(label for label in column.classes if len(label) <= LONGEST_NAME)


def _quarantine_photos(catalog: Catalog, staged: Staged) -> None:
    """Rejects records whose photo cannot be used, or whose product has the same photo under another name."""
    kept: list[Record] = []
    rows: dict[tuple[str, str], int] = {}  # (product, digest of a photo) -> the row that has it
    for record in catalog.records:
        if record.number in staged.bad:
            catalog.rejected.append(Rejected(record.row, record.id, staged.bad[record.number]))
            continue
        key = record.id, staged.digests[record.number]
        if key in rows:
            reason = f"the photo has the same bytes as another photo of the product, in row {rows[key]}"
            kind = "the photo has the same bytes as another photo of its product"
            catalog.rejected.append(Rejected(record.row, record.id, reason, kind, is_repeat=True))
        else:
            rows[key] = record.row
            kept.append(record)
    catalog.rejected.sort(key=lambda item: item.row)
    catalog.records = kept


def _check_enough(catalog: Catalog, max_bad_fraction: float) -> None:
    """Raises UserError where too many rows are unusable. Rows that the schema drops, and repeats, do not count."""
    bad, count = catalog.num_bad, len(catalog.rejected) + len(catalog.records)
    if bad > max_bad_fraction * max(count, 1):
        lost = [item for item in catalog.rejected if not (item.by_schema or item.is_repeat)]
        what = "rows" if count == catalog.num_rows else "rows and photos"
        raise UserError(
            f"{bad:,} of {count:,} {what} of {catalog.source} are unusable ({bad / count:.1%}, more than "
            f"{max_bad_fraction:.1%}), for instance {'; '.join(map(str, lost[:5]))}. Repair them, or allow more: "
            "--max-bad-fraction of fashion-jax prepare, or config.data.max_bad_fraction"
        )
    if catalog.num_products < _MIN_PRODUCTS:
        raise UserError(f"{catalog.source} has {catalog.num_products} usable products; at least 3 are needed")


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
        raise UserError(f"{out} is the current folder or a mount point; give for example {out / 'records'}")


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keeps a second preparation from writing the same folder; the lock ends with the process at the latest."""
    lock = out.parent / f".{out.name}.lock"
    busy = f"another preparation is writing {out}; wait for it"
    with files.hold_lock(lock, what=str(out.parent), busy=busy):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
