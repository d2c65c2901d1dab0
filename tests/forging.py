"""Changes of JSON values by path, for tests of hostile files."""

from __future__ import annotations

from typing import Any

GONE = object()  # as a new value: the key is removed


def set_at(value: Any, path: str, new: Any) -> None:
    """Sets `path`, such as "heads.gender.class_rows.0", in nested dictionaries and lists."""
    *parents, last = path.split(".")
    for part in parents:
        value = value[int(part)] if isinstance(value, list) else value[part]
    place: Any = int(last) if isinstance(value, list) else last
    if new is GONE:
        del value[place]
    else:
        value[place] = new
