"""Augmentation: geometry only, white outside, and a function of (key, step, record) alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fashion_jax.config import AugmentConfig
from fashion_jax.data.augment import augment, example_keys, normalize, sample_bilinear

OFF = {
    "min_crop_area": 1.0,
    "max_shift": 0.0,
    "flip_probability": 0.0,
    "max_rotation": 0.0,
    "erase_probability": 0.0,
    "max_erase_area": 0.0,
}


def images(count: int = 64, seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, 20, 16, 3), dtype=np.uint8))


def keys(count: int = 64, step: int = 0):
    return example_keys(jax.random.key(0), jnp.asarray(step), jnp.arange(count))


def test_all_off_changes_nothing():
    out = augment(images(), keys(), AugmentConfig(**OFF))
    assert np.array_equal(np.asarray(out), np.asarray(images(), np.float32))


def test_a_sure_flip_is_a_flip():
    out = augment(images(), keys(), AugmentConfig(**{**OFF, "flip_probability": 1.0}))
    assert np.allclose(np.asarray(out), np.asarray(images())[:, :, ::-1], atol=1e-3)


def test_half_of_the_flips():
    out = np.asarray(augment(images(512), keys(512), AugmentConfig(**{**OFF, "flip_probability": 0.5})))
    same = np.isclose(out, np.asarray(images(512), np.float32), atol=1e-3).all((1, 2, 3))
    assert 0.4 < same.mean() < 0.6


def test_rotation_agrees_with_pillow():
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 2.0 * (x + y)], -1).astype(np.uint8)
    angle = np.deg2rad(20)
    grid_y, grid_x = np.mgrid[:64, :64] - 31.5
    source_y = np.cos(angle) * grid_y - np.sin(angle) * grid_x + 31.5
    source_x = np.sin(angle) * grid_y + np.cos(angle) * grid_x + 31.5
    ours = np.asarray(sample_bilinear(jnp.asarray(smooth), jnp.asarray(source_y), jnp.asarray(source_x)))
    pillow = np.asarray(Image.fromarray(smooth).rotate(-20, Image.Resampling.BILINEAR, fillcolor=(255,) * 3))
    inside = np.hypot(grid_y, grid_x) < 30
    assert np.abs(ours - pillow)[inside].max() < 2
    assert (ours[0, 0] == 255).all()


def test_outside_is_white_and_the_border_blends():
    black = jnp.zeros((4, 4, 3), jnp.uint8)
    at = lambda y, x: float(sample_bilinear(black, jnp.full((1, 1), y), jnp.full((1, 1), x))[0, 0, 0])  # noqa: E731
    assert at(0.0, 0.0) == at(3.0, 3.0) == 0
    assert at(-0.5, 1.0) == at(1.0, 3.5) == pytest.approx(127.5)
    assert at(-1.0, 0.0) == at(50.0, 0.0) == at(0.0, -1e6) == 255


def test_colours_stay_what_they_are():
    plain = jnp.broadcast_to(jnp.array([200, 30, 90], jnp.uint8), (64, 20, 16, 3))
    out = np.asarray(augment(plain, keys(), AugmentConfig(max_rotation=20.0, erase_probability=1.0)))
    # Every pixel lies between the product's colour and white.
    share = (out - np.array([200, 30, 90])) / (255 - np.array([200, 30, 90]))
    assert np.abs(share - share[..., :1]).max() < 1e-4
    assert share.min() > -1e-5
    assert share.max() < 1 + 1e-5


def test_a_shift_moves_whole_pixels_and_brings_in_white():
    photos = images(512)
    out = np.asarray(augment(photos, keys(512), AugmentConfig(**{**OFF, "max_shift": 0.125})))
    seen = set()
    for photo, moved in zip(np.asarray(photos), out, strict=True):
        framed = np.pad(photo, ((2, 2), (2, 2), (0, 0)), constant_values=255)
        places = [(y, x) for y in range(5) for x in range(5) if (framed[y : y + 20, x : x + 16] == moved).all()]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25


def test_erasing_whitens_no_more_than_its_share():
    config = AugmentConfig(**{**OFF, "erase_probability": 1.0, "max_erase_area": 0.2})
    out = np.asarray(augment(jnp.zeros((256, 20, 16, 3), jnp.uint8), keys(256), config))
    share = (out == 255).all(-1).mean((1, 2))
    assert 0.02 < share.mean() < 0.2
    assert share.max() < 0.28  # whole pixels are erased


def test_a_crop_magnifies_within_its_range():
    ramp = jnp.broadcast_to(jnp.arange(0, 160, 10, dtype=jnp.uint8)[None, None, :, None], (128, 20, 16, 3))
    out = np.asarray(augment(ramp, keys(128), AugmentConfig(**{**OFF, "min_crop_area": 0.5})))
    slope = (out[:, 10, 12, 0] - out[:, 10, 4, 0]) / 80
    assert slope.min() >= np.sqrt(0.5) - 1e-3
    assert slope.max() <= 1 + 1e-3
    assert slope.std() > 0.02


def test_randomness_follows_the_record_not_its_place():
    config = AugmentConfig()
    order = np.random.default_rng(0).permutation(64)
    records = jnp.arange(64)
    straight = augment(images(), example_keys(jax.random.key(1), jnp.asarray(7), records), config)
    mixed = augment(images()[order], example_keys(jax.random.key(1), jnp.asarray(7), records[order]), config)
    assert np.array_equal(np.asarray(straight)[order], np.asarray(mixed))
    later = augment(images(), example_keys(jax.random.key(1), jnp.asarray(8), records), config)
    assert not np.allclose(np.asarray(straight), np.asarray(later))


def test_normalize_is_the_formula():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    ours = np.asarray(normalize(images(), mean, std))
    assert np.allclose(ours, (np.asarray(images()) / 255 - np.array(mean)) / np.array(std), atol=1e-5)
    assert normalize(images(), mean, std, jnp.bfloat16).dtype == jnp.bfloat16
