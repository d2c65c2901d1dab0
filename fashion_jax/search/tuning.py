"""Tunes a backend: finds the fastest operating points with the asked recall, measured on a sample of real vectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.approximate import ApproximateSearcher, OperatingPoint
from fashion_jax.search.exact import Queries, search_rows
from fashion_jax.system.process import num_cores

# Number of neighbours of each operating point -> queries on which it is measured. With many neighbours per query, few
# queries say as much, and cost more.
_LADDER = {10: 600, 30: 400, 100: 200, 300: 100, 1_000: 64}
MOST_POINTS = len(_LADDER)
_SAMPLE = max(_LADDER.values())
_SINGLES = 64  # queries that are timed one by one
_FIRST_REORDER = 3  # the place among a backend's numbers of candidates that is tried first
_STEPS = 3  # on the grid of efforts, for a smaller number of candidates
_LONGEST_STEP = 8  # on the grid of efforts: one step multiplies the time of a search by 3 to 6 at most
_HELD_PART = 10  # a sample that is held back is this part of the rows at most
_ROWS_PER_TASK = 50  # sampled rows whose similarities to all rows are held at once
_VALUES_AT_ONCE = 1 << 26  # of such similarities, over all tasks, 256 MiB
_TIE = 1e-5  # difference of cosine similarities that single precision cannot tell
_SHORT = 1.0  # seconds; a shorter measurement never ends the tuning, because its time is uncertain, and costs little
_CLEARANCE = 2.0  # standard errors by which the sample must exceed the target, so that other queries reach it too


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows that serve as queries, and how near their true neighbours are. A row is not its own neighbour."""

    rows: Int64[np.ndarray, " sample"]  # positions of the sampled rows
    # cosine similarities of the nearest rows, best first. Similarities, not positions: where several rows are equally
    # near (the same photo twice), any of them is right.
    scores: Float32[np.ndarray, "sample k"]
    held: bool = False  # whether the sampled rows are left out as neighbours of each other


@dataclass(frozen=True, slots=True)
class _Measured:
    met: bool
    seconds: float
    place: int  # on the grid of efforts
    reorder: int
    recall: float


def draw_sample(vectors: Float32[np.ndarray, "n dim"], *, held: bool = False) -> Sample:
    """Draws rows and finds their true neighbours by exact search, as many as the largest operating point has.

    Args:
        vectors: of length 1; at least 2.
        held: whether the drawn rows are left out as neighbours of each other. The rows are the same ones, but at most a
            tenth of all.
    """
    count = len(vectors)
    rows = np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False)
    mask = None
    if held:
        rows = rows[: max(1, count // _HELD_PART)]
        mask = np.ones(count, bool)
        mask[rows] = False
    width = min(max(_LADDER), count - (len(rows) if held else 1))
    # The comparison uses all cores by itself; picking the best rows uses one.
    cuts = np.array_split(rows, max(1, len(rows) // _ROWS_PER_TASK))
    workers = min(num_cores(), max(1, _VALUES_AT_ONCE // (_ROWS_PER_TASK * count)))
    asked = width if held else width + 1
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda cut: search_rows(vectors, vectors[cut], asked, mask), cuts))
    scores, positions = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Sample(rows, scores if held else scores_of_others(scores, positions, rows), held)


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
    searcher: ApproximateSearcher,
    vectors: Float32[np.ndarray, "n dim"],
    sample: Sample,
    target: float,
    on_point: Callable[[], None] = lambda: None,
    *,
    limit: float = math.inf,
    most: int = MOST_POINTS,
) -> tuple[OperatingPoint, ...]:
    """Returns, for each number of neighbours, the fastest operating point that meets the target.

    There is no point for numbers of neighbours for which no search within the limit meets the target (of 1, for
    instance).

    Args:
        searcher: over `vectors`; it keeps its operating points, and missing ones are added.
        vectors: of length 1.
        sample: from `draw_sample`; with `held=True` if the searcher has `knows_its_rows`.
        target: recall in (0, 1].
        on_point: called when a point was found.
        limit: seconds of a query beyond which no more effort is tried: the time of exact search.
        most: number of points in the end; points of few neighbours come first.
    """
    points = list(searcher.points)
    for largest, queries in list(_LADDER.items())[len(points) : most]:
        neighbours = min(largest, sample.scores.shape[1])
        if points and points[-1].neighbours >= neighbours:
            break
        # More neighbours never need less effort.
        fewest = points[-1].effort if points else 1
        some = Sample(sample.rows[:queries], sample.scores[:queries], sample.held)
        point = _tune_one(searcher, vectors, some, neighbours, target, fewest, limit)
        if point is None:  # more neighbours would take longer still
            break
        points.append(point)
        on_point()
    return tuple(points)


def _tune_one(
    searcher: ApproximateSearcher,
    vectors: np.ndarray,
    sample: Sample,
    neighbours: int,
    target: float,
    fewest: int,
    limit: float,
) -> OperatingPoint | None:
    queries = vectors[sample.rows]
    efforts = searcher.efforts(neighbours)
    grid = [effort for effort in efforts if effort >= min(fewest, efforts[-1])]
    reorders = searcher.reorders(neighbours)
    best: _Measured | None = None
    end = len(grid)  # the first place that is not worth trying

    def measure(place: int, reorder: int) -> _Measured:
        begin = time.perf_counter()
        found = searcher.search_at(queries, neighbours if sample.held else neighbours + 1, grid[place], reorder)
        seconds = (time.perf_counter() - begin) / len(queries)
        others = found[0] if sample.held else scores_of_others(*found, sample.rows)
        recall = measure_recall(sample.scores[:, :neighbours], others)
        clearance = _CLEARANCE * float(recall.std()) / math.sqrt(len(recall))
        mean = float(recall.mean())
        met = mean - (clearance if mean < 1 else 0) >= target
        return _Measured(met, seconds, place, reorder, mean)

    def first_to_meet(places: Iterable[int], reorder: int) -> int | None:
        """Measures places on the grid one by one; returns the first that meets the target."""
        nonlocal best, end
        for place in places:
            found = measure(place, reorder)
            if found.met:
                best = found if best is None or found.seconds < best.seconds else best
                return place
            if found.seconds > max(limit, _SHORT / len(queries)):
                end = min(end, place)
                return None
        return None

    # Candidates are added until some effort meets the target. Recall grows with the effort, so the least effort is
    # found by halving, after steps that double: the most thorough searches are slow.
    low, number = 0, min(_FIRST_REORDER, len(reorders) - 1)
    while best is None and number < len(reorders):
        low, high = 0, 1
        while high < end and first_to_meet([high - 1], reorders[number]) is None:
            low, high = high, min(2 * high, high + _LONGEST_STEP)
        high = min(high, end) - (best is not None)
        while low < high:
            half = (low + high) // 2
            met = first_to_meet([half], reorders[number]) is not None
            low, high = (low, half) if met else (half + 1, min(high, end))
        number += best is None
    if best is None:
        return None
    # Fewer candidates need more effort, and more candidates less; a few steps on the grid show what is faster.
    start = low
    for reorder in reversed(reorders[:number]):
        place = first_to_meet(range(start, min(start + _STEPS, end)), reorder)
        if place is None:
            break
        start = place
    for reorder in reorders[number + 1 :]:
        if low == 0 or first_to_meet([low - 1], reorder) is None:
            break
        low -= 1
    effort = grid[best.place]
    single = _single_seconds(searcher, queries[:_SINGLES], neighbours, effort, best.reorder)
    # The least of three times: other work on the machine only makes a time longer, and backends are compared by it.
    batch = min(best.seconds, *(measure(best.place, best.reorder).seconds for _ in range(2)))
    return OperatingPoint(neighbours, effort, best.reorder, best.recall, single, batch)


def retime(searcher: ApproximateSearcher, vectors: Float32[np.ndarray, "n dim"]) -> ApproximateSearcher:
    """Returns the searcher with its points' times measured on this machine; recall is the same on every machine."""
    queries = vectors[: min(len(vectors), 4 * _SINGLES)]

    def measure(point: OperatingPoint) -> OperatingPoint:
        single = _single_seconds(searcher, queries[: _SINGLES // 4], point.neighbours, point.effort, point.reorder)
        begin = time.perf_counter()
        searcher.search_at(queries, point.neighbours, point.effort, point.reorder)
        batch = (time.perf_counter() - begin) / len(queries)
        return replace(point, single_seconds=single, batch_seconds=batch)

    return searcher.with_points(tuple(measure(point) for point in searcher.points))


def _single_seconds(
    searcher: ApproximateSearcher, queries: Queries, neighbours: int, effort: int, reorder: int
) -> float:
    times = []
    for query in queries:
        begin = time.perf_counter()
        searcher.search_at(query[None], neighbours, effort, reorder)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def scores_of_others(
    scores: Float32[np.ndarray, "sample m"], found: Int64[np.ndarray, "sample m"], rows: Int64[np.ndarray, " sample"]
) -> Float32[np.ndarray, "sample k"]:
    """Removes each sampled row's similarity to itself; where it did not find itself, the last one. k is m - 1."""
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    return scores[~own].reshape(len(found), found.shape[1] - 1)
