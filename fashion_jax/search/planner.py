"""Finds the nearest rows: chooses between exact search and the index, and returns as many rows as there are.

The law: where few rows pass a filter, these are compared exactly; else the index is asked for more rows than are
wanted. Without a filter, the index is asked, or all rows are compared exactly. Of the two ways the faster one is taken,
by times that were measured and are stored with the index. Queries that the index leaves with too few rows are searched
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fashion_jax.search.approximate import ApproximateSearcher
from fashion_jax.search.exact import (
    PassingRows,
    Positions,
    Queries,
    Scores,
    Searcher,
    lacks_rows,
    merge_top,
    search_rows,
)
from fashion_jax.search.snapshot import Base, Selection, Snapshot
from fashion_jax.search.tuning import Sample, measure_recall, scores_of_others

_GAIN = 0.8  # share of exact search's time below which the index is taken, because both times are uncertain

_HEALTH_QUERIES = 200
_HEALTH_NEIGHBOURS = 10  # with the sampled row itself, so that the first operating point answers
_MOST_ADDED = 0.1  # share of the rows that are not indexed
_MOST_DEAD = 0.3  # share of the indexed rows that were replaced or deleted
_TOLERANCE = 0.01  # of recall, for the error of a sample


def nearest(
    snapshot: Snapshot, queries: Queries, k: int, selection: Selection | None, *, exact: bool = False
) -> tuple[Scores, Positions]:
    """Returns the k nearest selected rows of each query, best first; -inf and -1 where there are fewer rows.

    Args:
        queries: finite, of length 1, at least one.
        k: at least 1.
        selection: from `snapshot.select`; None where every row is live and indexed.
        exact: whether the host compares all selected rows, which is the truth that recall is measured by.
    """
    base = snapshot.base
    passing = None if selection is None else selection.base
    searcher = base.host if exact else plan(base, len(queries), k, passing)
    found = searcher.search(queries, k, passing)
    if isinstance(searcher, ApproximateSearcher) and (passing is not None or lacks_rows(found[1])):
        _complete(base, queries, k, passing, *found)
    if selection is None or not selection.added.count:
        return found
    added = selection.added
    if added.share > 0.5:
        scores, rows = search_rows(snapshot.added, queries, min(k, added.count), added.mask)
    else:
        scores, rows = search_rows(added.copy(snapshot.added), queries, min(k, added.count))
        rows = np.where(rows >= 0, added.positions[rows], -1)
    return merge_top(found, (scores, np.where(rows >= 0, rows + base.count, -1)), k)


def plan(base: Base, num_queries: int, k: int, passing: PassingRows | None) -> Searcher:
    """Returns what searches the indexed rows: `base.host` or `base.index`."""
    if passing is not None:
        return _soonest(base, num_queries, k, passing)
    # Of several queries each takes the same time. Kept, because here a microsecond counts.
    case = (num_queries > 1, k)
    found = base.plans.get(case)
    if found is None:
        found = base.plans[case] = _soonest(base, num_queries, k, None)
    return found


def _soonest(base: Base, num_queries: int, k: int, passing: PassingRows | None) -> Searcher:
    index = base.index
    if index is None:
        return base.host
    exact = base.host.seconds(num_queries, k, passing)
    if passing is not None and isinstance(index, ApproximateSearcher) and exact <= index.least_seconds(num_queries):
        return base.host  # the usual case where few rows pass, found soon
    seconds = index.seconds(num_queries, k, passing)
    if passing is not None:
        seconds += passing.short_share * exact  # queries with too few rows are searched twice
    return index if seconds < _GAIN * exact else base.host


def _complete(
    base: Base, queries: Queries, k: int, passing: PassingRows | None, scores: Scores, positions: Positions
) -> None:
    """Searches queries again, exactly, for which the index found too few rows."""
    if passing is not None:
        passing.searched += len(queries)
    last = min(k, base.count if passing is None else passing.count) - 1
    if lacks_rows(positions, last):
        short = positions[:, last] < 0
        scores[short], positions[short] = base.host.search(queries[short], k, passing)
        if passing is not None:
            passing.short += int(np.count_nonzero(short))


@dataclass(frozen=True, slots=True)
class Health:
    """How well an index still does what it was built for."""

    # share of the true 10 nearest rows that a search finds now; to be compared with `OperatingPoint.recall`
    recall: float
    target_recall: float  # what was asked for when the index was built
    reasons: tuple[str, ...]  # why a rebuild is due; empty where none is

    @property
    def rebuild_due(self) -> bool:
        """Whether a rebuild is due."""
        return bool(self.reasons)


def measure_health(snapshot: Snapshot) -> Health:
    """Compares the neighbours of stored rows with those of exact search over all live rows."""
    base = snapshot.base
    added = len(snapshot.added) / max(1, len(snapshot.ids))
    dead = 1 - float(snapshot.live[: base.count].mean())
    recall = _measure_recall(snapshot)
    reasons = [base.note] if base.note else []
    if recall < base.target_recall - _TOLERANCE:
        reasons.append(f"recall is {recall:.3f}, below {base.target_recall:.3f}")
    if added > _MOST_ADDED:
        reasons.append(f"{added:.0%} of the rows were added since it was built")
    if dead > _MOST_DEAD:
        reasons.append(f"{dead:.0%} of the indexed rows were replaced or deleted")
    return Health(recall, base.target_recall, tuple(reasons))


def _measure_recall(snapshot: Snapshot) -> float:
    base = snapshot.base
    if base.sample is None or snapshot.num_live < 2:
        return 1.0
    # Deleted rows serve as queries too: somebody may still look for them.
    chosen = base.sample.rows[_health_part(base.sample)]
    queries = np.ascontiguousarray(base.vectors[chosen])
    k, live = min(_HEALTH_NEIGHBOURS, snapshot.num_live), snapshot.select(None)
    selection = None if snapshot.is_plain else live
    is_exact = plan(base, len(chosen), k, None if selection is None else selection.base) is base.host
    found = nearest(snapshot, queries, k, selection)
    true = nearest(snapshot, queries, k, live, exact=True)
    # A row that finds itself proves nothing.
    wanted = scores_of_others(*true, chosen)
    recall = float(measure_recall(wanted, scores_of_others(*found, chosen)).mean())
    if is_exact or base.own_recall is None:
        return recall
    # Rows of the index may be easier queries than others. What has changed since the build is the same for both.
    return min(1.0, max(0.0, base.points[0].recall + recall - base.own_recall))


def measure_own_recall(base: Base) -> float | None:
    """Returns the recall of sampled rows of a new index, at its first operating point; None where there is none."""
    if base.approximate is None or base.sample is None or not base.points:
        return None
    part, point = _health_part(base.sample), base.points[0]
    chosen, k = base.sample.rows[part], min(_HEALTH_NEIGHBOURS, base.count)
    queries = np.ascontiguousarray(base.vectors[chosen])
    found = base.approximate.search_at(queries, k, point.effort, point.reorder)
    return float(measure_recall(base.sample.scores[part, : k - 1], scores_of_others(*found, chosen)).mean())


def _health_part(sample: Sample) -> slice:
    """Returns which rows of a sample are queries."""
    return slice(None, None, max(1, len(sample.rows) // _HEALTH_QUERIES))
