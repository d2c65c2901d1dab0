"""Vectors in the host's memory."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def unit(vectors: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    """Returns rows scaled to length 1; rows of zeros stay zeros. For JAX arrays use `models.heads.unit`."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return scaled
