"""Colour features: early feature maps and CIELAB values of the product's pixels.

A network that is trained on categories learns to ignore colour, so its pooled features hold little of it. The first
stages still hold it, at a resolution at which product and background differ.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fashion_jax.models.architecture import (
    CHROMA_BINS,
    CHROMA_FINENESS,
    CHROMA_RANGE,
    LEAST_WEIGHT,
    LIGHTNESS_BINS,
    PIXEL_FEATURES,
    WHITE_DISTANCE,
    WHITE_SOFTNESS,
    colour_size,
)
from fashion_jax.models.resnet import BatchNorm, FeatureMap
from fashion_jax.system.cielab import from_srgb


def to_cielab(rgb: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Returns L in [0, 100], a and b (about -100 to 100) of sRGB in [0, 1] under D65 (CIE 1976), float32."""
    lab: Float[Array, "*shape 3"] = from_srgb(jnp.clip(rgb.astype(jnp.float32), 0.0, 1.0), jnp)
    return lab


def foreground(cielab: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 1"]:
    """Returns how likely each pixel is the product's: near 0 where it is nearly white, else near 1."""
    squares = jnp.square(cielab - jnp.array([100.0, 0.0, 0.0])[None, None, None])
    from_white = jnp.sqrt(jnp.sum(squares, -1, keepdims=True) + 1e-4)  # a root has no gradient at 0
    return jax.nn.sigmoid((from_white - WHITE_DISTANCE) / WHITE_SOFTNESS) + LEAST_WEIGHT


def pool_foreground(x: FeatureMap, weight: Float[Array, "batch rows columns 1"]) -> Float[Array, "batch channels"]:
    """Returns the weighted mean over the pixels, float32; `weight` is scaled to the map's size."""
    weight = jax.image.resize(weight, (*x.shape[:3], 1), "linear", antialias=True)
    return jnp.sum(x.astype(jnp.float32) * weight, (1, 2)) / jnp.sum(weight, (1, 2))


def colour_histogram(
    cielab: Float[Array, "batch height width 3"], weight: Float[Array, "batch height width 1"]
) -> Float[Array, "batch bins"]:
    """Returns the square roots of the foreground's shares in bins of CIELAB, lightness first; their squares' sum is 1.

    A pixel counts in the two bins that are next to it on each axis, the nearer one more, so that a slightly different
    photo has a slightly different histogram. Square roots make Euclidean distances Hellinger's.

    Args:
        cielab: as `to_cielab` returns it.
        weight: of each pixel, above 0, as `foreground` returns it.

    Returns:
        float32 in [0, 1]; `LIGHTNESS_BINS` * `CHROMA_BINS`**2 bins.
    """
    chroma = jnp.sign(cielab[..., 1:]) * jnp.log1p(jnp.abs(cielab[..., 1:]) / CHROMA_FINENESS)
    chroma = (chroma / math.log1p(CHROMA_RANGE / CHROMA_FINENESS) + 1) / 2
    lightness = _memberships(cielab[..., 0] / 100, LIGHTNESS_BINS) * weight
    a, b = _memberships(chroma[..., 0], CHROMA_BINS), _memberships(chroma[..., 1], CHROMA_BINS)
    both = (a[..., :, None] * b[..., None, :]).reshape(*a.shape[:3], CHROMA_BINS**2)
    sums = jnp.einsum("bhwl,bhwc->blc", lightness, both, precision=jax.lax.Precision.HIGHEST)
    shares = sums.reshape(cielab.shape[0], -1) / jnp.sum(weight, (1, 2))
    return jnp.sqrt(jnp.maximum(shares, 0.0))


def _memberships(places: Float[Array, "*shape"], bins: int) -> Float[Array, "*shape bins"]:
    """Returns how much values in [0, 1] (others are moved there) belong to each of so many centres; 1 together."""
    places = jnp.clip(places, 0.0, 1.0) * (bins - 1)
    centres = jnp.arange(bins, dtype=jnp.float32).reshape(*(1,) * places.ndim, bins)
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[..., None] - centres))


def shrink(rgb: Float[Array, "batch height width 3"], stride: int) -> Float[Array, "batch rows columns 3"]:
    """Returns the means of squares of pixels; those at the far edges may be cut off and are means of what is left."""
    pads = tuple((0, -side % stride) for side in rgb.shape[1:3])
    return nnx.avg_pool(rgb, (stride, stride), strides=(stride, stride), padding=pads, count_include_pad=False)


class ColourFeatures(nnx.Module):
    """Means over the foreground: early feature maps, mean and deviation in CIELAB, and learned functions of a pixel."""

    def __init__(self, channels: int, *, mean: tuple[float, ...], std: tuple[float, ...], rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            channels: of the feature maps, together.
            mean: of RGB in [0, 1], that was subtracted from the photos.
            std: of RGB in [0, 1], that they were divided by.
        """
        self.mean, self.std = tuple(mean), tuple(std)
        inputs, layers = 3, []
        for outputs in PIXEL_FEATURES:
            # The last layer has no bias: batch norm subtracts it again, so its gradient would be rounding noise, which
            # Adam turns into full steps.
            layers.append(nnx.Linear(inputs, outputs, use_bias=outputs != PIXEL_FEATURES[-1], rngs=rngs))
            inputs = outputs
        self.pixels = nnx.List(layers)
        self.size = colour_size(channels)
        self.norm = BatchNorm(self.size)

    def __call__(
        self, images: Float[Array, "batch height width 3"], maps: list[FeatureMap], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns normalised float32 features.

        Args:
            images: normalised photos.
            maps: of the first stages, the largest first.
            train: whether batch norm uses the batch's statistics.
        """
        rgb = self._colours(images, maps)
        cielab = to_cielab(rgb)
        weight = foreground(cielab)
        x = cielab / 50
        mean = pool_foreground(x, weight)
        deviation = jnp.sqrt(jnp.maximum(pool_foreground(jnp.square(x), weight) - jnp.square(mean), 1e-4))
        for layer in self.pixels:
            x = nnx.relu(layer(x))
        parts = [*(pool_foreground(one, weight) for one in maps), mean, deviation, pool_foreground(x, weight)]
        return self.norm(jnp.concatenate(parts, -1)[:, None, None], train=train)[:, 0, 0]

    def histogram_of(
        self, images: Float[Array, "batch height width 3"], maps: list[FeatureMap]
    ) -> Float[Array, "batch bins"]:
        """Returns `colour_histogram` of photos at half the resolution of the first feature map, for second heads.

        A histogram of more pixels is nearly the same and takes four times as long.

        Args:
            images: normalised photos.
            maps: of the first stages, the largest first.
        """
        coarse = to_cielab(shrink(self._colours(images, maps), 2))
        return colour_histogram(coarse, foreground(coarse))

    def _colours(
        self, images: Float[Array, "batch height width 3"], maps: list[FeatureMap]
    ) -> Float[Array, "batch rows columns 3"]:
        """Returns RGB in [0, 1] at the resolution of the first map; more pixels cost time and add little."""
        rgb = images.astype(jnp.float32) * jnp.array(self.std)[None, None, None]
        rgb = rgb + jnp.array(self.mean)[None, None, None]
        return shrink(rgb, max(1, round(images.shape[1] / maps[0].shape[1])))
