"""Small catalogues that the tests draw for themselves."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from fashion_jax.config.fields import Config
from fashion_jax.data.photos import encode_photo

SIZES = {"kind": ("round", "square", "tall"), "colour": ("blue", "green", "red", "yellow")}
_PAINT = {"red": (220, 20, 30), "green": (20, 160, 50), "blue": (30, 60, 220), "yellow": (250, 220, 20)}


def draw_product(kind: str, colour: str, seed: int, height: int = 32, width: int = 24) -> np.ndarray:
    """Draws a blob of a kind and colour on white; differing seeds differ in place, size and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = height / 2 + rng.uniform(-3, 3), width / 2 + rng.uniform(-3, 3)
    size = rng.uniform(0.8, 1.2) * width / 4
    dy, dx = np.abs(y - cy), np.abs(x - cx)
    inside = {
        "round": dy**2 + dx**2 < size**2,
        "square": (dy < size) & (dx < size),
        "tall": (dy < 1.8 * size) & (dx < 0.5 * size),
    }[kind]
    image = np.where(inside[..., None], np.array(_PAINT[colour]), 255) + rng.normal(0, 4, (height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_products(folder: Path, count: int, *, seed: int = 0, missing: float = 0.0) -> Path:
    """Writes a user's own catalogue: products.csv (sku, file, kind, colour) and photos/; returns the CSV."""
    rng = np.random.default_rng(seed)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        kind, colour = str(rng.choice(SIZES["kind"])), str(rng.choice(SIZES["colour"]))
        name = f"photos/p{i}.jpg"
        (folder / name).write_bytes(encode_photo(draw_product(kind, colour, seed * 100_000 + i)))
        rows.append([f"S{i * 37:05}", name, "" if rng.random() < missing else kind, colour])
    table = folder / "products.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["sku", "file", "kind", "colour"], *rows])
    return table


def make_tiny_config(source: Path, **changes) -> Config:
    """Returns a configuration that trains in seconds; `train__seed=1` sets config.train.seed."""
    config = Config()
    config.data.source = str(source)
    config.data.height, config.data.width = 32, 24
    config.model.depth, config.model.width = 10, 4
    config.train.batch_size = 16
    config.train.duration = "12 steps"
    config.train.evaluate_every = "6 steps"
    config.train.checkpoint_every = "4 steps"
    for key, value in changes.items():
        part, _, name = key.partition("__")
        setattr(getattr(config, part), name, value)
    config.validate()
    return config
