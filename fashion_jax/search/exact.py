"""Exact nearest neighbours by cosine similarity: on the host with numpy, and on a device with JAX.

`Searcher` is the interface of everything that finds the nearest rows. `search/approximate.py` has the base class of the
approximate searchers.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Int64

from fashion_jax.system.errors import UserError

_TILE_ROWS = 16_384
_TILE_QUERIES = 1_024
_HOST_TILE_SCORES = 1 << 24  # scores that the host holds at once, 64 MiB
_KEPT_BYTES = 64 << 20  # the copied vectors of a filter are kept for the next search up to this size
_MOST_COPIED = 0.5  # share of the rows that a filter may copy
_DEVICE_FROM = 4_096  # rows from which XLA on the host's processor may be faster than numpy
_TIMED_ROWS = (64, 512, 2_048, 4_096, 8_192, 16_384, 65_536, 262_144, 1_048_576)

Queries = Float32[np.ndarray, "queries dim"]
Scores = Float32[np.ndarray, "queries k"]
Positions = Int64[np.ndarray, "queries k"]


class PassingRows:
    """The rows that a search may return. What is found out about them is kept for the next search."""

    def __init__(self, mask: Bool[np.ndarray, " n"]) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        self.searched = 0  # queries that an approximate searcher has answered
        self.short = 0  # of these, queries that got fewer rows than there are
        self._positions: Int64[np.ndarray, " m"] | None = None
        self._copy: Float32[np.ndarray, "m dim"] | None = None

    @property
    def positions(self) -> Int64[np.ndarray, " m"]:
        """The positions of the passing rows."""
        if self._positions is None:
            self._positions = np.flatnonzero(self.mask)
        return self._positions

    @property
    def share(self) -> float:
        """Share of the rows that pass, in [0, 1]."""
        return self.count / max(1, len(self.mask))

    @property
    def short_share(self) -> float:
        """Share of the approximately answered queries that got too few rows, in [0, 1]."""
        return self.short / max(1, self.searched)

    def keeps_copy(self, vectors: Float32[np.ndarray, "n dim"]) -> bool:
        """Whether `copy` keeps its result."""
        return self.count * vectors.shape[1] * vectors.itemsize <= _KEPT_BYTES

    def copy(self, vectors: Float32[np.ndarray, "n dim"]) -> Float32[np.ndarray, "m dim"]:
        """Returns the vectors of the passing rows, side by side. A small copy is kept."""
        if self._copy is not None:
            return self._copy
        copied = vectors[self.positions]
        if self.keeps_copy(vectors):
            self._copy = copied
        return copied


class Searcher(Protocol):
    """Finds the nearest rows among `count` rows of length 1."""

    count: int

    def search(self, queries: Queries, k: int, passing: PassingRows | None = None) -> tuple[Scores, Positions]:
        """Returns the k nearest rows of each query, best first.

        Args:
            queries: float32 (queries, dim), of length 1; at least one.
            k: at least 1.
            passing: rows that may be returned; None for all.

        Returns:
            Cosine similarities, -inf where there is no row, and positions, -1 there. An approximate searcher may
            return fewer rows than there are.
        """

    def seconds(self, num_queries: int, k: int, passing: PassingRows | None = None) -> float:
        """Returns how long `search` takes by what was measured; infinity where it cannot serve."""


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Seconds of exact search on the host, measured when the index was built, or first loaded on this machine."""

    rows: tuple[int, ...]  # numbers of rows, growing, that one query was compared with
    seconds: tuple[float, ...]  # time of each. A row costs less where all of them are in the processor's cache.
    batch: float  # per row and query, for many queries
    copy: float  # per row, to copy its vector

    @classmethod
    def measure(cls, vectors: Float32[np.ndarray, "n dim"]) -> HostCosts:
        """Measures the costs on at least one row of length 1."""
        rows = vectors[:8_192]
        queries = np.ascontiguousarray(rows[np.arange(64) % len(rows)])
        picked = np.linspace(0, len(vectors) - 1, len(rows)).astype(np.int64)
        sizes = [*(size for size in _TIMED_ROWS if size < len(vectors)), len(vectors)]
        return cls(
            rows=tuple(sizes),
            seconds=tuple(least_seconds(partial(search_rows, vectors[:size], queries[:1], 10)) for size in sizes),
            batch=least_seconds(lambda: search_rows(rows, queries, 10)) / len(rows) / len(queries),
            copy=least_seconds(lambda: vectors[picked]) / len(picked),
        )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> HostCosts:
        """Returns the costs that `dataclasses.asdict` turned into JSON values; UserError for other values."""
        rows, seconds = tuple(map(int, values["rows"])), tuple(map(float, values["seconds"]))
        batch, copy = float(values["batch"]), float(values["copy"])
        growing = len(rows) == len(seconds) > 0 < rows[0] and all(a < b for a, b in pairwise(rows))
        if not growing or not all(0 <= value < math.inf for value in (*seconds, batch, copy)):
            raise UserError("its costs are not times")
        return cls(rows, seconds, batch, copy)


class HostSearcher:
    """All rows in the host's memory, compared with numpy."""

    def __init__(self, vectors: Float32[np.ndarray, "n dim"], costs: HostCosts | None = None) -> None:
        """Takes the rows, which it does not copy; without costs it measures them."""
        self.count, self._vectors = len(vectors), vectors
        self.costs = costs or HostCosts.measure(vectors)

    def search(self, queries: Queries, k: int, passing: PassingRows | None = None) -> tuple[Scores, Positions]:
        """Returns the k nearest rows of each query, as `Searcher.search` says; exactly."""
        if passing is None or passing.count == self.count:
            return search_rows(self._vectors, queries, k)
        masked, copied = self._both_ways(len(queries), passing)
        if masked <= copied:
            return search_rows(self._vectors, queries, k, passing.mask)
        scores, places = search_rows(passing.copy(self._vectors), queries, k)
        if passing.count:
            places = np.where(places >= 0, passing.positions[places], -1)
        return scores, places

    def seconds(self, num_queries: int, k: int, passing: PassingRows | None = None) -> float:
        """Returns how long `search` takes."""
        if passing is None:
            return self._compare(num_queries, self.count)
        return min(self._both_ways(num_queries, passing))

    def _both_ways(self, num_queries: int, passing: PassingRows) -> tuple[float, float]:
        """Returns the seconds to compare all rows and mask some, and to compare a copy of the passing rows."""
        masked = self._compare(num_queries, self.count)
        if passing.share > _MOST_COPIED:
            return masked, math.inf
        copied = self._compare(num_queries, passing.count)
        # A copy that is kept is made once for all searches with this filter.
        return masked, copied if passing.keeps_copy(self._vectors) else copied + passing.count * self.costs.copy

    def _compare(self, num_queries: int, count: int) -> float:
        if num_queries > 1:
            return num_queries * count * self.costs.batch
        rows, seconds = self.costs.rows, self.costs.seconds
        place = bisect.bisect_left(rows, count)
        if place in (0, len(rows)):
            return seconds[min(place, len(rows) - 1)]
        part = (count - rows[place - 1]) / (rows[place] - rows[place - 1])
        return seconds[place - 1] + part * (seconds[place] - seconds[place - 1])


class DeviceSearcher:
    """All rows on a device, compared with JAX. Beyond the rows, its memory holds one tile of scores."""

    def __init__(
        self,
        vectors: Float32[np.ndarray, "n dim"],
        device: jax.Device | None = None,
        costs: tuple[float, float] | None = None,
    ) -> None:
        """Copies the rows to a device. If the device is the host's own processor, the first search copies them.

        Args:
            vectors: of length 1.
            device: None for JAX's first local device.
            costs: seconds of one query alone, and per query of a batch; None to measure them.

        Raises:
            UserError: the rows do not fit into the device's memory.
        """
        self.count, self._dim = vectors.shape
        self._vectors, self._device = vectors, device or jax.local_devices()[0]
        # Sizes are rounded up, so that an index that grows is compiled for few of them.
        self._tile = min(_TILE_ROWS, 1 << max(0, self.count - 1).bit_length())
        self._lock = threading.Lock()
        self._placed: tuple[Array, Array] | None = None
        if self._device.platform != "cpu":
            self._rows_and_mask()  # rows that do not fit are an error now
        self.costs = costs or self._measure()

    @classmethod
    def make_if_useful(
        cls, vectors: Float32[np.ndarray, "n dim"], costs: tuple[float, float] | None = None
    ) -> DeviceSearcher | None:
        """Returns a searcher, or None for few rows on the host's own processor, where numpy is always faster."""
        if jax.local_devices()[0].platform == "cpu" and len(vectors) < _DEVICE_FROM:
            return None
        return cls(vectors, costs=costs)

    def search(self, queries: Queries, k: int, passing: PassingRows | None = None) -> tuple[Scores, Positions]:
        """Returns the k nearest rows of each query, as `Searcher.search` says; exactly."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        if not self.count or not len(queries):
            return scores, positions
        rows, every = self._rows_and_mask()
        mask = every if passing is None else self._place(passing.mask)
        # Few widths of k and few numbers of queries are ever compiled.
        found = min(1 << (k - 1).bit_length(), self.count)
        for start in range(0, len(queries), _TILE_QUERIES):
            part = queries[start : start + _TILE_QUERIES]
            size = min(1 << (len(part) - 1).bit_length(), _TILE_QUERIES)
            padded = np.zeros((size, self._dim), np.float32)
            padded[: len(part)] = part
            best, place = jax.device_get(_top(rows, mask, jax.device_put(padded, self._device), found))
            width = min(k, found)
            scores[start : start + len(part), :width] = best[: len(part), :width]
            positions[start : start + len(part), :width] = place[: len(part), :width]
        positions[np.isneginf(scores)] = -1
        return scores, positions

    def seconds(self, num_queries: int, k: int, passing: PassingRows | None = None) -> float:
        """Returns how long `search` takes."""
        return self.costs[0] if num_queries == 1 else num_queries * self.costs[1]

    def _measure(self) -> tuple[float, float]:
        queries = np.ascontiguousarray(self._vectors[np.arange(64) % self.count])
        single = least_seconds(lambda: self.search(queries[:1], 10))
        return single, least_seconds(lambda: self.search(queries, 10)) / len(queries)

    def _rows_and_mask(self) -> tuple[Array, Array]:
        with self._lock:
            if self._placed is None:
                tiles = -(-self.count // self._tile)
                padded = np.zeros((tiles * self._tile, self._dim), np.float32)
                padded[: self.count] = self._vectors
                try:
                    rows = jax.device_put(padded.reshape(tiles, self._tile, self._dim), self._device)
                    rows.block_until_ready()
                except jax.errors.JaxRuntimeError as error:
                    what = f"{self.count:,} vectors of {self._dim}"
                    raise UserError(f"{what} do not fit on {self._device}: {error}") from error
                self._placed = rows, self._place(np.ones(self.count, bool))
            return self._placed

    def _place(self, mask: Bool[np.ndarray, " n"]) -> Array:
        tiles = np.zeros((-(-self.count // self._tile), self._tile), bool)
        tiles.reshape(-1)[: self.count] = mask
        return jax.device_put(tiles, self._device)


@partial(jax.jit, static_argnums=3)
def _top(
    rows: Float32[Array, "tiles tile dim"], mask: Bool[Array, "tiles tile"], queries: Float32[Array, "q dim"], k: int
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
    tile = rows.shape[1]

    def step(best, item):  # type: ignore[no-untyped-def]
        (scores, positions), (number, vectors, allowed) = best, item
        # Tensor cores' short mantissas would reorder neighbours.
        found = jnp.matmul(queries, vectors.T, precision=lax.Precision.HIGHEST)
        found, place = lax.top_k(jnp.where(allowed[None, :], found, -jnp.inf), min(k, tile))
        scores = jnp.concatenate([scores, found], axis=1)
        positions = jnp.concatenate([positions, place + number * tile], axis=1)
        scores, chosen = lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(positions, chosen, axis=1)), None

    start = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32))
    numbers = jnp.arange(len(rows), dtype=jnp.int32)
    best, _ = lax.scan(step, start, (numbers, rows, mask))
    return best


def search_rows(
    vectors: Float32[np.ndarray, "m dim"], queries: Queries, k: int, mask: Bool[np.ndarray, " m"] | None = None
) -> tuple[Scores, Positions]:
    """Returns the k nearest of some rows on the host, best first.

    Args:
        vectors: of length 1; any number, also none.
        queries: of length 1.
        k: at least 1.
        mask: rows that may be returned; None for all.

    Returns:
        Cosine similarities, -inf where there are fewer rows, and positions into `vectors`, -1 there.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    width = min(k, len(vectors))
    if not width:
        return scores, positions
    if len(queries) == 1:
        # The same as below, without what many queries need: for few rows that takes longer than the comparison.
        alone = vectors @ queries[0]
        if mask is not None:
            alone[~mask] = -np.inf
        best = np.argpartition(alone, len(alone) - width)[-width:] if width < len(alone) else np.arange(width)
        best = best[np.argsort(-alone[best], kind="stable")]
        scores[0, :width], positions[0, :width] = alone[best], best
    else:
        step = queries_per_tile(len(vectors))
        denied = None if mask is None else np.flatnonzero(~mask)
        for start in range(0, len(queries), step):
            found = queries[start : start + step] @ vectors.T
            if denied is not None:
                found[:, denied] = -np.inf
            part = slice(start, start + len(found))
            if width < found.shape[1]:
                chosen = np.argpartition(found, found.shape[1] - width, axis=1)[:, -width:]
                values = np.take_along_axis(found, chosen, axis=1)
            else:
                chosen, values = np.broadcast_to(np.arange(width), found.shape), found
            order = np.argsort(-values, axis=1, kind="stable")
            scores[part, :width] = np.take_along_axis(values, order, axis=1)
            positions[part, :width] = np.take_along_axis(chosen, order, axis=1)
    if mask is not None:
        positions[np.isneginf(scores)] = -1
    return scores, positions


def lacks_rows(positions: Positions, place: int = -1) -> bool:
    """Returns whether a query has no row at a place of its list; quickly where there is one query."""
    return bool(positions[0, place] < 0) if len(positions) == 1 else bool((positions[:, place] < 0).any())


def queries_per_tile(count: int) -> int:
    """Returns how many queries the host compares with `count` rows at once."""
    return max(1, _HOST_TILE_SCORES // max(1, count))


def merge_top(first: tuple[Scores, Positions], second: tuple[Scores, Positions], k: int) -> tuple[Scores, Positions]:
    """Returns the k best of two lists of neighbours of the same queries."""
    scores = np.concatenate([first[0], second[0]], axis=1)
    positions = np.concatenate([first[1], second[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def least_seconds(run: Callable[[], object]) -> float:
    """Returns the least time of five calls, after one that compiles and warms the caches.

    Whatever else the machine does makes a call longer, never shorter.
    """
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
