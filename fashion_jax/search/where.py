"""The language of filters, such as `gender == 'Women' and baseColour in ['Red', 'Maroon'] and not year < 2012`.

A filter is an expression by this grammar:

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | comparison
    comparison  = column ("==" | "!=" | "<" | "<=" | ">" | ">=") literal
                | column [ "not" ] "in" "[" [ literal { "," literal } ] "]"
                | column [ "not" ] "has" text in quotes
    literal     = text in quotes | number | "true" | "false" | "none"
    column      = a name; in `back quotes` if it has other characters than letters, digits and _

A column of texts is compared with texts, and a column of numbers with numbers; true is 1 and false is 0. A missing
value equals `none` and no other value, and it is neither smaller nor larger than any value. Filters are parsed here;
they are never evaluated as Python.

`has` is for a column of several values in each row, such as `Casual|Summer`: `occasion has 'Summer'` passes rows that
have this value. A row without a value, or with a missing one, passes `not has`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from fashion_jax.data.schema import BETWEEN_TAGS
from fashion_jax.search.attributes import MISSING, AttributeTable, TextColumn
from fashion_jax.system.errors import UserError, nearest

_MAX_LENGTH = 20_000
_MAX_DEPTH = 100

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
                        found.append(f"no product has {value!r} among its {column}{nearest(value, tags)}")
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
        return self._kind in ("text", "number") or any(self._is(word) for word in ("true", "false", "none"))

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
        return {"true": True, "false": False, "none": None}[value.lower()]


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
            raise UserError(f"the column {node.column!r} holds no texts, and has looks for one of several texts")
        # Each word of the vocabulary is divided once; the last place is for missing values.
        passing = np.array([*(node.value in word.split(BETWEEN_TAGS) for word in column.vocabulary), False])
        return passing[column.codes]
    return _compare(node.column, node.mark, node.value, table)


def _compare(name: str, mark: str, value: Literal, table: AttributeTable) -> Bool[np.ndarray, " n"]:
    column = table.column(name)
    if value is None and mark not in ("==", "!="):
        raise UserError(f"{name} {mark} none has no meaning; compare with none by == or != only")
    if isinstance(column, TextColumn):
        if value is not None and not isinstance(value, str):
            raise UserError(f"the column {name!r} holds texts and is compared with {value!r}; put the value in quotes")
        if value is None or mark in ("==", "!="):
            code = MISSING if value is None else column.vocabulary.code(value)
            equal = np.zeros(len(table), bool) if code is None else column.codes == code
            return ~equal if mark == "!=" else equal
        # Each word of the vocabulary is compared once; the last place is for missing values.
        passing = np.array([*(bool(_COMPARE[mark](word, value)) for word in column.vocabulary), False])
        return passing[column.codes]
    if isinstance(value, str):
        raise UserError(f"the column {name!r} holds numbers and is compared with {value!r}; leave the quotes out")
    if value is None:
        missing = np.isnan(column.values)
        return missing if mark == "==" else ~missing
    return _COMPARE[mark](column.values, float(value))


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
