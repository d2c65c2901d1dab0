"""Attributes of several values (tags): reads cells such as `Casual|Summer`, lists, and columns of yes and no.

A row's tags are kept as one text: the values in alphabetical order with `|` between them; NO_TAGS for a row that is
known to have none; and empty text where nothing is known about the row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int8

from fashion_jax.data.cell_lists import is_bracketed, read_list
from fashion_jax.data.schema import BETWEEN_TAGS, MISSING, MultiValued, Schema
from fashion_jax.data.values import read_values
from fashion_jax.data.words import clean_label, find_look_alikes, merge_line
from fashion_jax.system.errors import UserError

NO_TAGS = "[]"  # the text of a row that is known to have no value

_SEPARATORS = ("|", "\n", ";", ",", "/")
_SURE = ("|", "\n", ";")  # Others also stand inside of values, so they must divide what also stands alone elsewhere.
_PREFIX = re.compile(r"(.+?)[\s_\-.:/=]+(\S.*)")  # of columns of yes and no, such as `occasion_summer`
_LEAST_ROWS = 3  # with several values, from which the report offers to read them
_LEAST_REPEATS = 3  # rows per value that it needs on average
_MOST_OFFERED = 100  # values of a column that is offered


@dataclass
class TagColumn:
    """The tags of one attribute as they were read, and what was done."""

    cells: pd.Series  # a row's tags as one text
    # the texts between two values of a cell; none: the cells were lists or single values, or columns of yes and no
    separators: tuple[str, ...] = ()
    missing: Counter[str] = field(default_factory=Counter)  # word that was taken as a missing label -> cells
    merged: Counter[str] = field(default_factory=Counter)  # value that was merged -> rows
    no_class: Counter[str] = field(default_factory=Counter)  # value that is no class -> rows
    look_alikes: list[dict[str, int]] = field(default_factory=list)  # as `words.find_look_alikes` returns them
    classes: tuple[str, ...] = ()  # sorted
    merge_line: str = ""  # the schema's entry that merges similar classes; empty where there are none


def join_tags(tags: Iterable[str]) -> str:
    """Returns a row's tags as one text."""
    return BETWEEN_TAGS.join(sorted(set(tags))) or NO_TAGS


def split_tags(text: str) -> tuple[str, ...] | None:
    """Returns the tags in a row's text; None where nothing is known."""
    if not text:
        return None
    return () if text == NO_TAGS else tuple(text.split(BETWEEN_TAGS))


def tag_vectors(texts: Sequence[str], classes: Sequence[str]) -> Int8[np.ndarray, "n classes"]:
    """Returns 1 for each class that a row has and 0 for the others; MISSING in all of them where nothing is known.

    Args:
        texts: a row's tags as one text.
        classes: the names; other tags are left out.
    """
    places = {name: place for place, name in enumerate(classes)}
    vectors = np.zeros((len(texts), len(classes)), np.int8)
    for row, text in enumerate(texts):
        tags = split_tags(text)
        if tags is None:
            vectors[row] = MISSING
        else:
            vectors[row, [places[tag] for tag in tags if tag in places]] = 1
    return vectors


def tag_text(vector: np.ndarray, classes: Sequence[str]) -> str:
    """Returns the text of a row of `tag_vectors`."""
    if (vector == MISSING).any():
        return ""
    return join_tags(classes[place] for place in np.flatnonzero(vector == 1).tolist())


def read_tags(schema: Schema, frame: pd.DataFrame, repairs: Counter[str]) -> dict[str, TagColumn]:
    """Reads the multi-valued attributes of a table; their classes are not chosen yet.

    Args:
        frame: columns of text.
        repairs: counts are added to it.

    Raises:
        UserError: a column holds neither yes nor no where it should, or a value holds `|`.
    """
    read = {}
    for attribute in schema.multi_valued:
        if not set(attribute.used_columns()) & set(frame.columns):  # a table without labels
            read[attribute.name] = TagColumn(pd.Series("", frame.index))
        elif attribute.columns:
            read[attribute.name] = _read_marks(attribute, frame, schema.missing_values, repairs)
        else:
            cells = frame[attribute.used_columns()[0]].astype(str)
            read[attribute.name] = _read_cells(attribute, cells, schema.missing_values, repairs)
    return read


def choose_classes(attribute: MultiValued, column: TagColumn, kept: pd.Series) -> None:
    """Chooses the classes, and leaves other values out of the cells.

    Args:
        kept: bool, the rows whose values count.
    """
    counts = _count_tags(column.cells[kept])
    column.look_alikes = find_look_alikes(counts, attribute.classes)
    if column.look_alikes:
        column.merge_line = merge_line(attribute.name, column.look_alikes, dict(attribute.merge))
    column.classes = find_classes(attribute, column, kept)
    known = set(column.classes)
    column.no_class = Counter({tag: rows for tag, rows in counts.most_common() if tag not in known})

    def known_only(text: str) -> str:
        tags = split_tags(text)
        return "" if tags is None else join_tags(tag for tag in tags if tag in known)

    column.cells = column.cells.map({text: known_only(text) for text in column.cells.unique()})


def find_classes(attribute: MultiValued, column: TagColumn, kept: pd.Series) -> tuple[str, ...]:
    """Returns the classes, sorted: the schema's, or else the values in enough rows.

    Args:
        kept: bool, the rows whose values count.
    """
    named = dict(attribute.columns) or attribute.classes
    counts = {} if named else _count_tags(column.cells[kept])
    return tuple(sorted(named or (tag for tag, rows in counts.items() if rows >= attribute.min_rows)))


def _count_tags(cells: pd.Series) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text, rows in cells.value_counts().items():
        counts.update(dict.fromkeys(split_tags(str(text)) or (), int(rows)))
    return counts


def _read_cells(
    attribute: MultiValued, cells: pd.Series, missing_values: Sequence[str], repairs: Counter[str]
) -> TagColumn:
    counts = {str(cell): int(rows) for cell, rows in cells.value_counts().items()}
    lists = {cell: _list_values(cell) for cell in counts}
    plain = {cell: rows for cell, rows in counts.items() if lists[cell] is None}
    column = TagColumn(cells, (attribute.separator,) if attribute.separator else find_separators(plain))
    merge = {clean_label(value)[0]: target for value, target in attribute.merge}
    absent = {clean_label(word)[0].casefold() for word in missing_values} | {""}
    texts = {}
    for cell, rows in counts.items():
        parts = lists[cell]
        if parts is None:
            parts = _split(cell, column.separators)
        values = []
        for part in parts:
            value, needed = clean_label(part)
            repairs.update(dict.fromkeys(needed, rows))
            if value.casefold() in absent and value not in attribute.classes:
                column.missing[value] += rows
                continue
            if value in merge:
                column.merged[value] += rows
            values.append(merge.get(value, value))
        _check_values(attribute.name, values)
        # A list without values says that there are none. A cell of missing words says nothing.
        texts[cell] = join_tags(values) if values or (lists[cell] is not None and not parts) else ""
    column.cells = cells.map(texts)
    return column


def _check_values(name: str, values: Sequence[str]) -> None:
    odd = [value for value in values if BETWEEN_TAGS in value]
    if odd:
        line = json.dumps({"merge": {odd[0]: odd[0].replace(BETWEEN_TAGS, "/")}}, ensure_ascii=False)[1:-1]
        raise UserError(
            f"the value {odd[0]!r} of {name!r} holds '|', which stands between two values; if '|' separates values, "
            f'write "separator": "|" into the schema, or else give the value another name: {line}'
        )


def _list_values(cell: str) -> list[str] | None:
    """Returns the items of a list as `read_list` reads it, or without quotes (`[a, b]`); None for another text."""
    cell = cell.strip()
    items = read_list(cell)
    if items is not None and not any(isinstance(item, (list, dict)) for item in items):
        return [str(item) for item in items if item is not None]
    if not is_bracketed(cell) or cell[0] == "(":  # "(plain)" is a word
        return None
    inside = cell[1:-1].strip()
    return [item.strip().strip("\"'") for item in inside.split(",")] if inside else []


def find_separators(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the separator that divides cells into the fewest different values, and others that make them fewer still.

    A comma or a slash also stands inside of values ("T-Shirt/Top"). They separate only where a part also occurs in
    another cell.

    Args:
        counts: cell -> rows.
    """
    found: tuple[str, ...] = ()
    while True:
        scores = {}
        for sign in set(_SEPARATORS) - set(found):
            parts = {cell: _parts(cell, (*found, sign)) for cell in counts}
            divides = any(sign in cell and len(parts[cell]) > 1 for cell in counts)
            if divides and (sign in _SURE or _share_repeated(parts) > 0):
                scores[sign] = len({value for values in parts.values() for value in values})
        best = min(scores, key=lambda sign: (scores[sign], _SEPARATORS.index(sign)), default="")
        fewest = len({value for cell in counts for value in _parts(cell, found)})
        if not best or (found and scores[best] >= fewest):
            return found
        found = (*found, best)


def _split(cell: str, separators: Sequence[str]) -> list[str]:
    return re.split("|".join(map(re.escape, separators)), cell) if separators else [cell]


def _parts(cell: str, separators: Sequence[str]) -> list[str]:
    return [part for part in (" ".join(part.split()) for part in _split(cell, separators)) if part]


def _share_repeated(parts: Mapping[str, Sequence[str]]) -> float:
    """Returns the share of the divided cells of which a part also occurs in another cell."""
    occurrences = Counter(value for values in parts.values() for value in set(values))
    divided = [values for values in parts.values() if len(values) > 1]
    repeated = sum(any(occurrences[value] > 1 for value in values) for values in divided)
    return repeated / len(divided) if divided else 0.0


def _read_marks(
    attribute: MultiValued, frame: pd.DataFrame, missing_values: Sequence[str], repairs: Counter[str]
) -> TagColumn:
    """Reads one column for each class.

    A row whose cells are all empty has no label. If a column holds only one word, the word means yes. In columns that
    never say no, an empty cell beside a yes means no; else it makes the row's label missing.
    """
    answers: dict[str, list[bool | None]] = {}
    for label, name in attribute.columns:
        found = read_values([str(cell) for cell in frame[name]], missing_values)
        given = {value for value in found.values if value is not None}
        if found.kind == "text" and len(given) == 1:
            answers[label] = [None if value is None else True for value in found.values]
        elif found.kind in ("boolean", "nothing") or (found.kind == "number" and given <= {0.0, 1.0}):
            answers[label] = [None if value is None else bool(value) for value in found.values]
        else:
            odd = next(cell for cell in frame[name] if cell not in ("", "0", "1", "yes", "no"))
            raise UserError(
                f"column {name!r} of {attribute.name!r} holds {odd!r}; each of its columns must hold yes or no, 1 or "
                "0, or one word for yes"
            )
    says_no = any(value is False for values in answers.values() for value in values)
    texts, partly = [], 0
    for row in zip(*answers.values(), strict=True):
        known = [value is not None for value in row]
        partial = any(known) and not all(known)
        partly += partial
        lacking = not any(known) or (partial and says_no)
        texts.append("" if lacking else join_tags(n for n, yes in zip(answers, row, strict=True) if yes))
    if partly:
        what = "labels left out because a cell is empty" if says_no else "labels with empty cells, which mean no"
        repairs[f"{attribute.name}: {what}"] += partly
    return TagColumn(pd.Series(texts, frame.index, dtype=object))


def offer_tags(schema: Schema, frame: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Returns a sentence for each column, or group of columns, that looks like several values of an attribute.

    Args:
        columns: that are attributes of one value, or are not used.
    """
    offers, marks = [], dict[str, dict[str, str]]()
    for name in columns:
        cells = frame[name]
        if any(isinstance(cell, bytes) for cell in cells.head(50)):
            continue
        counts = {str(cell): int(rows) for cell, rows in cells.value_counts().items() if cell}
        if example := _find_several(counts):
            line = json.dumps({"multi_valued": [{"name": name}]}, ensure_ascii=False)[1:-1]
            offers.append(
                f"column {name!r}: cells look like several values: {example[0]!r} {example[1]:,} rows; to read them "
                f"so, leave {name!r} out of the schema's attributes, and write {line} into the schema"
            )
        match = _PREFIX.fullmatch(name)
        if match and {cell.casefold() for cell in counts} in ({"0", "1"}, {"yes", "no"}, {"true", "false"}):
            marks.setdefault(match[1], {})[match[2]] = name
    for prefix, group in marks.items():
        if len(group) > 1:
            taken = prefix in {attribute.name for attribute in schema.attributes}
            entry = {"name": f"{prefix}_tags" if taken else prefix, "columns": group}
            line = json.dumps({"multi_valued": [entry]}, ensure_ascii=False)[1:-1]
            offers.append(
                f"columns {', '.join(map(repr, group.values()))} look like yes and no for the values of one attribute; "
                f"to read them so, leave them out of the schema's attributes, and write {line} into the schema"
            )
    return offers


def _find_several(counts: Mapping[str, int]) -> tuple[str, int] | None:
    """Returns the commonest cell that holds several values, and the number of such rows; None where there are none."""
    lists = {cell: _list_values(cell) for cell in counts}
    signs = find_separators({cell: rows for cell, rows in counts.items() if lists[cell] is None})
    parts = {cell: _parts(cell, signs) if (values := lists[cell]) is None else values for cell in counts}
    several = {cell: rows for cell, rows in counts.items() if len(parts[cell]) > 1}
    rows = sum(several.values())
    found: Counter[str] = Counter()
    for cell, count in counts.items():
        found.update(dict.fromkeys(parts[cell], count))
    repeat = found.total() >= _LEAST_REPEATS * len(found)
    if rows < _LEAST_ROWS or not repeat or len(found) > _MOST_OFFERED or _share_repeated(parts) < 0.5:
        return None
    return max(several, key=lambda cell: several[cell]), rows


def report_tags(columns: Mapping[str, TagColumn], vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what the report of a preparation says about multi-valued attributes, as JSON values.

    Args:
        vectors: attribute -> `tag_vectors` of the usable products.
    """
    report = {}
    for name, column in columns.items():
        known = vectors[name][(vectors[name] != MISSING).all(1)] if name in vectors else np.empty((0, 0), np.int8)
        counts = known.sum(0, dtype=np.int64).tolist() if name in vectors else []
        report[name] = {
            "rows": dict(zip(column.classes, counts, strict=False)),
            "no_value": int((known == 0).all(1).sum()),
            "missing_labels": len(vectors[name]) - len(known) if name in vectors else 0,
            "separators": list(column.separators),
            "missing": dict(column.missing),
            "merged": dict(column.merged),
            "no_class": dict(column.no_class),
            "look_alikes": column.look_alikes,
            "merge_line": column.merge_line,
        }
    return report


def format_tags(report: Mapping[str, Any]) -> list[str]:
    """Returns the lines that the report of a preparation has about multi-valued attributes."""
    lines = []
    for name, found in report.items():
        shown = ", ".join(f"{tag!r} {rows:,}" for tag, rows in found["rows"].items())
        by = f", separated by {' '.join(map(repr, found['separators']))}" if found["separators"] else ""
        lines.append(
            f"{name} (several values{by}): {len(found['rows'])} classes: {shown or '-'}; no value "
            f"{found['no_value']:,}; missing labels {found['missing_labels']:,}"
        )
        for what, key in (("taken as missing", "missing"), ("merged", "merged"), ("no classes", "no_class")):
            words = ", ".join(f"{word!r} {rows:,}" for word, rows in found[key].items() if word)
            if words:
                lines.append(f"  {what}: {words}")
        lines += [
            "  similar classes: " + ", ".join(f"{word!r} {rows:,}" for word, rows in group.items())
            for group in found["look_alikes"]
        ]
        if found["merge_line"]:
            lines.append(f"  to merge them, put this into the schema's multi_valued: {found['merge_line']}")
    return lines
