"""Searches: filters, groups, variety, excluded products and weighted parts of the embedding; and their hits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.attributes import AttributeTable, Scalar
from fashion_jax.search.exact import Positions, Queries, Scores, lacks_rows, queries_per_tile
from fashion_jax.search.inputs import check_ids, check_neighbours, check_vectors
from fashion_jax.search.planner import nearest
from fashion_jax.search.snapshot import Selection, Snapshot
from fashion_jax.system.errors import UserError
from fashion_jax.system.errors import nearest as nearest_name

_POOL_PER_PICK = 5  # candidates per pick for diversity
_LEAST_POOL = 50
_VALUES_AT_ONCE = 1 << 24  # values of candidates' vectors that are held at once, 64 MiB
_FEW_EXCLUDED = 200  # up to so many excluded ids, more candidates are fetched; more ids become a filter
_MOST_FETCHED = 4_096  # candidates per query in which groups are looked for, before all rows are fetched
_LARGEST_WEIGHT = 1e6
_LARGEST_SCORE = 1e30

Groups = Int64[np.ndarray, " n"]


@dataclass(slots=True, eq=False)  # not frozen, which would cost 0.5 of the few microseconds of a search
class Hits:
    """The neighbours of some queries, best first."""

    # (queries, k), each product once; -1 (an empty text where ids are texts) where there are fewer
    ids: np.ndarray
    # cosine similarity of the product's nearest photo, in [-1, 1], -inf where there are fewer
    scores: Float32[np.ndarray, "queries k"]
    _table: AttributeTable = field(repr=False)  # of the version that was searched
    _positions: Int64[np.ndarray, "queries k"] = field(repr=False)  # rows of the table, -1 where there are fewer

    _first: Int64[np.ndarray, " n"] | None = field(default=None, repr=False)  # `Snapshot.first`

    @property
    def photos(self) -> Int64[np.ndarray, "queries k"]:
        """The photo of each product that matched: its place among the product's photos, from 0; -1 where no hit is."""
        if self._first is None:
            return np.where(self._positions < 0, -1, 0)
        return np.where(self._positions < 0, -1, self._positions - self._first[self._positions])

    def attributes(self, query: int = 0) -> list[dict[str, Scalar]]:
        """Returns the attributes of one query's hits (of the photos that matched), in the version that was searched."""
        return [self._table.row(row) for row in self._positions[query].tolist() if row >= 0]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Refinement:
    """What a search asks for besides the nearest rows: arguments of `Index.search`.

    `exact` compares every row, for queries that the index was not tuned on.
    """

    where: str | None = None
    group_by: str | None = None
    diversity: float = 0.0
    min_score: float | None = None
    exclude: Any = None
    exact: bool = False


PLAIN = Refinement()  # no filter, no groups, nothing else


def find(snapshot: Snapshot, queries: Queries, k: int, refinement: Refinement) -> Hits:
    """Returns the hits of each query, best first. A product is a hit once, by its nearest photo.

    Args:
        queries: finite, of length 1.
        refinement: filter, groups and so on; `PLAIN` itself if there are none.

    Raises:
        UserError: no query, a k that is out of range, a filter or an argument that cannot be understood.
    """
    if not len(queries):
        raise UserError("there is no query: queries must have at least one row")
    if k.__class__ is not int or not 1 <= k <= snapshot.num_products:
        k = check_neighbours(k, snapshot.num_products)
    if refinement is PLAIN and not snapshot.has_several_photos:
        scores, positions = nearest(snapshot, queries, k, None if snapshot.is_plain else snapshot.select(None))
    else:
        scores, positions = _refine(snapshot, queries, k, refinement)
    ids = snapshot.ids.take(positions)
    if lacks_rows(positions):
        ids[positions < 0] = snapshot.no_id
    return Hits(ids, scores, snapshot.attributes, positions, snapshot.first)


def _refine(snapshot: Snapshot, queries: Queries, k: int, asked: Refinement) -> tuple[Scores, Positions]:
    diversity, lowest = _check_number(asked.diversity, 0, 1, "diversity"), None
    if asked.min_score is not None:
        lowest = _check_number(asked.min_score, -math.inf, _LARGEST_SCORE, "min_score, a cosine similarity,")
    # A hit is the best row of its product, and then the best of its group.
    groups = [snapshot.first] if snapshot.has_several_photos and snapshot.first is not None else []
    if asked.group_by is not None:
        groups.append(snapshot.attributes.groups(asked.group_by))
    plain = asked.where is None and snapshot.is_plain and not asked.exact
    selection = None if plain else snapshot.select(asked.where)
    excluded, num_excluded = snapshot.ids[:0], 0
    if asked.exclude is not None:
        excluded = check_ids(asked.exclude, None, snapshot.ids.dtype.kind)
        num_excluded = len(excluded)
        if snapshot.has_several_photos:
            there = snapshot.locate(excluded.tolist())
            num_excluded = len(snapshot.photo_rows(there[there >= 0]))
    if num_excluded > _FEW_EXCLUDED:
        mask = (snapshot.live if selection is None else selection.mask) & ~np.isin(snapshot.ids, excluded)
        selection, excluded, num_excluded = Selection(mask, snapshot.base.count), excluded[:0], 0
    available = snapshot.num_live if selection is None else selection.count
    pool = max(_LEAST_POOL, _POOL_PER_PICK * k) if diversity else k
    pool = max(k, min(pool, available))
    rows = _Rows(snapshot, selection, excluded, num_excluded, available, asked.exact)
    scores, positions = rows.nearest_groups(queries, pool, groups) if groups else rows.nearest(queries, pool)
    if lowest is not None:
        below = scores < lowest
        scores, positions = np.where(below, np.float32(-np.inf), scores), np.where(below, -1, positions)
    if not diversity:
        return scores, positions
    step = max(1, _VALUES_AT_ONCE // (positions.shape[1] * queries.shape[1]))
    parts = []
    for start in range(0, len(queries), step):
        found = positions[start : start + step]
        vectors = snapshot.vectors(np.maximum(found, 0).reshape(-1)).reshape(*found.shape, queries.shape[1])
        parts.append(diversify(scores[start : start + step], found, vectors, k, diversity))
    return np.concatenate([s for s, _ in parts]), np.concatenate([p for _, p in parts])


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that a search may return: selected, and not of a few excluded ids."""

    snapshot: Snapshot
    selection: Selection | None
    excluded: np.ndarray  # ids
    num_excluded: int  # rows that these have
    available: int
    exact: bool

    def nearest(self, queries: Queries, k: int) -> tuple[Scores, Positions]:
        """Returns the k nearest rows of each query."""
        snapshot, excluded = self.snapshot, self.excluded
        fetch = min(k + self.num_excluded, snapshot.num_live) if len(excluded) else k
        scores, positions = nearest(snapshot, queries, fetch, self.selection, exact=self.exact)
        if not len(excluded):
            return scores, positions
        struck = np.isin(snapshot.ids[positions], excluded) & (positions >= 0)
        scores = np.where(struck, np.float32(-np.inf), scores)
        order = np.argsort(struck, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, order, axis=1)
        positions = np.where(np.isneginf(scores), -1, np.take_along_axis(positions, order, axis=1))
        lacking = ((0, 0), (0, k - scores.shape[1]))
        return np.pad(scores, lacking, constant_values=-np.inf), np.pad(positions, lacking, constant_values=-1)

    def nearest_groups(self, queries: Queries, k: int, groups: Sequence[Groups]) -> tuple[Scores, Positions]:
        """Returns the best row of each of the k best groups, as `first_of_groups` says.

        Fetches more and more rows until every query has k groups; where that takes too many, fetches all.
        """
        photos = math.ceil(k * self.snapshot.num_live / max(1, self.snapshot.num_products))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        open_queries, fetch = np.arange(len(queries)), k + photos
        while len(open_queries) and fetch <= _MOST_FETCHED:
            fetch = max(1, min(fetch, self.available))
            best, rows, counts = first_of_groups(*self.nearest(queries[open_queries], fetch), groups, k)
            scores[open_queries], positions[open_queries] = best, rows
            if fetch >= self.available:
                return scores, positions
            open_queries, fetch = open_queries[counts < k], fetch * 4
        step = queries_per_tile(self.available)
        for start in range(0, len(open_queries), step):
            part = open_queries[start : start + step]
            scores[part], positions[part], _ = first_of_groups(*self.nearest(queries[part], self.available), groups, k)
        return scores, positions


def first_of_groups(
    scores: Float32[np.ndarray, "q m"], positions: Int64[np.ndarray, "q m"], groups: Sequence[Groups], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps the best row of each group.

    With several groupings, each one is applied to the rows that the one before it kept.

    Args:
        scores: best first, -inf where there is none.
        positions: of the rows, -1 where there is none.
        groups: of each grouping a number per row, the same within a group.
        k: groups kept per query at most.

    Returns:
        Scores and positions (q, k), and the number of groups found per query.
    """
    kept_scores = np.full((len(scores), k), -np.inf, np.float32)
    kept_positions = np.full((len(scores), k), -1, np.int64)
    counts = np.zeros(len(scores), np.int64)
    for query in range(len(scores)):
        chosen = np.flatnonzero(positions[query] >= 0)
        for numbers in groups:
            _, first = np.unique(numbers[positions[query, chosen]], return_index=True)
            chosen = chosen[np.sort(first)]
        chosen = chosen[:k]
        counts[query] = len(chosen)
        kept_scores[query, : len(chosen)] = scores[query, chosen]
        kept_positions[query, : len(chosen)] = positions[query, chosen]
    return kept_scores, kept_positions, counts


def diversify(
    scores: Float32[np.ndarray, "q m"],
    positions: Int64[np.ndarray, "q m"],
    vectors: Float32[np.ndarray, "q m dim"],
    k: int,
    diversity: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Picks k of m candidates by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each pick maximises (1 - diversity) * similarity to the query - diversity * the largest similarity to a pick.

    Args:
        scores: best first, -inf where there is none.
        positions: of the rows, -1 where there is none.
        vectors: of the candidates, of length 1.
        k: at least 1.
        diversity: in [0, 1]; 0 keeps the order.

    Returns:
        Scores and positions (q, k) in the order of the picks.
    """
    queries, width = np.arange(len(scores)), min(k, scores.shape[1])
    left = np.where(np.isneginf(scores), -np.inf, (1 - diversity) * scores)
    nearest_pick = np.full(scores.shape, -np.inf, np.float32)
    picks = np.zeros((len(scores), width), np.int64)
    for turn in range(width):
        value = left if turn == 0 else np.where(np.isneginf(left), -np.inf, left - diversity * nearest_pick)
        picks[:, turn] = value.argmax(1)
        left[queries, picks[:, turn]] = -np.inf
        similarity = np.einsum("qmd,qd->qm", vectors, vectors[queries, picks[:, turn]])
        np.maximum(nearest_pick, similarity, out=nearest_pick)
    # Once only empty places are left, they are picked again and again; they stay empty.
    taken = np.take_along_axis(scores, picks, 1)
    rows = np.take_along_axis(positions, picks, 1)
    for turn in range(1, width):
        again = (picks[:, :turn] == picks[:, turn : turn + 1]).any(1)
        taken[again, turn], rows[again, turn] = -np.inf, -1
    order = np.argsort(np.isneginf(taken), axis=1, kind="stable")
    return np.take_along_axis(taken, order, 1), np.take_along_axis(rows, order, 1)


def check_subspaces(subspaces: Any, width: int) -> dict[str, int]:
    """Returns the parts of an embedding: name -> number of values, in order; empty for none.

    Args:
        subspaces: a mapping from names to numbers of values, or None.
        width: of the embeddings.

    Raises:
        UserError: another type, or the numbers do not add up to the width.
    """
    if not subspaces:
        return {}
    sound = isinstance(subspaces, Mapping) and all(
        isinstance(name, str) and name and type(size) is int and size > 0 for name, size in subspaces.items()
    )
    if not sound:
        raise UserError(f"subspaces must map the names of parts to numbers of values above 0, not {subspaces!r}")
    if sum(subspaces.values()) != width:
        raise UserError(f"the parts have {sum(subspaces.values())} values together, and the embeddings {width}")
    return dict(subspaces)


def weigh(queries: Queries, subspaces: Mapping[str, int], weights: Mapping[str, float]) -> Queries:
    """Returns queries, of length 1, for which some parts of the embedding count more than others.

    Their scores are cosine similarities to the weighted query. Rows are ranked as by the weighted sum of the parts'
    own similarities.

    Args:
        queries: of length 1.
        subspaces: name -> number of values, in order.
        weights: name -> factor of this part in the similarity, at least 0; 1 for parts that are not named.

    Raises:
        UserError: an unknown name, a factor out of range, no part left, or embeddings without parts.
    """
    if not isinstance(weights, Mapping):
        raise UserError(f"weights must map parts to factors, not {weights!r}")
    if weights and not subspaces:
        raise UserError(
            "the index has no parts to weigh: its embeddings have one part only; build it with a model whose "
            "package has an embedding.json"
        )
    factors = []
    for name, size in subspaces.items():
        factor = _check_number(weights.get(name, 1.0), 0, _LARGEST_WEIGHT, f"the weight of {name!r}")
        factors.append(np.full(size, factor, np.float32))
    unknown = [name for name in weights if name not in subspaces]
    if unknown:
        hint = nearest_name(str(unknown[0]), subspaces)
        raise UserError(f"there is no part {unknown[0]!r}{hint}; there are {', '.join(subspaces)}")
    if not factors:
        return queries
    weighted = queries * np.concatenate(factors)
    if not weighted.any(1).all():
        raise UserError("the weights leave nothing of a query; give some part a weight above 0")
    return check_vectors(weighted, None, "weighted queries")


def _check_number(value: Any, low: float, high: float, what: str) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise UserError(f"{what} must be a number from {low:g} to {high:g}, not {value!r}")
    return float(value)
