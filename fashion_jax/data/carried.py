"""Columns carried along: price, stock, brand and the like, which are no labels and go with each product to the results.

Each column is read as a whole: as numbers, as yes and no, as dates, or as texts (`values.read_values`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from fashion_jax.data.photo_names import is_address, names_photo
from fashion_jax.data.schema import Schema
from fashion_jax.data.tables import one_line
from fashion_jax.data.values import Value, csv_cell, read_values
from fashion_jax.system.errors import UserError, nearest

MOST_CARRIED = 20  # columns that are carried without being named
_LONG = 200  # characters from which on a text is long
_MOST_LONG = 0.05  # share of long texts in a column that is carried without being named
_MIXED = 0.5  # share of the texts that are numbers, from which on a column of texts is told of
_LOOKED_AT = 100  # texts for that share
_CHECKED = 1_000  # cells that tell whether a column holds addresses, names of photos or long texts


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A carried column."""

    kind: str  # "number", "boolean", "date", "text", or "nothing"
    how: str  # how it was read, in words for people
    values: dict[str, Value]  # product's id -> value, of its first row that has one; products without one are absent
    texts: dict[str, str]  # product's id -> the same value as it was written
    differing: dict[str, tuple[str, str]]  # product's id -> two values, where rows of the product differ
    doubt: str = ""  # why a column with numbers is text; may be empty

    def of(self, ids: Iterable[str], kind: str = "") -> list[Value]:
        """Returns a value for each product, None where it has none.

        Args:
            ids: of the products.
            kind: "text" for the values as they were written; else they are of the column's own kind.
        """
        values: Mapping[str, Value] = self.texts if kind == "text" else self.values
        return [values.get(name) for name in ids]


@dataclass(frozen=True, slots=True)
class Carried:
    """The carried columns of a table, by name."""

    columns: dict[str, Column] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # column -> why it is not carried

    def notes(self) -> list[str]:
        """Returns sentences about how the columns were read, and about what a person may want to mend."""
        read = [f"{name} ({column.how})" for name, column in self.columns.items() if column.kind != "nothing"]
        return [*([f"columns carried along: {'; '.join(read)}"] if read else []), *self.doubts()]

    def doubts(self) -> list[str]:
        """Returns sentences about what a person may want to mend."""
        lines = []
        for name, column in self.columns.items():
            if column.doubt:
                lines.append(f"column {name!r} stays text: {column.doubt}")
            if column.differing:
                product, (one, two) = next(iter(column.differing.items()))
                lines.append(
                    f"column {name!r}: {len(column.differing):,} products have rows with different values, such as "
                    f"{one!r} and {two!r} of {product}; the first row counts"
                )
        return lines

    def headings(self, taken: Collection[str]) -> list[str]:
        """Returns the columns' names for a CSV file that has other columns already."""
        return list(name_columns(self.columns, taken).values())

    def cells(self, product: str) -> list[str | float]:
        """Returns a product's values for `files.format_csv`."""
        return [csv_cell(column.values.get(product)) for column in self.columns.values()]


def name_columns(names: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Returns name -> name that is free: "colour" becomes "colour (table)" where the name is taken."""
    found: dict[str, str] = {}
    for name in names:
        free, number = name, 1
        while free in taken or free in found.values():
            free, number = f"{name} (table)" if number == 1 else f"{name} (table {number})", number + 1
        found[name] = free
    return found


def carry_columns(frame: pd.DataFrame, ids: Sequence[str], schema: Schema, unused: Collection[str]) -> Carried:
    """Reads the carried columns of a catalogue's table.

    Args:
        frame: columns of texts, or of photos' bytes.
        ids: of the rows' products.
        schema: names the columns in `carry`; else `choose_carried` chooses them.
        unused: the columns that are neither attribute, id, photo, title nor split.

    Raises:
        UserError: `carry` names a column that the table lacks, or that holds bytes.
    """
    names, left_out = list(schema.carry), dict[str, str]()
    if not names:
        names, left_out = choose_carried(frame, schema, unused)
    for name in names:
        if name not in frame.columns:
            raise UserError(
                f"the table has no column {name!r}, but carry in the schema lists it{nearest(name, frame.columns)}"
            )
        if schema.carry and any(isinstance(cell, bytes) for cell in frame[name].head(50)):
            raise UserError(
                f"the column {name!r} holds bytes and cannot be carried along; remove it from carry in the schema"
            )
    return read_carried(frame, ids, names, missing=schema.missing_values, left_out=left_out)


def choose_carried(frame: pd.DataFrame, schema: Schema, unused: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the columns that are carried without being named, and column -> why another one is not.

    Carried are the title, and unused columns of numbers, yes and no, dates or short texts; MOST_CARRIED of them, those
    that are filled in most rows first.
    """
    wanted, reasons = list[tuple[bool, float, str]](), dict[str, str]()
    for name in map(str, frame.columns):
        if name in unused or name == schema.title_column:
            present = [cell for cell in frame[name].tolist() if cell != ""]
            reason = why_not_carried(name, present, {word.casefold() for word in schema.missing_values})
            if reason:
                reasons[name] = reason
            else:
                wanted.append((name != schema.title_column, -round(len(present) / len(frame), 1), name))
    # Sorted is stable: columns that are as full keep the order of the table.
    chosen = {name for *_, name in sorted(wanted, key=lambda item: item[:2])[:MOST_CARRIED]}
    for *_, name in wanted:
        if name not in chosen:
            reasons[name] = f"more than {MOST_CARRIED} columns could be carried along; name it in the schema's carry"
    return [name for *_, name in wanted if name in chosen], reasons


def why_not_carried(name: str, present: Sequence[object], missing: Collection[str]) -> str:
    """Returns why a column is not carried without being named; "" if it may be."""
    if any(isinstance(cell, bytes) for cell in present[:50]):
        return "it holds bytes"
    if all(str(cell).strip().casefold() in missing for cell in set(present)):
        return "it holds nothing"
    if not name.strip() or name.startswith("Unnamed"):
        return "it has no name"
    checks: tuple[tuple[Callable[[str], bool], float, str], ...] = (
        (is_address, 0.5, "it holds addresses"),
        (names_photo, 0.5, "it holds names of photos"),
        (lambda text: len(text) > _LONG, _MOST_LONG, "it holds long texts"),
    )
    texts = [str(cell) for cell in present[:: len(present) // _CHECKED + 1]]
    for check, most, reason in checks:
        if sum(map(check, texts)) > most * len(texts):
            return reason
    return ""


def read_carried(
    frame: pd.DataFrame,
    ids: Sequence[str],
    columns: Sequence[str],
    *,
    missing: Iterable[str] = ("",),
    left_out: Mapping[str, str] | None = None,
) -> Carried:
    """Reads columns of a table.

    Args:
        frame: with columns of texts.
        ids: of the rows' products; rows with an empty id are ignored.
        columns: names of the columns.
        missing: texts that stand for no value; upper and lower case are the same.
        left_out: `Carried.left_out`.
    """
    words = list(missing)
    return Carried({name: _read_column(frame[name].tolist(), ids, words) for name in columns}, dict(left_out or {}))


def _read_column(cells: Sequence[object], ids: Sequence[str], missing: list[str]) -> Column:
    texts = [one_line(cell) for cell in cells]
    read = read_values(texts, missing)
    how = read.how if read.kind not in ("text", "nothing") else read.kind
    column = Column(read.kind, how, {}, {}, {}, _doubt(texts, missing, read.how, read.kind))
    for name, text, value in zip(ids, texts, read.values, strict=True):
        if name and value is not None:
            if name not in column.values:
                column.values[name], column.texts[name] = value, text
            elif column.values[name] != value and name not in column.differing:
                column.differing[name] = column.texts[name], text
    return column


def _doubt(texts: list[str], missing: list[str], how: str, kind: str) -> str:
    """Returns why a column is text although it holds numbers; "" if it holds none or few."""
    if kind != "text" or how or not any(letter.isdigit() for text in texts for letter in text):
        return how if kind == "text" else ""
    empty = {word.casefold() for word in missing} | {""}
    some = [text for text in dict.fromkeys(texts) if text.casefold() not in empty][:_LOOKED_AT]
    others = [text for text in some if read_values([text]).kind not in ("number", "date")]
    if len(others) <= (1 - _MIXED) * len(some):
        return f"{others[0]!r} is no number" if others else "its cells cannot be read in one way"
    return ""
