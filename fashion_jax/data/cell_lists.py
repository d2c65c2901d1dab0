"""Lists that are written into one cell of a table."""

from __future__ import annotations

import json
import re
from typing import Any

_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*+)'|"((?:[^"\\]|\\.)*+)\"""", re.DOTALL)
_ITEMS = re.compile(rf"(?:{_QUOTED.pattern}|[,\s]++)*+", re.DOTALL)
# Other backslashes stay, because `C:\new` is a path.
_ESCAPED = re.compile(r"""\\(["'/\\])""")


def read_list(cell: str) -> list[Any] | None:
    """Returns the items of a list as JSON, Python, numpy or PostgreSQL write it; None for another text.

    Items of JSON are JSON values, and an object is one item. Other items are texts, and all of them have quotes:
    `['a', 'b']`, `["a" "b"]`, `{"a","b"}`. The caller knows what brackets without quotes mean.
    """
    if not is_bracketed(cell):
        return None
    try:
        value = json.loads(cell)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        pass
    inside = cell[1:-1]
    if not _ITEMS.fullmatch(inside):  # so that no search begins at every quote again
        return None
    return [_ESCAPED.sub(r"\1", single or double) for single, double in _QUOTED.findall(inside)] or None


def is_bracketed(cell: str) -> bool:
    """True for a text between brackets that belong together."""
    return len(cell) > 1 and _BRACKETS.get(cell[0]) == cell[-1]
