"""Tunes ScaNN: finds the fastest operating points with the asked recall, measured on a sample of the real vectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.exact import Queries, search_rows
from fashion_jax.search.scann import OperatingPoint, ScannSearcher
from fashion_jax.system.process import num_cores

# Number of neighbours of each operating point -> queries on which it is measured. With many neighbours per query, few
# queries say as much, and cost more.
_LADDER = {10: 600, 30: 400, 100: 200, 300: 100, 1_000: 64}
_SAMPLE = max(_LADDER.values())
_SINGLES = 64  # queries that are timed one by one
_REORDER = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 14.0, 25.0, 40.0)  # candidates per neighbour
_FIRST_REORDER = 3  # the place in _REORDER that is tried first
_STEPS = 3  # on the grid of leaves, for a smaller number of candidates
_ROWS_PER_TASK = 50  # sampled rows whose similarities to all rows are held at once
_VALUES_AT_ONCE = 1 << 26  # of such similarities, over all tasks, 256 MiB
_TIE = 1e-5  # difference of cosine similarities that single precision cannot tell
_CLEARANCE = 2.0  # standard errors by which the sample must exceed the target, so that other queries reach it too


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows that serve as queries, and how near their true neighbours are. A row is not its own neighbour."""

    rows: Int64[np.ndarray, " sample"]  # positions of the sampled rows
    # cosine similarities of the nearest rows, best first. Similarities, not positions: where several rows are equally
    # near (the same photo twice), any of them is right.
    scores: Float32[np.ndarray, "sample k"]


@dataclass(frozen=True, slots=True)
class _Measured:
    met: bool
    seconds: float
    place: int  # on the grid of leaves
    reorder: int
    recall: float


def draw_sample(vectors: Float32[np.ndarray, "n dim"]) -> Sample:
    """Draws rows and finds their true neighbours by exact search, as many as the largest operating point has.

    Args:
        vectors: of length 1; at least 2.
    """
    count = len(vectors)
    rows = np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False)
    width = min(max(_LADDER), count - 1)
    # The comparison uses all cores by itself; picking the best rows uses one.
    cuts = np.array_split(rows, max(1, len(rows) // _ROWS_PER_TASK))
    workers = min(num_cores(), max(1, _VALUES_AT_ONCE // (_ROWS_PER_TASK * count)))
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda cut: search_rows(vectors, vectors[cut], width + 1), cuts))
    scores, positions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Sample(rows, scores_of_others(scores, positions, rows))


def measure_recall(
    wanted: Float32[np.ndarray, "sample k"], found: Float32[np.ndarray, "sample k"]
) -> Float32[np.ndarray, " sample"]:
    """Returns the share of the k true neighbours that were found, in [0, 1].

    A found row counts where it is at least as near as the k-th true neighbour.

    Args:
        wanted: similarities of the k nearest rows, best first.
        found: similarities of k different rows that were found, -inf where there is none.
    """
    return (found >= wanted[:, -1:] - _TIE).mean(1, dtype=np.float32)


def tune(
    searcher: ScannSearcher,
    vectors: Float32[np.ndarray, "n dim"],
    sample: Sample,
    target: float,
    on_point: Callable[[OperatingPoint], None] = lambda point: None,
) -> tuple[OperatingPoint, ...]:
    """Returns, for each number of neighbours, the fastest operating point that meets the target.

    Where none meets the target (a target of 1, for instance), the most thorough point is returned.

    Args:
        searcher: over `vectors`.
        vectors: of length 1.
        sample: from `draw_sample`.
        target: recall in (0, 1].
        on_point: called with each point when it is found.
    """
    points: list[OperatingPoint] = []
    for most, queries in _LADDER.items():
        neighbours = min(most, sample.scores.shape[1])
        if points and points[-1].neighbours >= neighbours:
            break
        # More neighbours never need fewer leaves.
        fewest = points[-1].leaves if points else 1
        some = Sample(sample.rows[:queries], sample.scores[:queries])
        points.append(_tune_one(searcher, vectors, some, neighbours, target, fewest))
        on_point(points[-1])
    return tuple(points)


def _tune_one(
    searcher: ScannSearcher, vectors: np.ndarray, sample: Sample, neighbours: int, target: float, fewest: int
) -> OperatingPoint:
    queries = vectors[sample.rows]
    every = max(1, searcher.leaves)
    grid = [leaves for leaves in _leaf_grid(every) if leaves >= min(fewest, every)]
    reorders = list(_reorders(neighbours, searcher.count))
    best: _Measured | None = None

    def measure(place: int, reorder: int) -> _Measured:
        begin = time.perf_counter()
        found = searcher.search_at(queries, neighbours + 1, grid[place], reorder)
        seconds = (time.perf_counter() - begin) / len(queries)
        recall = measure_recall(sample.scores[:, :neighbours], scores_of_others(*found, sample.rows))
        clearance = _CLEARANCE * float(recall.std()) / math.sqrt(len(recall))
        mean = float(recall.mean())
        met = mean - (clearance if mean < 1 else 0) >= target
        return _Measured(met, seconds, place, reorder, mean)

    def first_to_meet(places: Iterable[int], reorder: int) -> int | None:
        """Measures places on the grid one by one; returns the first that meets the target."""
        nonlocal best
        for place in places:
            found = measure(place, reorder)
            if found.met:
                best = found if best is None or found.seconds < best.seconds else best
                return place
        return None

    # Candidates are added until some number of leaves meets the target. Recall grows with the leaves, so the fewest
    # leaves are found by halving.
    low, number = 0, min(_FIRST_REORDER, len(reorders) - 1)
    while best is None and number < len(reorders):
        low, high = 0, len(grid)
        while low < high:
            half = (low + high) // 2
            met = first_to_meet([half], reorders[number]) is not None
            low, high = (low, half) if met else (half + 1, high)
        number += best is None
    if best is None:
        best = measure(len(grid) - 1, reorders[-1])
    else:
        # Fewer candidates need more leaves, and more candidates fewer; a few steps on the grid show what is faster.
        start = low
        for reorder in reversed(reorders[:number]):
            place = first_to_meet(range(start, min(start + _STEPS, len(grid))), reorder)
            if place is None:
                break
            start = place
        for reorder in reorders[number + 1 :]:
            if low == 0 or first_to_meet([low - 1], reorder) is None:
                break
            low -= 1
    leaves = grid[best.place]
    single = _single_seconds(searcher, queries[:_SINGLES], neighbours, leaves, best.reorder)
    return OperatingPoint(neighbours, leaves, best.reorder, best.recall, single, best.seconds)


def retime(searcher: ScannSearcher, vectors: Float32[np.ndarray, "n dim"]) -> ScannSearcher:
    """Returns the searcher with its points' times measured on this machine; recall is the same on every machine."""
    queries = vectors[: min(len(vectors), 4 * _SINGLES)]

    def measure(point: OperatingPoint) -> OperatingPoint:
        single = _single_seconds(searcher, queries[: _SINGLES // 4], point.neighbours, point.leaves, point.reorder)
        begin = time.perf_counter()
        searcher.search_at(queries, point.neighbours, point.leaves, point.reorder)
        batch = (time.perf_counter() - begin) / len(queries)
        return replace(point, single_seconds=single, batch_seconds=batch)

    return searcher.with_points(tuple(measure(point) for point in searcher.points))


def _single_seconds(searcher: ScannSearcher, queries: Queries, neighbours: int, leaves: int, reorder: int) -> float:
    times = []
    for query in queries:
        begin = time.perf_counter()
        searcher.search_at(query[None], neighbours, leaves, reorder)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _reorders(neighbours: int, count: int) -> Iterator[int]:
    last = 0
    for factor in _REORDER:
        # One more than asked for: a sampled row finds itself.
        reorder = min(count, max(neighbours + 1, round(neighbours * factor)))
        if reorder != last:
            yield reorder
        last = reorder


def _leaf_grid(leaves: int) -> Iterator[int]:
    value, last = 1.0, 0
    while round(value) < leaves:
        if round(value) != last:
            yield round(value)
        last = round(value)
        value *= 1.25
    yield leaves


def scores_of_others(
    scores: Float32[np.ndarray, "sample m"], found: Int64[np.ndarray, "sample m"], rows: Int64[np.ndarray, " sample"]
) -> Float32[np.ndarray, "sample k"]:
    """Removes each sampled row's similarity to itself; where it did not find itself, the last one. k is m - 1."""
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    return scores[~own].reshape(len(found), found.shape[1] - 1)
