"""Compiles the functions of later steps while the first ones train."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax

from fashion_jax.training.state import TrainState
from fashion_jax.training.step import Batch, TrainStep


class CompileAhead:
    """Compiles in a thread, so that the devices do not wait for it.

    JAX keeps what was compiled for these shapes and shardings, so a later call of the function finds it. On GPUs
    nothing is compiled ahead: XLA chooses kernels there by measuring them, on the device that trains.
    """

    def __init__(self, functions: Sequence[TrainStep], state: TrainState, batch: Batch) -> None:
        """Starts.

        Args:
            functions: jitted functions of steps, in the order in which they are needed.
            state: a state, or its shapes and shardings.
            batch: a batch, or its shapes and shardings.
        """
        arguments = jax.tree.map(_shape, (state, dict(batch)))
        platforms = {device.platform for array in batch.values() for device in array.sharding.device_set}
        # Python waits for the thread before it ends; XLA must not be taken down while it compiles.
        self._threads = futures.ThreadPoolExecutor(1)
        self._compiled = {
            function: self._threads.submit(_compile, function, arguments)
            for function in ([] if "gpu" in platforms else functions)
        }

    def wait(self, function: TrainStep) -> None:
        """Returns when a function is compiled, or at once where it was not asked for.

        No error is raised here. The later call of the function raises the same error, where it can be reported.
        """
        if function in self._compiled:
            with contextlib.suppress(futures.CancelledError):
                self._compiled[function].exception()

    def cancel(self) -> None:
        """Compiles no further function; the present one cannot be stopped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _compile(function: Any, arguments: tuple[Any, ...]) -> None:
    function.lower(*arguments).compile()


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
