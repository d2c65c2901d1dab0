"""The interface of the engines that compute a package's network: JAX on accelerators, onnxruntime on CPUs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

ENGINES = ("auto", "jax", "onnx")
MOST_PHOTOS = 256  # of a batch; on accelerators, of each device
# On a CPU, the feature maps should fit into a core's cache. With XLA, a ResNet-18 of width 32 and photos of 60 x 45, a
# batch of 64 takes 0.77 of the time of a batch of 256, for each photo, on two devices (0.82 on eight). With photos of
# 224 x 224, a batch of 4 takes 0.62 of the time of a batch of 64. With onnxruntime, 8 to 64 photos of 80 x 60 for each
# core are equally fast.
CPU_CORE_PIXELS = 2 * 224 * 224


@dataclass(frozen=True, slots=True)
class NetworkOutputs:
    """What a network returns for n photos. All arrays are float32."""

    # attribute -> logits; where photos are mirrored, the logits of the mean probabilities
    logits: dict[str, Float32[np.ndarray, "n classes"]]
    tags: dict[str, Float32[np.ndarray, "n classes"]]  # multi-valued attribute -> logits
    features: Float32[np.ndarray, "n features"]  # pooled features of the backbone
    energies: Float32[np.ndarray, " n"]  # mean over the heads of -logsumexp(logits)
    embeddings: Float32[np.ndarray, "n size"]  # of length 1; the features where the package does not define embeddings
    colour_features: Float32[np.ndarray, "n size"]  # what colour heads see besides the features; of size 0 without any

    @staticmethod
    def join(parts: Sequence[NetworkOutputs]) -> NetworkOutputs:
        """Returns the outputs of all photos of several outputs, one at least."""

        def together(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return {name: np.concatenate([value[name] for value in values]) for name in values[0]}
            return np.concatenate(values)

        names = [field.name for field in fields(NetworkOutputs)]
        return NetworkOutputs(**{name: together([getattr(part, name) for part in parts]) for name in names})


class Engine(ABC):
    """Computes one package's network on this machine.

    Attributes:
        name: "jax" or "onnx".
        dtype: of convolutions and activations, "float32" or "bfloat16".
        batch_size: the largest number of photos in a batch.
    """

    name: str
    dtype: str
    batch_size: int

    @abstractmethod
    def run(self, batches: Iterable[UInt8[np.ndarray, "n height width 3"]], flip: bool) -> Iterator[NetworkOutputs]:
        """Yields the outputs of each batch, computed while the next batch is read.

        Args:
            batches: RGB of the model's size, at most `batch_size` photos each; a batch may be empty.
            flip: whether logits are those of the mean probabilities of each photo and its mirror image.
        """
