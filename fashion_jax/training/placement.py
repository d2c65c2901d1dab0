"""Placement of arrays on the mesh: batches are split along `data`, everything else is a copy on every device."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32, UInt8

from fashion_jax.system.devices import DATA_AXIS


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of parameters, optimiser state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that this process holds.

    Args:
        batch: name -> array (rows of this process, ...); every process holds equally many.

    Returns:
        name -> array (rows of all processes, ...), sharded along the first dimension.
    """
    sharding, processes = batch_sharding(mesh), jax.process_count()

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0] * processes, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, global_shape=shape)

    return {name: put(array) for name, array in batch.items()}


def put_everywhere(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Copies an array, the same on every process, to every device."""
    return jax.make_array_from_process_local_data(replicated(mesh), array, global_shape=array.shape)


def to_host(tree: Any) -> Any:
    """Copies replicated arrays to numpy, on every process."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), tree)


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
