"""Checkpoints: newest and best stay, restored is saved, on any devices."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.state import TrainState, abstract_state, create_state
from stepping import mesh_of

ARGUMENTS = {"classes": {"kind": 3}, "depth": 10, "width": 4, "stem": "small", "dtype": "float32"}
OPTIMIZER = optax.adam(0.1)


@pytest.fixture(scope="module")
def state() -> TrainState:
    return create_state(ARGUMENTS, OPTIMIZER, 0, mesh_of(8))


def save(folder, state: TrainState, metrics: dict, **options) -> tuple[int | None, int | None]:
    """Saves a checkpoint of each step with its metric; returns the newest step and the best."""
    with Checkpoints(folder, **options) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(at_step(state, step), {}, metric)
        checkpoints.wait()
        return checkpoints.latest_step, checkpoints.best_step


def at_step(state: TrainState, step: int) -> TrainState:
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restored_is_saved_on_any_devices(tmp_path, state, devices):
    # Every array differs from what a fresh state holds, the optimiser's counter too.
    state = at_step(jax.tree.map(lambda a: a + jnp.ones((), a.dtype), state), 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"best_metric": 0.5}, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        restored, values = checkpoints.restore(3, abstract_state(ARGUMENTS, OPTIMIZER, mesh_of(devices)))
    assert values == {"best_metric": 0.5} and int(restored.step) == 3
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert a.dtype == b.dtype
        assert len(b.sharding.device_set) == devices and np.array_equal(a, b)


@pytest.mark.parametrize(("lower", "best"), [(False, 2), (True, 1)])
def test_the_newest_and_the_best_are_kept(tmp_path, state, lower, best):
    metrics = dict(enumerate([0.3, 0.9, 0.5, None, 0.6, None, 0.4], 1))
    assert save(tmp_path, state, metrics, lower_is_better=lower) == (7, best)
    kept = sorted(int(p.name.removeprefix("step_")) for p in tmp_path.iterdir() if p.name.startswith("step_"))
    assert kept == [best, 6, 7]
    assert save(tmp_path, state, {}, lower_is_better=lower) == (7, best)


def test_without_metrics_the_newest_is_the_best(tmp_path, state):
    assert save(tmp_path, state, {}) == (None, None)
    assert save(tmp_path, state, {1: None, 2: None}) == (2, 2)


def test_a_step_is_saved_once(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {"a": 1}, 0.1)
        checkpoints.save(at_step(state, 1), {"a": 2}, 0.9)
        checkpoints.wait()
        assert checkpoints.restore(1, jax.eval_shape(lambda: state))[1] == {"a": 1}


@pytest.mark.parametrize("width", [4, 8])
def test_a_damaged_checkpoint_and_another_model_are_refused(tmp_path, state, width):
    save(tmp_path, state, {1: None})
    for path in (tmp_path / "step_1" / "state").rglob("*"):
        if path.is_file() and width == 4:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    wanted = abstract_state({**ARGUMENTS, "width": width}, OPTIMIZER, mesh_of(8))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="cannot be restored"):
        checkpoints.restore(1, wanted)


def test_metrics_of_another_name_are_not_compared(tmp_path, state):
    save(tmp_path, state, {1: 0.9}, metric="accuracy")
    losses = {2: 1.5, 3: 1.2, 4: 1.3, 5: 1.4}
    assert save(tmp_path, state, losses, metric="loss", lower_is_better=True) == (5, 3)


@pytest.mark.parametrize("read_only", [True, False])
def test_what_a_kill_left_half_written_goes_and_reading_leaves_it(tmp_path, state, read_only):
    save(tmp_path, state, {1: None})
    half = tmp_path / "step_7.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "data").write_bytes(b"x")
    assert save(tmp_path, state, {}, read_only=read_only) == (1, 1)
    assert half.exists() == read_only


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_full_disk_is_named(tmp_path, state, monkeypatch, where):
    full = Mock(side_effect=ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']"))
    with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, where, full)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.save(at_step(state, 1), {}, None)
            checkpoints.wait()
    assert caught.value.errno == errno.ENOSPC
