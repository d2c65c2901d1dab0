"""Functions of later steps are compiled before they are needed."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fashion_jax.config.fields import MixConfig
from fashion_jax.training import ahead as ahead_module
from fashion_jax.training.ahead import CompileAhead
from fashion_jax.training.placement import batch_sharding, replicated
from stepping import mesh_of

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Counts what XLA compiles."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_what_was_compiled_ahead_is_not_compiled_again(compilations):
    mesh = mesh_of(2)
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    shardings = {"in_shardings": (everywhere, rows), "out_shardings": (everywhere, rows)}
    step = jax.jit(lambda state, batch: (state + 3, batch["x"] * 3), donate_argnums=0, **shardings)
    state, batch = jax.device_put(jnp.zeros(5), everywhere), jax.device_put({"x": jnp.ones(4)}, rows)
    ahead = CompileAhead([step], state, batch)
    ahead.wait(step)
    ahead.wait(jax.jit(lambda state, batch: (state, batch)))  # was not asked for
    compilations.clear()
    after, _ = jax.block_until_ready(step(state, batch))
    assert not compilations and state.is_deleted()
    np.testing.assert_array_equal(after, np.full(5, 3.0))


def test_an_error_is_left_to_the_caller():
    step = jax.jit(lambda state, batch: state @ batch["x"])
    ahead = CompileAhead([step], jnp.zeros(5), {"x": jnp.ones(4)})
    ahead.wait(step)


class Slow:
    """A jitted function that compiles until it may end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def lower(self, *_: object) -> Slow:
        self.begun.set()
        self.may_end.wait()
        return self

    def compile(self) -> None:
        raise SystemExit  # even this does not leave anybody waiting


def test_what_is_cancelled_is_not_compiled():
    first, second = Slow(), Slow()
    ahead = CompileAhead([first, second], jnp.zeros(5), {"x": jnp.ones(4)})
    first.begun.wait()
    ahead.cancel()  # returns at once
    first.may_end.set()
    ahead.wait(first)
    ahead.wait(second)
    assert not second.begun.is_set()


def test_nothing_is_compiled_ahead_on_gpus(monkeypatch):
    step, devices = Slow(), [SimpleNamespace(platform="gpu")]
    batch = {"x": SimpleNamespace(shape=(4,), dtype=jnp.float32, sharding=SimpleNamespace(device_set=devices))}
    monkeypatch.setattr(ahead_module, "_shape", lambda array: array)
    CompileAhead([step], jnp.zeros(5), batch).wait(step)
    assert not step.begun.is_set()


def test_the_functions_of_a_run_in_their_order(session_of):
    changes = {"train__progressive_scale": 0.5, "train__progressive_until": "2 steps"}
    session = session_of(
        1, train__mix=MixConfig(mixup_alpha=0.4, until="4 steps"), train__duration="9 steps", **changes
    )
    assert session.later_functions(0) == [session.train_step(2), session.train_step(4)]
    assert session.later_functions(3) == [session.train_step(4)]
    assert session.later_functions(4) == session_of(1).later_functions(0) == []
