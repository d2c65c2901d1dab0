"""How an update makes the next version of a snapshot."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.attributes import AttributeTable, make_table
from fashion_jax.search.journal import Update
from fashion_jax.search.snapshot import Base, Snapshot


class Growing:
    """Rows added one after the other. Views of it that were handed out never change."""

    def __init__(self, rows: Float32[np.ndarray, "d dim"]) -> None:
        self._rows = rows

    def extend(self, count: int, rows: Float32[np.ndarray, "m dim"]) -> Float32[np.ndarray, "d dim"]:
        """Returns the first `count` rows with more below them; rows behind these belong to no version."""
        total = count + len(rows)
        if total > len(self._rows):
            larger = np.empty((max(64, total, 2 * len(self._rows)), self._rows.shape[1]), np.float32)
            larger[:count] = self._rows[:count]
            self._rows = larger
        self._rows[count:total] = rows
        return self._rows[:total]


class Writing:
    """What the one writer keeps beside the snapshot: where each product is, and room for more rows."""

    def __init__(self, snapshot: Snapshot) -> None:
        rows = np.flatnonzero(snapshot.live)
        self.rows: dict[int | str, int] = dict(zip(snapshot.ids[rows].tolist(), rows.tolist(), strict=True))
        self._growing = Growing(np.array(snapshot.delta))

    def find(self, names: list[Any]) -> Int64[np.ndarray, " n"]:
        """Returns the rows of products; KeyError names the first one that is not there."""
        unknown = next((name for name in names if name not in self.rows), None)
        if unknown is not None:
            raise KeyError(f"the index has no product {unknown!r}")
        return np.array([self.rows[name] for name in names], np.int64)

    def complete(self, snapshot: Snapshot, ids: np.ndarray, given: AttributeTable) -> AttributeTable:
        """Returns the attributes of an upsert: those given, and the known ones of products that are there already.

        Raises:
            UserError: a column that the index lacks, or of another kind.
        """
        known = snapshot.attributes.take(np.array([self.rows.get(i, -1) for i in ids.tolist()], np.int64))
        fitting = snapshot.attributes.conform(given)
        return known.replace(fitting.select(given.names))

    def apply(self, snapshot: Snapshot, update: Update) -> Snapshot:
        """Returns the version after an update that has been checked."""
        names = update.ids.tolist()
        old = [row for row in (self.rows.get(name) for name in names) if row is not None]
        live = snapshot.live.copy()
        live[old] = False
        num_live = snapshot.num_live - len(old)
        if update.deletes:
            following = snapshot.next(live=live, num_live=num_live)
            for name in names:
                self.rows.pop(name, None)
            return following
        assert update.vectors is not None
        added = snapshot.attributes.conform(make_table(update.columns, len(names)))
        first = len(snapshot.ids)
        following = snapshot.next(
            ids=np.concatenate([snapshot.ids, update.ids]),
            live=np.concatenate([live, np.ones(len(names), bool)]),
            num_live=num_live + len(names),
            delta=self._growing.extend(len(snapshot.delta), update.vectors),
            attributes=snapshot.attributes.append(added),
        )
        self.rows.update(zip(names, range(first, first + len(names)), strict=True))
        return following


def rebase(snapshot: Snapshot, now: Snapshot, base: Base) -> Snapshot:
    """Returns the version in which a base built from an earlier snapshot serves, with all that happened meanwhile.

    Args:
        snapshot: whose live rows, in their order, are the rows of `base`.
        now: a later version of it that was not rebuilt in between.
        base: built meanwhile.
    """
    kept = np.flatnonzero(snapshot.live)
    since = np.flatnonzero(now.live[len(snapshot.ids) :]) + len(snapshot.ids)
    rows = np.concatenate([kept, since])
    live = now.live[rows]
    return now.next(
        ids=now.ids[rows],
        live=live,
        num_live=int(live.sum()),
        base=base,
        delta=now.vectors(since),
        attributes=now.attributes.take(rows),
    )
