"""Makes an index of a catalogue with a model, adds products to it, and reads the photos of its products."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from fashion_jax.data.carried import Column
from fashion_jax.data.catalog import Catalog, Record, open_catalog
from fashion_jax.data.photos import BadPhoto, decode_photos
from fashion_jax.data.schema import BETWEEN_TAGS, Schema
from fashion_jax.data.tags import NO_TAGS
from fashion_jax.decision.tags import choose_tags
from fashion_jax.search.attributes import CONFIDENCE, PHOTO, TITLE
from fashion_jax.search.build import check_target
from fashion_jax.search.columns import (
    ExtraTable,
    check_columns,
    column_notes,
    column_values,
    kinds_of,
    label_names,
    read_columns,
    table_columns,
)
from fashion_jax.search.index import Index
from fashion_jax.search.inputs import check_k
from fashion_jax.search.storage import check_place
from fashion_jax.serving.embed import Embedded, are_integers, open_shards, run_embedding
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun
from fashion_jax.system.errors import UserError

PhotoName = tuple[int | str, str | None]  # a product, and one of its photos as the column "photo" names it


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
    """Embeds all photos of a catalogue and writes an index of its products.

    Its columns are: the catalogue's labels (the model's prediction where a label is missing and the model has a head
    for it); for each head `<name> confidence`, the probability that the model gives to that label; the values of
    multi-valued attributes, with `|` between them; `title`; `photo`, the name of the photo's file in the catalogue, or
    "row N" for bytes in a table; and the columns that the catalogue's table carries along (`Catalog.carried`), and
    those of `table`. Mirrored photos are not used, because they would double the time.

    Args:
        source: anything that `open_catalog` reads.
        table: a table with a column of ids and more columns to filter by, such as price or stock.
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
    from_tables = table_columns(model, run.catalog, extra)
    if progress:
        print(*column_notes(from_tables, run.catalog, extra), sep="\n", end="\n" if from_tables else "")
    shards = open_shards(model, run)
    embedded = run_embedding(model, run, shards)
    columns = describe(model, embedded, from_tables)
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
    labels = label_names(model, run.catalog.schema)
    index.about.update(model=str(model.package.folder.resolve()), source=_resolve(source), labels=labels)
    index.about["schema"] = run.catalog.schema.to_dict()
    index.save(folder)
    shards.remove()
    note = run.write_quarantine()
    if progress:
        print(f"{folder}: {count_products(len(index), index.num_photos)}; {note}")
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

    All photos of a product that is replaced are replaced.

    Args:
        schema: how to read the source's table; None: as the index's catalogue was read, where the table has its
            columns, else a known or inferred one.

    Raises:
        UserError: the index was made by another model, or bad input; the index is unchanged.
    """
    check_model(index, model)
    run = _open_more(index, model, source, schema, progress)
    _check_names(index, run.catalog)
    extra = _read_table(table, run.catalog, progress)
    from_tables = table_columns(model, run.catalog, extra)
    theirs = list(extra.carried.columns.values()) if extra else []
    of_extra = [name for name, column in from_tables.items() if column in theirs]
    for name in of_extra:
        index.snapshot.attributes.column(name)  # its error says which column may be meant
    check_columns(index, from_tables, run.catalog)
    if progress:
        print(*column_notes(from_tables, run.catalog, extra), sep="\n", end="\n" if from_tables else "")
        if lacking := [name for name in from_tables if name not in index.columns]:
            print(f"left out, because the index has no such columns: {', '.join(lacking)}; index update adds columns")
    shards = open_shards(model, run)
    embedded = run_embedding(model, run, shards)
    # The index decides whether ids are texts, not this source.
    ids = embedded.text_ids if index.snapshot.ids.dtype.kind == "U" else embedded.ids
    columns = describe(model, embedded, from_tables, kinds_of(index))
    known = {name: values for name, values in columns.items() if name in index.columns}
    if extra is not None:
        _keep_values(index, ids, embedded.records, extra, {name: known[name] for name in of_extra})
    index.upsert(ids, embedded.embeddings, known)
    shards.remove()
    note = run.write_quarantine()
    added = len({record.id for record in embedded.records})
    if progress:
        what, every = count_products(added, len(ids)), count_products(len(index), index.num_photos)
        print(f"{index.folder}: {what} added or replaced, {every.replace(' products', '')} in all; {note}")
    return added


def _open_more(index: Index, model: Predictor, source: str | Path, schema: Schema | None, progress: bool) -> SourceRun:
    """Opens more products with the index's schema: a small table holds too little to infer that schema again."""
    known = Schema.from_dict(index.about["schema"]) if "schema" in index.about else None
    assert index.folder is not None
    out: dict[str, Any] = {"out": index.folder / "products", "progress": progress, "flip": False}
    if known is None or not known.attributes + known.multi_valued or (schema is not None and schema.name):
        return SourceRun(model, source, schema=schema, **out)
    given = schema or Schema("", ())
    same = _resolve(source) == index.about.get("source")
    root = given.image_root or (known.image_root if same else "")
    known = replace(known, image_root=root, group_by_name=given.group_by_name or known.group_by_name)
    # New products need no split, and may have no titles and no further photos.
    for tried in (known, replace(known, split_column="", title_column="", more_image_columns=())):
        try:
            return SourceRun(model, source, schema=tried, **out)
        except UserError as error:
            reason = error
    run = SourceRun(model, source, schema=schema, **out)
    if progress:
        print(f"{source} cannot be read as the index's catalogue was ({reason}); its columns are guessed")
    return run


def _check_names(index: Index, catalog: Catalog) -> None:
    """Raises UserError, before anything is embedded, where a catalogue's ids cannot be those of an index's products."""
    known = index.about.get("schema")
    if _has_row_numbers(catalog.schema) and not (known and _has_row_numbers(Schema.from_dict(known))):
        raise UserError(
            f"{catalog.source} has no column of product ids, so its products cannot be told from those of the index; "
            "name the column: id_column in a schema.json, and --schema"
        )
    if index.snapshot.ids.dtype.kind == "i":
        text = next((record.id for record in catalog.records if not are_integers([record.id])), "")
        if text:
            raise UserError(
                f"the index has integers as ids, and {catalog.source} has texts, such as {text!r}; build the index "
                "again with all products (fashion-jax index build)"
            )


def _has_row_numbers(schema: Schema) -> bool:
    """Returns whether a catalogue's ids are the numbers of its rows, which mean nothing in another table."""
    grouped = schema.group_by_name and schema.image_column
    return not (schema.id_column or schema.product_column or grouped)


def count_products(products: int, photos: int) -> str:
    """Returns "12 products", with the number of photos where it is another."""
    return f"{products:,} products" + (f" ({photos:,} photos)" if photos != products else "")


def _read_table(path: str | Path | None, catalog: Catalog, progress: bool) -> ExtraTable | None:
    """Reads a table of more columns; UserError where it has none of the catalogue's products."""
    if path is None:
        return None
    ids = dict.fromkeys(record.id for record in catalog.records)
    extra = read_columns(path, ids, catalog.schema)
    extra.check_some(ids, "the catalogue")
    left = len(ids.keys() - set(extra.ids))
    if progress and left:
        print(f"{path}: {left:,} of {len(ids):,} products are not in this table; they get empty values")
    return extra


def _keep_values(
    index: Index, ids: np.ndarray, records: list[Record], extra: ExtraTable, columns: dict[str, list[Any]]
) -> None:
    """Fills in the values that the index has for products that the table does not name.

    Args:
        columns: those of the table.
    """
    named = set(extra.ids)
    for place, (name, record) in enumerate(zip(ids.tolist(), records, strict=True)):
        if record.id not in named and name in index:
            row = index.attributes([name])[0]
            for column, values in columns.items():
                values[place] = row[column]


def check_model(index: Index, model: Predictor) -> None:
    """Raises UserError where an index was made by another model: its embeddings cannot be compared."""
    if index.model and index.model != model.fingerprint:
        made_by = index.about.get("model", "unknown")
        raise UserError(
            f"the index was made by another model ({made_by}) than {model.package.folder}; use that model, or build an "
            "index with this model"
        )


def describe(
    model: Predictor, embedded: Embedded, from_tables: Mapping[str, Column], kinds: Mapping[str, str] | None = None
) -> dict[str, list[Any]]:
    """Returns the columns that `build_index` describes, with a value per photo.

    A product without a label gets one for all its photos: the one to which the model gives the most probability. A
    product without values of a multi-valued attribute gets those that the mean over its photos predicts.

    Args:
        from_tables: from `table_columns`.
        kinds: of the columns of the index to which the products are added; None for a new index.
    """
    records, schema = embedded.records, embedded.catalog.schema
    ids = [record.id for record in records]
    names = embedded.catalog.name_photos()
    columns: dict[str, list[Any]] = {
        TITLE: _fill(ids, [record.title or None for record in records]),
        PHOTO: [names[record.number] for record in records],
    }
    for place, attribute in enumerate(schema.attributes):
        columns[attribute.name] = [r.labels[place] if place < len(r.labels) else None for r in records]
    for head in model.attributes:
        classes = model.classes[head]
        given = columns.get(head, [None] * len(records))
        # The confidences are those of the labels given, or else of the predicted ones.
        labels = [label or classes[number] for label, number in zip(given, embedded.labels[head], strict=True)]
        sure = embedded.confidences[head].astype(np.float64)
        columns[head], of_product = _label_products(ids, _fill(ids, given), labels, sure)
        columns[head + CONFIDENCE] = of_product.round(4).tolist()
    for place, several in enumerate(schema.multi_valued):
        texts = [r.tags[place] if place < len(r.tags) else "" for r in records]
        columns[several.name] = [None if text == NO_TAGS else text for text in texts]
    decision = model.package.decision
    for name, shares in embedded.tags.items():
        texts = columns.get(name, [""] * len(records))
        if name not in {several.name for several in schema.multi_valued}:
            texts = [text or "" for text in texts]  # None of a tag means "no value", and of a label "not known"
        means = {name: _mean_by_product(ids, shares)}
        chosen = choose_tags({} if decision is None else decision.tags, means)[name]
        guesses = (BETWEEN_TAGS.join(np.array(model.tags[name])[row].tolist()) for row in chosen)
        columns[name] = [guess if text == "" else text for text, guess in zip(texts, guesses, strict=True)]
    for name, column in from_tables.items():
        columns[name] = column_values(column, ids, (kinds or {}).get(name, ""))
    return columns


def _fill(ids: list[str], values: list[Any]) -> list[Any]:
    """Gives photos without a value the first value of their product."""
    known: dict[str, Any] = {}
    for name, value in zip(ids, values, strict=True):
        if value is not None:
            known.setdefault(name, value)
    return [known.get(name) if value is None else value for name, value in zip(ids, values, strict=True)]


def _mean_by_product(ids: list[str], values: Float32[np.ndarray, "n columns"]) -> Float64[np.ndarray, "n columns"]:
    """Returns the mean over the photos of each photo's product."""
    _, products, counts = np.unique(ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, products, values)
    return np.asarray((sums / counts[:, None])[products])


def _label_products(
    ids: list[str], given: list[str | None], labels: list[str], confidences: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Chooses one label for each product that has none.

    Args:
        ids: of the photos' products.
        given: the products' own labels.
        labels: of each photo, its own or the predicted one.
        confidences: float64 (n,) of `labels`.

    Returns:
        The labels, and their confidences. That of a chosen label is the mean over the product's photos, a photo with
        another label counting 0. A label that came from another photo of the product has NaN.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    photos = Counter(ids)
    for name, own, label, confidence in zip(ids, given, labels, confidences.tolist(), strict=True):
        if own is None:
            votes[name][label] += confidence
    chosen, sure = list(labels), confidences.copy()
    for place, (name, own) in enumerate(zip(ids, given, strict=True)):
        if own is None:
            chosen[place], total = votes[name].most_common(1)[0]
            sure[place] = total / photos[name]
        elif own != labels[place]:
            chosen[place], sure[place] = own, np.nan
    return chosen, sure


def read_photos(catalog: Catalog, wanted: Iterable[PhotoName], model: Predictor) -> dict[PhotoName, np.ndarray | None]:
    """Returns photos as the model sees them; None where a photo cannot be read.

    Args:
        wanted: product and photo. A photo that the catalogue has not (it may lie in another folder now) is looked for
            by its base name; else, and for None, the product's first photo is taken.
    """
    found: dict[PhotoName, np.ndarray | None] = dict.fromkeys(wanted)
    products = {str(name) for name, _ in found}
    records: dict[str, list[Record]] = defaultdict(list)
    for record in catalog.records:
        if record.id in products:
            records[record.id].append(record)
    names, chosen = catalog.name_photos(), dict[int, list[PhotoName]]()
    for key in found:
        product, photo = str(key[0]), key[1] or ""
        if ours := records[product]:
            same = [r for r in ours if names[r.number] == photo]
            alike = [r for r in ours if posixpath.basename(names[r.number]) == posixpath.basename(photo)]
            chosen.setdefault((same or alike or ours)[0].number, []).append(key)
    photos = [record for record in catalog.records if record.number in chosen]
    for record, image in decode_photos(model.decode, catalog.iter_photos(photos)):
        if not isinstance(image, BadPhoto):
            found.update(dict.fromkeys(chosen[record.number], image))
    return found


def open_gallery(index: Index, source: str | None = None) -> Catalog:
    """Opens the catalogue of an index; UserError says how to name it where it has moved."""
    where = source or str(index.about.get("source", ""))
    if not where:
        raise UserError("the index does not know its catalogue; name it with --source")
    try:
        schema = Schema.from_dict(index.about["schema"]) if "schema" in index.about else None
        if schema and source and not Path(schema.image_root).exists():
            schema = replace(schema, image_root="")  # the catalogue has moved
        return open_catalog(where, schema, labelled=False)
    except UserError as error:
        raise UserError(f"the photos of the index cannot be shown: {error}; name the catalogue with --source") from None


def _resolve(source: str | Path) -> str:
    text = str(source)
    return posixpath.abspath(text) if Path(text).exists() else text
