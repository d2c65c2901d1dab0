"""CIELAB and CIEDE2000 against published values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageCms

from fashion_jax.system.cielab import ciede2000, from_srgb, product_pixels, to_cielab

# From the supplementary test data of Sharma, Wu and Dalal (2005), table 1.
PUBLISHED = [
    (50.0, 2.6772, -79.7751, 50.0, 0.0, -82.7485, 2.0425), (50.0, 3.1571, -77.2803, 50.0, 0.0, -82.7485, 2.8615),
    (50.0, 2.8361, -74.0200, 50.0, 0.0, -82.7485, 3.4412), (50.0, -1.3802, -84.2814, 50.0, 0.0, -82.7485, 1.0000),
    (50.0, -1.1848, -84.8006, 50.0, 0.0, -82.7485, 1.0000), (50.0, 0.0, 0.0, 50.0, -1.0, 2.0, 2.3669),
    (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0009, 7.1792), (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0011, 7.2195),
    (50.0, 2.5, 0.0, 73.0, 25.0, -18.0, 27.1492), (50.0, 2.5, 0.0, 61.0, -5.0, 29.0, 22.8977),
    (50.0, 2.5, 0.0, 56.0, -27.0, -3.0, 31.9030), (50.0, 2.5, 0.0, 58.0, 24.0, 15.0, 19.4535),
    (60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644),
    (63.0109, -31.0961, -5.8663, 62.8187, -29.7946, -4.0864, 1.2630),
    (35.0831, -44.1164, 3.7933, 35.0232, -40.0716, 1.5901, 1.8645),
    (22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373),
    (2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082),
]  # fmt: skip


def test_ciede2000_is_the_published_one_either_way():
    table = np.array(PUBLISHED)
    first, second, differences = table[:, :3], table[:, 3:6], table[:, 6]
    np.testing.assert_allclose(ciede2000(first, second), differences, rtol=0, atol=5e-5)
    np.testing.assert_allclose(ciede2000(second, first), differences, rtol=0, atol=5e-5)


def test_equal_colours_do_not_differ():
    colours = np.random.default_rng(0).uniform((0, -80, -80), (100, 80, 80), (200, 3))
    np.testing.assert_allclose(ciede2000(colours, colours), 0, atol=1e-9)
    assert ciede2000(colours[:, None], colours[None]).shape == (200, 200)


def test_cielab_agrees_with_littlecms_and_published_values():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB", 6504)
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB", renderingIntent=ImageCms.Intent.ABSOLUTE_COLORIMETRIC)
    theirs = np.asarray(ImageCms.applyTransform(Image.fromarray(rgb), transform)).astype(float)
    assert np.abs(to_cielab(rgb)[..., 0] - theirs[..., 0] * 100 / 255).mean() < 1
    white_and_black = to_cielab(np.array([[255] * 3, [0] * 3], np.uint8))
    np.testing.assert_allclose(white_and_black, [[100, 0, 0], [0, 0, 0]], atol=0.01)
    primaries = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(to_cielab(np.eye(3).astype(np.uint8) * 255), primaries, rtol=0, atol=0.02)


def test_accelerators_multiply_colours_in_full_precision():
    """By default TPUs and GPUs multiply with 8 or 10 bits, and a colour's a and b would be wrong by about 0.6."""
    rgb = np.random.default_rng(0).uniform(size=(50, 3)).astype(np.float32)
    convert = jax.jit(lambda values: from_srgb(values, jnp))
    (product,) = (line for line in convert.lower(rgb).as_text().splitlines() if "dot_general" in line)
    assert product.count("HIGHEST") == 2
    np.testing.assert_allclose(convert(rgb), from_srgb(rgb.astype(np.float64)), rtol=0, atol=2e-3)


def test_the_background_is_left_out():
    photo = np.full((6, 5, 3), 255, np.uint8)
    assert len(product_pixels(photo)) == 30
    photo[2, 3] = (200, 10, 10)
    np.testing.assert_allclose(product_pixels(photo), to_cielab(photo[2:3, 3]))
