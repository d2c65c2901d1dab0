"""Attributes of products: the columns by which searches filter and group."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64

from fashion_jax.data.schema import BETWEEN_TAGS
from fashion_jax.data.values import read_values
from fashion_jax.system.errors import UserError, nearest

MISSING = -1  # the code of a missing text
# Columns with a meaning of their own.
TITLE = "title"
PHOTO = "photo"  # names the photo of each row
CONFIDENCE = " confidence"  # `<head> confidence` holds the probability of the head's label

KINDS = {"text": "texts", "number": "numbers", "boolean": "yes and no", "date": "dates"}  # kind -> words for people
_EPOCH = datetime.datetime(1970, 1, 1)
_FIRST = (datetime.datetime.min - _EPOCH).total_seconds()
_LAST = (datetime.datetime(9999, 12, 31, 23, 59, 59) - _EPOCH).total_seconds()

Scalar = str | float | bool | None  # of a date, its text: 2026-01-31, or 2026-01-31 09:30:00


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
    """Numbers, NaN where missing. Integers up to 2**53 are exact."""

    values: Float64[np.ndarray, " n"]  # of a boolean 0 or 1; of a date the seconds since 1970, in UTC
    kind: str = "number"  # "number", "boolean" or "date"


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
                taken[name] = NumberColumn(np.where(rows >= 0, values, np.nan), column.kind)
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
                joined[name] = TextColumn(join(name, column.codes, _codes_in(column, more)), column.vocabulary)
            else:
                assert isinstance(more, NumberColumn)
                joined[name] = NumberColumn(join(name, column.values, more.values), column.kind)
        return AttributeTable(joined, self._count + len(other))

    def assign(self, rows: Int64[np.ndarray, " m"], other: AttributeTable) -> AttributeTable:
        """Returns this table with other values in some rows and columns.

        Args:
            rows: the rows.
            other: a table with a row for each of them. Its columns have the kinds of this table's.
        """
        changed: dict[str, Column] = dict(self._columns)
        for name, more in other._columns.items():
            column = self._columns[name]
            if isinstance(column, TextColumn):
                assert isinstance(more, TextColumn)
                codes = column.codes.copy()
                codes[rows] = _codes_in(column, more)
                changed[name] = TextColumn(codes, column.vocabulary)
            else:
                assert isinstance(more, NumberColumn)
                values = column.values.copy()
                values[rows] = more.values
                changed[name] = NumberColumn(values, column.kind)
        return AttributeTable(changed, self._count)

    def with_kinds(self, kinds: Mapping[str, str]) -> AttributeTable:
        """Returns this table with columns of these kinds; those that it lacks, or has in another kind, are empty."""
        columns: dict[str, Column] = dict(self._columns)
        for name, kind in kinds.items():
            if name not in columns or kind_of(columns[name]) != kind:
                columns[name] = _empty_column(kind, self._count)
        return AttributeTable(columns, self._count)

    def choose_kinds(self, other: AttributeTable, *, whole: bool, fixed: Collection[str] = ()) -> dict[str, str]:
        """Returns the kinds that this table's columns have once they hold values of another table.

        Args:
            other: its columns may be new.
            whole: whether all values are replaced, so that a column of texts may become one of another kind.
            fixed: columns that keep their kind nevertheless.

        Raises:
            UserError: a column of another kind, or a new column without a value.
        """
        kinds = {}
        for name, theirs in other._columns.items():
            kinds[name] = kind_of(theirs)
            if name in self._columns:
                ours = kind_of(self._columns[name])
                may_change = whole and ours == "text" and name not in fixed
                if not may_change or _all_missing(theirs) or _can_convert(theirs, ours):
                    _convert(name, theirs, ours)
                    kinds[name] = ours
            elif _all_missing(theirs):
                raise UserError(f"the new column {name!r} holds no value; leave it out")
        return kinds

    def outdated_confidences(self, given: AttributeTable) -> AttributeTable:
        """Returns the columns of confidences that new labels make wrong, without a value where the label changes.

        Args:
            given: new values of this table's rows. Where it has confidences too, these are right.
        """
        columns: dict[str, Column] = {}
        for name in given.names:
            of_label = name + CONFIDENCE
            if name in self._columns and of_label in self._columns and of_label not in given.names:
                before, after = (table.select([name]).to_lists()[name] for table in (self, given))
                kept = np.flatnonzero([old == new for old, new in zip(before, after, strict=True)])
                rows = np.full(self._count, -1)
                rows[kept] = kept
                if len(kept) < self._count:
                    columns |= self.select([of_label]).take(rows)._columns
        return AttributeTable(columns, self._count)

    def conform(self, other: AttributeTable) -> AttributeTable:
        """Returns another table's rows with this table's columns; columns that the other lacks are missing values.

        Raises:
            UserError: the other table has a column that this one lacks, or a column of another kind.
        """
        columns: dict[str, Column] = {}
        for name in other.names:
            self.column(name)
        for name, ours in self._columns.items():
            theirs = other._columns.get(name)
            kind = kind_of(ours)
            columns[name] = _empty_column(kind, len(other)) if theirs is None else _convert(name, theirs, kind)
        return AttributeTable(columns, len(other))

    def select(self, names: Iterable[str]) -> AttributeTable:
        """Returns some of the columns."""
        return AttributeTable({name: self.column(name) for name in names}, self._count)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Returns arrays for a file, named "column0" and so on, and JSON values that describe them."""
        arrays, about = {}, []
        for place, (name, column) in enumerate(self._columns.items()):
            if isinstance(column, TextColumn):
                arrays[f"column{place}"] = column.codes
                about.append({"name": name, "kind": "text", "vocabulary": list(column.vocabulary)})
            else:
                arrays[f"column{place}"] = column.values
                about.append({"name": name, "kind": column.kind})
        return arrays, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], about: Sequence[Mapping[str, Any]], count: int) -> Any:
        """Returns the table that `to_arrays` described; UserError when arrays and description do not fit."""
        columns: dict[str, Column] = {}
        for place, item in enumerate(about):
            array = arrays.get(f"column{place}")
            text = item["kind"] == "text"
            if item["kind"] not in KINDS:
                raise UserError(f"the column {item['name']!r} is of an unknown kind")
            if array is None or array.shape != (count,) or array.dtype != (np.int32 if text else np.float64):
                raise UserError(f"the column {item['name']!r} is damaged")
            if text:
                vocabulary = Vocabulary(str(word) for word in item["vocabulary"])
                if count and not (array.min() >= MISSING and array.max() < len(vocabulary)):
                    raise UserError(f"the column {item['name']!r} is damaged")
                columns[str(item["name"])] = TextColumn(array, vocabulary)
            else:
                present = array[~np.isnan(array)]
                if (item["kind"] == "boolean" and not np.isin(present, (0, 1)).all()) or (
                    item["kind"] == "date" and not ((present >= _FIRST) & (present <= _LAST)).all()
                ):
                    raise UserError(f"the column {item['name']!r} is damaged")
                columns[str(item["name"])] = NumberColumn(array, str(item["kind"]))
        return cls(columns, count)


def make_table(columns: Any, count: int) -> AttributeTable:
    """Makes a table from columns.

    Args:
        columns: a pandas DataFrame, or a mapping from names to sequences of texts, numbers, booleans or dates (also
            with a time); None, NaN and an empty text are missing values. A list of texts is one text, with `|` between
            the items, for the filter `has`. None makes a table without columns.
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
        kind = "boolean" if all(isinstance(value, (bool, np.bool_)) for value in present) else "number"
        try:
            numbers = np.array([np.nan if value is None else float(value) for value in known], np.float64)
        except OverflowError:
            raise UserError(f"the column {name!r} holds a number that is too large for double precision") from None
        return NumberColumn(numbers, kind)
    if present and all(isinstance(value, (datetime.date, np.datetime64)) for value in present):
        try:
            return NumberColumn(np.array([np.nan if value is None else seconds_of(value) for value in known]), "date")
        except (OverflowError, AttributeError, TypeError):  # numpy knows dates before the year 1 and after 9999
            raise UserError(f"the column {name!r} holds a date outside of the years 1 to 9999") from None
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


def kind_of(column: Column) -> str:
    """Returns one of KINDS."""
    return "text" if isinstance(column, TextColumn) else column.kind


def seconds_of(moment: datetime.date | np.datetime64) -> float:
    """Returns the seconds from 1970 to a date, or to a date with a time; without a time zone it is in UTC."""
    date: datetime.date = moment.astype("datetime64[us]").item() if isinstance(moment, np.datetime64) else moment
    if not isinstance(date, datetime.datetime):
        date = datetime.datetime(date.year, date.month, date.day)
    if date.tzinfo is not None:
        date = date.astimezone(datetime.UTC).replace(tzinfo=None)
    return min((date - _EPOCH).total_seconds(), _LAST)


def _codes_in(ours: TextColumn, theirs: TextColumn) -> Int32[np.ndarray, " n"]:
    """Returns the codes of a column in the vocabulary of another one, which grows."""
    if theirs.vocabulary is ours.vocabulary:
        return theirs.codes
    # The code -1 reads the last place, which is MISSING.
    return np.array([*(ours.vocabulary.add(text) for text in theirs.vocabulary), MISSING], np.int32)[theirs.codes]


def _can_convert(column: Column, kind: str) -> bool:
    try:
        _convert("", column, kind)
    except UserError:
        return False
    return True


def _convert(name: str, column: Column, kind: str) -> Column:
    """Returns a column as one of another kind: true as 1, 0 as false, and texts of dates or yes and no as these.

    Raises:
        UserError: that would change what the column holds.
    """
    if kind_of(column) == kind:
        return column
    if _all_missing(column):
        return _empty_column(kind, _length(column))
    if isinstance(column, NumberColumn):
        present = column.values[~np.isnan(column.values)]
        if column.kind != "date" and (kind == "number" or (kind == "boolean" and np.isin(present, (0, 1)).all())):
            return NumberColumn(column.values, kind)
    elif kind in ("date", "boolean"):
        used = np.unique(column.codes[column.codes != MISSING])
        numbers = np.full(len(column.vocabulary) + 1, np.nan)  # the last place is for MISSING
        read = _read_words([column.vocabulary[code] for code in used.tolist()], kind)
        if read is not None:
            numbers[used] = read
            return NumberColumn(numbers[column.codes], kind)
    present = [value for row in range(_length(column)) if (value := _cell(column, row)) is not None]
    # A text that stands for no such value shows best what is wrong.
    strange = (value for value in present if isinstance(value, str) and read_values([value]).kind != kind)
    example = next(strange, present[0])
    raise UserError(
        f"the index's column {name!r} holds {KINDS[kind]}, not {KINDS[kind_of(column)]} such as {example!r}"
    )


def _read_words(words: list[str], kind: str) -> list[float] | None:
    """Returns texts as seconds or as 1 and 0; None where one is no date, or neither yes nor no."""
    if kind == "date":
        try:
            return [seconds_of(datetime.datetime.fromisoformat(word)) for word in words]
        except ValueError:
            pass
    found = read_values(words)
    if found.kind != kind:
        return None
    return [seconds_of(v) if isinstance(v, datetime.date) else float(bool(v)) for v in found.values]


def _all_missing(column: Column) -> bool:
    return bool((column.codes == MISSING).all() if isinstance(column, TextColumn) else np.isnan(column.values).all())


def _empty_column(kind: str, count: int) -> Column:
    if kind == "text":
        return TextColumn(np.full(count, MISSING, np.int32), Vocabulary())
    return NumberColumn(np.full(count, np.nan), kind)


def _cell(column: Column, position: int) -> Scalar:
    if isinstance(column, TextColumn):
        code = int(column.codes[position])
        return None if code == MISSING else column.vocabulary[code]
    value = float(column.values[position])
    if np.isnan(value):
        return None
    if column.kind == "boolean":
        return bool(value)
    if column.kind == "date":
        return (_EPOCH + datetime.timedelta(seconds=value)).isoformat(sep=" ").removesuffix(" 00:00:00")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
