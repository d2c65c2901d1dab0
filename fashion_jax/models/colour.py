"""What a colour head sees beside the deep embedding: early feature maps and CIELAB values of the product's pixels.

A network trained on categories learns to look away from colour, and its pooled last features say little about it. The
first stages still hold it, at a resolution at which product and background can be told apart.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fashion_jax.cielab import from_srgb
from fashion_jax.models.resnet import BatchNorm, FeatureMap

PIXEL_FEATURES = (32, 64)  # of the 1x1 convolutions over CIELAB
_WHITE_DISTANCE = 8.0  # in CIELAB, from white: where a pixel is as likely product as background
_WHITE_SOFTNESS = 1.0
_LEAST_WEIGHT = 1e-4  # of a background pixel, so that a photo of nothing but white has a mean


def to_cielab(rgb: Float[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """Returns L in [0, 100], a and b (about -100 to 100) of sRGB in [0, 1] under D65 (CIE 1976), float32."""
    lab: Float[Array, "*shape 3"] = from_srgb(jnp.clip(rgb.astype(jnp.float32), 0.0, 1.0), jnp)
    return lab


def foreground(cielab: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 1"]:
    """Returns how likely each pixel is the product's: near 0 where it is nearly white, else near 1."""
    squares = jnp.square(cielab - jnp.array([100.0, 0.0, 0.0])[None, None, None])
    from_white = jnp.sqrt(jnp.sum(squares, -1, keepdims=True) + 1e-4)  # a root has no gradient at 0
    return jax.nn.sigmoid((from_white - _WHITE_DISTANCE) / _WHITE_SOFTNESS) + _LEAST_WEIGHT


def pool_foreground(x: FeatureMap, weight: Float[Array, "batch rows columns 1"]) -> Float[Array, "batch channels"]:
    """Returns the weighted mean over the pixels, float32; `weight` is scaled to the map's size."""
    weight = jax.image.resize(weight, (*x.shape[:3], 1), "linear", antialias=True)
    return jnp.sum(x.astype(jnp.float32) * weight, (1, 2)) / jnp.sum(weight, (1, 2))


def colour_size(channels: int) -> int:
    """Returns the number of `ColourFeatures` of maps with so many channels together."""
    return channels + 6 + PIXEL_FEATURES[-1]


class ColourFeatures(nnx.Module):
    """Early feature maps, mean and deviation in CIELAB, and a learned colour histogram, of the foreground."""

    def __init__(self, channels: int, *, mean: tuple[float, ...], std: tuple[float, ...], rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            channels: of the feature maps, together.
            mean: of RGB in [0, 1], that was subtracted from the photos.
            std: of RGB in [0, 1], that they were divided by.
            rngs: the key "params" is used.
        """
        self.mean, self.std = tuple(mean), tuple(std)
        inputs, layers = 3, []
        for outputs in PIXEL_FEATURES:
            # The last one's bias would be taken out again by batch norm wherever a unit is active in all photos: its
            # gradient is rounding noise then, which Adam makes steps of.
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
        rgb = images.astype(jnp.float32) * jnp.array(self.std)[None, None, None]
        rgb = rgb + jnp.array(self.mean)[None, None, None]
        # As coarse as the first map: a pixel's neighbours add little, and cost much at 224 pixels.
        stride = max(1, round(images.shape[1] / maps[0].shape[1]))
        pads = tuple((0, -side % stride) for side in images.shape[1:3])
        rgb = nnx.avg_pool(rgb, (stride, stride), strides=(stride, stride), padding=pads, count_include_pad=False)
        cielab = to_cielab(rgb)
        weight = foreground(cielab)
        x = cielab / 50
        mean = pool_foreground(x, weight)
        deviation = jnp.sqrt(jnp.maximum(pool_foreground(jnp.square(x), weight) - jnp.square(mean), 1e-4))
        for layer in self.pixels:
            x = nnx.relu(layer(x))
        parts = [*(pool_foreground(one, weight) for one in maps), mean, deviation, pool_foreground(x, weight)]
        return self.norm(jnp.concatenate(parts, -1)[:, None, None], train=train)[:, 0, 0]
