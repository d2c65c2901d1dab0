"""Shared set-up: eight CPU devices, strict JAX, small catalogues drawn by the tests themselves."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", os.environ.get("FASHION_TEST_PLATFORM", "cpu"))

import jax
import numpy as np
import pytest

from fashion_jax.data.photos import encode_photo

ROOT = Path(__file__).resolve().parent.parent

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled steps are kept between runs of the suite; what is tested is not changed by it.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)

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


@pytest.fixture(scope="session")
def products_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's catalogue of 120 drawn products, some without a kind."""
    return write_products(tmp_path_factory.mktemp("shop"), 120, missing=0.1)


@pytest.fixture(scope="session")
def prepared(products_csv: Path, tmp_path_factory: pytest.TempPathFactory):
    """The records of `products_csv`."""
    from fashion_jax.data.prepare import prepare

    return prepare(products_csv, tmp_path_factory.mktemp("records") / "out", progress=False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with Kaggle's photos; tests that need it skip where there is none."""
    folder = Path(os.environ.get("FASHION_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fashion-product-images-small.tar.xz").is_file():
        pytest.skip(
            f"no real catalogue in {folder}; set FASHION_DATA to a folder with fashion-product-images-small.tar.xz"
        )
    return folder


@pytest.fixture
def tiny_config(prepared) -> Callable:
    """Makes a configuration that trains on `prepared` in seconds."""
    from fashion_jax.config import Config

    def make(**changes):
        config = Config()
        config.data.source = str(prepared.folder)
        config.data.height, config.data.width = 32, 24
        config.model.width = 4
        config.train.batch_size = 16
        config.train.duration = "12 steps"
        config.train.log_every = "4 steps"
        config.train.evaluate_every = "6 steps"
        config.train.checkpoint_every = "4 steps"
        config.runtime.evaluation_batch_size = 32
        for key, value in changes.items():
            part, _, name = key.partition("__")
            setattr(getattr(config, part), name, value)
        config.validate()
        return config

    return make
