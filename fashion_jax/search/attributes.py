"""Attributes of products: the columns by which searches filter and group."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from fashion_jax.data.schema import BETWEEN_TAGS
from fashion_jax.system.errors import UserError, nearest

MISSING = -1  # the code of a missing text

Scalar = str | float | None


class Vocabulary(Sequence[str]):
    """Texts, each with a code. It only grows, so that all versions of a column share it."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self._codes: dict[str, int] = {}
        self._words: list[str] = []
        self._lock = threading.Lock()
        for word in words:
            self.add(word)

    def add(self, word: str) -> int:
        """Returns the code of a text, a new one where it has none."""
        with self._lock:
            code = self._codes.get(word)
            if code is None:
                self._words.append(word)  # before its code is known, so that every known code has a text
                code = self._codes[word] = len(self._words) - 1
            return code

    def code(self, word: str) -> int | None:
        """Returns the code of a text; None where it has none."""
        return self._codes.get(word)

    def __contains__(self, word: object) -> bool:
        return word in self._codes

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, code: Any) -> Any:
        return self._words[code]


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Texts as codes of a vocabulary; `MISSING` where there is none."""

    codes: Int32[np.ndarray, " n"]
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """Numbers (booleans are 0 and 1), NaN where missing. Integers up to 2**53 are exact."""

    values: Float64[np.ndarray, " n"]


Column = TextColumn | NumberColumn


class AttributeTable:
    """An immutable table of named columns of one length."""

    __slots__ = ("_columns", "_count")

    def __init__(self, columns: Mapping[str, Column], count: int) -> None:
        self._columns, self._count = dict(columns), count
        assert all(_length(column) == count for column in self._columns.values())

    def __len__(self) -> int:
        return self._count

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in their order."""
        return tuple(self._columns)

    def column(self, name: str) -> Column:
        """Returns a column; UserError for an unknown name says which one may be meant."""
        if not isinstance(name, str):
            raise UserError(f"the name of a column is a text, not {name!r}")
        if name not in self._columns:
            known = ", ".join(self._columns) or "none: the index was built without attributes"
            raise UserError(f"there is no column {name!r}{nearest(name, self._columns)}; columns: {known}")
        return self._columns[name]

    def row(self, position: int) -> dict[str, Scalar]:
        """Returns one row; None where a value is missing, int where a number is whole."""
        return {name: _cell(column, position) for name, column in self._columns.items()}

    def take(self, rows: Int64[np.ndarray, " m"]) -> AttributeTable:
        """Returns the rows at some positions; at position -1 all values are missing."""
        taken: dict[str, Column] = {}
        for name, column in self._columns.items():
            if isinstance(column, TextColumn):
                codes = column.codes[rows] if self._count else np.empty(len(rows), np.int32)
                taken[name] = TextColumn(np.where(rows >= 0, codes, np.int32(MISSING)), column.vocabulary)
            else:
                values = column.values[rows] if self._count else np.empty(len(rows))
                taken[name] = NumberColumn(np.where(rows >= 0, values, np.nan))
        return AttributeTable(taken, len(rows))

    def without_unused_words(self) -> AttributeTable:
        """Returns the same table with its own vocabularies, which hold only words that a row has."""
        kept: dict[str, Column] = dict(self._columns)
        for name, column in self._columns.items():
            if isinstance(column, TextColumn):
                used = np.unique(column.codes)
                used = used[used != MISSING]
                if len(used) < len(column.vocabulary):
                    codes = np.full(len(column.vocabulary) + 1, MISSING, np.int32)  # the last place is for MISSING
                    codes[used] = np.arange(len(used))
                    words = Vocabulary(column.vocabulary[code] for code in used.tolist())
                    kept[name] = TextColumn(codes[column.codes], words)
        return AttributeTable(kept, self._count)

    def replace(self, other: AttributeTable, names: Iterable[str]) -> AttributeTable:
        """Returns this table with some columns taken from another table with as many rows."""
        return AttributeTable({**self._columns, **{name: other.column(name) for name in names}}, self._count)

    def to_lists(self) -> dict[str, list[Scalar]]:
        """Returns the columns as lists, None where a value is missing."""
        return {name: [_cell(column, row) for row in range(self._count)] for name, column in self._columns.items()}

    def groups(self, name: str) -> Int64[np.ndarray, " n"]:
        """Returns a group number per row, the same for equal values of a column; a missing value is its own group."""
        column = self.column(name)
        if isinstance(column, TextColumn):
            groups = column.codes.astype(np.int64)
            absent = column.codes == MISSING
        else:
            absent = np.isnan(column.values)
            _, groups = np.unique(np.where(absent, 0.0, column.values), return_inverse=True)
            groups = groups.astype(np.int64)
        groups[absent] = -1 - np.flatnonzero(absent)
        return groups

    def append(
        self, other: AttributeTable, join: Callable[[str, np.ndarray, np.ndarray], np.ndarray]
    ) -> AttributeTable:
        """Returns this table with another's rows below it.

        Args:
            other: a table with the same columns, of the same kinds.
            join: joins two arrays; its first argument is the column's name.
        """
        joined: dict[str, Column] = {}
        for name, column in self._columns.items():
            more = other._columns[name]
            if isinstance(column, TextColumn):
                assert isinstance(more, TextColumn)
                codes = more.codes
                if more.vocabulary is not column.vocabulary:
                    # The code -1 reads the last place, which is MISSING.
                    to_ours = [*(column.vocabulary.add(text) for text in more.vocabulary), MISSING]
                    codes = np.array(to_ours, np.int32)[codes]
                joined[name] = TextColumn(join(name, column.codes, codes), column.vocabulary)
            else:
                assert isinstance(more, NumberColumn)
                joined[name] = NumberColumn(join(name, column.values, more.values))
        return AttributeTable(joined, self._count + len(other))

    def conform(self, other: AttributeTable) -> AttributeTable:
        """Returns another table's rows with this table's columns; columns that the other lacks are missing values.

        Raises:
            UserError: the other table has a column that this one lacks, or a column of another kind.
        """
        columns: dict[str, Column] = {}
        for name in other.names:
            self.column(name)
        for name, ours in self._columns.items():
            theirs = other._columns.get(name) or _missing_like(ours, len(other))
            if type(theirs) is not type(ours):
                # A column of missing values fits both kinds.
                if not _all_missing(theirs):
                    raise UserError(f"the index's column {name!r} holds {_kind(ours)}, not {_kind(theirs)}")
                theirs = _missing_like(ours, len(other))
            columns[name] = theirs
        return AttributeTable(columns, len(other))

    def to_arrays(self) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Returns arrays for a file, named "column0" and so on, and JSON values that describe them."""
        arrays, about = {}, []
        for place, (name, column) in enumerate(self._columns.items()):
            if isinstance(column, TextColumn):
                arrays[f"column{place}"] = column.codes
                about.append({"name": name, "kind": "text", "vocabulary": list(column.vocabulary)})
            else:
                arrays[f"column{place}"] = column.values
                about.append({"name": name, "kind": "number"})
        return arrays, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Sequence[Mapping[str, Any]], count: int) -> Any:
        """Returns the table that `to_arrays` described; UserError when arrays and description do not fit."""
        columns: dict[str, Column] = {}
        for place, item in enumerate(about):
            array = arrays.get(f"column{place}")
            text = item["kind"] == "text"
            if array is None or array.shape != (count,) or array.dtype != (np.int32 if text else np.float64):
                raise UserError(f"the column {item['name']!r} is damaged")
            if text:
                vocabulary = Vocabulary(str(word) for word in item["vocabulary"])
                if count and not (array.min() >= MISSING and array.max() < len(vocabulary)):
                    raise UserError(f"the column {item['name']!r} is damaged")
                columns[str(item["name"])] = TextColumn(array, vocabulary)
            else:
                columns[str(item["name"])] = NumberColumn(array)
        return cls(columns, count)


def make_table(columns: Any, count: int) -> AttributeTable:
    """Makes a table from columns.

    Args:
        columns: a pandas DataFrame, or a mapping from names to sequences of texts, numbers or booleans; None, NaN and
            an empty text are missing values. A list of texts is one text, with `|` between the items, for the filter
            `has`. None makes a table without columns.
        count: number of rows that the table must have.

    Raises:
        UserError: another number of rows, or a column that mixes texts and numbers.
    """
    if columns is None:
        return AttributeTable({}, count)
    if isinstance(columns, AttributeTable):
        if len(columns) != count:
            raise UserError(f"attributes have {len(columns)} rows and there are {count} ids")
        return columns
    if not hasattr(columns, "keys"):
        raise UserError(f"attributes must map names to columns, as a DataFrame or a dictionary, not {type(columns)}")
    made: dict[str, Column] = {}
    for name in columns.keys():  # noqa: SIM118 - a DataFrame's own iteration differs by version
        try:
            values = list(columns[name])
        except TypeError:
            raise UserError(f"the column {str(name)!r} must be a list of values, not {columns[name]!r}") from None
        if len(values) != count:
            raise UserError(f"the column {str(name)!r} has {len(values)} rows and there are {count} ids")
        made[str(name)] = _make_column(str(name), values)
    return AttributeTable(made, count)


def _make_column(name: str, values: list[Any]) -> Column:
    values = [_join_list(name, value) if isinstance(value, (list, tuple, set)) else value for value in values]
    known = [None if _is_missing(value) else value for value in values]
    present = [value for value in known if value is not None]
    if present and all(isinstance(value, (bool, int, float, np.bool_, np.number)) for value in present):
        try:
            return NumberColumn(np.array([np.nan if value is None else float(value) for value in known], np.float64))
        except OverflowError:
            raise UserError(f"the column {name!r} holds a number that is too large for double precision") from None
    strange = next((value for value in present if not isinstance(value, str)), None)
    if strange is not None:
        raise UserError(f"the column {name!r} mixes texts and others, such as {strange!r}; make it all of one kind")
    if (bad := next((value for value in present if not is_storable(value)), None)) is not None:
        raise UserError(f"the column {name!r} holds {bad!r}, which is not valid Unicode")
    vocabulary = Vocabulary()
    codes = [MISSING if value is None else vocabulary.add(str(value)) for value in known]
    return TextColumn(np.array(codes, np.int32), vocabulary)


def _join_list(name: str, items: Iterable[Any]) -> str:
    texts = [item for item in items if not _is_missing(item)]
    bad = next((item for item in texts if not isinstance(item, str) or BETWEEN_TAGS in item), None)
    if bad is not None:
        raise UserError(f"a list in the column {name!r} holds {bad!r}; it must hold texts without {BETWEEN_TAGS!r}")
    return BETWEEN_TAGS.join(sorted(set(texts)))


def is_storable(text: str) -> bool:
    """Returns whether a text can be written as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value):
        return True
    # NaN and pandas' NaT differ from themselves; pandas' NA answers neither yes nor no.
    same = value == value
    return not isinstance(same, (bool, np.bool_)) or not same


def _length(column: Column) -> int:
    return len(column.codes if isinstance(column, TextColumn) else column.values)


def _kind(column: Column) -> str:
    return "texts" if isinstance(column, TextColumn) else "numbers"


def _all_missing(column: Column) -> bool:
    return bool((column.codes == MISSING).all() if isinstance(column, TextColumn) else np.isnan(column.values).all())


def _missing_like(column: Column, count: int) -> Column:
    if isinstance(column, TextColumn):
        return TextColumn(np.full(count, MISSING, np.int32), Vocabulary())
    return NumberColumn(np.full(count, np.nan))


def _cell(column: Column, position: int) -> Scalar:
    if isinstance(column, TextColumn):
        code = int(column.codes[position])
        return None if code == MISSING else column.vocabulary[code]
    value = float(column.values[position])
    if np.isnan(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
