"""CIELAB coordinates of sRGB colours, and the CIEDE2000 difference of two colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

# sRGB to XYZ (IEC 61966-2-1), each row divided by the white point D65.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])

_NEAR_WHITE = 97.0  # lightness above which a colourless pixel is background
_COLOURLESS = 3.0  # chroma below which a pixel counts as colourless
_CHROMA_25 = 25.0**7  # a constant of CIEDE2000's corrections for low chroma


def to_cielab(image: UInt8[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Returns L in [0, 100], a and b (about -100 to 100) of sRGB pixels in [0, 255]; computed in float64."""
    lab: Float32[np.ndarray, "*shape 3"] = from_srgb(image.astype(np.float64) / 255).astype(np.float32)
    return lab


def from_srgb(rgb: Any, xp: Any = np) -> Any:
    """Returns CIELAB (CIE 1976, white point D65) of sRGB in [0, 1]. Its gradients are finite everywhere.

    Args:
        rgb: floating point (..., 3), a NumPy or JAX array.
        xp: the array's module: numpy or jax.numpy.
    """
    # XLA's CPU backend computes exp(y * log(x)) twice as fast as a power.
    linear = xp.where(rgb <= 0.04045, rgb / 12.92, xp.exp(2.4 * xp.log((rgb + 0.055) / 1.055)))
    # GPUs and TPUs multiply float32 matrices with fewer digits, unless they are asked for all of them.
    exactly = {} if xp is np else {"precision": "highest"}
    xyz = xp.matmul(linear, xp.asarray(TO_XYZ.T, rgb.dtype), **exactly)
    # The cube root has no gradient at 0, and JAX differentiates both branches of a `where`.
    root = xp.exp(xp.log(xp.maximum(xyz, 1e-4)) / 3)
    f = xp.where(xyz > (6 / 29) ** 3, root, xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * f[..., 1] - 16
    return xp.stack([lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def product_pixels(image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "pixels 3"]:
    """Returns CIELAB values of a photo's pixels that are not near-white background, or of all if there are none."""
    pixels = to_cielab(image).reshape(-1, 3)
    chroma = np.hypot(pixels[:, 1], pixels[:, 2])
    product = pixels[~((pixels[:, 0] > _NEAR_WHITE) & (chroma < _COLOURLESS))]
    return product if len(product) else pixels


def ciede2000(
    first: Float[np.ndarray, "*shape 3"], second: Float[np.ndarray, "*shape 3"]
) -> Float[np.ndarray, "*shape"]:
    """Returns the CIEDE2000 difference of CIELAB colours: about 1 is just visible, 5 is another shade.

    Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula: implementation notes, supplementary test data, and
    mathematical observations", Color Research and Application 30 (2005); k_L = k_C = k_H = 1.
    """
    both = np.stack(np.broadcast_arrays(first, second)).astype(np.float64)
    lightness, a, b = both[..., 0], both[..., 1], both[..., 2]
    mean = np.hypot(a, b).mean(0)
    a = a * (1 + 0.5 * (1 - _low_chroma(mean)))
    chroma = np.hypot(a, b)
    hue = np.degrees(np.arctan2(b, a)) % 360
    coloured = chroma[0] * chroma[1] > 0

    turn = hue[1] - hue[0]
    turn = np.where(coloured, (turn + 180) % 360 - 180, 0.0)
    step_hue = 2 * np.sqrt(chroma[0] * chroma[1]) * np.sin(np.radians(turn / 2))
    step_lightness, step_chroma = lightness[1] - lightness[0], chroma[1] - chroma[0]

    mean_lightness, mean_chroma = lightness.mean(0), chroma.mean(0)
    total = hue.sum(0)
    near = np.abs(hue[0] - hue[1]) <= 180
    mean_hue = np.where(near, total / 2, np.where(total < 360, (total + 360) / 2, (total - 360) / 2))
    mean_hue = np.where(coloured, mean_hue, total)
    weight = (
        1
        - 0.17 * np.cos(np.radians(mean_hue - 30))
        + 0.24 * np.cos(np.radians(2 * mean_hue))
        + 0.32 * np.cos(np.radians(3 * mean_hue + 6))
        - 0.20 * np.cos(np.radians(4 * mean_hue - 63))
    )
    from_grey = (mean_lightness - 50) ** 2
    scale_lightness = 1 + 0.015 * from_grey / np.sqrt(20 + from_grey)
    scale_chroma, scale_hue = 1 + 0.045 * mean_chroma, 1 + 0.015 * mean_chroma * weight
    rotation = -2 * _low_chroma(mean_chroma) * np.sin(np.radians(60 * np.exp(-(((mean_hue - 275) / 25) ** 2))))
    parts = step_lightness / scale_lightness, step_chroma / scale_chroma, step_hue / scale_hue
    return np.sqrt(np.maximum(sum(part**2 for part in parts) + rotation * parts[1] * parts[2], 0.0))


def _low_chroma(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma**7 / (chroma**7 + _CHROMA_25))
