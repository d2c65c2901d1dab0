"""Drawn photos that show no product: noise, patterns, and other subjects.

They measure the out-of-catalogue score without a download. No number is fitted on them, and thresholds come from
validation photos only. But which scores are summed was chosen, among six, by how well the sum recognises these photos.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter

from fashion_jax.data.photos import decode_photo, encode_photo

_SCALE = 2  # photos are drawn larger and then averaged
_LEAST_SIDE = 40  # pixels of the larger drawing; smaller ones have no room for some kinds
_Painter = Callable[[np.random.Generator, int, int], np.ndarray]


def draw_not_products(
    per_kind: int, height: int, width: int
) -> tuple[UInt8[np.ndarray, "n height width 3"], list[str]]:
    """Draws photos that show no product.

    Args:
        per_kind: the number of photos of each kind in `KINDS`.
        height: of a photo, in pixels.
        width: of a photo, in pixels.

    Returns:
        The photos, which have been JPEG files like those of records, and the kind of each.
    """
    images, kinds = [], []
    larger = max(_SCALE, -(-_LEAST_SIDE // min(height, width)))
    for number, (kind, (_, paint)) in enumerate(_PAINTERS.items()):
        rng = np.random.default_rng([0, number])
        for _ in range(per_kind):
            large = Image.fromarray(paint(rng, larger * height, larger * width))
            small = np.asarray(large.resize((width, height), Image.Resampling.BOX))
            images.append(decode_photo(encode_photo(small), height, width))
            kinds.append(kind)
    shape = (0, height, width, 3)
    return (np.stack(images) if images else np.empty(shape, np.uint8)), kinds


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _blend(shares: np.ndarray, first: tuple[int, int, int], second: tuple[int, int, int]) -> np.ndarray:
    """Mixes two colours by shares (height, width) in [0, 1]."""
    mixed = np.array(first) * (1 - shares[..., None]) + np.array(second) * shares[..., None]
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _plane(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns each pixel's coordinate along a random direction, in units of the longer side."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.asarray(np.cos(angle) * x + np.sin(angle) * y)


def _uniform_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    # One value for each pixel of the small photo; finer noise would be averaged to grey.
    small = rng.integers(0, 256, (height // _SCALE, width // _SCALE, 3), dtype=np.uint8)
    return np.repeat(np.repeat(small, _SCALE, 0), _SCALE, 1)


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    blocks = int(rng.integers(3, 16))
    coarse = Image.fromarray(rng.integers(0, 256, (blocks, blocks, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    noise = rng.normal(rng.uniform(60, 220), rng.uniform(10, 50), (height // _SCALE, width // _SCALE, 1))
    grey = np.clip(np.repeat(noise, 3, 2), 0, 255).astype(np.uint8)
    return np.repeat(np.repeat(grey, _SCALE, 0), _SCALE, 1)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    wave = np.sin(_plane(rng, height, width) * 2 * np.pi * rng.uniform(3, 16)) > rng.uniform(-0.5, 0.5)
    return _blend(wave.astype(float), _colour(rng), _colour(rng))


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cell = int(rng.integers(6, 40))
    y, x = np.mgrid[:height, :width] // cell
    return _blend((y + x) % 2 * 1.0, _colour(rng), _colour(rng))


def _dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cell = rng.uniform(10, 40)
    y, x = np.mgrid[:height, :width] % cell - cell / 2
    return _blend((np.hypot(y, x) < cell * rng.uniform(0.2, 0.45)) * 1.0, _colour(rng), _colour(rng))


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    plane = _plane(rng, height, width)
    return _blend((plane - plane.min()) / np.ptp(plane), _colour(rng), _colour(rng))


def _waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    total = sum(np.sin(_plane(rng, height, width) * rng.uniform(5, 60) + rng.uniform(0, 6)) for _ in range(4))
    return _blend(np.clip(np.asarray(total) / 6 + 0.5, 0, 1), _colour(rng), _colour(rng))


def _shapes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws unrelated shapes on white, which is the usual background of product photos."""
    image = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        size = rng.uniform(0.05, 0.3) * width
        corners = int(rng.integers(3, 8))
        turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
        pen.polygon([(x + size * np.cos(t), y + size * np.sin(t)) for t in turns], fill=_colour(rng))
    return np.asarray(image)


def _landscape(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    sky = _blend(np.linspace(0, 1, height)[:, None].repeat(width, 1), (90, 150, 230), (220, 235, 250))
    image = Image.fromarray(sky)
    pen = ImageDraw.Draw(image)
    sun, radius = (rng.uniform(0, width), rng.uniform(0, height / 3)), rng.uniform(4, 18)
    pen.ellipse([sun[0] - radius, sun[1] - radius, sun[0] + radius, sun[1] + radius], fill=(255, 230, 120))
    x = np.arange(width)
    for layer in range(int(rng.integers(2, 5))):
        base = height * (0.4 + 0.15 * layer)
        ridge = np.full(width, base)
        for _ in range(3):
            ridge += rng.uniform(2, 14) * np.sin(x / rng.uniform(6, 50) + rng.uniform(0, 6))
        shade = (int(rng.integers(20, 110)), int(rng.integers(80, 170)), int(rng.integers(20, 90)))
        pen.polygon([(0, height), *zip(x.tolist(), ridge.tolist(), strict=True), (width, height)], fill=shade)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))))


def _page(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    paper = int(rng.integers(225, 256))
    image = Image.new("RGB", (width, height), (paper, paper, paper))
    pen, y = ImageDraw.Draw(image), rng.uniform(4, 14)
    leading = rng.uniform(5, 11)
    while y < height - 6:
        x = rng.uniform(5, 12)
        while x < width - 12:
            word = rng.uniform(4, 24)
            pen.rectangle([x, y, min(x + word, width - 6), y + leading * 0.5], fill=(30, 30, 35))
            x += word + leading * 0.5
        y += leading * (2.2 if rng.random() < 0.15 else 1)
    return np.asarray(image)


def _face(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), _colour(rng))
    pen = ImageDraw.Draw(image)
    x, y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6)
    size, skin = width * rng.uniform(0.25, 0.45), int(rng.integers(80, 225))
    hair = tuple((np.array(_colour(rng)) // 3).tolist())
    pen.ellipse([x - 1.15 * size, y - 1.5 * size, x + 1.15 * size, y + 0.9 * size], fill=hair)
    pen.ellipse([x - size, y - 1.2 * size, x + size, y + 1.3 * size], fill=(skin, int(skin * 0.8), int(skin * 0.65)))
    for side in (-1, 1):
        centre, eye = x + side * 0.4 * size, 0.12 * size
        pen.ellipse([centre - 1.6 * eye, y - 2 * eye, centre + 1.6 * eye, y], fill=(250, 250, 250))
        pen.ellipse([centre - 0.7 * eye, y - 1.7 * eye, centre + 0.7 * eye, y - 0.3 * eye], fill=(40, 30, 20))
    pen.polygon([(x, y), (x - 0.12 * size, y + 0.4 * size), (x + 0.12 * size, y + 0.4 * size)], fill=(skin // 2,) * 3)
    pen.arc([x - 0.4 * size, y + 0.4 * size, x + 0.4 * size, y + 0.9 * size], 10, 170, fill=(170, 40, 50), width=3)
    return np.asarray(image)


def _chart(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, height), (255, 255, 255))
    pen, bars = ImageDraw.Draw(image), int(rng.integers(4, 12))
    pen.line([(8, 8), (8, height - 8), (width - 8, height - 8)], fill=(0, 0, 0), width=2)
    step, fill = (width - 20) / bars, _colour(rng)
    tops = rng.uniform(12, height - 16, bars)
    places = [12 + step * i for i in range(bars)]
    if rng.random() < 0.5:
        pen.line(list(zip(places, tops.tolist(), strict=True)), fill=fill, width=3)
    else:
        for place, top in zip(places, tops.tolist(), strict=True):
            pen.rectangle([place, top, place + 0.7 * step, height - 9], fill=fill)
    return np.asarray(image)


def _city(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    image, x = Image.new("RGB", (width, height), (15, 20, int(rng.integers(40, 90)))), 0.0
    pen = ImageDraw.Draw(image)
    while x < width:
        broad, top, shade = rng.uniform(12, 34), rng.uniform(0.1, 0.7) * height, int(rng.integers(25, 80))
        pen.rectangle([x, top, x + broad, height], fill=(shade, shade, shade + 10))
        for wy in np.arange(top + 4, height - 4, 9):
            for wx in np.arange(x + 3, x + broad - 4, 7):
                if rng.random() < 0.5:
                    pen.rectangle([wx, wy, wx + 3, wy + 4], fill=(250, 220, 120))
        x += broad + rng.uniform(0, 4)
    return np.asarray(image)


# Kind -> its group, and the function that paints it.
_PAINTERS: dict[str, tuple[str, _Painter]] = {
    "uniform noise": ("noise", _uniform_noise),
    "smooth noise": ("noise", _smooth_noise),
    "grain": ("noise", _grain),
    "stripes": ("patterns", _stripes),
    "checks": ("patterns", _checks),
    "dots": ("patterns", _dots),
    "gradients": ("patterns", _gradient),
    "waves": ("patterns", _waves),
    "shapes on white": ("other domains", _shapes),
    "landscapes": ("other domains", _landscape),
    "pages": ("other domains", _page),
    "faces": ("other domains", _face),
    "charts": ("other domains", _chart),
    "cities at night": ("other domains", _city),
}
KINDS: dict[str, str] = {kind: group for kind, (group, _) in _PAINTERS.items()}  # kind -> group
