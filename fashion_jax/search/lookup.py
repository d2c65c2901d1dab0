"""Where the product of an id is."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from jaxtyping import Int64

from fashion_jax.search.inputs import MAX_ID_LENGTH

_ABSENT = -1


class IdLookup:
    """Finds ids among rows that never change. They are sorted when the first one is looked for."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._sorted: tuple[np.ndarray, Int64[np.ndarray, " n"]] | None = None
        self._lock = threading.Lock()

    def find(self, names: np.ndarray) -> Int64[np.ndarray, " m"]:
        """Returns the row of each id, -1 where it has none.

        Args:
            names: of the kind of the ids, int64 or texts.
        """
        if not len(self._ids) or not len(names):
            return np.full(len(names), _ABSENT, np.int64)
        with self._lock:
            if self._sorted is None:
                order = np.argsort(self._ids, kind="stable")
                self._sorted = self._ids[order], order
        ids, order = self._sorted
        if names.dtype.itemsize > ids.dtype.itemsize:
            # Longer than any here; numpy would widen all of ours to compare.
            short = np.char.str_len(names) * np.dtype("U1").itemsize <= ids.dtype.itemsize
            rows = np.full(len(names), _ABSENT, np.int64)
            rows[short] = self.find(names[short].astype(ids.dtype))
            return rows
        places = np.minimum(np.searchsorted(ids, names), len(ids) - 1)
        return np.where(ids[places] == names, order[places], _ABSENT)


def as_names(names: Any, kind: str) -> np.ndarray | None:
    """Returns what may be ids as an array of the index's kind; None where one of them cannot be an id there.

    Args:
        names: a list of anything.
        kind: "i" for integers, "U" for texts.
    """
    if kind == "U":
        fits = all(isinstance(name, str) and len(name) <= MAX_ID_LENGTH for name in names)
        return np.array(names, dtype=str) if fits and names else (None if names else np.zeros(0, "<U1"))
    whole = (isinstance(name, (int, np.integer)) and not isinstance(name, bool) for name in names)
    if not all(whole) or not all(0 <= name < 2**63 for name in names):
        return None
    return np.array(names, np.int64)
