"""The columns of an index that come from tables: read, named, fitted to an index, and changed in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fashion_jax.data.carried import Carried, Column, name_columns, read_carried, why_not_carried
from fashion_jax.data.catalog import Catalog
from fashion_jax.data.columns import find_id_column, named_ids
from fashion_jax.data.product_ids import clean_ids
from fashion_jax.data.schema import Schema
from fashion_jax.data.table_limits import MAX_TABLE_BYTES
from fashion_jax.data.tables import read_table
from fashion_jax.data.values import cell_text, read_values
from fashion_jax.search.attributes import CONFIDENCE, KINDS, PHOTO, TITLE, kind_of, make_table
from fashion_jax.search.index import Index
from fashion_jax.serving.predictor import Predictor
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

_NAMED = 20  # columns that an error names, at most
_MOST_TRIED = 1_000  # rows by which a column of ids without a usual name is found


@dataclass(frozen=True, slots=True)
class ExtraTable:
    """A table of more columns for products."""

    path: str
    ids: tuple[str, ...]  # of its products, each once
    carried: Carried

    def check_some(self, known: Collection[str], owner: str) -> None:
        """Raises UserError where it has none of the known products; `owner` says whose they are."""
        if not any(name in known for name in self.ids):
            theirs, ours = next(iter(self.ids), "none at all"), next(iter(known), "none")
            raise UserError(
                f"{self.path} names none of {owner}'s products: the table has ids such as {theirs}, and {owner} has "
                f"ids such as {ours}; write the ids of {owner} into the table"
            )


def read_columns(path: str | Path, known: Collection[str] = (), schema: Schema | None = None) -> ExtraTable:
    """Reads a table with a column of product ids and other columns.

    The column of ids is the one with most of the known ids, among those with a usual name (`id`, `sku`, ...); or else
    any column that holds mostly known ids. Left out, with the reason, are columns that `choose_carried` would not
    carry, and those that the catalogue's schema reads as labels, photos, splits or ids: here their cells would be raw.

    Args:
        known: ids that the table may have.
        schema: of the catalogue to whose products the columns belong; None where it is not known.

    Raises:
        UserError: the table cannot be read, has no ids, no other column, or several rows of a product that differ in a
            column that is kept.
    """
    try:
        frame = read_table(str(path), files.read_limited(Path(path), MAX_TABLE_BYTES)).frame
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    schema = schema or Schema("", ())
    column = _find_ids(frame, known, schema.product_column or schema.id_column)
    if not column:
        names = ", ".join(map(str, frame.columns[:_NAMED]))
        raise UserError(
            f"{path} has no column of product ids, by which its rows are joined to the products; give it a column 'id' "
            f"or 'sku'; it has: {names}"
        )
    ids = clean_ids(frame[column]).tolist()
    others = [str(name) for name in frame.columns if name != column]
    if not others:
        raise UserError(f"{path} has no columns besides {column!r}")
    missing, own = Schema("", ()).missing_values, _own_columns(schema)
    words, left_out = {word.casefold() for word in missing}, dict[str, str]()
    for name in others:
        present = [cell for cell in frame[name].tolist() if cell != ""]
        reason = own.get(name) or ("" if name in schema.carry else why_not_carried(name, present, words))
        if reason:
            left_out[name] = reason
    carried = read_carried(frame, ids, [name for name in others if name not in left_out], missing=missing)
    for name, read in carried.columns.items():
        if read.differing:
            product, values = next(iter(read.differing.items()))
            raise UserError(
                f"{path} has the id {product!r} twice, with {values[0]!r} and {values[1]!r} as its {name!r}; keep one "
                "row for each product"
            )
    left_out |= {name: "it holds nothing" for name, read in carried.columns.items() if read.kind == "nothing"}
    kept = {name: read for name, read in carried.columns.items() if name not in left_out}
    return ExtraTable(str(path), tuple(dict.fromkeys(name for name in ids if name)), Carried(kept, left_out))


def _own_columns(schema: Schema) -> dict[str, str]:
    """Returns column of a catalogue's table -> why it gives an index no column of its raw cells."""
    why = "its labels are read with the catalogue; change them in the catalogue's table, and give that to index add"
    found = {name: why for a in schema.attributes for name in (a.name, *a.columns())}
    found |= {name: why for several in schema.multi_valued for name in (several.name, *several.used_columns())}
    photos = (schema.image_column, *schema.more_image_columns)
    for names, reason in (
        (photos, "it holds photos"),
        ((schema.split_column,), "it holds the split"),
        ((schema.id_column, schema.product_column), "it holds ids"),
    ):
        found |= dict.fromkeys(names, reason)
    return found


def label_names(model: Predictor, schema: Schema) -> list[str]:
    """Returns the columns of an index that hold labels and tags, known or predicted."""
    known = [*(one.name for one in schema.attributes), *(several.name for several in schema.multi_valued)]
    return list(dict.fromkeys([*known, *model.attributes, *model.tags]))


def _find_ids(frame: pd.DataFrame, known: Collection[str], id_column: str) -> str:
    columns = [str(name) for name in frame.columns]
    usual = [name for name in ("id", id_column, *named_ids(columns), find_id_column(frame, columns)) if name in columns]
    ids = known if isinstance(known, (set, frozenset, dict)) else set(known)

    def share(name: str) -> float:
        cells = frame[name].head(_MOST_TRIED) if name not in usual else frame[name]
        return sum(name in ids for name in clean_ids(cells)) / max(1, len(cells))

    found = max(usual, key=share, default="")
    if found and share(found):
        return found
    other = max(columns, key=share, default="")
    return other if other and share(other) > 0.5 else found


def table_columns(model: Predictor, catalog: Catalog, extra: ExtraTable | None) -> dict[str, Column]:
    """Returns the columns of an index that come from the catalogue's table and from another one, by their final names.

    A column that has the name of one of the index's own columns (an attribute, `title`, `photo`) gets another name:
    "colour (table)". A column of the other table takes the place of the catalogue's column of the same name.
    """
    title = catalog.schema.title_column
    own = {PHOTO, *([TITLE] if title else []), *label_names(model, catalog.schema)}
    own |= {name + CONFIDENCE for name in model.attributes}
    carried = {name: column for name, column in catalog.carried.columns.items() if name != title}
    found = {}
    for columns in (carried, extra.carried.columns if extra else {}):
        found.update({name: columns[given] for given, name in name_columns(columns, own).items()})
    return found


def column_notes(columns: Mapping[str, Column], catalog: Catalog, extra: ExtraTable | None) -> list[str]:
    """Returns sentences about the columns that `table_columns` returned."""
    notes = catalog.carried.notes()
    if extra is not None:
        notes += _table_notes(extra)
        both = [name for name in extra.carried.columns if name in catalog.carried.columns]
        notes += [f"{extra.path}: column {name!r} takes the place of the catalogue's own" for name in both]
    for name, column in columns.items():
        for source in (catalog.carried, extra.carried if extra else Carried()):
            if name not in source.columns:
                given = [other for other, read in source.columns.items() if read is column]
                notes += [f"column {other!r} is called {name!r} in the index, which has another one" for other in given]
    return notes


def _table_notes(extra: ExtraTable) -> list[str]:
    lines = [*extra.carried.notes()]
    lines += [f"column {name!r} is left out: {reason}" for name, reason in extra.carried.left_out.items()]
    return [f"{extra.path}: {line}" for line in lines]


def kinds_of(index: Index) -> dict[str, str]:
    """Returns column -> kind, as `attributes.KINDS` names it."""
    table = index.snapshot.attributes
    return {name: kind_of(table.column(name)) for name in table.names}


def column_values(column: Column, ids: Iterable[str], kind: str = "") -> list[Any]:
    """Returns a value for each id, in the form that an index takes.

    Args:
        kind: of the index's column; empty for a new one.
    """
    values = column.of(ids, kind)
    return [cell_text(value) or None for value in values] if kind == "date" else values


def check_columns(index: Index, columns: Mapping[str, Column], catalog: Catalog) -> None:
    """Raises UserError where columns cannot be added to an index's, because they are of another kind."""
    ids, kinds = [record.id for record in catalog.records], kinds_of(index)
    values = {name: column_values(column, ids, kinds[name]) for name, column in columns.items() if name in kinds}
    index.snapshot.attributes.conform(make_table(values, len(ids)))


def update_columns(index: Index, path: str | Path, *, progress: bool = True) -> int:
    """Changes the columns of an index's products to the values of a table; returns how many products it changed.

    An empty cell removes the value, but not a title. Rows of products that the index has not are counted. A new column
    is added; one with the name of a label is called "colour (table)", as in a new index.

    Raises:
        UserError: as `read_columns`, no product is in the index, or a column is of another kind than the index's.
    """
    known = {str(name): name for name in index.ids.tolist()}
    schema = index.about.get("schema")
    extra = read_columns(path, known, Schema.from_dict(schema) if schema else None)
    extra.check_some(known, "the index")
    there, kinds = [name for name in extra.ids if name in known], kinds_of(index)
    columns, before, mended = {}, set(index.columns), dict[str, str]()
    own = {PHOTO, *(name + suffix for name in index.labels for suffix in ("", CONFIDENCE))}
    rows = index.attributes([known[name] for name in there])
    for given, name in name_columns(extra.carried.columns, own).items():
        column = extra.carried.columns[given]
        name = f"{given} (table)" if f"{given} (table)" in kinds else name
        if schema and given == schema["title_column"] and TITLE in before and TITLE not in extra.carried.columns:
            name = TITLE
        kind = kinds.get(name, "")
        if kind == "text" and column.kind != "text" and name != TITLE:
            # A table of all products may make numbers of a column of texts; so may one that mends the last texts.
            if len(there) == len(known):
                kind = ""
            else:
                mended[name] = column.kind
        columns[name] = column_values(column, there, kind)
        if name == TITLE and name in before:
            columns[name] = [row[name] if v is None else v for v, row in zip(columns[name], rows, strict=True)]
    if not columns:
        reasons = "".join(
            f"; column {name!r} is left out: {why}" for name, why in list(extra.carried.left_out.items())[:_NAMED]
        )
        raise UserError(f"{path} has no column with a value that could be added{reasons}")
    columns = {name: values for name, values in columns.items() if name in before or any(v is not None for v in values)}
    try:
        index.update([known[name] for name in there], columns)
        left = len(known) - len(there)
        notes = [_convert_texts(index, name, kind, left, extra.path) for name, kind in mended.items()]
    except KeyError as error:  # gone since it was looked for
        raise UserError(f"{error.args[0]} any more; run the command again") from None
    if progress:
        print(*_describe_update(extra, there, known, columns, before), *notes, sep="\n")
    return len(there)


def _convert_texts(index: Index, name: str, kind: str, left: int, path: str) -> str:
    """Turns a text column into numbers, dates or yes and no, if every product's text is one now.

    Returns a sentence about the result.

    Args:
        kind: how the table's cells were read.
        left: number of the index's products that the table lacks.
    """
    snapshot, ids = index.snapshot, index.ids.tolist()
    read = read_values([str(row[name] or "") for row in index.attributes(ids)])
    groups = np.maximum(snapshot.attributes.groups(name), -1)  # -1 for all missing values
    # Photos of a product may differ in a column that no table gave; they keep their texts.
    same = not snapshot.has_several_photos or bool((groups == groups[snapshot.first])[snapshot.live].all())
    if read.kind == kind and same:
        index.update(ids, {name: read.values})
        return f"column {name!r} holds {KINDS[kind]} for all products now"
    absent = "1 product of the index is" if left == 1 else f"{left:,} products of the index are"
    return (
        f"column {name!r} stays text in the index: {absent} not in {path}; give a table of all products, and it "
        f"becomes {KINDS[kind]}"
    )


def _describe_update(
    extra: ExtraTable, there: list[str], known: Collection[str], columns: Mapping[str, list[Any]], before: set[str]
) -> list[str]:
    names = [name if name in before else f"{name} (new)" for name in columns]
    lines = [*_table_notes(extra), f"{len(there):,} products changed: {', '.join(names)}"]
    empty = sum(value is None for values in columns.values() for value in values)
    if empty:
        lines.append(f"{empty:,} cells are empty; these products have no value there now")
    if unknown := [name for name in extra.ids if name not in known]:
        lines.append(f"{len(unknown):,} products of {extra.path} are not in the index, such as {unknown[0]}")
    if len(there) < len(known):
        lines.append(
            f"{len(known) - len(there):,} products of the index are not in {extra.path}; they keep their values"
        )
    return lines
