"""What a colour head sees: CIELAB as the reference has it, and the product's pixels alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fashion_jax.models.colour import (
    CHROMA_BINS,
    LIGHTNESS_BINS,
    ColourFeatures,
    colour_histogram,
    foreground,
    pool_foreground,
    to_cielab,
)
from fashion_jax.system.cielab import to_cielab as reference
from small_models import BASE, images, model_of

RNG, RED = np.random.default_rng(0), (0.8, 0.1, 0.2)


def photo_of(colour: tuple[float, float, float], border: int) -> jnp.ndarray:
    """A square of a colour on white, in CIELAB."""
    photo = np.ones((1, 8 + 2 * border, 8 + 2 * border, 3), np.float32)
    photo[:, border : border + 8, border : border + 8] = colour
    return to_cielab(jnp.asarray(photo))


def mean_of(lab) -> np.ndarray:
    return np.asarray(pool_foreground(lab, foreground(lab)))[0]


def histogram_of(lab) -> np.ndarray:
    return np.asarray(colour_histogram(lab, foreground(lab)))


def test_cielab_is_the_reference_implementation():
    pixels = RNG.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    pixels[0, :3] = [[0, 0, 0], [255, 255, 255], [1, 0, 255]]
    ours = np.asarray(to_cielab(jnp.asarray(pixels / 255.0, jnp.float32)))
    np.testing.assert_allclose(ours, reference(pixels), atol=2e-2)


@pytest.mark.parametrize("level", [0.0, 0.03, 0.5, 1.0])
def test_gradients_are_finite_from_black_to_white(level):
    def spread(rgb):
        lab = to_cielab(rgb)
        return jnp.sum(lab**2) + jnp.sum(pool_foreground(lab, foreground(lab)))

    gradient = jax.jit(jax.grad(spread))(jnp.full((1, 4, 4, 3), level, jnp.float32))
    assert np.isfinite(gradient).all()


def test_white_around_a_product_changes_nothing():
    narrow, wide = photo_of(RED, 2), photo_of(RED, 20)
    red = np.asarray(to_cielab(jnp.array(RED)))
    np.testing.assert_allclose(mean_of(narrow), red, atol=0.2)
    np.testing.assert_allclose(mean_of(wide), red, atol=1.5)
    assert np.abs(wide.mean((0, 1, 2)) - red).max() > 30  # what a plain mean would say
    assert np.isfinite(mean_of(photo_of(RED, 0))).all()
    np.testing.assert_allclose(mean_of(to_cielab(jnp.ones((1, 6, 6, 3)))), [100, 0, 0], atol=0.1)
    histogram = histogram_of(narrow)
    assert np.abs(histogram - histogram_of(photo_of(RED, 12))).max() < 0.1
    assert np.abs(histogram - histogram_of(photo_of((0.79, 0.11, 0.2), 2))).max() < 0.2  # changes little with it
    assert histogram[0] @ histogram_of(photo_of((0.1, 0.2, 0.8), 2))[0] < 0.05  # blue


def test_the_photos_normalisation_is_undone():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain = ColourFeatures(4, mean=(0.0,) * 3, std=(1.0,) * 3, rngs=nnx.Rngs(0))
    other = ColourFeatures(4, mean=mean, std=std, rngs=nnx.Rngs(0))
    photo = RNG.uniform(size=(2, 12, 10, 3)).astype(np.float32)
    normalised = (photo - np.array(mean, np.float32)) / np.array(std, np.float32)
    maps = [jnp.asarray(RNG.normal(size=(2, 6, 5, 4)), jnp.float32)]
    wanted, found = plain(jnp.asarray(photo), maps, train=False), other(jnp.asarray(normalised), maps, train=False)
    np.testing.assert_allclose(wanted, found, rtol=1e-3, atol=1e-3)


def test_the_histogram_counts_each_pixel_in_the_bins_beside_it():
    photo = RNG.uniform(size=(2, 5, 4, 3)).astype(np.float32)
    lab = np.asarray(to_cielab(jnp.asarray(photo)), np.float64)
    weight = np.asarray(foreground(jnp.asarray(lab, jnp.float32)), np.float64)
    wanted = np.zeros((2, LIGHTNESS_BINS, CHROMA_BINS, CHROMA_BINS))
    for row in range(2):
        for pixel, share in zip(lab[row].reshape(-1, 3), weight[row].reshape(-1), strict=True):
            chroma = np.clip(np.sign(pixel[1:]) * np.log(1 + np.abs(pixel[1:]) / 10) / np.log(7), -1, 1)
            places = [pixel[0] / 100 * (LIGHTNESS_BINS - 1), *((chroma + 1) / 2 * (CHROMA_BINS - 1))]
            for corner in np.ndindex(2, 2, 2):
                bins = [min(int(place) + up, size) for place, up, size in zip(places, corner, (7, 8, 8), strict=True)]
                parts = [place % 1 if up else 1 - place % 1 for place, up in zip(places, corner, strict=True)]
                wanted[row][tuple(bins)] += share * np.prod(parts) / weight[row].sum()
    found = histogram_of(to_cielab(jnp.asarray(photo)))
    np.testing.assert_allclose(found, np.sqrt(wanted.reshape(2, -1)), atol=2e-3)
    np.testing.assert_allclose(np.square(found).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("depth", "stem", "height", "width"), [(18, "small", 21, 16), (50, "imagenet", 45, 33)])
def test_only_colour_heads_see_colour(depth, stem, height, width):
    model = model_of({**BASE, "depth": depth, "stem": stem, "colour_heads": ["colour"]})
    logits_of = nnx.jit(lambda model: model(images(2, height, width), train=False).logits)
    before = logits_of(model)
    model.colour[0].pixels[0].kernel[...] += 1.0
    after = logits_of(model)
    np.testing.assert_array_equal(before["kind"], after["kind"])
    assert np.abs(before["colour"] - after["colour"]).max() > 0
