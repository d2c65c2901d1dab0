"""The language of filters, such as `gender == 'Women' and baseColour in ['Red', 'Maroon'] and not year < 2012`.

A filter is an expression by this grammar:

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | comparison
    comparison  = column ("==" | "!=" | "<" | "<=" | ">" | ">=") literal
                | column [ "not" ] "in" "[" [ literal { "," literal } ] "]"
                | column [ "not" ] "has" text in quotes
    literal     = text in quotes | number | "true" | "false" | "yes" | "no" | "none"
    column      = a name; in `back quotes` if it has other characters than letters, digits and _

A column of texts is compared with texts, by == != and in only. A column of numbers is compared with numbers. A column
of yes and no is compared with true or false (yes and no mean the same). A column of dates is compared with dates in
quotes: '2026-01-31' is that whole day, '2026-01' the month, '2026' the year, and '2026-01-31 09:30' that moment; so
`added <= '2026-01-31'` passes all of that day. A missing value equals `none` and no other value, and it is neither
smaller nor larger than any value. Filters are parsed here; they are never evaluated as Python.

`has` is for a column of several values in each row, such as `Casual|Summer`: `occasion has 'Summer'` passes rows that
have this value. A row without a value, or with a missing one, passes `not has`.
"""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from fashion_jax.data.schema import BETWEEN_TAGS
from fashion_jax.data.values import read_values
from fashion_jax.search.attributes import MISSING, AttributeTable, NumberColumn, TextColumn, seconds_of
from fashion_jax.system.errors import UserError, nearest

_MAX_LENGTH = 20_000
_MAX_DEPTH = 100
_MOST_WORDS = 1_000  # of a column that are looked at for an example

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<quoted>`[^`]+`)
    | (?P<name>[^\W\d]\w*)
    | (?P<mark>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
    )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[..., Bool[np.ndarray, " n"]]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}
_MONTH = re.compile(r"(\d{4})(?:-(\d{1,2}))?")

Literal = str | float | bool | None


@dataclass(frozen=True, slots=True)
class _Compare:
    column: str
    mark: str
    value: Literal


@dataclass(frozen=True, slots=True)
class _In:
    column: str
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class _Has:
    column: str
    value: str


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Node


@dataclass(frozen=True, slots=True)
class _Join:
    parts: tuple[_Node, ...]
    every: bool  # and; else or


_Node = _Compare | _In | _Has | _Not | _Join


@dataclass(frozen=True, slots=True)
class Where:
    """A parsed filter."""

    text: str
    _root: _Node

    def evaluate(self, table: AttributeTable) -> Bool[np.ndarray, " n"]:
        """Returns which rows pass; UserError for an unknown column, or one that holds another kind of value."""
        return _evaluate(self._root, table)

    def hints(self, table: AttributeTable) -> list[str]:
        """Returns a sentence for each text that no row of the table has; it may be misspelt."""
        found = []
        for column, value, several in _texts(self._root):
            known = table.column(column)
            if isinstance(known, TextColumn) and value not in known.vocabulary:
                if several:
                    tags = {tag for word in known.vocabulary for tag in word.split(BETWEEN_TAGS)}
                    if value not in tags:
                        found.append(f"no product has {value!r} in its column {column}{nearest(value, tags)}")
                    continue
                found.append(f"no product has the {column} {value!r}{nearest(value, known.vocabulary)}")
        return found


def parse_where(text: str) -> Where:
    """Parses a filter; UserError names the character where it cannot be understood, and the reason."""
    if not isinstance(text, str):
        raise UserError(f"a filter is a text such as \"gender == 'Women'\", not {type(text).__name__}")
    if len(text) > _MAX_LENGTH:
        raise UserError(f"the filter has {len(text):,} characters; at most {_MAX_LENGTH:,} are allowed")
    return Where(text, _Parser(text).parse())


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0
        self._depth = 0

    def parse(self) -> _Node:
        node = self._expression()
        if self._kind:
            self._fail("'and', 'or' or the end is expected")
        return node

    @property
    def _kind(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    @property
    def _value(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        value = self._value
        self._next += 1
        return value

    def _is(self, word: str) -> bool:
        return self._kind in ("name", "mark") and (
            self._value.lower() == word if self._kind == "name" else self._value == word
        )

    def _expect(self, mark: str) -> None:
        if not self._is(mark):
            self._fail(f"'{mark}' is expected")
        self._next += 1

    def _fail(self, wanted: str) -> None:
        place = self._tokens[self._next][2] if self._next < len(self._tokens) else len(self._text)
        found = repr(self._text[place : place + 20]) if place < len(self._text) else "the end"
        raise UserError(
            f"the filter {self._text[:200]!r} is not understood at character {place + 1}, {found}: {wanted}"
        )

    def _expression(self) -> _Node:
        return self._joined("or", self._conjunction)

    def _conjunction(self) -> _Node:
        return self._joined("and", self._negation)

    def _joined(self, word: str, parse: Callable[[], _Node]) -> _Node:
        parts = [parse()]
        while self._is(word):
            self._next += 1
            parts.append(parse())
        return parts[0] if len(parts) == 1 else _Join(tuple(parts), every=word == "and")

    def _negation(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UserError(f"the filter is nested more than {_MAX_DEPTH} deep")
        if self._is("not"):
            self._next += 1
            node: _Node = _Not(self._negation())
        elif self._is("("):
            self._next += 1
            node = self._expression()
            self._expect(")")
        else:
            node = self._comparison()
        self._depth -= 1
        return node

    def _comparison(self) -> _Node:
        column = self._column()
        if self._is("in") or self._is("has") or self._is("not"):
            negated = self._is("not")
            self._next += negated
            node: _Node
            if self._is("has"):
                self._next += 1
                node = _Has(column, self._text_literal())
            else:
                self._expect("in")
                node = _In(column, self._list())
            return _Not(node) if negated else node
        mark = self._mark()
        return _Compare(column, mark, self._literal())

    def _mark(self) -> str:
        if self._kind != "mark" or self._value not in _COMPARE:
            self._fail("one of == != < <= > >= in has is expected")
        return self._take()

    def _column(self) -> str:
        if self._kind == "quoted":
            return self._take()[1:-1]
        if self._kind != "name" or self._value.lower() in ("and", "or", "not", "in", "true", "false", "none"):
            self._fail("the name of a column is expected; write the column first, such as year > 2012")
        return self._take()

    def _list(self) -> tuple[Literal, ...]:
        self._expect("[")
        values = []
        while not self._is("]"):
            values.append(self._literal())
            if not self._is("]"):
                self._expect(",")
        self._next += 1
        return tuple(values)

    def _is_literal(self) -> bool:
        return self._kind in ("text", "number") or any(self._is(word) for word in _WORDS)

    def _text_literal(self) -> str:
        if self._kind != "text":
            self._fail("a text in quotes is expected; for several values write: tags has 'A' and tags has 'B'")
        return str(self._literal())

    def _literal(self) -> Literal:
        if not self._is_literal():
            self._fail("a text in quotes or a number is expected")
        kind, value = self._kind, self._take()
        if kind == "text":
            return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
        if kind == "number":
            return float(value)
        return _WORDS[value.lower()]


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            start = place + len(text[place:]) - len(text[place:].lstrip())
            character = text[start]
            why = "this quote is never closed" if character in "'\"`" else f"the character {character!r} has no meaning"
            if character == "=":
                why = "write == to compare"
            raise UserError(f"the filter {text[:200]!r} is not understood at character {start + 1}: {why}")
        yield match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)
        place = match.end()


def _evaluate(node: _Node, table: AttributeTable) -> Bool[np.ndarray, " n"]:
    if isinstance(node, _Not):
        return ~_evaluate(node.part, table)
    if isinstance(node, _Join):
        result = _evaluate(node.parts[0], table)
        for part in node.parts[1:]:
            more = _evaluate(part, table)
            result = result & more if node.every else result | more
        return result
    if isinstance(node, _In):
        found = np.zeros(len(table), bool)
        for value in node.values:
            found |= _compare(node.column, "==", value, table)
        return found
    if isinstance(node, _Has):
        column = table.column(node.column)
        if not isinstance(column, TextColumn):
            raise UserError(
                f"the column {node.column!r} does not hold texts, so 'has' cannot be used on it; compare it with =="
            )
        # Each word of the vocabulary is divided once; the last place is for missing values.
        passing = np.array([*(node.value in word.split(BETWEEN_TAGS) for word in column.vocabulary), False])
        return passing[column.codes]
    return _compare(node.column, node.mark, node.value, table)


def _compare(name: str, mark: str, value: Literal, table: AttributeTable) -> Bool[np.ndarray, " n"]:
    column = table.column(name)
    if value is None and mark not in ("==", "!="):
        raise UserError(f"{name} {mark} none has no meaning; compare with none by == or != only")
    if isinstance(column, TextColumn):
        if mark not in ("==", "!="):
            raise UserError(_explain_texts(name, mark, column))
        if value is not None and not isinstance(value, str):
            raise UserError(f"the column {name!r} holds texts and is compared with {value!r}; put the value in quotes")
        code = MISSING if value is None else column.vocabulary.code(value)
        equal = np.zeros(len(table), bool) if code is None else column.codes == code
        return ~equal if mark == "!=" else equal
    if value is None:
        missing = np.isnan(column.values)
        return missing if mark == "==" else ~missing
    if column.kind == "date":
        return _compare_dates(column, mark, *_span_of(name, value))
    number = _truth_of(name, value) if column.kind == "boolean" else value
    if isinstance(number, str):
        raise UserError(f"the column {name!r} holds numbers and is compared with {value!r}; leave the quotes out")
    return _COMPARE[mark](column.values, float(number))


def _explain_texts(name: str, mark: str, column: TextColumn) -> str:
    # A word that is no number shows best why the column holds texts.
    words = list(column.vocabulary)[:_MOST_WORDS]
    example = next((word for word in words if read_values([word]).kind == "text"), words[0] if words else "")
    such = f"texts such as {example!r}" if words else "no value"
    return (
        f"the column {name!r} holds {such}, and {mark} compares numbers and dates only; use == or in, or write numbers "
        "in one unit (or dates) into the column of your table, for all products of the index, and give that to "
        "fashion-jax index update --table"
    )


def _compare_dates(column: NumberColumn, mark: str, start: float, end: float) -> Bool[np.ndarray, " n"]:
    """Compares moments with a span of time; all in seconds, the end excluded."""
    if mark in ("==", "!="):
        within = (column.values >= start) & (column.values < end)
        return within if mark == "==" else ~within
    return {"<": column.values < start, "<=": column.values < end, ">": column.values >= end}.get(
        mark, column.values >= start
    )


def _span_of(name: str, value: Literal) -> tuple[float, float]:
    """Returns the span that a literal means: a moment, a day, a month or a year, the end excluded."""
    problem = f"the column {name!r} holds dates and is compared with {value!r}; write a date such as '2026-01-31'"
    if not isinstance(value, str):
        raise UserError(problem)
    month = _MONTH.fullmatch(value.strip())
    try:
        if month:
            year, number = int(month[1]), int(month[2] or 1)
            following = number + 1 if month[2] else 13
            start = datetime.date(year, number, 1)
            is_last = year == datetime.MAXYEAR and (number == 12 or not month[2])
            end = None if is_last else datetime.date(year + following // 13, (following - 1) % 12 + 1, 1)
        else:
            found = read_values([value]).values[0]
            if isinstance(found, bool) or not isinstance(found, datetime.date):
                raise UserError(problem)
            if isinstance(found, datetime.datetime):
                return seconds_of(found), float(np.nextafter(seconds_of(found), np.inf))
            start, end = found, None if found == datetime.date.max else found + datetime.timedelta(days=1)
    except (ValueError, OverflowError):
        raise UserError(problem) from None
    # "Until 9999-12-31" stands for "no end" in many tables.
    last = seconds_of(datetime.datetime.max)
    return seconds_of(start), float(np.nextafter(last, np.inf)) if end is None else seconds_of(end)


def _truth_of(name: str, value: str | float) -> bool:
    truth = read_values([value]).values[0] if isinstance(value, str) else value
    if isinstance(truth, str) or truth not in (0, 1):
        raise UserError(f"the column {name!r} holds yes and no and is compared with {value!r}; write true or false")
    return bool(truth)


def _texts(node: _Node) -> Iterator[tuple[str, str, bool]]:
    """Yields column, text, and whether the text is one of several values."""
    if isinstance(node, _Not):
        yield from _texts(node.part)
    elif isinstance(node, _Join):
        for part in node.parts:
            yield from _texts(part)
    else:
        for value in node.values if isinstance(node, _In) else (node.value,):
            if isinstance(value, str):
                yield node.column, value, isinstance(node, _Has)
