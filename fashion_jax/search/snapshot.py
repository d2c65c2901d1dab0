"""What a search sees: one whole version of an index, which never changes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from fashion_jax.search.attributes import AttributeTable
from fashion_jax.search.exact import ExactSearcher
from fashion_jax.search.inputs import check_vectors
from fashion_jax.search.lookup import IdLookup, as_names
from fashion_jax.search.projection import Projection
from fashion_jax.search.scann import ScannSearcher, Structure
from fashion_jax.search.tuning import OperatingPoint, Sample
from fashion_jax.search.where import parse_where
from fashion_jax.system.errors import UserError

_CACHED_FILTERS = 32
_MASKED_FROM = 0.5  # share of the rows from which all are compared and some struck out, rather than the others copied
_CACHED_BYTES = 64 << 20  # of vectors gathered for one filter
_MASKED_ONCE_FROM = 0.1  # the same share, where the copy would be too large to keep and serve this search alone,
_MASKED_ONCE_QUERIES = 2  # for so many queries at most


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, measured on this machine when the index was built or first loaded there, by which the planner decides.

    Attributes:
        host_rows: numbers of rows, growing, with which one query was compared on the host.
        host_seconds: that each took: a row costs less where all are in the processor's cache.
        host_batch: per row and query, many queries.
        gather: per row, copying a row's vector aside.
        device_single: of one query against all rows on the device; 0 where there is no device searcher.
        device_batch: per query in a batch, likewise.
    """

    host_rows: tuple[int, ...]
    host_seconds: tuple[float, ...]
    host_batch: float
    gather: float
    device_single: float = 0.0
    device_batch: float = 0.0

    def host_single(self, count: int) -> float:
        """Returns the seconds of one query against a number of rows on the host."""
        last = len(self.host_rows) - 1
        place = next((i for i, rows in enumerate(self.host_rows) if rows >= count), last)
        low = max(0, place - 1)
        high = max(1, place) if last else 0
        rows, seconds = self.host_rows[high] - self.host_rows[low], self.host_seconds[high] - self.host_seconds[low]
        slope = max(0.0, seconds / rows) if rows else self.host_seconds[0] / self.host_rows[0]
        return max(self.host_seconds[0], self.host_seconds[low] + slope * (count - self.host_rows[low]))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Costs:
        """Returns the costs of which `asdict` made JSON values; UserError where they are none."""
        rows, seconds = tuple(map(int, values["host_rows"])), tuple(map(float, values["host_seconds"]))
        others = {name: float(values[name]) for name in ("host_batch", "gather", "device_single", "device_batch")}
        times = [*seconds, *others.values()]
        growing = len(rows) == len(seconds) > 0 < rows[0] and all(a < b for a, b in pairwise(rows))
        if not growing or not all(0 <= value < math.inf for value in times):
            raise UserError("its costs are no times")
        return cls(rows, seconds, **others)


@dataclass(frozen=True, slots=True)
class Base:
    """The rows that were indexed together; what is added later is compared one by one until the next rebuild.

    Attributes:
        vectors: float32 of length 1.
        backend: "exact" or "scann".
        structure: of ScaNN.
        searcher: over `vectors`.
        points: ScaNN's operating points, by neighbours; empty for "exact".
        sample: rows by which recall is watched; None where there are fewer than 2.
        costs: for the planner.
        target_recall: asked for when it was built.
    """

    vectors: Float32[np.ndarray, "n dim"]
    backend: str
    structure: Structure
    searcher: ScannSearcher | ExactSearcher
    points: tuple[OperatingPoint, ...]
    sample: Sample | None
    costs: Costs
    target_recall: float

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.vectors)


class Allowed:
    """The rows that a search may return, and what was found out about them."""

    def __init__(self, mask: Bool[np.ndarray, " n"], snapshot: Snapshot) -> None:
        self.mask = mask
        self.base_mask = mask[: snapshot.base.count]
        self.delta_mask = mask[snapshot.base.count :]
        self.base_count = int(np.count_nonzero(self.base_mask))
        self.delta_count = int(np.count_nonzero(self.delta_mask))
        self.count = self.base_count + self.delta_count
        self.asked = 0  # how often
        self.searches = 0  # approximate ones, and how many of their queries had to be asked again exactly
        self.shortfalls = 0
        self._base_rows: Int64[np.ndarray, " m"] | None = None
        self._gathered: Float32[np.ndarray, "m dim"] | None = None

    @property
    def base_rows(self) -> Int64[np.ndarray, " m"]:
        """Those of the base."""
        if self._base_rows is None:
            self._base_rows = np.flatnonzero(self.base_mask)
        return self._base_rows

    @property
    def is_gathered(self) -> bool:
        """Whether `gather` has its answer at hand."""
        return self._gathered is not None

    def is_masked(self, base: Base, num_queries: int) -> bool:
        """Whether so many rows pass that comparing all costs less than copying these."""
        once = num_queries <= _MASKED_ONCE_QUERIES and not self.is_kept(base)
        return self.base_count > (_MASKED_ONCE_FROM if once else _MASKED_FROM) * len(self.base_mask)

    def is_kept(self, base: Base) -> bool:
        """Whether `gather` keeps its answer."""
        return self.base_count * base.vectors.shape[1] * base.vectors.itemsize <= _CACHED_BYTES

    def gather(self, base: Base) -> Float32[np.ndarray, "m dim"]:
        """Returns the vectors of `base_rows`, kept for the next search where they are few."""
        if self._gathered is not None:
            return self._gathered
        vectors = base.vectors[self.base_rows]
        if self.is_kept(base):
            self._gathered = vectors
        return vectors


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of the index.

    Rows are numbered through: first those of the base, then those added since.

    Attributes:
        version: grows by one with each update.
        ids: of all rows; a product that was replaced stands twice, once not live.
        live: which rows still count.
        num_live: how many.
        base: the indexed rows.
        delta: vectors of the rows added since.
        attributes: of all rows.
        projection: applied to embeddings before they are compared; None where they are compared as they are.
    """

    version: int
    ids: np.ndarray
    live: Bool[np.ndarray, " n"]
    num_live: int
    base: Base
    delta: Float32[np.ndarray, "d dim"]
    attributes: AttributeTable
    projection: Projection | None = None
    _filters: OrderedDict[str | None, Allowed] = field(default_factory=OrderedDict)
    _lookup: list[IdLookup] = field(default_factory=list)  # of the base, shared by the versions that have it
    _added: list[dict[int | str, int]] = field(default_factory=list)  # rows of the products of the delta
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_plain(self) -> bool:
        """Whether every row is live and of the base, so that a search without a filter needs no care."""
        return self.num_live == self.base.count == len(self.ids)

    @property
    def num_features(self) -> int:
        """Width of the embeddings that are searched for and added."""
        return len(self.projection.mean) if self.projection is not None else self.base.vectors.shape[1]

    def project(self, embeddings: Any, what: str) -> Float32[np.ndarray, "n dim"]:
        """Returns embeddings (n, num_features) as they are compared, of length 1; UserError calls them `what`."""
        if self.projection is None:
            return check_vectors(embeddings, self.num_features, what, copy=False)
        vectors = check_vectors(embeddings, self.num_features, what)
        return check_vectors(self.projection.apply(vectors), None, f"projected {what}")

    @property
    def no_id(self) -> int | str:
        """What stands for an absent product: -1, or an empty text where ids are texts."""
        return -1 if self.ids.dtype.kind == "i" else ""

    @property
    def base_lookup(self) -> IdLookup:
        """Finds products of the base, also those that are not live any more."""
        with self._lock:
            if not self._lookup:
                self._lookup.append(IdLookup(self.ids[: self.base.count]))
            return self._lookup[0]

    def find(self, names: Sequence[Any]) -> Int64[np.ndarray, " m"]:
        """Returns the rows of products; KeyError names the first one that is not there."""
        wanted = as_names(names, self.ids.dtype.kind)
        if wanted is None:
            # Some of them can be no ids; they are found one by one.
            rows = np.array([-1 if as_names([n], self.ids.dtype.kind) is None else 0 for n in names], np.int64)
        else:
            rows = self.base_lookup.find(wanted)
            rows = np.where(self.live[rows], rows, -1)
            if len(self.delta) and (rows < 0).any():
                added = self._rows_added()
                for place in np.flatnonzero(rows < 0):
                    rows[place] = added.get(wanted[place].item(), -1)
        if (rows < 0).any():
            raise KeyError(f"the index has no product {names[int(np.argmax(rows < 0))]!r}")
        return rows

    def _rows_added(self) -> dict[int | str, int]:
        if not self._added:
            rows = np.flatnonzero(self.live[self.base.count :]) + self.base.count
            self._added.append(dict(zip(self.ids[rows].tolist(), rows.tolist(), strict=True)))
        return self._added[0]

    def vectors(self, rows: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m dim"]:
        """Returns the vectors of rows of base and delta."""
        if not len(self.delta):
            return self.base.vectors[rows]
        found = np.empty((len(rows), self.base.vectors.shape[1]), np.float32)
        old = rows < self.base.count
        found[old] = self.base.vectors[rows[old]]
        found[~old] = self.delta[rows[~old] - self.base.count]
        return found

    def allowed(self, where: str | None) -> Allowed:
        """Returns the live rows that pass a filter, all where it is None; the last few filters are remembered.

        Raises:
            UserError: the filter cannot be understood.
        """
        if where is not None and not isinstance(where, str):
            parse_where(where)  # says that it is none
        with self._lock:
            found = self._filters.get(where)
            if found is not None:
                self._filters.move_to_end(where)
                return found
        mask = self.live & parse_where(where).evaluate(self.attributes) if where is not None else self.live
        found = Allowed(mask, self)
        with self._lock:
            self._filters[where] = found
            while len(self._filters) > _CACHED_FILTERS:
                self._filters.popitem(last=False)
        return found

    def next(self, **changes: object) -> Snapshot:
        """Returns the following version with some parts changed."""
        fresh = {"_filters": OrderedDict(), "_added": [], "_lock": threading.Lock()}
        if "base" in changes:
            fresh["_lookup"] = []
        return replace(self, version=self.version + 1, **fresh, **changes)  # type: ignore[arg-type]
