"""What a colour head sees: CIELAB as the reference has it, and the product's pixels alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fashion_jax.cielab import to_cielab as reference
from fashion_jax.models.colour import ColourFeatures, foreground, pool_foreground, to_cielab
from small_models import BASE, images, model_of

RNG = np.random.default_rng(0)


@nnx.jit
def logits_of(model, photos):
    return model(photos, train=False).logits


def photo_of(colour: tuple[float, float, float], border: int = 8) -> np.ndarray:
    """A square of a colour on white, RGB in [0, 1]."""
    photo = np.ones((1, 8 + 2 * border, 8 + 2 * border, 3), np.float32)
    photo[:, border : border + 8, border : border + 8] = colour
    return photo


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
    def mean_of(border: int) -> np.ndarray:
        lab = to_cielab(jnp.asarray(photo_of((0.8, 0.1, 0.2), border)))
        return np.asarray(pool_foreground(lab, foreground(lab)))[0]

    red = np.asarray(to_cielab(jnp.array([0.8, 0.1, 0.2])))
    np.testing.assert_allclose(mean_of(2), red, atol=0.2)
    np.testing.assert_allclose(mean_of(20), red, atol=1.5)
    lab = to_cielab(jnp.asarray(photo_of((0.8, 0.1, 0.2), 20)))
    assert np.abs(np.asarray(lab).mean((0, 1, 2)) - red).max() > 30  # what a plain mean would say
    assert np.isfinite(mean_of(0)).all()
    white = to_cielab(jnp.ones((1, 6, 6, 3)))
    np.testing.assert_allclose(np.asarray(pool_foreground(white, foreground(white)))[0], [100, 0, 0], atol=0.1)


def test_the_photos_normalisation_is_undone():
    arguments = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    plain = ColourFeatures(4, mean=(0.0,) * 3, std=(1.0,) * 3, rngs=nnx.Rngs(0))
    other = ColourFeatures(4, **arguments, rngs=nnx.Rngs(0))
    photo = jnp.asarray(RNG.uniform(size=(2, 12, 10, 3)), jnp.float32)
    normalised = (photo - jnp.array(arguments["mean"])[None, None, None]) / jnp.array(arguments["std"])[
        None, None, None
    ]
    maps = [jnp.asarray(RNG.normal(size=(2, 6, 5, 4)), jnp.float32)]
    np.testing.assert_allclose(
        plain(photo, maps, train=False), other(normalised, maps, train=False), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("depth", "stem", "height", "width"), [(18, "small", 21, 16), (50, "imagenet", 45, 33)])
def test_only_colour_heads_see_colour(depth, stem, height, width):
    arguments = {**BASE, "depth": depth, "stem": stem, "colour_heads": ["colour"]}
    model, photos = model_of(arguments), images(2, height, width)
    before = logits_of(model, photos)
    model.colour[0].pixels[0].kernel[...] += 1.0
    after = logits_of(model, photos)
    np.testing.assert_array_equal(before["kind"], after["kind"])
    assert np.abs(before["colour"] - after["colour"]).max() > 0
