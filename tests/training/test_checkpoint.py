"""Checkpoints: newest and best stay, restored is saved, on any devices."""

from __future__ import annotations

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.state import TrainState, abstract_state, create_state
from stepping import mesh_of


@pytest.fixture(scope="module")
def run():
    import optax

    arguments = {
        "classes": {"kind": 3}, "depth": 10, "width": 4, "stem": "small",
        "dtype": "float32",
    }  # fmt: skip
    return arguments, optax.adam(0.1), create_state(arguments, optax.adam(0.1), 0, mesh_of(8))


def at_step(state: TrainState, step: int) -> TrainState:
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restored_is_saved_on_any_devices(tmp_path, run, devices):
    arguments, optimizer, state = run
    # Every array differs from what a fresh state holds, the optimiser's counter too.
    state = at_step(jax.tree.map(lambda a: a + jnp.ones((), a.dtype), state), 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"best_metric": 0.5}, 0.5)
    mesh = mesh_of(devices)
    with Checkpoints(tmp_path) as checkpoints:
        restored, values = checkpoints.restore(3, abstract_state(arguments, optimizer, mesh))
    assert values == {"best_metric": 0.5}
    assert int(restored.step) == 3
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert a.dtype == b.dtype
        assert len(b.sharding.device_set) == devices
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(("lower", "best"), [(False, 2), (True, 1)])
def test_the_newest_and_the_best_are_kept(tmp_path, run, lower, best):
    _, _, state = run
    with Checkpoints(tmp_path, lower_is_better=lower) as checkpoints:
        for step, metric in enumerate([0.3, 0.9, 0.5, None, 0.6, None, 0.4], 1):
            checkpoints.save(at_step(state, step), {}, metric)
        checkpoints.wait()
        assert checkpoints.latest_step == 7
        assert checkpoints.best_step == best
    kept = sorted(int(p.name.removeprefix("step_")) for p in tmp_path.iterdir() if p.name.startswith("step_"))
    assert kept == [best, 6, 7]
    with Checkpoints(tmp_path, lower_is_better=lower) as checkpoints:
        assert checkpoints.best_step == best
        assert checkpoints.latest_step == 7


def test_without_metrics_the_newest_is_the_best(tmp_path, run):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.best_step is None
        for step in (1, 2):
            checkpoints.save(at_step(run[2], step), {}, None)
        checkpoints.wait()
        assert checkpoints.best_step == 2


def test_a_step_is_saved_once(tmp_path, run):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(run[2], 1), {"a": 1}, 0.1)
        checkpoints.save(at_step(run[2], 1), {"a": 2}, 0.9)
        checkpoints.wait()
        assert checkpoints.restore(1, jax.eval_shape(lambda: run[2]))[1] == {"a": 1}


def test_another_model_is_refused(tmp_path, run):
    arguments, optimizer, state = run
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {}, None)
        checkpoints.wait()
        other = abstract_state({**arguments, "width": 8}, optimizer, mesh_of(8))
        with pytest.raises(UserError, match="cannot be restored"):
            checkpoints.restore(1, other)


def test_a_damaged_checkpoint_is_refused(tmp_path, run):
    arguments, optimizer, state = run
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {}, None)
    for path in (tmp_path / "step_1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="cannot be restored"):
        checkpoints.restore(1, abstract_state(arguments, optimizer, mesh_of(8)))


def test_metrics_of_another_name_are_not_compared(tmp_path, run):
    with Checkpoints(tmp_path, metric="accuracy") as checkpoints:
        checkpoints.save(at_step(run[2], 1), {}, 0.9)
    with Checkpoints(tmp_path, metric="loss", lower_is_better=True) as checkpoints:
        for step, loss in ((2, 1.5), (3, 1.2), (4, 1.3), (5, 1.4)):
            checkpoints.save(at_step(run[2], step), {}, loss)
        checkpoints.wait()
        assert checkpoints.best_step == 3


def test_what_a_kill_left_half_written_goes_and_reading_leaves_it(tmp_path, run):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(run[2], 1), {}, None)
    half = tmp_path / "step_7.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "data").write_bytes(b"x")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step == 1
    assert half.exists()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 1
    assert not half.exists()


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_full_disk_is_named(tmp_path, run, monkeypatch, where):
    checkpoints = Checkpoints(tmp_path)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, where, full)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.save(at_step(run[2], 1), {}, None)
            checkpoints.wait()
    assert caught.value.errno == errno.ENOSPC
    checkpoints.close()
