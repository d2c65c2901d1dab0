"""Vectors in clusters, as trained embeddings are, with attributes that follow the clusters in part."""

from __future__ import annotations

import numpy as np


def clustered(count: int, dim: int = 32, clusters: int = 60, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    """Returns float32 (count, dim), not of length 1."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dim))
    return (centres[random.integers(0, clusters, count)] + noise * random.normal(size=(count, dim))).astype(np.float32)


def attributes_of(vectors: np.ndarray, seed: int = 0) -> dict[str, list]:
    """Returns a column that follows the vectors, and two that do not."""
    random = np.random.default_rng(seed)
    return {
        "side": np.where(vectors[:, 0] > 0, "left", "right").tolist(),
        "share": random.random(len(vectors)).tolist(),
        "title": [f"title {i // 3}" for i in range(len(vectors))],
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def truth(vectors: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Returns the positions of the k nearest by cosine, -1 where there are fewer, in double precision."""
    scores = unit(queries.astype(np.float64)) @ unit(vectors.astype(np.float64)).T
    if mask is not None:
        scores[:, ~mask] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.where(np.isneginf(np.take_along_axis(scores, order, 1)), -1, order)
    return np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=-1)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the mean share of the wanted positions that were found."""
    hits = [np.isin(theirs[theirs >= 0], ours).sum() for ours, theirs in zip(found, wanted, strict=True)]
    return float(np.mean(hits / np.maximum(1, (wanted >= 0).sum(1))))
