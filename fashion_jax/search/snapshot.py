"""The versions of an index. A snapshot is one whole version and never changes; an update makes the next one.

A row is a photo. The rows of one product follow each other, and an update replaces all of them or none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from fashion_jax.search.approximate import ApproximateSearcher, OperatingPoint
from fashion_jax.search.attributes import PHOTO, AttributeTable, make_table
from fashion_jax.search.exact import DeviceSearcher, HostSearcher, PassingRows, Searcher
from fashion_jax.search.inputs import MAX_ID_LENGTH
from fashion_jax.search.tuning import Sample
from fashion_jax.search.where import parse_where
from fashion_jax.system.errors import UserError
from fashion_jax.system.vectors import unit

_KEPT_FILTERS = 32
_DEAD_ADDITIONS = 1_024  # added rows that do not count any more, from which on they are dropped if they are the most
_ABSENT = -1
_NO_DIRECTION = 1e-3  # length of a sum of vectors below which its direction is rounding


@dataclass(frozen=True, slots=True)
class Base:
    """The rows that were indexed together. Rows that are added later are compared one by one until a rebuild."""

    vectors: Float32[np.ndarray, "n dim"]  # float32 of length 1
    host: HostSearcher  # exact search over them
    index: ApproximateSearcher | DeviceSearcher | None  # what may be faster; None where nothing is
    sample: Sample | None  # rows by which the recall of an approximate index is measured; None for exact search
    target_recall: float  # asked for when it was built
    own_recall: float | None = None  # of rows of the sample when it was built; None where it was not measured
    note: str = ""  # what is wrong with how it is searched here
    # what `planner.plan` takes without a filter: (whether there are several queries, k) -> searcher
    plans: dict[tuple[bool, int], Searcher] = field(default_factory=dict, init=False, repr=False)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.vectors)

    @property
    def approximate(self) -> ApproximateSearcher | None:
        """The approximate index; None for exact search."""
        return self.index if isinstance(self.index, ApproximateSearcher) else None

    @property
    def backend(self) -> str:
        """ "exact", or the name of the approximate backend."""
        return self.index.backend if isinstance(self.index, ApproximateSearcher) else "exact"

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """The operating points of an approximate index, by neighbours; empty for exact search."""
        return self.index.points if isinstance(self.index, ApproximateSearcher) else ()


class Selection:
    """The rows of a snapshot that a search may return.

    Attributes:
        mask: over all rows.
        base: over the indexed rows.
        added: over the rows added since.
        count: how many rows are selected.
    """

    def __init__(self, mask: Bool[np.ndarray, " n"], base_count: int) -> None:
        self.mask = mask
        self.base, self.added = PassingRows(mask[:base_count]), PassingRows(mask[base_count:])
        self.count = self.base.count + self.added.count


class IdLookup:
    """Finds ids among rows that never change. The first search sorts them."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._sorted: tuple[np.ndarray, Int64[np.ndarray, " n"]] | None = None
        self._lock = threading.Lock()

    def find(self, names: np.ndarray) -> Int64[np.ndarray, " m"]:
        """Returns the first row of each id, -1 where there is none. Names are int64 or texts, as the ids are."""
        if not len(self._ids) or not len(names):
            return np.full(len(names), _ABSENT, np.int64)
        with self._lock:
            if self._sorted is None:
                order = np.argsort(self._ids, kind="stable")
                self._sorted = self._ids[order], order
        ids, order = self._sorted
        if names.dtype.itemsize > ids.dtype.itemsize:
            # Some are longer than any id; numpy would widen all ids to compare them.
            short = np.char.str_len(names) * np.dtype("U1").itemsize <= ids.dtype.itemsize
            rows = np.full(len(names), _ABSENT, np.int64)
            rows[short] = self.find(names[short].astype(ids.dtype))
            return rows
        places = np.minimum(np.searchsorted(ids, names), len(ids) - 1)
        return np.where(ids[places] == names, order[places], _ABSENT)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of the index. Rows are numbered: first the indexed rows, then the rows added since."""

    version: int  # grows by one with each update
    ids: np.ndarray  # of all rows: each photo has the id of its product; rows that were replaced are not live
    live: Bool[np.ndarray, " n"]  # which rows count
    num_live: int  # how many rows count
    num_products: int  # how many products these rows belong to
    base: Base  # the indexed rows
    added: Float32[np.ndarray, "d dim"]  # vectors of the rows added since
    attributes: AttributeTable  # of all rows
    # of each row, the first row of its product; ascending. None: no product has ever had several photos.
    first: Int64[np.ndarray, " n"] | None = None
    _selections: OrderedDict[str | None, Selection] = field(default_factory=OrderedDict)
    _lookup: list[IdLookup] = field(default_factory=list)  # of the base, shared by the versions that have it
    _added_rows: list[dict[int | str, int]] = field(default_factory=list)  # id -> row of the added products
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_plain(self) -> bool:
        """Whether every row is live and indexed, so that a search without a filter may return any row."""
        return self.num_live == self.base.count == len(self.ids)

    @property
    def has_several_photos(self) -> bool:
        """Whether a product has several photos, so that a search must join rows to products."""
        return self.num_products < self.num_live

    @property
    def width(self) -> int:
        """Number of values of an embedding."""
        return self.base.vectors.shape[1]

    @property
    def no_id(self) -> int | str:
        """The id that stands for no product: -1, or an empty text where ids are texts."""
        return -1 if self.ids.dtype.kind == "i" else ""

    @property
    def base_lookup(self) -> IdLookup:
        """Finds indexed products, also those that are not live any more."""
        with self._lock:
            if not self._lookup:
                self._lookup.append(IdLookup(self.ids[: self.base.count]))
            return self._lookup[0]

    def find(self, names: Sequence[Any]) -> Int64[np.ndarray, " m"]:
        """Returns the first row of each product; KeyError names the first product that is not there."""
        rows = self.locate(names)
        if (rows < 0).any():
            raise KeyError(f"the index has no product {names[int(np.argmax(rows < 0))]!r}")
        return rows

    def locate(self, names: Sequence[Any]) -> Int64[np.ndarray, " m"]:
        """Returns the first row of each product, -1 where it is not there."""
        kind = self.ids.dtype.kind
        wanted = _as_ids(names, kind)
        if wanted is None:
            # Some of them cannot be ids.
            return np.array([_ABSENT if _as_ids([name], kind) is None else self.locate([name])[0] for name in names])
        rows = self.base_lookup.find(wanted)
        rows = np.where(self.live[rows], rows, _ABSENT)
        if len(self.added) and (rows < 0).any():
            added = self._find_added()
            for place in np.flatnonzero(rows < 0):
                rows[place] = added.get(wanted[place].item(), _ABSENT)
        return rows

    def _find_added(self) -> dict[int | str, int]:
        if not self._added_rows:
            self._added_rows.append(live_additions(self))
        return self._added_rows[0]

    def vectors(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m dim"]:
        """Returns the vectors of rows, indexed or added."""
        if not len(self.added):
            return self.base.vectors[rows]
        found = np.empty((len(rows), self.base.vectors.shape[1]), np.float32)
        indexed = rows < self.base.count
        found[indexed] = self.base.vectors[rows[indexed]]
        found[~indexed] = self.added[rows[~indexed] - self.base.count]
        return found

    def photo_rows(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " p"]:
        """Returns all rows of products, product by product.

        Args:
            rows: the first row of each product.
        """
        return join_ranges(rows, self.photo_counts(rows))

    def product_vectors(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m dim"]:
        """Returns the mean vector of each product's photos, of length 1.

        Args:
            rows: the first row of each product.
        """
        vectors = self.vectors(rows)
        if not self.has_several_photos:
            return vectors
        counts = self.photo_counts(rows)
        several = np.flatnonzero(counts > 1)
        if len(several):
            photos = self.vectors(join_ranges(rows[several], counts[several]))
            sums = np.add.reduceat(photos, np.cumsum(counts[several]) - counts[several], axis=0)
            # Opposite photos have no mean direction; the first one stands for them.
            directed = np.linalg.norm(sums, axis=1) > _NO_DIRECTION
            vectors[several[directed]] = unit(sums[directed])
        return vectors

    def photo_counts(self, rows: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """Returns how many photos products have, by the first row of each."""
        if self.first is None:
            return np.ones(len(rows), np.int64)
        return np.searchsorted(self.first, rows, side="right") - rows

    def select(self, where: str | None) -> Selection:
        """Returns the live rows that pass a filter, or all live rows; the last few filters are remembered.

        Raises:
            UserError: the filter cannot be understood.
        """
        if where is None or isinstance(where, str):  # parse_where says what is wrong with anything else
            with self._lock:
                found = self._selections.get(where)
                if found is not None:
                    self._selections.move_to_end(where)
                    return found
        mask = self.live if where is None else self.live & parse_where(where).evaluate(self.attributes)
        found = Selection(mask, self.base.count)
        with self._lock:
            self._selections[where] = found
            while len(self._selections) > _KEPT_FILTERS:
                self._selections.popitem(last=False)
        return found

    def next(self, **changes: object) -> Snapshot:
        """Returns the next version, with some parts changed."""
        fresh = {"_selections": OrderedDict(), "_added_rows": [], "_lock": threading.Lock()}
        if "base" in changes:
            fresh["_lookup"] = []
        return replace(self, version=self.version + 1, **fresh, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Update:
    """One change of an index."""

    deletes: bool  # whether it removes products; else it adds, replaces or changes them
    ids: np.ndarray  # of the products; an addition has one for each photo, and a product's photos side by side
    vectors: Float32[np.ndarray, "n dim"] | None = None  # of length 1; None where no photo is added
    columns: dict[str, list[Any]] | None = None  # name -> a value per id, None where missing; None for a removal
    # For a change of attributes alone: column -> its kind from now on. A column that the index lacks, or has in another
    # kind, begins empty. None for other updates.
    kinds: dict[str, str] | None = None

    def fits(self, snapshot: Snapshot, layout: AttributeTable | None = None) -> bool:
        """Whether this is an update of such an index; what was read from a disk may be another's.

        Args:
            layout: a table with the columns that the index has by then, if they are not the snapshot's.
        """
        layout = snapshot.attributes if layout is None else layout
        if len(snapshot.ids) and self.ids.dtype.kind != snapshot.ids.dtype.kind:
            return False
        starts = photo_starts(self.ids)
        if len(np.unique(self.ids[starts])) < len(starts):
            return False
        if self.deletes:
            return len(starts) == len(self.ids)
        if self.kinds is not None:
            layout = layout.with_kinds(self.kinds).select(self.kinds)
            if len(starts) < len(self.ids):
                return False
        elif self.vectors is None or self.vectors.shape[1] != snapshot.base.vectors.shape[1]:
            return False
        try:
            layout.conform(make_table(self.columns, len(self.ids)))
        except UserError:
            return False
        return set(self.columns or {}) == set(layout.names)


def all_fit(snapshot: Snapshot, updates: Sequence[Update]) -> bool:
    """Whether these, one after the other, are updates of such an index."""
    layout = snapshot.attributes.take(np.zeros(0, np.int64))
    for update in updates:
        if not update.fits(snapshot, layout):
            return False
        layout = layout.with_kinds(update.kinds or {})
    return True


class GrowingArray:
    """An array that gets longer. Views of it that were handed out never change."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def extend(self, count: int, rows: np.ndarray) -> np.ndarray:
        """Returns the first `count` rows with more rows below them; later rows belong to no version."""
        total, dtype = count + len(rows), np.promote_types(self._rows.dtype, rows.dtype)
        if total > len(self._rows) or dtype != self._rows.dtype:
            larger = np.empty((max(64, total, 2 * count), *self._rows.shape[1:]), dtype)
            larger[:count] = self._rows[:count]
            self._rows = larger
        self._rows[count:total] = rows
        return self._rows[:total]


class Updater:
    """Applies updates to snapshots. It keeps the first row of each added product, and room for more rows."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._added = live_additions(snapshot)
        self._ids, self._vectors = GrowingArray(snapshot.ids), GrowingArray(snapshot.added)
        self._columns: dict[str, GrowingArray] = {}
        self._first: GrowingArray | None = None

    def complete(self, snapshot: Snapshot, ids: np.ndarray, given: AttributeTable) -> AttributeTable:
        """Returns the attributes of an upsert: the given ones, and the known ones of products that are there already.

        The name of a photo is not kept, because the photo is replaced.

        Raises:
            UserError: a column that the index lacks, or of another kind.
        """
        fitting = snapshot.attributes.conform(given)
        known = snapshot.attributes.take(self._rows(snapshot, ids))
        outdated = known.outdated_confidences(given)
        known = known.replace(outdated, outdated.names)
        return known.replace(fitting, {*given.names, PHOTO} & {*known.names})

    def apply(self, snapshot: Snapshot, update: Update) -> Snapshot:
        """Returns the version after an update that has been checked."""
        if update.kinds is not None:
            return self._change(snapshot, update)
        starts = photo_starts(update.ids)
        names = update.ids[starts]
        old = self._rows(snapshot, names)
        old = old[old >= 0]
        num_products = snapshot.num_products - len(old)
        old = snapshot.photo_rows(old)
        num_live = snapshot.num_live - len(old)
        count = len(snapshot.ids)
        live = np.ones(count + (0 if update.deletes else len(update.ids)), bool)
        live[:count] = snapshot.live
        live[old] = False
        if update.deletes:
            following = snapshot.next(live=live, num_live=num_live, num_products=num_products)
            for name in names.tolist():
                self._added.pop(name, None)
            return following
        assert update.vectors is not None
        more = snapshot.attributes.conform(make_table(update.columns, len(update.ids)))
        following = snapshot.next(
            ids=self._ids.extend(count, update.ids),
            live=live,
            num_live=num_live + len(update.ids),
            num_products=num_products + len(names),
            added=self._vectors.extend(len(snapshot.added), update.vectors),
            attributes=snapshot.attributes.append(more, self._join),
            first=self._extend_first(snapshot, starts, len(update.ids)),
        )
        self._added.update(zip(names.tolist(), (count + starts).tolist(), strict=True))
        return following

    def _change(self, snapshot: Snapshot, update: Update) -> Snapshot:
        """Returns the version with other attributes of some products: of all their photos."""
        kinds = update.kinds or {}
        rows = self._rows(snapshot, update.ids)
        there = np.flatnonzero(rows >= 0)
        counts = snapshot.photo_counts(rows[there])
        table = snapshot.attributes.with_kinds(kinds)
        given = table.select(kinds).conform(make_table(update.columns, len(update.ids)))
        attributes = table.assign(join_ranges(rows[there], counts), given.take(np.repeat(there, counts)))
        for name in kinds:
            self._columns.pop(name, None)  # it would grow from the old values
        return snapshot.next(attributes=attributes)

    def apply_all(self, snapshot: Snapshot, updates: Sequence[Update]) -> Snapshot:
        """Returns the version after many updates, at the price of few: only the last update of a product counts.

        Changes of attributes divide the other updates into runs, of which each costs as much as one update.
        """
        for kinds, run in groupby(updates, key=lambda update: update.kinds):
            if kinds is None:
                snapshot = self._replace_all(snapshot, list(run))
            else:
                snapshot = self._change(snapshot, _join_changes(list(run)))
        return snapshot

    def _replace_all(self, snapshot: Snapshot, updates: Sequence[Update]) -> Snapshot:
        last: dict[int | str, tuple[Update, slice] | None] = {}
        for update in updates:
            starts = photo_starts(update.ids)
            ends = [*starts[1:].tolist(), len(update.ids)]
            for name, start, end in zip(update.ids[starts].tolist(), starts.tolist(), ends, strict=True):
                last.pop(name, None)  # so that the order is that of the last time
                last[name] = None if update.deletes else (update, slice(start, end))
        dtype = np.int64 if snapshot.ids.dtype.kind == "i" else str
        deleted = [name for name, where in last.items() if where is None]
        if deleted:
            snapshot = self.apply(snapshot, Update(True, np.array(deleted, dtype)))
        stays = {name: where for name, where in last.items() if where is not None}
        if stays:
            vectors, columns = [], {name: [] for name in snapshot.attributes.names}  # type: ignore[var-annotated]
            for update, photos in stays.values():
                assert update.vectors is not None
                vectors.append(update.vectors[photos])
                for name, values in columns.items():
                    values += (update.columns or {})[name][photos]
            ids = np.repeat(np.array(list(stays), dtype), [len(rows) for rows in vectors])
            snapshot = self.apply(snapshot, Update(False, ids, np.concatenate(vectors), columns))
        return snapshot

    def _rows(self, snapshot: Snapshot, ids: np.ndarray) -> Int64[np.ndarray, " n"]:
        """Returns the first live row of each product, -1 where there is none."""
        rows = snapshot.base_lookup.find(ids)
        rows = np.where(snapshot.live[rows], rows, _ABSENT)
        if self._added:
            for place, name in enumerate(ids.tolist()):
                if rows[place] < 0:
                    rows[place] = self._added.get(name, _ABSENT)
        return rows

    def _extend_first(
        self, snapshot: Snapshot, starts: Int64[np.ndarray, " m"], count: int
    ) -> Int64[np.ndarray, " n"] | None:
        """Returns the snapshot's `first` with the rows of an update below it."""
        first, rows = snapshot.first, len(snapshot.ids)
        if first is None:
            if len(starts) == count:
                return None
            first = np.arange(rows)
        if self._first is None:
            self._first = GrowingArray(first)
        return self._first.extend(rows, rows + np.repeat(starts, np.diff(starts, append=count)))

    def _join(self, column: str, ours: np.ndarray, more: np.ndarray) -> np.ndarray:
        return self._columns.setdefault(column, GrowingArray(ours)).extend(len(ours), more)


def _join_changes(updates: Sequence[Update]) -> Update:
    """Joins changes of the same columns; the last value of a product counts."""
    last = {name: (update, place) for update in updates for place, name in enumerate(update.ids.tolist())}
    kinds = updates[-1].kinds or {}
    columns = {name: [(update.columns or {})[name][place] for update, place in last.values()] for name in kinds}
    return Update(False, np.array(list(last), updates[-1].ids.dtype.type), None, columns, kinds)


def sort_by_product(ids: np.ndarray) -> Int64[np.ndarray, " n"] | None:
    """Returns the order of rows that puts a product's photos side by side; None where every id is there once.

    Products stay in the order of their first photos, and a product's photos in theirs.
    """
    _, start, number = np.unique(ids, return_index=True, return_inverse=True)
    return None if len(start) == len(ids) else np.argsort(start[number], kind="stable")


def photo_starts(ids: np.ndarray) -> Int64[np.ndarray, " m"]:
    """Returns the places where a run of equal ids begins: the first photos of products."""
    begins = np.ones(len(ids), bool)
    begins[1:] = ids[1:] != ids[:-1]
    return np.flatnonzero(begins)


def find_first_photos(ids: np.ndarray, live: Bool[np.ndarray, " n"], base_count: int) -> Int64[np.ndarray, " n"]:
    """Returns of each row the first row of its product, for rows whose products stand side by side."""
    begins = np.ones(len(ids), bool)
    # An old version of a product may stand right before the new one.
    begins[1:] = (ids[1:] != ids[:-1]) | (live[1:] != live[:-1])
    begins[base_count : base_count + 1] = True
    return np.maximum.accumulate(np.where(begins, np.arange(len(ids)), 0))


def live_additions(snapshot: Snapshot) -> dict[int | str, int]:
    """Returns id -> first row of the live products that were added since the index was built."""
    rows = np.flatnonzero(snapshot.live[snapshot.base.count :]) + snapshot.base.count
    if snapshot.first is not None:
        rows = rows[snapshot.first[rows] == rows]
    return dict(zip(snapshot.ids[rows].tolist(), rows.tolist(), strict=True))


def has_many_dead_additions(snapshot: Snapshot) -> bool:
    """Returns whether most of the added rows do not count any more, and are worth dropping."""
    dead = len(snapshot.added) - int(np.count_nonzero(snapshot.live[snapshot.base.count :]))
    return dead > max(_DEAD_ADDITIONS, len(snapshot.added) / 2)


def drop_dead_additions(snapshot: Snapshot) -> Snapshot:
    """Returns the version without added rows that do not count any more; the products are the same."""
    alive = np.flatnonzero(snapshot.live[snapshot.base.count :])
    if len(alive) == len(snapshot.added):
        return snapshot
    rows = np.concatenate([np.arange(snapshot.base.count), alive + snapshot.base.count])
    return snapshot.next(
        ids=snapshot.ids[rows],
        live=snapshot.live[rows],
        added=snapshot.added[alive],
        attributes=snapshot.attributes.take(rows).without_unused_words(),
        first=_take_first(snapshot.first, rows),
    )


def replace_base(before: Snapshot, now: Snapshot, base: Base) -> Snapshot:
    """Returns the version with a new base and with all that changed while that was built.

    Args:
        before: its live rows, in their order, are the rows of `base`.
        now: a later version in which no rows were dropped.
        base: built from `before`.
    """
    kept = np.flatnonzero(before.live)
    since = np.flatnonzero(now.live[len(before.ids) :]) + len(before.ids)
    rows = np.concatenate([kept, since])
    live = now.live[rows]
    return now.next(
        ids=now.ids[rows],
        live=live,
        num_live=int(live.sum()),
        base=base,
        added=now.vectors(since),
        attributes=now.attributes.take(rows).without_unused_words(),
        first=_take_first(now.first, rows),
    )


def _take_first(first: Int64[np.ndarray, " n"] | None, rows: Int64[np.ndarray, " m"]) -> np.ndarray | None:
    """Returns `first` for some ascending rows, which become rows 0, 1 and so on; no product is cut in two."""
    return None if first is None else np.searchsorted(rows, first[rows])


def join_ranges(starts: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " p"]:
    """Returns start, start + 1, and so on, `count` numbers for each start, one after the other."""
    skipped = np.cumsum(counts) - counts
    return np.repeat(starts - skipped, counts) + np.arange(int(counts.sum()))


def _as_ids(names: Sequence[Any], kind: str) -> np.ndarray | None:
    """Returns anything as an array of ids of a kind, "i" or "U"; None where one of them cannot be such an id."""
    if kind == "U":
        if not all(isinstance(name, str) and len(name) <= MAX_ID_LENGTH for name in names):
            return None
        return np.array(names, dtype=str) if names else np.zeros(0, "<U1")
    whole = (isinstance(name, (int, np.integer)) and not isinstance(name, bool) for name in names)
    if not all(whole) or not all(0 <= name < 2**63 for name in names):
        return None
    return np.array(names, np.int64)
