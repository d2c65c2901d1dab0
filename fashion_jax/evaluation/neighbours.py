"""How good neighbours are: precision, average precision and gain of the nearest other products, by label.

A query searches all other rows but its near-duplicates, which would be found by any method. A neighbour is relevant
where its label is the query's; rows without a label are no queries for it and never relevant.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.data.schema import MISSING
from fashion_jax.system.progress import progress_bar
from fashion_jax.system.vectors import unit

K = 10
_QUERIES_AT_ONCE = 256


def retrieval_scores(
    embeddings: Float32[np.ndarray, "n dim"],
    labels: Mapping[str, Int64[np.ndarray, " n"]],
    groups: Int64[np.ndarray, " n"],
    *,
    progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Scores every row as a query against all others.

    Args:
        embeddings: finite; compared by cosine.
        labels: name -> a number per row, MISSING where there is none.
        groups: rows with equal numbers are near-duplicates and do not find each other.

    Returns:
        Per name, each in [0, 1] and the mean over the queries that have a relevant row:
        `p@1`, `p@10`: share of relevant rows among the first; `map@r`: average precision over the first R, R being
        the number of relevant rows (Musgrave, Belongie and Lim, ECCV 2020); `ndcg@10`: discounted gain; `queries`:
        their number; `p@10_labelled`: p@10 over all labelled queries, 0 for one without a relevant row.
    """
    vectors = unit(embeddings).astype(np.float32)
    count = len(vectors)
    sums = {name: np.zeros((count, 4)) for name in labels}
    scored = {name: np.zeros(count, bool) for name in labels}
    with progress_bar(count, "comparing neighbours", show=progress, unit="query") as bar:
        for start in range(0, count, _QUERIES_AT_ONCE):
            rows = np.arange(start, min(start + _QUERIES_AT_ONCE, count))
            similarity = vectors[rows] @ vectors.T
            similarity[groups[rows][:, None] == groups[None, :]] = -np.inf  # the query itself among them
            order = np.argsort(-similarity, axis=1)
            hidden = np.isneginf(np.take_along_axis(similarity, order, 1))
            for name, values in labels.items():
                relevant = (values[order] == values[rows][:, None]) & ~hidden
                there = relevant.any(1) & (values[rows] != MISSING)
                scored[name][rows] = there
                sums[name][rows] = _score(relevant)
            bar.update(len(rows))
    return {name: _summarise(sums[name], scored[name], labels[name]) for name in labels}


def join_labels(labels: Mapping[str, Int64[np.ndarray, " n"]], names: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """Returns a number per row, equal where all the named labels are; MISSING where one of them is."""
    columns = np.stack([labels[name] for name in names], 1)
    _, joined = np.unique(columns, axis=0, return_inverse=True)
    return np.where((columns == MISSING).any(1), MISSING, joined.reshape(-1)).astype(np.int64)


def _score(relevant: np.ndarray) -> np.ndarray:
    """Returns p@1, p@10, map@r and ndcg@10 per row of relevance in ranked order."""
    number = relevant.sum(1)
    hits = np.cumsum(relevant, axis=1)
    ranks = np.arange(1, relevant.shape[1] + 1)
    within = ranks[None, :] <= number[:, None]
    average = (relevant * within * hits / ranks).sum(1) / np.maximum(number, 1)
    width = min(K, relevant.shape[1])
    discounts = 1 / np.log2(np.arange(2, width + 2))
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(number, width)]
    gain = (relevant[:, :width] * discounts).sum(1) / np.maximum(best, 1e-12)
    return np.stack([relevant[:, 0], relevant[:, :width].sum(1) / K, average, gain], 1)


def _summarise(values: np.ndarray, scored: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if not scored.any():
        return dict.fromkeys(("p@1", "p@10", "map@r", "ndcg@10", "p@10_labelled"), 0.0) | {"queries": 0}
    means = values[scored].mean(0)
    names = ("p@1", "p@10", "map@r", "ndcg@10")
    scores = {name: float(mean) for name, mean in zip(names, means, strict=True)}
    all_labelled = float(values[scored, 1].sum() / (labels != MISSING).sum())
    return {**scores, "queries": int(scored.sum()), "p@10_labelled": all_labelled}
