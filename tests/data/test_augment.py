"""Augmentation: geometry only, white outside, and a function of (key, step, record) alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from fashion_jax.config.fields import AugmentConfig
from fashion_jax.data.augment import affine_operation, augment, draw_affine, example_keys, normalize, sample_bilinear

OFF = {"min_crop_area": 1.0, "max_shift": 0.0, "flip_probability": 0.0, "max_rotation": 0.0, "erase_probability": 0.0}


def images(count: int = 64, seed: int = 0) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, 20, 16, 3), dtype=np.uint8))


def keys(count: int = 64, step: int = 0):
    return example_keys(jax.random.key(0), jnp.asarray(step), jnp.arange(count))


def test_all_off_changes_nothing_and_a_flip_mirrors():
    photos = np.asarray(images(), np.float32)
    assert np.array_equal(np.asarray(augment(images(), keys(), AugmentConfig(**OFF))), photos)
    out = augment(images(), keys(), AugmentConfig(**{**OFF, "flip_probability": 1.0}))
    assert np.allclose(np.asarray(out), photos[:, :, ::-1], atol=1e-3)
    out = np.asarray(augment(images(512), keys(512), AugmentConfig(**{**OFF, "flip_probability": 0.5})))
    same = np.isclose(out, np.asarray(images(512), np.float32), atol=1e-3).all((1, 2, 3))
    assert 0.4 < same.mean() < 0.6


# Each operation as Pillow's AFFINE has it: coefficients of the x and the y that an output pixel comes from.
@pytest.mark.parametrize(
    ("kind", "x_row", "y_row"),
    [
        (0, (1, 0, 0), (0, 1, 0)),
        (1, (np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15)), 0), (-np.sin(np.deg2rad(15)), np.cos(np.deg2rad(15)), 0)),
        (2, (1, 0.15, 0), (0, 1, 0)),
        (3, (1, 0, 0), (0.15, 1, 0)),
        (4, (1, 0, 0), (0, 1, 14.4)),
        (5, (1, 0, 14.4), (0, 1, 0)),
    ],
)
def test_operations_are_pillows(kind, x_row, y_row):
    y, x = np.mgrid[:64, :64]
    photo = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 2.0 * (x + y)], -1).astype(np.uint8)
    centre = 31.5
    matrix, offset = affine_operation(jnp.asarray(kind), jnp.asarray(0.5), 64, 64)
    grid_y, grid_x = y - centre, x - centre
    source_y = matrix[0, 0] * grid_y + matrix[0, 1] * grid_x + offset[0] + centre
    source_x = matrix[1, 0] * grid_y + matrix[1, 1] * grid_x + offset[1] + centre
    ours = np.asarray(sample_bilinear(jnp.asarray(photo), source_y, source_x))
    rows = [(a, b, c + 32 * (1 - a - b)) for a, b, c in (x_row, y_row)]  # Pillow's pixels end at whole numbers
    affine = Image.Transform.AFFINE
    pillow = Image.fromarray(photo).transform((64, 64), affine, (*rows[0], *rows[1]), Image.Resampling.BILINEAR)
    inside = (np.abs(source_y - centre) < 30) & (np.abs(source_x - centre) < 30)
    assert inside.mean() > 0.5
    assert np.abs(ours - np.asarray(pillow))[inside].max() < 2


def test_drawn_operations_are_applied_one_after_another():
    drawn = [draw_affine(key, operations=2, magnitude=0.5, height=20, width=16) for key in keys(200)]
    matrices = np.stack([np.asarray(matrix) for matrix, _ in drawn])
    offsets = np.stack([np.asarray(offset) for _, offset in drawn])
    single = [
        tuple(np.asarray(part) for part in affine_operation(jnp.asarray(kind), jnp.asarray(sign * 0.5), 20, 16))
        for kind in range(6)
        for sign in (-1.0, 1.0)
    ]
    pairs = [(b @ a, b @ p + q) for a, p in single for b, q in single]
    found = set()
    for matrix, offset in zip(matrices, offsets, strict=True):
        gaps = [max(np.abs(matrix - m).max(), np.abs(offset - o).max()) for m, o in pairs]
        assert min(gaps) < 1e-5
        found.add(int(np.argmin(gaps)))
    assert len(found) > 30  # of 66 that differ at most


def test_rand_augment_moves_photos_and_invents_no_colour():
    photos = jnp.full((64, 20, 16, 3), 100, jnp.uint8)
    out = np.asarray(augment(photos, keys(), AugmentConfig(**OFF, rand_operations=2, rand_magnitude=0.5)))
    assert (out >= 100 - 1e-3).all() and (out <= 255 + 1e-3).all()  # of a grey photo, only white comes in
    assert 0.5 < (out != 100).any((1, 2, 3)).mean() < 1
    still = augment(images(), keys(), AugmentConfig(**OFF, rand_operations=3, rand_magnitude=0.0))
    np.testing.assert_allclose(still, np.asarray(images(), np.float32), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "mean", "largest"),
    [
        ({"max_rotation": 0.0, "max_shift": 0.1}, 1e-3, 5e-3),  # only rounding
        ({}, 0.05, 8.0),
        ({"max_rotation": 180.0}, 0.5, 60.0),
        ({"rand_operations": 3, "rand_magnitude": 0.9}, 0.5, 60.0),
    ],
)
@pytest.mark.parametrize("shape", [(64, 48), (33, 40)])
def test_products_sample_as_gathers_do(shape, changes, mean, largest, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (32, *shape, 3)).astype(float)
    smooth = gaussian_filter(noise, (0, 2, 2, 0))
    photos = jnp.asarray((smooth - smooth.min()) / np.ptp(smooth) * 255, jnp.uint8)
    change = partial(augment, config=AugmentConfig(**changes))
    gathered = jax.jit(change)(photos, keys(32))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
    multiplied = jax.jit(lambda *args: change(*args))(photos, keys(32))
    gaps = np.abs(np.asarray(gathered) - np.asarray(multiplied))
    assert gaps.mean() < mean and gaps.max() < largest
    assert np.asarray(gathered).std() > 20


@pytest.mark.parametrize(("platform", "gathers"), [("cpu", True), ("tpu", False), ("cuda", True)])
def test_tpus_gather_no_pixels(platform, gathers):
    traced = jax.jit(partial(augment, config=AugmentConfig(max_shift=0.1))).trace(images(), keys())
    assert ("gather" in traced.lower(lowering_platforms=(platform,)).as_text()) == gathers


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
    assert share.min() > -1e-5 and share.max() < 1 + 1e-5


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
    black = jnp.zeros((256, 20, 16, 3), jnp.uint8)
    out = np.asarray(augment(black, keys(256), AugmentConfig(**{**OFF, "erase_probability": 1.0})))
    share = (out == 255).all(-1).mean((1, 2))
    assert 0.02 < share.mean() < 0.2
    assert share.max() < 0.28  # whole pixels are erased


def test_a_crop_magnifies_within_its_range():
    ramp = jnp.broadcast_to(jnp.arange(0, 160, 10, dtype=jnp.uint8)[None, None, :, None], (128, 20, 16, 3))
    out = np.asarray(augment(ramp, keys(128), AugmentConfig(**{**OFF, "min_crop_area": 0.5})))
    slope = (out[:, 10, 12, 0] - out[:, 10, 4, 0]) / 80
    assert slope.min() >= np.sqrt(0.5) - 1e-3 and slope.max() <= 1 + 1e-3
    assert slope.std() > 0.02


def test_randomness_follows_the_record_not_its_place():
    def augmented(order: np.ndarray, step: int) -> np.ndarray:
        drawn = example_keys(jax.random.key(1), jnp.asarray(step), jnp.asarray(order))
        return np.asarray(augment(images()[order], drawn, AugmentConfig()))

    order = np.random.default_rng(0).permutation(64)
    straight = augmented(np.arange(64), 7)
    assert np.array_equal(straight[order], augmented(order, 7))
    assert not np.allclose(straight, augmented(np.arange(64), 8))


def test_normalize_is_the_formula():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    ours = np.asarray(normalize(images(), mean, std))
    assert np.allclose(ours, (np.asarray(images()) / 255 - np.array(mean)) / np.array(std), atol=1e-5)
    assert normalize(images(), mean, std, jnp.bfloat16).dtype == jnp.bfloat16
