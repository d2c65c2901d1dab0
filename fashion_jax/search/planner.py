"""Decides how the nearest rows are found, and sees to it that as many come back as there are."""

from __future__ import annotations

import contextlib
import math
import platform
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from fashion_jax.search.exact import ExactSearcher, Positions, Scores, merge_top, search_rows
from fashion_jax.search.ranking import lacks_rows
from fashion_jax.search.scann import ScannSearcher
from fashion_jax.search.snapshot import Allowed, Base, Costs, Snapshot
from fashion_jax.search.tuning import OperatingPoint
from fashion_jax.system.process import num_cores

_SPREADS = 3.0  # standard deviations by which more candidates are fetched than are expected to be needed
_MILD = 1.25  # candidates per neighbour up to which the neighbours' own operating point serves
_PICKING = 1e-8  # seconds per candidate to see whether it passes
_FILTERING = 2e-5  # and per search
_GAIN = 0.8  # of the time of exact search that ScaNN must promise, because neither is known exactly
_SIZES = (64, 512, 2_048, 4_096, 8_192, 16_384)  # rows with which a single query is compared to know its time
_DEVICE_FROM = 4_096  # rows from which XLA on the host's processor may be faster than numpy
_NEVER = 1e9  # seconds
_MANY_SHORT = 0.1  # share of queries found wanting above which a filter is searched exactly
_FEW_QUERIES = 16  # after which that share is believed

Queries = Float32[np.ndarray, "q dim"]


def nearest(snapshot: Snapshot, queries: Queries, k: int, allowed: Allowed | None) -> tuple[Scores, Positions]:
    """Returns the k nearest allowed rows of each query, best first; -inf and -1 where there are fewer rows.

    As many rows come back as are allowed, up to k: what approximate search leaves open is searched exactly.

    Args:
        snapshot: to search in.
        queries: finite, of length 1, at least one.
        k: at least 1.
        allowed: of `snapshot.allowed`; None where every row is live and of the base.
    """
    base = snapshot.base
    if allowed is None:
        return _all_rows(base, queries, k)
    return _with_added(snapshot, _base_rows(base, queries, k, allowed), queries, k, allowed)


def nearest_exactly(snapshot: Snapshot, queries: Queries, k: int, allowed: Allowed) -> tuple[Scores, Positions]:
    """Returns what `nearest` does, with all allowed rows compared on the host: the truth that it is measured by."""
    return _with_added(snapshot, _host(snapshot.base, queries, k, allowed), queries, k, allowed)


def _with_added(
    snapshot: Snapshot, found: tuple[Scores, Positions], queries: Queries, k: int, allowed: Allowed
) -> tuple[Scores, Positions]:
    """Returns the best of what was found in the base and of the rows added since."""
    if not allowed.delta_count:
        return found
    if 2 * allowed.delta_count > len(snapshot.delta):
        scores, rows = search_rows(snapshot.delta, queries, min(k, allowed.delta_count), allowed.delta_mask)
    else:
        passing = np.flatnonzero(allowed.delta_mask)
        scores, places = search_rows(snapshot.delta[passing], queries, min(k, len(passing)))
        rows = np.where(places >= 0, passing[places], -1)
    return merge_top(found, (scores, np.where(rows >= 0, rows + snapshot.base.count, -1)), k)


def point_for(base: Base, neighbours: int) -> OperatingPoint | None:
    """Returns ScaNN's operating point for a number of neighbours; None where exact search has to serve."""
    if neighbours > base.count:
        return None
    return next((point for point in base.points if point.neighbours >= neighbours), None)


def plan(base: Base, num_queries: int, k: int, allowed: Allowed) -> tuple[str, int]:
    """Returns how the base is searched: "host", "device" or "scann", and how many neighbours are fetched from it."""
    passing = allowed.base_count
    costs = base.costs
    masked = allowed.is_masked(base, num_queries)
    compared = base.count if masked else passing
    host = costs.host_single(compared) if num_queries == 1 else num_queries * compared * costs.host_batch
    if not allowed.is_gathered and not masked:
        # Copying is done once. The more often a filter was asked for, the more often it will be.
        host += passing * costs.gather / (1 + allowed.asked if allowed.is_kept(base) else 1)
    if isinstance(base.searcher, ExactSearcher):
        device = costs.device_single if num_queries == 1 else num_queries * costs.device_batch
        return ("device", k) if device < host else ("host", k)
    if not passing or allowed.shortfalls > max(_FEW_QUERIES, allowed.searches) * _MANY_SHORT:
        return "host", k
    if num_queries == 1 and base.points and base.points[0].single_seconds + _FILTERING > _GAIN * host:
        return "host", k  # nothing is faster; it is said at once, because working it out takes as long
    fetch = min(candidates(k, passing / base.count), base.count)
    point = point_for(base, _tuned_for(k, fetch))
    if point is None:
        return "host", k
    search = point.single_seconds if num_queries == 1 else num_queries * point.batch_seconds
    search += _FILTERING + num_queries * fetch * _PICKING
    return ("scann", fetch) if search < _GAIN * host else ("host", k)


def candidates(k: int, share: float) -> int:
    """Returns how many rows to fetch so that k pass, where a share of all passes without regard to the query.

    The number that passes is binomial: as many are fetched as put k at three standard deviations below its mean.
    """
    spread = _SPREADS * math.sqrt(1 - share)
    return math.ceil((k + spread * math.sqrt(k + spread**2 / 4) + spread**2 / 2) / share)


def _tuned_for(k: int, fetch: int) -> int:
    """Returns the neighbours whose operating point finds the k best of `fetch` candidates."""
    return k if fetch <= _MILD * k else fetch


def measure_costs(base_vectors: Float32[np.ndarray, "n dim"], searcher: ScannSearcher | ExactSearcher) -> Costs:
    """Measures what the planner weighs, in a fraction of a second.

    Args:
        base_vectors: of length 1; at least one.
        searcher: over them.
    """
    rows = base_vectors[: min(len(base_vectors), 8_192)]
    queries = np.ascontiguousarray(rows[np.arange(64) % len(rows)])
    picked = np.arange(0, len(base_vectors), max(1, len(base_vectors) // len(rows)))[: len(rows)]
    device_single = device_batch = 0.0
    if isinstance(searcher, ExactSearcher) and searcher.on_host and len(base_vectors) < _DEVICE_FROM:
        device_single = device_batch = _NEVER
    elif isinstance(searcher, ExactSearcher):
        device_single = _seconds(lambda: searcher.search(queries[:1], 10))
        device_batch = _seconds(lambda: searcher.search(queries, 10)) / len(queries)
    sizes = [size for size in _SIZES if size < len(base_vectors)] or [len(base_vectors)]
    parts = [np.array(base_vectors[:size]) for size in sizes]  # copies, as what a filter gathers is
    return Costs(
        host_rows=tuple(sizes),
        host_seconds=tuple(_seconds(partial(search_rows, part, queries[:1], 10)) for part in parts),
        host_batch=_seconds(lambda: search_rows(rows, queries, 10)) / len(rows) / len(queries),
        gather=_seconds(lambda: base_vectors[picked]) / len(picked),
        device_single=device_single,
        device_batch=device_batch,
    )


def machine_name(backend: str) -> str:
    """Returns what the measured times depend on: processor, its cores, and the device of exact search."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    device = f", {jax.local_devices()[0].device_kind}" if backend == "exact" else ""
    return f"{model}, {num_cores()} cores{device}"


def _seconds(run: object) -> float:
    assert callable(run)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))  # the first one compiles, or warms the caches


def _all_rows(base: Base, queries: Queries, k: int) -> tuple[Scores, Positions]:
    searcher = base.searcher
    if isinstance(searcher, ScannSearcher):
        point = point_for(base, k)
        if point is not None:
            scores, positions = searcher.search(queries, k, point.leaves, point.reorder)
            if not lacks_rows(positions):
                return scores, positions
            short = positions[:, -1] < 0
            scores[short], positions[short] = search_rows(base.vectors, queries[short], k)
            return scores, positions
        return search_rows(base.vectors, queries, k)
    costs, single = base.costs, len(queries) == 1
    host = costs.host_single(base.count) if single else base.count * len(queries) * costs.host_batch
    device = costs.device_single if single else len(queries) * costs.device_batch
    return searcher.search(queries, k) if device < host else search_rows(base.vectors, queries, k)


def _base_rows(base: Base, queries: Queries, k: int, allowed: Allowed) -> tuple[Scores, Positions]:
    how, fetch = plan(base, len(queries), k, allowed)
    allowed.asked += 1
    if how == "device":
        assert isinstance(base.searcher, ExactSearcher)
        return base.searcher.search(queries, k, allowed.base_mask)
    if how == "host":
        return _host(base, queries, k, allowed)
    assert isinstance(base.searcher, ScannSearcher)
    point = point_for(base, _tuned_for(k, fetch))
    assert point is not None
    scores, positions = base.searcher.search(queries, fetch, point.leaves, point.reorder)
    # Where a place is empty its position is -1, which reads the last row's mask; its score keeps it out.
    passing = allowed.base_mask[positions] & (scores > -np.inf)
    numbers = np.cumsum(passing, axis=1)
    query, candidate = np.nonzero(passing & (numbers <= k))
    place = numbers[query, candidate] - 1
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    best[query, place], rows[query, place] = scores[query, candidate], positions[query, candidate]
    short = numbers[:, -1] < min(k, allowed.base_count)
    allowed.searches += len(queries)
    if short.any():
        allowed.shortfalls += int(short.sum())
        best[short], rows[short] = _host(base, queries[short], k, allowed)
    return best, rows


def _host(base: Base, queries: Queries, k: int, allowed: Allowed) -> tuple[Scores, Positions]:
    if allowed.is_masked(base, len(queries)):
        every = allowed.base_count == base.count
        return search_rows(base.vectors, queries, k, None if every else allowed.base_mask)
    scores, places = search_rows(allowed.gather(base), queries, k)
    if allowed.base_count:
        places = np.where(places >= 0, allowed.base_rows[places], -1)
    return scores, places
