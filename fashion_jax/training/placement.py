"""Placement of arrays on the mesh: batches are split along `data`, everything else is a copy on every device."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32, UInt8

from fashion_jax.system.devices import DATA_AXIS

_MESSAGE_BYTES = 2**25  # of a sum over devices: large enough for full bandwidth, small enough to start early


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of parameters, optimiser state and metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension over all devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def norm_groups(photos: int, devices: int, least: int) -> int:
    """Returns the number of groups of photos over which batch norm takes its statistics.

    There are as many as possible. A group has at least `least` photos. It covers all photos of one or more devices, or
    a part of the photos of one device. So with enough photos on each device, batch norm sends nothing between devices.

    Args:
        photos: of a batch, over all devices; `devices` divides it.
        devices: of the mesh, or of all meshes that should have the same groups.
        least: photos of a group; a smaller batch is one group.
    """
    counts = range(max(1, photos // least), 1, -1)
    fitting = (n for n in counts if photos % n == 0 and (n % devices == 0 or devices % n == 0))
    return next(fitting, 1)


def sum_over(tree: Any, axis: str) -> Any:
    """Adds up arrays of the devices along an axis of the mesh, in few messages; for use inside `shard_map`.

    Args:
        tree: of float32 arrays.
    """
    leaves, structure = jax.tree.flatten(tree)
    # GPUs: XLA sends arrays whose layout is not the usual one, such as the gradients of 1x1 convolutions, one by one.
    # TPUs: XLA joins arrays by itself, and joining them into one vector first would change their layouts.
    summed = jax.lax.platform_dependent(
        *leaves, tpu=lambda *leaves: jax.lax.psum(leaves, axis), default=partial(_sum_vectors, axis=axis)
    )
    return jax.tree.unflatten(structure, summed)


def _sum_vectors(*leaves: jax.Array, axis: str) -> tuple[jax.Array, ...]:
    summed: list[jax.Array] = []
    for message in _messages([leaf.size * leaf.dtype.itemsize for leaf in leaves]):
        flat, restore = ravel_pytree([leaves[place] for place in message])
        summed.extend(restore(jax.lax.psum(flat, axis)))
    return tuple(summed)


def _messages(sizes: list[int]) -> list[list[int]]:
    """Groups neighbouring arrays, by their places, into messages of at most `_MESSAGE_BYTES` (or one larger array)."""
    messages: list[list[int]] = [[]]
    total = 0
    for place, size in enumerate(sizes):
        if messages[-1] and total + size > _MESSAGE_BYTES:
            messages.append([])
            total = 0
        messages[-1].append(place)
        total += size
    return messages


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
