"""Photos that live on the accelerators, so that a step needs only row numbers from the host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32, UInt8

from fashion_jax.training.placement import batch_sharding, put_everywhere, replicated


class DevicePhotos:
    """A copy of decoded photos on every device.

    A gather of its own feeds the step, so that the step's inputs are the same arrays however photos are stored.
    """

    def __init__(
        self, images: UInt8[np.ndarray, "n height width 3"], places: Int32[np.ndarray, " rows"], mesh: Mesh
    ) -> None:
        """Copies `images` to the devices; `places` says where a row of the catalogue stands in them."""
        everywhere, rows = replicated(mesh), batch_sharding(mesh)
        self._images = put_everywhere(images, mesh)
        self._places = put_everywhere(places, mesh)
        self._gather = jax.jit(
            lambda images, places, row: images[places[row]],
            in_shardings=(everywhere, everywhere, rows),
            out_shardings=rows,
        )

    def add_images(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch with `image` (rows, height, width, 3) beside its `row`."""
        return {**batch, "image": self._gather(self._images, self._places, batch["row"])}


def free_device_bytes() -> int:
    """Bytes free on the fullest local accelerator; 0 where there is none or it does not tell."""
    if jax.default_backend() == "cpu":
        return 0
    free = []
    for device in jax.local_devices():
        stats: dict[str, Any] = device.memory_stats() or {}
        free.append(stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))
    return max(0, min(free))
