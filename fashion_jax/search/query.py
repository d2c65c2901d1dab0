"""Searches that ask for more than the nearest rows: filters, groups, variety, exclusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.exact import Positions, Scores
from fashion_jax.search.inputs import check_ids, check_neighbours
from fashion_jax.search.planner import nearest, nearest_exactly
from fashion_jax.search.ranking import Hits, best_of_groups, diversify, first_of_groups, lacks_rows
from fashion_jax.search.snapshot import Allowed, Snapshot
from fashion_jax.system.errors import UserError

_POOL_PER_PICK = 5  # candidates per pick where variety is asked for
_LEAST_POOL = 50
_VALUES_AT_ONCE = 1 << 24  # of candidates' vectors that are held at once, 64 MiB
_FEW_EXCLUDED = 200  # ids up to which they are struck from more candidates, rather than searched around
_MOST_FETCHED = 4_096  # candidates per query in which groups are looked for, before all rows are compared


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is asked for beside the nearest rows; as the arguments of `Index.search`."""

    where: str | None = None
    group_by: str | None = None
    diversity: float = 0.0
    min_score: float | None = None
    exclude: Any = None
    exact: bool = False  # every row is compared, because the index was not tuned on such queries

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is asked for."""
        absent = self.where is None and self.group_by is None and self.min_score is None and self.exclude is None
        return absent and not self.diversity and not self.exact


def find(snapshot: Snapshot, queries: Float32[np.ndarray, "q dim"], k: int, wanted: Refinement) -> Hits:
    """Returns the hits of each query, best first.

    Args:
        snapshot: to search in.
        queries: finite, of length 1, as `snapshot.project` returns them.
        k: hits per query.
        wanted: what is asked for beside them.

    Raises:
        UserError: no query, a k that is out of range, a filter or an argument that cannot be understood.
    """
    if not len(queries):
        raise UserError("there is no query: queries must have at least one row")
    if k.__class__ is not int or not 1 <= k <= snapshot.num_live:
        k = check_neighbours(k, snapshot.num_live)
    if wanted.is_nothing:
        scores, positions = nearest(snapshot, queries, k, None if snapshot.is_plain else snapshot.allowed(None))
    else:
        scores, positions = refine(snapshot, queries, k, wanted)
    ids = snapshot.ids.take(positions)
    if lacks_rows(positions):
        ids[positions < 0] = snapshot.no_id
    return Hits(ids, scores, snapshot.attributes, positions)


def refine(
    snapshot: Snapshot, queries: Float32[np.ndarray, "q dim"], k: int, wanted: Refinement
) -> tuple[Scores, Positions]:
    """Returns the k nearest rows of each query that satisfy everything asked for.

    Args:
        snapshot: to search in.
        queries: finite, of length 1.
        k: at least 1.
        wanted: what is asked for.

    Raises:
        UserError: a filter or an argument that cannot be understood.
    """
    diversity, lowest = _check_diversity(wanted.diversity), _check_score(wanted.min_score)
    groups = None if wanted.group_by is None else snapshot.attributes.groups(wanted.group_by)
    plain = wanted.where is None and snapshot.is_plain and not wanted.exact
    allowed = None if plain else snapshot.allowed(wanted.where)
    excluded = snapshot.ids[:0]
    if wanted.exclude is not None:
        excluded = check_ids(wanted.exclude, None, snapshot.ids.dtype.kind)
    if len(excluded) > _FEW_EXCLUDED:
        mask = (snapshot.live if allowed is None else allowed.mask) & ~np.isin(snapshot.ids, excluded)
        allowed, excluded = Allowed(mask, snapshot), excluded[:0]
    pool = max(_LEAST_POOL, _POOL_PER_PICK * k) if diversity else k
    pool = max(k, min(pool, snapshot.num_live if allowed is None else allowed.count))
    if groups is None:
        scores, positions = _nearest_others(snapshot, queries, pool, allowed, excluded, wanted.exact)
    else:
        scores, positions = _nearest_groups(snapshot, queries, pool, allowed, excluded, groups, wanted.exact)
    if lowest is not None:
        below = scores < lowest
        scores, positions = np.where(below, np.float32(-np.inf), scores), np.where(below, -1, positions)
    if not diversity:
        return scores, positions
    step = max(1, _VALUES_AT_ONCE // (positions.shape[1] * queries.shape[1]))
    parts = [
        _pick(snapshot, scores[start : start + step], positions[start : start + step], k, diversity)
        for start in range(0, len(queries), step)
    ]
    return np.concatenate([s for s, _ in parts]), np.concatenate([p for _, p in parts])


def _nearest_others(
    snapshot: Snapshot, queries: np.ndarray, k: int, allowed: Allowed | None, excluded: np.ndarray, exact: bool
) -> tuple[Scores, Positions]:
    """Returns the k nearest rows that are not of a few excluded ids."""
    fetch = min(k + len(excluded), snapshot.num_live) if len(excluded) else k
    if exact:
        assert allowed is not None
        scores, positions = nearest_exactly(snapshot, queries, fetch, allowed)
    else:
        scores, positions = nearest(snapshot, queries, fetch, allowed)
    if not len(excluded):
        return scores, positions
    struck = np.isin(snapshot.ids[positions], excluded) & (positions >= 0)
    scores = np.where(struck, np.float32(-np.inf), scores)
    order = np.argsort(struck, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, order, axis=1)
    positions = np.where(np.isneginf(scores), -1, np.take_along_axis(positions, order, axis=1))
    lacking = ((0, 0), (0, k - scores.shape[1]))
    return np.pad(scores, lacking, constant_values=-np.inf), np.pad(positions, lacking, constant_values=-1)


def _nearest_groups(
    snapshot: Snapshot,
    queries: np.ndarray,
    k: int,
    allowed: Allowed | None,
    excluded: np.ndarray,
    groups: np.ndarray,
    exact: bool,
) -> tuple[Scores, Positions]:
    """Looks further and further until every query has k groups; where that gets too far, compares all rows."""
    available = snapshot.num_live if allowed is None else allowed.count
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    open_queries, fetch = np.arange(len(queries)), 2 * k
    while len(open_queries) and fetch <= _MOST_FETCHED:
        fetch = max(1, min(fetch, available))
        found = _nearest_others(snapshot, queries[open_queries], fetch, allowed, excluded, exact)
        best, rows, counts = first_of_groups(*found, groups, k)
        scores[open_queries], positions[open_queries] = best, rows
        if fetch >= available:
            return scores, positions
        open_queries, fetch = open_queries[counts < k], fetch * 4
    if len(open_queries):
        mask = snapshot.live if allowed is None else allowed.mask
        rows = np.flatnonzero(mask if not len(excluded) else mask & ~np.isin(snapshot.ids, excluded))
        scores[open_queries], positions[open_queries] = best_of_groups(
            snapshot.vectors, rows, groups[rows], queries[open_queries], k
        )
    return scores, positions


def _pick(
    snapshot: Snapshot, scores: np.ndarray, positions: np.ndarray, k: int, diversity: float
) -> tuple[Scores, Positions]:
    shape = (*positions.shape, snapshot.base.vectors.shape[1])
    vectors = snapshot.vectors(np.maximum(positions, 0).reshape(-1)).reshape(shape)
    return diversify(scores, positions, vectors, k, diversity)


def _check_diversity(diversity: Any) -> float:
    number = isinstance(diversity, (int, float, np.integer, np.floating)) and not isinstance(diversity, bool)
    if not number or not 0 <= diversity <= 1:
        raise UserError(f"diversity must be a number in [0, 1], not {diversity!r}")
    return float(diversity)


def _check_score(score: Any) -> float | None:
    if score is None:
        return None
    number = isinstance(score, (int, float, np.integer, np.floating)) and not isinstance(score, bool)
    if not number or not score < 1e30:
        raise UserError(f"min_score must be a number, a cosine similarity, not {score!r}")
    return float(max(score, -1e30))
