"""What comes after the nearest rows: one per group, variety, a smallest score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.attributes import AttributeTable, Scalar
from fashion_jax.search.exact import queries_per_tile

_TILE_ROWS = 16_384
_TILE_QUERIES = 512


class Hits:
    """The neighbours of some queries, best first.

    Attributes:
        ids: (queries, k), -1 (an empty text where ids are texts) where there are fewer.
        scores: float32 (queries, k), cosine similarity in [-1, 1], -inf where there are fewer.
    """

    __slots__ = ("_positions", "_table", "ids", "scores")

    def __init__(
        self,
        ids: np.ndarray,
        scores: Float32[np.ndarray, "queries k"],
        table: AttributeTable,
        positions: Int64[np.ndarray, "queries k"],
    ) -> None:
        self.ids, self.scores, self._table, self._positions = ids, scores, table, positions

    def attributes(self, query: int = 0) -> list[dict[str, Scalar]]:
        """Returns the attributes of one query's hits, best first, as they were in the version that was searched."""
        return [self._table.row(row) for row in self._positions[query].tolist() if row >= 0]

    @property
    def rank(self) -> Int64[np.ndarray, "queries k"]:
        """From 1 on; 0 where there is no hit."""
        ranks = np.broadcast_to(np.arange(1, self.scores.shape[1] + 1), self.scores.shape)
        return np.where(np.isneginf(self.scores), 0, ranks)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"Hits({len(self.scores)} queries, k={self.scores.shape[1]})"


def lacks_rows(positions: Int64[np.ndarray, "queries k"]) -> bool:
    """Returns whether a query has fewer than k rows, which are -1 at the end; at once where there is one query."""
    return bool(positions[0, -1] < 0) if len(positions) == 1 else bool((positions[:, -1] < 0).any())


def first_of_groups(
    scores: Float32[np.ndarray, "q m"], positions: Int64[np.ndarray, "q m"], groups: Int64[np.ndarray, " n"], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keeps each group's best row.

    Args:
        scores: best first, -inf where there is none.
        positions: of the rows, -1 where there is none.
        groups: a number per row, the same within a group.
        k: groups kept per query at most.

    Returns:
        Scores and positions (q, k), and the number of groups found per query.
    """
    kept_scores = np.full((len(scores), k), -np.inf, np.float32)
    kept_positions = np.full((len(scores), k), -1, np.int64)
    counts = np.zeros(len(scores), np.int64)
    for query in range(len(scores)):
        there = positions[query] >= 0
        rows = positions[query][there]
        _, first = np.unique(groups[rows], return_index=True)
        chosen = np.sort(first)[:k]
        counts[query] = len(chosen)
        kept_scores[query, : len(chosen)] = scores[query][there][chosen]
        kept_positions[query, : len(chosen)] = rows[chosen]
    return kept_scores, kept_positions, counts


def best_of_groups(
    vectors_of: Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m dim"]],
    rows: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    queries: Float32[np.ndarray, "q dim"],
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compares queries with all of some rows, and returns the best row of each of the k best groups.

    Memory is that of a tile of rows, and of a number per group for a tile of queries.

    Args:
        vectors_of: returns rows' vectors, of length 1.
        rows: positions in the index.
        groups: a number per row, the same within a group.
        queries: of length 1.
        k: groups per query at most.

    Returns:
        Scores and positions (q, k), -inf and -1 where there are fewer groups.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    # Rows of one group stand together, so that a maximum per group is one pass.
    names, numbers = np.unique(groups, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    rows, numbers, width = rows[order], numbers[order], min(k, len(names))
    step = min(_TILE_QUERIES, queries_per_tile(len(names)))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        best = np.full((len(part), len(names)), -np.inf, np.float32)
        at = np.full(best.shape, -1, np.int64)
        for first in range(0, len(rows), _TILE_ROWS):
            tile, inside = rows[first : first + _TILE_ROWS], numbers[first : first + _TILE_ROWS]
            there, begins, local = np.unique(inside, return_index=True, return_inverse=True)
            found = part @ vectors_of(tile).T
            top = np.maximum.reduceat(found, begins, axis=1)
            places = np.where(found == top[:, local], np.arange(len(tile)), len(tile))
            winner = tile[np.minimum.reduceat(places, begins, axis=1)]
            better = top > best[:, there]
            best[:, there] = np.where(better, top, best[:, there])
            at[:, there] = np.where(better, winner, at[:, there])
        chosen = np.argsort(-best, axis=1, kind="stable")[:, :width]
        scores[start : start + step, :width] = np.take_along_axis(best, chosen, axis=1)
        positions[start : start + step, :width] = np.take_along_axis(at, chosen, axis=1)
    return scores, positions


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
