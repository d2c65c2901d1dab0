"""Compiles the functions of later steps while the first ones train."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import jax

from fashion_jax.training.state import TrainState
from fashion_jax.training.step import Batch, TrainStep


class CompileAhead:
    """Compiles in a thread, so that the devices do not wait for it.

    JAX keeps what was compiled for these shapes and shardings, so a later call of the function finds it.
    """

    def __init__(self, functions: Sequence[TrainStep], state: TrainState, batch: Batch) -> None:
        """Starts.

        Args:
            functions: jitted functions of steps, in the order in which they are needed.
            state: a state, or its shapes and shardings.
            batch: a batch, or its shapes and shardings.
        """
        self._arguments = jax.tree.map(_shape, (state, dict(batch)))
        self._done = {id(function): threading.Event() for function in functions}
        if functions:
            # Python waits for it before it ends; XLA must not be taken down while it compiles.
            threading.Thread(target=self._compile, args=(list(functions),)).start()

    def wait(self, function: TrainStep) -> None:
        """Returns when a function is compiled, or at once where it was not asked for."""
        if id(function) in self._done:
            self._done[id(function)].wait()

    def _compile(self, functions: list[Any]) -> None:
        for function in functions:
            # The later call of the function raises the same error, where it can be reported.
            with contextlib.suppress(Exception):
                function.lower(*self._arguments).compile()
            self._done[id(function)].set()


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
