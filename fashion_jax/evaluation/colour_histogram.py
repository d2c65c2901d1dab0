"""Mean colour histograms in CIELAB, the baseline that an embedding has to beat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

_BINS = (6, 8, 8)  # of L, a and b
_RANGES = ((0.0, 100.0), (-80.0, 80.0), (-80.0, 80.0))
_NEAR_WHITE = 97.0  # L above which a colourless pixel is background
# sRGB to XYZ (IEC 61966-2-1), each row divided by the white point D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
) / np.array([[0.95047], [1.0], [1.08883]])


def to_cielab(image: UInt8[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Returns L in [0, 100], a and b (about -100 to 100) of sRGB pixels under D65 (CIE 1976)."""
    rgb = image.astype(np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return np.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1).astype(np.float32)


def colour_histogram(image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, " bins"]:
    """Returns the square roots of the shares of colours of a photo, the white background left out; of length 1."""
    pixels = to_cielab(image).reshape(-1, 3)
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    product = pixels[~((pixels[:, 0] > _NEAR_WHITE) & (chroma < 3))]
    if not len(product):
        product = pixels
    limits = np.array(_RANGES)
    inside = np.clip(product, limits[:, 0] + 1e-3, limits[:, 1] - 1e-3)
    histogram, _ = np.histogramdd(inside, _BINS, _RANGES)
    return np.sqrt(histogram.reshape(-1) / len(product)).astype(np.float32)
