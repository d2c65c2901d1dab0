"""Mean colour histograms in CIELAB, the baseline that an embedding has to beat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from fashion_jax.system.cielab import product_pixels

_BINS = (6, 8, 8)  # of L, a and b
_RANGES = ((0.0, 100.0), (-80.0, 80.0), (-80.0, 80.0))


def colour_histogram(image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, " bins"]:
    """Returns the square roots of the shares of colours of a photo, the white background left out; of length 1."""
    product = product_pixels(image)
    limits = np.array(_RANGES)
    inside = np.clip(product, limits[:, 0] + 1e-3, limits[:, 1] - 1e-3)
    histogram, _ = np.histogramdd(inside, _BINS, _RANGES)
    return np.sqrt(histogram.reshape(-1) / len(product)).astype(np.float32)
