"""Corrections of labels: a table that a person edited, which is applied when a catalogue is read.

A row of the table names one label by its columns `id` and `attribute`. The column `corrected` holds the right class, or
one of the schema's texts for a missing label (such as NA), which removes the label. The column `decision` may hold
"accept", which takes the class in the column `suggested`, or "keep". A row with neither changes nothing.

With a column `given`, the catalogue must still have that label; so a table for another catalogue is refused. A later
row may change a label again if its `given` is the earlier row's result; so the tables of several audits can be put one
below the other. Other columns are ignored. The findings of an audit are such a table.

The label of a multi-valued attribute is all values of the product, with `|` between them, or `[]` for none. Several
rows with the same `given` are applied together: each adds or removes what it changes. `given` may lack the product's
values that are no classes, because an audit does not see them; they stay.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fashion_jax.data.schema import NOT_APPLICABLE, Attribute, Schema
from fashion_jax.data.tables import one_line
from fashion_jax.data.tags import TagColumn, join_tags, split_tags
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest

DECISIONS = ("", "keep", "accept")
_SHOWN = 5  # faults that an error message lists
_MAX_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class Correction:
    """One label to be changed."""

    line: int  # in the file, from 1
    id: str  # of the product
    attribute: str  # its name in the schema
    given: str | None  # the label that the catalogue must have; empty: none; None: any
    label: str  # the new label; empty: none


@dataclass(frozen=True, slots=True)
class Corrections:
    """A file of corrections that has been read, without the rows that change nothing."""

    path: str  # of the file
    items: tuple[Correction, ...]  # at most one for each label

    def digest(self) -> str:
        """Returns a hash of the changes, whatever their order; empty text where there are none."""
        changes = sorted((item.id, item.attribute, item.label) for item in self.items)
        return files.digest(changes) if changes else ""


def read_corrections(path: str | Path, schema: Schema) -> Corrections:
    """Reads a file of corrections.

    Args:
        path: of a CSV (comma, semicolon or tab; UTF-8) with the columns id, attribute, and corrected or decision.

    Raises:
        UserError: the file cannot be read, lacks a column, or has a fault; the message names its line.
    """
    rows = _read_rows(Path(path))
    columns = rows[0][1] if rows else []
    missing = [name for name in ("id", "attribute") if name not in columns]
    if missing or not {"corrected", "decision"} & set(columns):
        wanted = ", ".join(missing) or "corrected (or decision)"
        raise UserError(f"the corrections {path} lack the column {wanted}; they have: {', '.join(columns[:20])}")
    several = [attribute.name for attribute in schema.multi_valued]
    names = [*(attribute.name for attribute in schema.attributes), *several]
    items: dict[tuple[str, str], Correction] = {}
    faults: list[str] = []
    for line, cells in rows[1:]:
        if [files.unescape_cell(cell.strip()) for cell in cells] == columns:
            continue  # the header of a second table that was put below the first
        if len(cells) != len(columns):
            faults.append(f"line {line}: it has {len(cells)} of {len(columns)} columns")
            continue
        row = {name: one_line(files.unescape_cell(cell.strip())) for name, cell in zip(columns, cells, strict=True)}
        item, fault = _decide(line, row, names, schema)
        if item is not None:
            before = items.setdefault((item.id, item.attribute), item)
            tags = item.attribute in several and item.given == before.given
            if before is not item and tags and item.given and item.label and before.label:
                # Each line adds or removes a tag.
                items[item.id, item.attribute] = dataclasses.replace(item, label=_both_changes(before, item))
            elif before.label != item.label and item.given == before.label:
                items[item.id, item.attribute] = dataclasses.replace(item, given=before.given)
            elif before.label != item.label:
                fault = (
                    f"line {before.line} corrects {item.attribute} of {item.id!r} too, to {before.label!r}; delete one"
                )
        if fault:
            faults.append(f"line {line}: {fault}")
    _raise_faults(path, faults)
    return Corrections(str(path), tuple(items.values()))


def apply_corrections(
    corrections: Corrections,
    labels: pd.DataFrame,
    ids: Sequence[str],
    attributes: Sequence[Attribute],
    tags: Mapping[str, TagColumn] | None = None,
    chosen: Mapping[str, Collection[str]] | None = None,
) -> Counter[str]:
    """Changes labels and tags in place.

    Args:
        labels: a column of text for each attribute, with empty text for missing labels.
        ids: of the rows; several rows with one id get the same change.
        attributes: of the schema; without fixed classes, an attribute has the classes that its column holds.
        tags: of multi-valued attributes, which have the classes that their columns hold.
        chosen: multi-valued attribute -> the classes that it would have without corrections.

    Returns:
        Attribute -> the number of labels that were changed.

    Raises:
        UserError: the catalogue does not have an id, a class or a given label; the message names the line.
    """
    places: dict[str, list[int]] = {}
    wanted = {item.id for item in corrections.items}
    for place, name in enumerate(ids):
        if name in wanted:
            places.setdefault(name, []).append(place)
    classes = {a.name: a.fixed_classes() or tuple(sorted(set(labels[a.name]) - {""})) for a in attributes}
    columns = {a.name: labels[a.name].to_numpy(dtype=object, copy=True) for a in attributes}
    for name, read in (tags or {}).items():
        classes[name] = tuple(sorted({tag for text in read.cells.unique() for tag in split_tags(text) or ()}))
        columns[name] = read.cells.to_numpy(dtype=object, copy=True)
    changed: Counter[str] = Counter()
    faults = []
    for item in corrections.items:
        rows, column = places.get(item.id, []), columns[item.attribute]
        if not rows:
            faults.append(f"line {item.line}: the catalogue has no product {item.id!r}")
        elif odd := _unknown_class(item, classes[item.attribute], several=item.attribute in (tags or {})):
            hint = nearest(odd, classes[item.attribute])
            faults.append(f"line {item.line}: {odd!r} is no class of {item.attribute}{hint}")
        else:
            known = (chosen or {}).get(item.attribute)
            new = {row: label for row in rows if (label := _corrected(column[row], item, known)) is not None}
            if not new:
                now = f"{column[rows[0]]!r}" if column[rows[0]] else "no label"
                faults.append(
                    f"line {item.line}: {item.attribute} of {item.id!r} is {now} in the catalogue and {item.given!r} "
                    "under `given`; the table was made for another catalogue"
                )
            for row, label in new.items():
                changed[item.attribute] += int(column[row] != label)
                column[row] = label
    _raise_faults(corrections.path, faults)
    for name, values in columns.items():
        if tags and name in tags:
            tags[name].cells = pd.Series(values, labels.index)
        else:
            labels[name] = values
    return +changed


def _corrected(now: str, item: Correction, known: Collection[str] | None) -> str | None:
    """Returns a row's label after a correction; None where the row has another label than the one that is given.

    Args:
        now: the row's label.
        known: the classes of a multi-valued attribute; the row's other values stay. None for other attributes.
    """
    # The table may have been edited too, so that the label is the new one already.
    if item.given is None or now in (item.given, item.label):
        return item.label
    if known is None or not now:
        return None
    tags, label = set(split_tags(now) or ()), set(split_tags(item.label) or ())
    for before in (item.given, item.label):
        seen = set(split_tags(before) or ())
        if before and seen <= tags and not (tags - seen) & set(known):
            return join_tags(label | (tags - seen)) if item.label else ""
    return None


def _unknown_class(item: Correction, classes: Sequence[str], *, several: bool) -> str:
    """Returns the first class in the new label that the attribute does not have; empty text if it has all of them."""
    new = split_tags(item.label) or () if several else [item.label] if item.label else []
    known = set(classes)
    return next((name for name in new if name not in known), "")


def _both_changes(one: Correction, two: Correction) -> str:
    """Returns the tags after two corrections of the same given tags."""
    given, first, second = (set(split_tags(text or "") or ()) for text in (one.given, one.label, two.label))
    return join_tags((first | (second - given)) - (given - second))


def holds_decisions(path: Path) -> bool:
    """True where a person has filled in a line, or where the file is not one that an audit wrote."""
    try:
        rows = [cells for _, cells in _read_rows(path)]
    except UserError:
        return True  # somebody has changed the file
    places = [rows[0].index(name) for name in ("decision", "corrected") if name in rows[0]] if rows else []
    return len(places) < 2 or any(cell.strip() for cells in rows[1:] for cell in cells[min(places) :])


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Returns (line, cells) of every row of a CSV that is not blank."""
    try:
        text = files.read_limited(path, _MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"the corrections {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the corrections {path} are not UTF-8; save them as CSV UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    rows, line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"the corrections {path} are no CSV: line {line}: {error}") from error
    return [
        (n, [files.unescape_cell(cell.strip()) for cell in cells] if i == 0 else cells)
        for i, (n, cells) in enumerate(rows)
    ]


def _decide(line: int, row: Mapping[str, str], names: Sequence[str], schema: Schema) -> tuple[Correction | None, str]:
    """Returns the correction that a row asks for, or None, and what is wrong with the row, or empty text."""
    decision, corrected = row.get("decision", "").casefold(), row.get("corrected", "")
    if decision not in DECISIONS:
        return None, f"the decision {decision!r} is not accept, keep or empty; write a class under corrected"
    if decision == "accept" and not corrected:
        corrected = row.get("suggested", "")
        if not corrected:
            return None, "the decision is accept, and no class stands under suggested"
    elif decision == "keep" and corrected:
        return None, f"the decision is keep, and {corrected!r} stands under corrected"
    if not corrected:
        return None, ""
    if not row["id"]:
        return None, "it names no id"
    if row["attribute"] not in names:
        return None, f"the catalogue has no attribute {row['attribute']!r}{nearest(row['attribute'], names)}"
    name = row["attribute"]
    multi_valued = any(attribute.name == name for attribute in schema.multi_valued)
    words = next((attribute.not_applicable for attribute in schema.attributes if attribute.name == name), ())
    not_applicable = {word.casefold() for word in words}

    def label(text: str) -> str:
        if text.casefold() in not_applicable:
            return NOT_APPLICABLE
        if text in schema.missing_values:
            return ""
        return join_tags(tag.strip() for tag in split_tags(text) or ()) if multi_valued else text

    given = row.get("given")
    return Correction(line, row["id"], name, None if given is None else label(given), label(corrected)), ""


def _raise_faults(path: str | Path, faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"the corrections {path} do not fit: {'; '.join(faults[:_SHOWN])}{more}")
