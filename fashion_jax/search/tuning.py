"""Finds how hard ScaNN must look so that the asked recall is met, on a sample of the real vectors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.errors import UserError
from fashion_jax.search.exact import search_rows
from fashion_jax.search.scann import ScannSearcher

# Numbers of neighbours for which there is an operating point, and the queries on which each is measured: many
# neighbours per query say as much with fewer queries, and cost more.
_LADDER = {10: 600, 30: 400, 100: 200, 300: 100, 1_000: 64}
_SAMPLE = max(_LADDER.values())
_SINGLES = 64  # queries that are timed one by one
_REORDER = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 14.0, 25.0, 40.0)  # candidates per neighbour
_ROWS_PER_TASK = 50  # whose similarities to all rows are held at once
_CLEARANCE = 2.0  # standard errors by which the sample must clear the target, so that other queries do too


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How ScaNN is asked for up to `neighbours` neighbours, and what was measured there.

    Attributes:
        neighbours: asked for at most.
        leaves: partitions looked into.
        reorder: candidates whose similarity is computed exactly.
        recall: mean share of the true nearest `neighbours` that are found, on the sample.
        single_seconds: of one query alone, the median.
        batch_seconds: of one query in a batch of the sample's size.
    """

    neighbours: int
    leaves: int
    reorder: int
    recall: float
    single_seconds: float
    batch_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OperatingPoint:
        """Returns the point that `to_json` wrote; UserError when it is none."""
        try:
            neighbours, leaves, reorder = (int(values[name]) for name in ("neighbours", "leaves", "reorder"))
            recall, single, batch = (float(values[n]) for n in ("recall", "single_seconds", "batch_seconds"))
            return cls(neighbours, leaves, reorder, recall, single, batch)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the operating point {values!r} is damaged") from error


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows that serve as queries, and their true neighbours, themselves left out.

    Attributes:
        rows: their positions.
        neighbours: positions of the nearest rows, best first.
    """

    rows: Int64[np.ndarray, " sample"]
    neighbours: Int64[np.ndarray, "sample k"]


def draw_sample(vectors: Float32[np.ndarray, "n dim"], seed: int) -> Sample:
    """Draws rows and finds their true neighbours by comparing all, up to the most that are ever tuned for.

    Args:
        vectors: of length 1; at least 2.
        seed: of the draw.
    """
    count = len(vectors)
    rows = np.random.default_rng(seed).choice(count, min(_SAMPLE, count), replace=False)
    width = min(max(_LADDER), count - 1)
    # The comparisons use all cores by themselves, picking the best of them one.
    cuts = np.array_split(rows, max(1, len(rows) // _ROWS_PER_TASK))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda cut: search_rows(vectors, vectors[cut], width + 1)[1], cuts))
    return Sample(rows, without_self(np.concatenate(found), rows)[:, :width])


def measure_recall(sample: Sample, found: Int64[np.ndarray, "sample k"], k: int) -> Float32[np.ndarray, " sample"]:
    """Returns the share of the k true neighbours that were found, for as many sampled rows as there are answers.

    Args:
        sample: rows and their neighbours.
        found: of the first rows of the sample, k + 1 positions each, because a row may find itself.
        k: neighbours.
    """
    others = without_self(found, sample.rows[: len(found)])[:, :k]
    truth = np.sort(sample.neighbours[: len(found), :k], axis=1)
    # Each row's positions are moved into a range of their own, so that one search serves all rows.
    step = int(max(truth.max(), others.max())) + 2
    shift = np.arange(len(truth))[:, None] * step
    every = (truth + shift).reshape(-1)
    wanted = np.where(others >= 0, others, step - 1) + shift
    place = np.minimum(np.searchsorted(every, wanted), every.size - 1)
    return (every[place] == wanted).sum(1).astype(np.float32) / truth.shape[1]


def tune(
    searcher: ScannSearcher,
    vectors: Float32[np.ndarray, "n dim"],
    sample: Sample,
    target: float,
    on_point: Callable[[OperatingPoint], None] = lambda point: None,
) -> tuple[OperatingPoint, ...]:
    """Returns an operating point per number of neighbours: the fastest that meets the target.

    Where none meets it (a target of 1, say), the most thorough one is returned with the recall that it has.

    Args:
        searcher: over `vectors`.
        vectors: of length 1.
        sample: of `draw_sample`.
        target: recall in (0, 1].
        on_point: called with each point as it is found.
    """
    points: list[OperatingPoint] = []
    for most, queries in _LADDER.items():
        neighbours = min(most, sample.neighbours.shape[1])
        if points and points[-1].neighbours >= neighbours:
            break
        # More neighbours never need fewer leaves.
        fewest = points[-1].leaves if points else 1
        some = Sample(sample.rows[:queries], sample.neighbours[:queries])
        points.append(_tune_one(searcher, vectors, some, neighbours, target, fewest))
        on_point(points[-1])
    return tuple(points)


def _tune_one(
    searcher: ScannSearcher, vectors: np.ndarray, sample: Sample, neighbours: int, target: float, fewest: int
) -> OperatingPoint:
    queries = vectors[sample.rows]
    best: tuple[float, int, int, float] | None = None

    def measure(leaves: int, reorder: int) -> tuple[bool, float, float]:
        begin = time.perf_counter()
        _, found = searcher.search(queries, neighbours + 1, leaves, reorder)
        seconds = (time.perf_counter() - begin) / len(queries)
        recall = measure_recall(sample, found, neighbours)
        clearance = _CLEARANCE * float(recall.std()) / math.sqrt(len(recall))
        mean = float(recall.mean())
        return mean - (clearance if mean < 1 else 0) >= target, mean, seconds

    every = max(1, searcher.structure.leaves)
    for reorder in _reorders(neighbours, searcher.count):
        # Recall grows with the leaves: the fewest that meet the target are found by halving.
        grid = [leaves for leaves in _leaf_grid(every) if leaves >= min(fewest, every)]
        low, high = 0, len(grid)
        while low < high:
            middle = (low + high) // 2
            met, recall, seconds = measure(grid[middle], reorder)
            if met:
                high = middle
                if best is None or seconds < best[0]:
                    best = (seconds, grid[middle], reorder, recall)
            else:
                low = middle + 1
        if best is not None and high == len(grid):
            continue
        if best is not None and best[2] * 3 <= reorder:
            break  # more candidates than three times the best so far only cost
    if best is None:
        reorder = min(searcher.count, round(neighbours * _REORDER[-1]))
        _, recall, seconds = measure(every, reorder)
        best = (seconds, every, reorder, recall)
    seconds, leaves, reorder, recall = best
    singles = []
    for query in queries[:_SINGLES]:
        begin = time.perf_counter()
        searcher.search(query[None], neighbours, leaves, reorder)
        singles.append(time.perf_counter() - begin)
    return OperatingPoint(neighbours, leaves, reorder, recall, float(np.median(singles)), seconds)


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


def without_self(found: Int64[np.ndarray, "sample k"], rows: Int64[np.ndarray, " sample"]) -> np.ndarray:
    """Removes each row's own position, or where it is absent the last one, so that all keep one width."""
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(found), found.shape[1] - 1)
