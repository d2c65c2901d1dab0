"""ResNet v1.5 backbones (He et al. 2015; the stride on the 3x3 convolution as in torchvision).

The stem and shortcuts of ResNet-D (He et al. 2018, "Bag of Tricks") are options, and so is a stem for small photos.
Paddings are written out as in PyTorch: with stride 2, 'SAME' pads elsewhere, and converted weights would not fit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fashion_jax.models.architecture import NORM_EPSILON, STEMS, Convolution, ResidualBlock, stages, stem_layers
from fashion_jax.models.convolution import convolve

SMALL_PHOTO = 96  # pixels of the longer side up to which "auto" takes the small stem

# PyTorch's default for convolutions. After batch norm only the size of an update relative to the weights matters. With
# the larger weights of He et al., or with last scales that start at zero (Goyal et al. 2017), details are learnt later:
# after 800 steps on drawn products, PyTorch's ResNet predicts gender with accuracy 0.84 with either, and 0.91 with
# neither.
_conv_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

FeatureMap = Float[Array, "batch height width channels"]


def resolve_stem(stem: str, height: int, width: int) -> str:
    """Returns the stem that "auto" stands for at a photo size: "small" up to 96 pixels, else "imagenet"."""
    if stem != "auto":
        return stem
    return "small" if max(height, width) <= SMALL_PHOTO else "imagenet"


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, layer: Convolution, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(
            layer.inputs,
            layer.outputs,
            (layer.kernel, layer.kernel),
            strides=(layer.stride, layer.stride),
            padding=[(layer.kernel // 2, layer.kernel // 2)] * 2,
            use_bias=False,
            kernel_init=_conv_init,
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        self.norm = BatchNorm(layer.outputs)
        self.stride, self.dtype = layer.stride, dtype

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        x = convolve(x.astype(self.dtype), self.conv.kernel[...].astype(self.dtype), self.stride)
        return self.norm(x, train=train)


class BatchNorm(nnx.Module):
    """Batch normalisation over batch, height and width (Ioffe and Szegedy 2015).

    Statistics, scale and bias are always float32. Under `jit` over a mesh the batch is the batch of all devices. Flax's
    momentum 0.9 is PyTorch's 0.1. The running variance is the biased one, as in Flax; PyTorch's is larger by the factor
    n / (n - 1). If `frozen` is set, training also uses the running statistics and does not change them.

    In training, the batch is cut into `groups` equal parts, in its order, and each part has its own statistics (ghost
    batch norm: Hoffer et al., NeurIPS 2017). The running statistics are updated with the mean over the parts.
    """

    momentum = 0.9
    epsilon = NORM_EPSILON
    frozen = False
    groups = 1

    def __init__(self, features: int) -> None:
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        grouped, scale, bias = x, self.scale[...], self.bias[...]
        if train and not self.frozen:
            if self.groups > 1:  # with a fifth axis of length 1, CPUs took 5 % longer for a step
                grouped = x.reshape(self.groups, -1, *x.shape[1:])
                scale, bias = scale[None], bias[None]
            wide = grouped.astype(jnp.float32)
            mean = jnp.mean(wide, (-4, -3, -2))
            var = jnp.maximum(jnp.mean(jnp.square(wide), (-4, -3, -2)) - jnp.square(mean), 0.0)
            for running, now in ((self.mean, mean), (self.var, var)):
                now = jax.lax.stop_gradient(jnp.mean(now, 0) if self.groups > 1 else now)
                running.set_value(self.momentum * running[...] + (1 - self.momentum) * now)
        else:
            mean, var = self.mean[...], self.var[...]
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        shape = (*mean.shape[:-1], 1, 1, 1, -1)
        normal = grouped.astype(jnp.float32) * factor.reshape(shape) + offset.reshape(shape)
        return normal.astype(x.dtype).reshape(x.shape)


class Shortcut(nnx.Module):
    """The projection beside a block whose shape changes."""

    def __init__(self, layer: Convolution, *, pool: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.pool = pool  # ResNet-D: average first, so that the 1x1 convolution sees every pixel
        self.project = ConvNorm(layer, dtype=dtype, rngs=rngs)

    def __call__(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        if self.pool:
            x = _average_pool(x)
        return self.project(x, train=train)


class Block(nnx.Module):
    """Two 3x3 convolutions, or a 1x1-3x3-1x1 bottleneck, beside a shortcut."""

    def __init__(self, block: ResidualBlock, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([ConvNorm(layer, dtype=dtype, rngs=rngs) for layer in block.layers])
        shortcuts = [block.shortcut] if block.shortcut else []
        self.shortcut = nnx.List([Shortcut(one, pool=block.pools, dtype=dtype, rngs=rngs) for one in shortcuts])

    def __call__(self, x: FeatureMap, *, train: bool, scale: Float[Array, " batch"] | None = None) -> FeatureMap:
        """Returns the sum of both branches; `scale`, one number per photo, multiplies the convolutions' branch."""
        y = x
        for number, layer in enumerate(self.layers):
            y = layer(y, train=train)
            if number < len(self.layers) - 1:
                y = nnx.relu(y)
        for shortcut in self.shortcut:
            x = shortcut(x, train=train)
        if scale is not None:
            y = y * scale[:, None, None, None].astype(y.dtype)
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """From normalised photos to pooled features."""

    def __init__(
        self,
        *,
        depth: int,
        width: int = 64,
        stem: str = "imagenet",
        drop_path: float = 0.0,
        pooling: str = "average",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layers.

        Args:
            depth: 10, 18, 34, 50, 101 or 152.
            width: channels of the first stage; the published networks have 64.
            stem: "imagenet" (7x7, stride 2, then max-pooling), "deep" (three 3x3, then max-pooling: ResNet-C),
                "resnet_d" ("deep" with average pooling in shortcuts: ResNet-D, He et al., CVPR 2019) or "small" (3x3,
                stride 2, no pooling), for photos of up to about 96 pixels.
            drop_path: probability with which the last block is skipped in training, in [0, 1); it rises linearly
                from 0 at the first block (stochastic depth, Huang et al., ECCV 2016).
            pooling: "average" or "gem", the generalised mean (Radenovic et al., TPAMI 2019) with a learned power.
            dtype: of convolutions and activations; parameters and batch norm are float32.
        """
        assert stem in STEMS, stem
        self.stem = nnx.List([ConvNorm(layer, dtype=dtype, rngs=rngs) for layer in stem_layers(width, stem)])
        self.pool = stem != "small"
        self.dtype = dtype
        plan = stages(depth, width, stem)
        self.stages = nnx.List([nnx.List([Block(one, dtype=dtype, rngs=rngs) for one in stage]) for stage in plan])
        self.num_blocks = sum(map(len, plan))
        self.drop_path = drop_path
        self.gem = nnx.List([GeneralizedMean()] if pooling == "gem" else [])

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool,
        drop_keys: Key[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch features"], list[FeatureMap]]:
        """Returns pooled float32 features, and the feature maps of the stages.

        Args:
            images: normalised.
            train: whether batch norm uses the batch, and updates its running statistics, and blocks are skipped.
            drop_keys: one per photo; needed when training with `drop_path`.
        """
        x = images.astype(self.dtype)
        for layer in self.stem:
            x = nnx.relu(layer(x, train=train))
        if self.pool:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps, number = [], 0
        for stage in self.stages:
            for block in stage:
                x = block(x, train=train, scale=self._branch_scale(number, drop_keys) if train else None)
                number += 1
            maps.append(x)
        pooled = self.gem[0](x) if len(self.gem) else jnp.mean(x.astype(jnp.float32), (1, 2))
        return pooled, maps

    def _branch_scale(self, block: int, keys: Key[Array, " batch"] | None) -> Float[Array, " batch"] | None:
        """0 where a photo skips the block, else what keeps the branch's mean as it is; None where none skips."""
        probability = self.drop_path * block / (self.num_blocks - 1)
        if not probability:
            return None
        if keys is None:
            raise ValueError("a network with drop_path needs drop_keys in training")
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, block)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - probability))(own)
        return kept / (1 - probability)


class GeneralizedMean(nnx.Module):
    """The generalised mean over height and width: (mean x^p)^(1/p), between average (1) and maximum (infinity)."""

    def __init__(self) -> None:
        self.power = nnx.Param(jnp.full((1,), 3.0, jnp.float32))

    def __call__(self, x: FeatureMap) -> Float[Array, "batch channels"]:
        # Below about 0.01 powers of activations underflow; the paper's code has a floor of 1e-6.
        wide, power = jnp.maximum(x.astype(jnp.float32), 1e-6), jnp.clip(self.power[...], 1.0, 10.0)
        # Scaled by its largest value, no power overflows or underflows.
        peak = jax.lax.stop_gradient(jnp.max(wide, (1, 2), keepdims=True))
        mean = jnp.mean((wide / peak) ** power[None, None, None], (1, 2))
        return mean ** (1 / power)[None] * peak[:, 0, 0]


def _average_pool(x: FeatureMap) -> FeatureMap:
    """2x2 average at stride 2; an odd last row or column is averaged over what there is (as in timm)."""
    pads = ((0, x.shape[1] % 2), (0, x.shape[2] % 2))
    return nnx.avg_pool(x, (2, 2), strides=(2, 2), padding=pads, count_include_pad=False)
