"""The 44 documented colours as paint for drawn products. A test checks that all colours can be told apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

RGB = tuple[int, int, int]

# Plain colours are at least 12 units of CIELAB apart, and so are the colours with a metallic sheen.
PLAIN: dict[str, RGB] = {
    "Beige": (222, 200, 160), "Black": (22, 22, 24), "Blue": (30, 90, 235), "Brown": (115, 65, 25),
    "Burgundy": (105, 8, 45), "Charcoal": (62, 66, 72), "Coffee Brown": (66, 40, 26), "Cream": (255, 243, 180),
    "Green": (25, 150, 50), "Grey": (142, 142, 144), "Khaki": (172, 165, 105), "Lavender": (200, 180, 250),
    "Magenta": (225, 0, 140), "Maroon": (150, 15, 25), "Mauve": (180, 125, 180), "Mushroom Brown": (164, 128, 116),
    "Mustard": (212, 162, 10), "Navy Blue": (14, 22, 95), "Nude": (244, 179, 160), "Off White": (228, 228, 206),
    "Olive": (105, 112, 20), "Orange": (255, 125, 0), "Peach": (255, 185, 125), "Pink": (255, 140, 200),
    "Purple": (110, 35, 165), "Red": (228, 18, 34), "Rose": (240, 110, 130), "Rust": (185, 75, 25),
    "Sea Green": (70, 200, 145), "Skin": (241, 209, 199), "Tan": (205, 155, 100), "Taupe": (112, 98, 88),
    "Teal": (0, 120, 125), "Turquoise Blue": (50, 210, 225), "White": (252, 252, 254), "Yellow": (255, 232, 30),
}  # fmt: skip
SHEEN: dict[str, RGB] = {
    "Bronze": (140, 100, 40), "Copper": (200, 105, 70), "Gold": (225, 185, 60), "Metallic": (85, 85, 95),
    "Silver": (205, 207, 212), "Steel": (120, 140, 170),
}  # fmt: skip
GREY_MELANGE: RGB = (165, 165, 170)
MULTI: tuple[RGB, ...] = ((228, 18, 34), (255, 232, 30), (25, 150, 50), (30, 90, 235), (255, 125, 0), (110, 35, 165))
COLOURS = tuple(sorted([*PLAIN, *SHEEN, "Grey Melange", "Multi"]))


def paint(
    colour: str, pattern: str, height: int, width: int, rng: np.random.Generator
) -> Float[np.ndarray, "{height} {width} 3"]:
    """Returns cloth of a colour, in [0, 255].

    Args:
        colour: one of COLOURS.
        pattern: "plain", "stripes", "dots" or "check", in a lighter or darker tone of the same colour.
        height: in pixels.
        width: in pixels.
        rng: places the pattern.
    """
    y, x = np.mgrid[:height, :width].astype(float)
    if colour == "Multi":
        size = rng.uniform(9, 14)
        number = (np.floor((x + rng.uniform(0, 9)) / size) + 2 * np.floor((y + rng.uniform(0, 9)) / size)).astype(int)
        return np.asarray(MULTI, float)[number % len(MULTI)]
    if colour == "Grey Melange":
        speckle = rng.normal(0, 34, (height // 2 + 1, width // 2 + 1)).repeat(2, 0).repeat(2, 1)
        return np.clip(np.asarray(GREY_MELANGE, float) + speckle[:height, :width, None], 0, 255)
    if colour in SHEEN:
        wave = np.sin((x + 0.7 * y) / rng.uniform(9, 12) + rng.uniform(0, 6))
        cloth = np.asarray(SHEEN[colour], float) + np.zeros((height, width, 1))
        return np.clip(cloth * (1 + 0.2 * wave[..., None]) + 60 * (wave[..., None] > 0.86), 0, 255)
    base = np.asarray(PLAIN[colour], float)
    return np.clip(base + _pattern(pattern, x, y, rng)[..., None] * (-1 if base.mean() > 128 else 1), 0, 255)


def _pattern(pattern: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey levels by which a pattern departs from its cloth."""
    strength, gap = rng.uniform(18, 26), rng.uniform(11, 16)
    if pattern == "stripes":
        along = y if rng.random() < 0.5 else x
        return strength * ((along + rng.uniform(0, gap)) % gap < gap / 4)
    if pattern == "dots":
        return strength * (((x % gap - gap / 2) ** 2 + (y % gap - gap / 2) ** 2) < (gap / 4.5) ** 2)
    if pattern == "check":
        return strength * ((x % gap < gap / 5) | (y % gap < gap / 5))
    return np.zeros_like(x)
