"""JSON from strangers: what Python's parser takes without a word is counted, and what it chokes on is a ValueError."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

_TWICE = "JSON objects that hold a key twice, the last value is read"
_NO_NUMBER = "NaN or Infinity, which JSON does not have, read as missing"
_MOST_DIGITS = 300  # of a number; more than a float has, and fewer than Python refuses
_LARGE = re.compile(rf"\d{{{_MOST_DIGITS}}}|\d[eE][+]?\d{{3}}")


def json_parser(text: str, repairs: Counter[str]) -> Callable[[str], Any]:
    """Returns a function that parses a text, or one of its lines; it raises ValueError for what is no JSON.

    Numbers that are too large for a float become texts.

    Args:
        repairs: to which the function adds name of a repair -> how often.
    """

    def make_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(members)
        if len(value) < len(members):
            repairs[_TWICE] += 1
        return value

    def make_constant(_: str) -> None:
        repairs[_NO_NUMBER] += 1

    def make_float(digits: str) -> float | str:
        value = float(digits)
        return value if math.isfinite(value) else digits

    def make_int(digits: str) -> int | str:
        return int(digits) if len(digits) <= _MOST_DIGITS else digits

    exact: dict[str, Any] = {"parse_float": make_float, "parse_int": make_int} if _LARGE.search(text) else {}
    decoder = json.JSONDecoder(object_pairs_hook=make_object, parse_constant=make_constant, **exact)

    def parse(part: str) -> Any:
        try:
            return decoder.decode(part)
        except RecursionError:
            raise ValueError("its values are nested too deep") from None

    return parse
