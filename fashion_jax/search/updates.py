"""How an update makes the next version of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from fashion_jax.search.attributes import AttributeTable, make_table
from fashion_jax.search.journal import Update
from fashion_jax.search.snapshot import Base, Snapshot

_DEAD_ADDITIONS = 1_024  # rows that were added and count no more, from which they are dropped where they are the most


class Growing:
    """An array that gets longer. Views of it that were handed out never change."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def extend(self, count: int, rows: np.ndarray) -> np.ndarray:
        """Returns the first `count` rows with more below them; rows behind these belong to no version."""
        total, dtype = count + len(rows), np.promote_types(self._rows.dtype, rows.dtype)
        if total > len(self._rows) or dtype != self._rows.dtype:
            larger = np.empty((max(64, total, 2 * count), *self._rows.shape[1:]), dtype)
            larger[:count] = self._rows[:count]
            self._rows = larger
        self._rows[count:total] = rows
        return self._rows[:total]


class Writing:
    """What the one writer keeps beside the snapshot: where each product is, and room for more rows."""

    def __init__(self, snapshot: Snapshot) -> None:
        rows = np.flatnonzero(snapshot.live[snapshot.base.count :]) + snapshot.base.count
        self._added: dict[int | str, int] = dict(zip(snapshot.ids[rows].tolist(), rows.tolist(), strict=True))
        self._ids, self._vectors = Growing(snapshot.ids), Growing(snapshot.delta)
        self._columns: dict[str, Growing] = {}

    def complete(self, snapshot: Snapshot, ids: np.ndarray, given: AttributeTable) -> AttributeTable:
        """Returns the attributes of an upsert: those given, and the known ones of products that are there already.

        Raises:
            UserError: a column that the index lacks, or of another kind.
        """
        fitting = snapshot.attributes.conform(given)
        known = snapshot.attributes.take(self._rows(snapshot, ids))
        return known.replace(fitting.select(given.names))

    def apply(self, snapshot: Snapshot, update: Update) -> Snapshot:
        """Returns the version after an update that has been checked."""
        names = update.ids.tolist()
        old = self._rows(snapshot, update.ids)
        old = old[old >= 0]
        num_live = snapshot.num_live - len(old)
        first = len(snapshot.ids)
        live = np.ones(first + (0 if update.deletes else len(names)), bool)
        live[:first] = snapshot.live
        live[old] = False
        if update.deletes:
            following = snapshot.next(live=live, num_live=num_live)
            for name in names:
                self._added.pop(name, None)
            return following
        assert update.vectors is not None
        added = snapshot.attributes.conform(make_table(update.columns, len(names)))
        following = snapshot.next(
            ids=self._ids.extend(first, update.ids),
            live=live,
            num_live=num_live + len(names),
            delta=self._vectors.extend(len(snapshot.delta), update.vectors),
            attributes=snapshot.attributes.append(added, self._join),
        )
        self._added.update(zip(names, range(first, first + len(names)), strict=True))
        return following

    def apply_all(self, snapshot: Snapshot, updates: Sequence[Update]) -> Snapshot:
        """Returns the version after many updates, at the price of one: what a later one undoes is passed over."""
        last: dict[int | str, tuple[int, int] | None] = {}
        for number, update in enumerate(updates):
            for place, name in enumerate(update.ids.tolist()):
                last.pop(name, None)  # so that the order is that of the last time
                last[name] = None if update.deletes else (number, place)
        kind = snapshot.ids.dtype.kind
        gone = [name for name, where in last.items() if where is None]
        if gone:
            snapshot = self.apply(snapshot, Update(True, _as_ids(gone, kind)))
        stays = {name: where for name, where in last.items() if where is not None}
        if stays:
            vectors, names = [], snapshot.attributes.names
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for number, place in stays.values():
                update = updates[number]
                assert update.vectors is not None
                vectors.append(update.vectors[place])
                for name in names:
                    columns[name].append((update.columns or {})[name][place])
            snapshot = self.apply(snapshot, Update(False, _as_ids(list(stays), kind), np.stack(vectors), columns))
        return snapshot

    def _rows(self, snapshot: Snapshot, ids: np.ndarray) -> Int64[np.ndarray, " n"]:
        """Returns the row of each product, -1 where there is none."""
        rows = snapshot.base_lookup.find(ids)
        rows = np.where(snapshot.live[rows], rows, -1)
        if self._added:
            for place, name in enumerate(ids.tolist()):
                if rows[place] < 0:
                    rows[place] = self._added.get(name, -1)
        return rows

    def _join(self, column: str, ours: np.ndarray, more: np.ndarray) -> np.ndarray:
        return self._columns.setdefault(column, Growing(ours)).extend(len(ours), more)


def has_many_dead_additions(snapshot: Snapshot) -> bool:
    """Whether most of what was added counts no more, and is worth dropping."""
    dead = len(snapshot.delta) - int(np.count_nonzero(snapshot.live[snapshot.base.count :]))
    return dead > max(_DEAD_ADDITIONS, len(snapshot.delta) / 2)


def without_dead_additions(snapshot: Snapshot) -> Snapshot:
    """Returns the version in which rows that were added and count no more are dropped; products are the same."""
    alive = np.flatnonzero(snapshot.live[snapshot.base.count :])
    if len(alive) == len(snapshot.delta):
        return snapshot
    rows = np.concatenate([np.arange(snapshot.base.count), alive + snapshot.base.count])
    return snapshot.next(
        ids=snapshot.ids[rows],
        live=snapshot.live[rows],
        delta=snapshot.delta[alive],
        attributes=snapshot.attributes.take(rows).without_unused_words(),
    )


def rebase(snapshot: Snapshot, now: Snapshot, base: Base) -> Snapshot:
    """Returns the version in which a base built from an earlier snapshot serves, with all that happened meanwhile.

    Args:
        snapshot: whose live rows, in their order, are the rows of `base`.
        now: a later version of it in which no rows were dropped.
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
        attributes=now.attributes.take(rows).without_unused_words(),
    )


def _as_ids(names: list[Any], kind: str) -> np.ndarray:
    return np.array(names, np.int64 if kind == "i" else str)
