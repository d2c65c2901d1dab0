"""Prediction with JAX: each batch is spread over the local devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from fashion_jax.data.augment import normalize
from fashion_jax.models.classifier import abstract_classifier, mean_energy, mean_of_mirrored, merge_network
from fashion_jax.serving.engine import CPU_CORE_PIXELS, MOST_PHOTOS, Engine, NetworkOutputs
from fashion_jax.serving.package import Package
from fashion_jax.system.devices import computes_bfloat16_faster, on_accelerator
from fashion_jax.system.process import num_cores

_BATCH_PIXELS = MOST_PHOTOS * 224 * 224  # A batch of larger photos has fewer of them.

Forward = Callable[[Any, Any, UInt8[Array, "batch height width 3"], bool], dict[str, Any]]


class JaxEngine(Engine):
    """Compiles the network for the local devices when it sees the first batch of a size."""

    name = "jax"

    def __init__(self, package: Package) -> None:
        # A model that was trained in bfloat16 is computed in float32 where float32 is as fast, because it is exact.
        self.dtype = package.model["dtype"] if computes_bfloat16_faster() else "float32"
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
        everywhere, self._rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        self._forward = jax.jit(
            make_forward(package, self.dtype),
            in_shardings=(everywhere, everywhere, self._rows),
            out_shardings=self._rows,
            static_argnums=3,
        )
        self._params, self._batch_stats = jax.device_put(package.trees(), everywhere)
        self._devices = len(devices)
        height, width = package.preprocessing["height"], package.preprocessing["width"]
        pixels = _BATCH_PIXELS if on_accelerator() else CPU_CORE_PIXELS * max(self._devices, num_cores())
        size = max(1, min(MOST_PHOTOS, pixels // (height * width)))
        self.batch_size = self._round_up(size * (self._devices if on_accelerator() else 1))

    def run(self, batches: Iterable[np.ndarray], flip: bool) -> Iterator[NetworkOutputs]:
        before: tuple[int, Any] | None = None  # The devices compute it while the next batch is read.
        size = 1
        for images in batches:
            # A batch is padded to a power of two, and to the size of those before it, so that few shapes are compiled.
            size = min(self.batch_size, max(size, self._round_up(1 << max(len(images) - 1, 0).bit_length())))
            padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]), np.uint8)])
            result = self._forward(self._params, self._batch_stats, jax.device_put(padded, self._rows), flip)
            if before is not None:
                yield _fetch(*before)
            before = len(images), result
        if before is not None:
            yield _fetch(*before)

    def _round_up(self, count: int) -> int:
        return -(-count // self._devices) * self._devices


def make_forward(package: Package, dtype: str) -> Forward:
    """Returns the function (parameters, batch statistics, photos, flip) -> fields of `NetworkOutputs`.

    Args:
        dtype: of convolutions and activations.
    """
    graph, _, _ = abstract_classifier({**package.model, "dtype": dtype})
    values = package.preprocessing
    mean, std = tuple(values["mean"]), tuple(values["std"])

    def forward(params: Any, batch_stats: Any, images: jax.Array, flip: bool) -> dict[str, Any]:
        network = merge_network(graph, params, batch_stats)
        pixels = normalize(images, mean, std, jnp.dtype(dtype))
        outputs = network(pixels, train=False)
        plan, logits, tags = package.embedding, outputs.logits, outputs.tags
        if flip:
            logits, tags = mean_of_mirrored(network, pixels, outputs)
        return {
            "logits": logits,
            "tags": tags,
            "features": outputs.features,
            "energies": mean_energy(outputs.logits),
            "embeddings": outputs.features if plan is None else plan.embed(outputs.logits, outputs.features),
            "colour_features": outputs.colour,
        }

    return forward


def _fetch(count: int, result: dict[str, Any]) -> NetworkOutputs:
    """Waits for a batch and returns its first rows, without the padding."""
    return NetworkOutputs(**jax.tree.map(lambda array: array[:count], jax.device_get(result)))
