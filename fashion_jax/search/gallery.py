"""Makes an index of a catalogue with a model, adds products to it, and reads the photos of its products."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fashion_jax.data.catalog import Catalog, Record, open_catalog
from fashion_jax.data.photos import BadPhoto, decode_photos
from fashion_jax.data.schema import BETWEEN_TAGS, Schema
from fashion_jax.data.tables import read_table
from fashion_jax.data.tags import NO_TAGS
from fashion_jax.search.build import check_target
from fashion_jax.search.index import Index
from fashion_jax.search.inputs import check_k
from fashion_jax.search.storage import check_place
from fashion_jax.serving.embed import Embedded, open_shards, run_embedding
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun
from fashion_jax.system.errors import UserError

CONFIDENCE = " confidence"  # `<head> confidence` is the column with the probability of the head's label
TITLE = "title"
_NAMED_COLUMNS = 20  # columns that an error names, at most


def build_index(
    model: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    table: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool = True,
    target_recall: float = 0.95,
    backend: str = "auto",
    batch: int = 1,
) -> Index:
    """Embeds a catalogue and writes an index of it.

    Its columns are: the catalogue's labels (the model's prediction where a label is missing and the model has a head
    for it); for each head `<name> confidence`, the probability that the model gives to that label; the values of
    multi-valued attributes, with `|` between them; `title`; and the columns of `table`. Mirrored photos are not used,
    because they would double the time.

    Args:
        source: anything that `open_catalog` reads.
        table: a table with an `id` column and more columns to filter by, such as price or stock.
        schema: how to read the source's table; None for a known or inferred one.
        target_recall, backend, batch: as in `Index.build`.

    Raises:
        UserError: bad input; nothing is written then.
    """
    folder = Path(out)
    check_place(folder)
    check_target(target_recall, backend)
    check_k(batch, "batch")
    run = SourceRun(model, source, folder / "products", schema=schema, progress=progress, flip=False)
    extra = _read_table(table, run.catalog, progress)
    shards = open_shards(model, run)
    embedded = run_embedding(model, run, shards)
    columns = describe(model, embedded, extra)
    index = Index.build(
        embedded.embeddings,
        embedded.ids,
        columns,
        target_recall=target_recall,
        backend=backend,
        batch=batch,
        model=model.fingerprint,
        subspaces=model.subspaces,
        progress=progress,
    )
    index.about.update(model=str(model.package.folder.resolve()), source=_resolve(source))
    if run.catalog.schema.image_root:
        index.about["photos"] = run.catalog.schema.image_root
    index.save(folder)
    shards.remove()
    note = run.write_quarantine()
    if progress:
        print(f"{folder}: {len(index):,} products; {note}")
    return index


def add_products(
    index: Index,
    model: Predictor,
    source: str | Path,
    *,
    table: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool = True,
) -> int:
    """Adds the products of a source to a saved index, or replaces those that are there; returns how many.

    Raises:
        UserError: the index was made by another model, or bad input; the index is unchanged.
    """
    check_model(index, model)
    assert index.folder is not None
    run = SourceRun(model, source, index.folder / "products", schema=schema, progress=progress, flip=False)
    extra = _read_table(table, run.catalog, progress)
    if extra is not None:
        for name in extra.columns:
            index.snapshot.attributes.column(str(name))  # its error says which column may be meant
    shards = open_shards(model, run)
    embedded = run_embedding(model, run, shards)
    # The index decides whether ids are texts, not this source.
    ids = embedded.text_ids if index.snapshot.ids.dtype.kind == "U" else embedded.ids
    columns = describe(model, embedded, extra)
    known = {name: values for name, values in columns.items() if name in index.columns}
    if extra is not None:
        _keep_values(index, ids, embedded.records, extra, known)
    index.upsert(ids, embedded.embeddings, known)
    shards.remove()
    note = run.write_quarantine()
    if progress:
        print(f"{index.folder}: {len(embedded.records):,} products added or replaced, {len(index):,} in all; {note}")
    return len(embedded.records)


def _read_table(path: str | Path | None, catalog: Catalog, progress: bool) -> pd.DataFrame | None:
    """Reads a table of more columns; UserError where it has none of the catalogue's products."""
    if path is None:
        return None
    extra = read_columns(path)
    there = sum(record.id in extra.index for record in catalog.records)
    if not there:
        ours, theirs = catalog.records[0].id, extra.index[0] if len(extra) else "none at all"
        raise UserError(f"{path} has none of the catalogue's products: it has ids such as {theirs}, not {ours}")
    if progress and there < len(catalog.records):
        left = len(catalog.records) - there
        print(f"{path}: {left:,} of {len(catalog.records):,} products are not in this table; they get empty values")
    return extra


def _keep_values(
    index: Index, ids: np.ndarray, records: list[Record], extra: pd.DataFrame, columns: dict[str, list[Any]]
) -> None:
    """Fills in the values that the index has for products that the table does not name."""
    for place, (name, record) in enumerate(zip(ids.tolist(), records, strict=True)):
        if record.id not in extra.index and name in index:
            row = index.attributes([name])[0]
            for column in extra.columns:
                if column in columns:
                    columns[column][place] = row[column]


def check_model(index: Index, model: Predictor) -> None:
    """Raises UserError where an index was made by another model: its embeddings cannot be compared."""
    if index.model and index.model != model.fingerprint:
        made_by = index.about.get("model", "unknown")
        raise UserError(
            f"the index was made by another model ({made_by}) than {model.package.folder}; use that model, or build an "
            "index with this model"
        )


def describe(model: Predictor, embedded: Embedded, extra: pd.DataFrame | None = None) -> dict[str, list[Any]]:
    """Returns the columns that `build_index` describes, with a value per product."""
    records, schema = embedded.records, embedded.catalog.schema
    columns: dict[str, list[Any]] = {TITLE: [record.title or None for record in records]}
    for place, attribute in enumerate(schema.attributes):
        columns[attribute.name] = [r.labels[place] if place < len(r.labels) else None for r in records]
    for head in model.attributes:
        names = model.classes[head]
        predicted = [names[number] for number in embedded.labels[head]]
        given = columns.get(head, [None] * len(records))
        columns[head] = [label or guess for label, guess in zip(given, predicted, strict=True)]
        columns[head + CONFIDENCE] = embedded.confidences[head].astype(np.float64).round(4).tolist()
    for place, several in enumerate(schema.multi_valued):
        texts = [r.tags[place] if place < len(r.tags) else "" for r in records]
        columns[several.name] = [None if text == NO_TAGS else text for text in texts]
    for name, chosen in embedded.tags.items():
        texts = columns.get(name, [""] * len(records))
        guesses = (BETWEEN_TAGS.join(np.array(model.tags[name])[row].tolist()) for row in chosen)
        columns[name] = [guess if text == "" else text for text, guess in zip(texts, guesses, strict=True)]
    if extra is not None:
        rows = extra.reindex([record.id for record in records])
        for name in rows.columns:
            columns[str(name)] = [None if pd.isna(value) else value for value in rows[name].tolist()]
    return columns


def read_columns(path: str | Path) -> pd.DataFrame:
    """Reads a table with an `id` column. A column of which every text is a number becomes numbers.

    Raises:
        UserError: it cannot be read, has no `id`, or an id twice.
    """
    try:
        frame = read_table(str(path), Path(path).read_bytes()).frame
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if "id" not in frame.columns:
        raise UserError(f"{path} has no column 'id'; it has: {', '.join(map(str, frame.columns[:_NAMED_COLUMNS]))}")
    frame = frame.set_index(frame["id"].astype(str).str.strip()).drop(columns="id")
    if frame.index.has_duplicates:
        raise UserError(f"{path} has the id {frame.index[frame.index.duplicated()][0]!r} twice")
    for name in frame.columns:
        texts = frame[name].astype(str).str.strip().replace("", None)
        numbers = pd.to_numeric(texts, errors="coerce")
        truths = texts.str.lower().map({"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0})
        if (numbers.notna() == texts.notna()).all():
            frame[name] = numbers
        elif (truths.notna() == texts.notna()).all():
            frame[name] = truths
        else:
            frame[name] = texts
    return frame


def read_photos(catalog: Catalog, ids: Sequence[int | str], model: Predictor) -> dict[int | str, np.ndarray | None]:
    """Returns products' photos as the model sees them; None where a photo cannot be read."""
    by_name = {record.id: record for record in catalog.records}
    wanted = {by_name[str(name)].number: name for name in ids if str(name) in by_name}
    found: dict[int | str, np.ndarray | None] = dict.fromkeys(ids)
    chosen = [record for record in catalog.records if record.number in wanted]
    for record, photo in decode_photos(model.decode, catalog.iter_photos(chosen)):
        if not isinstance(photo, BadPhoto):
            found[wanted[record.number]] = photo
    return found


def open_gallery(index: Index, source: str | None = None) -> Catalog:
    """Opens the catalogue of an index; UserError says how to name it where it has moved."""
    where = source or str(index.about.get("source", ""))
    if not where:
        raise UserError("the index does not know its catalogue; name it with --source")
    photos = str(index.about.get("photos", ""))
    if source and not Path(photos).exists():
        photos = ""  # the catalogue has moved
    try:
        return open_catalog(where, Schema("", (), image_root=photos) if photos else None, labelled=False)
    except UserError as error:
        raise UserError(f"the photos of the index cannot be shown: {error}; name the catalogue with --source") from None


def _resolve(source: str | Path) -> str:
    text = str(source)
    return posixpath.abspath(text) if Path(text).exists() else text
