"""Principal components of a gallery: fewer features, optionally whitened, for its rows and for queries alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from fashion_jax.system.errors import UserError

_FIT_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Projection:
    """x -> (x / |x| - mean) @ components.

    Attributes:
        mean: (features,).
        components: (features, dim), orthonormal columns, or scaled by 1 / standard deviation when whitened.
        explained: share of the variance that is kept, in [0, 1].
    """

    mean: Float32[np.ndarray, " features"]
    components: Float32[np.ndarray, "features dim"]
    explained: float

    def apply(self, vectors: Float32[np.ndarray, "n features"]) -> Float32[np.ndarray, "n dim"]:
        """Projects vectors of length 1; the result is not of length 1."""
        return (vectors - self.mean) @ self.components


def fit_projection(vectors: Float32[np.ndarray, "n features"], dim: int, *, whiten: bool, seed: int) -> Projection:
    """Fits principal components by the eigenvectors of the covariance.

    Args:
        vectors: of length 1.
        dim: components kept, in [1, min(n - 1, features)].
        whiten: whether each component is scaled to a variance of 1.
        seed: of the rows drawn where there are more than 100,000.

    Raises:
        UserError: `dim` is outside of its range.
    """
    most = min(len(vectors) - 1, vectors.shape[1])
    if not 1 <= dim <= most:
        raise UserError(f"pca must be in [1, {most}] for {len(vectors):,} vectors of {vectors.shape[1]}, not {dim}")
    rows = vectors
    if len(rows) > _FIT_ROWS:
        rows = rows[np.random.default_rng(seed).choice(len(rows), _FIT_ROWS, replace=False)]
    mean = rows.mean(0, dtype=np.float64)
    centred = rows - mean
    values, axes = np.linalg.eigh(centred.T @ centred / max(1, len(rows) - 1))
    values, axes = np.maximum(values[::-1], 0), axes[:, ::-1]
    kept = axes[:, :dim]
    # An axis is known but for its sign: the largest entry is made positive, so that every machine agrees.
    kept = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(dim)])
    if whiten:
        kept = kept / np.sqrt(np.maximum(values[:dim], values[0] * 1e-9))
    total = float(values.sum())
    explained = float(values[:dim].sum() / total) if total > 0 else 1.0
    return Projection(mean.astype(np.float32), kept.astype(np.float32), explained)
