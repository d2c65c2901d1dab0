"""Checkpoints: newest and best stay, restored is saved, on any devices."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import shutil
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fashion_jax.system import stored
from fashion_jax.system.errors import UnreadableError, UserError
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


def test_another_model_is_refused(tmp_path, state):
    save(tmp_path, state, {1: None})
    wanted = abstract_state({**ARGUMENTS, "width": 8}, OPTIMIZER, mesh_of(8))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"step_1 .*the settings of the model"):
        checkpoints.restore(1, wanted)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def sign_again(path: Path, **changes) -> None:
    stored.write_document(path, {**stored.read_document(path, remedy=""), **changes})


DOCUMENT = "checkpoint.json"
DAMAGE = {
    "flip": lambda step: [flip(path) for path in (step / "ocdbt.process_0/d").iterdir()],
    "flip of the document": lambda step: flip(step / DOCUMENT),
    "cut": lambda step: [path.write_bytes(path.read_bytes()[:-9]) for path in step.rglob("manifest.ocdbt")],
    "empty": lambda step: (step / "_METADATA").write_bytes(b""),
    "missing": lambda step: (step / "manifest.ocdbt").unlink(),
    "no document": lambda step: (step / DOCUMENT).unlink(),
    "nested": lambda step: (step / DOCUMENT).write_bytes(b"[" * 100_000),
    "of another step": lambda step: shutil.copytree(step.with_name("step_2"), step, dirs_exist_ok=True),
    "of another run": lambda step: sign_again(step / DOCUMENT, run="b"),
    "metrics": lambda step: sign_again(step / DOCUMENT, metrics={"metric": "x"}),
    "early stopping": lambda step: sign_again(step / DOCUMENT, early_stopping=[]),
    "best": lambda step: sign_again(step / DOCUMENT, best=None),
    "step of the best": lambda step: sign_again(step / DOCUMENT, best=["1", 10**400]),
    "files": lambda step: sign_again(step / DOCUMENT, files={"a": 1}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_step_is_answered_by_the_newest_whole_one(tmp_path, state, capsys, damage):
    save(tmp_path / "c", state, {1: 0.9, 2: 0.1, 3: 0.2}, run="a")
    damage(tmp_path / "c/step_3")
    target, before = jax.eval_shape(lambda: state), sorted((tmp_path / "c").rglob("*"))
    with Checkpoints(tmp_path / "c", run="a", read_only=True) as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (2, 1)
    said = capsys.readouterr().err
    assert "step_3" in said and "this checkpoint is not used" in said
    assert "best undamaged checkpoint is that of step 1" in said
    assert sorted((tmp_path / "c").rglob("*")) == before
    with Checkpoints(tmp_path / "c", run="a") as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (2, 1)
        assert int(checkpoints.restore(2, target)[0].step) == 2
        assert "the run goes on from the checkpoint of step 2" in capsys.readouterr().err
        checkpoints.save(at_step(state, 3), {"new": 1}, 0.3)  # it replaces the damaged one
    with Checkpoints(tmp_path / "c", run="a") as checkpoints:
        assert checkpoints.latest_step == 3 and checkpoints.restore(3, target)[1] == {"new": 1}
    assert capsys.readouterr().err == ""


def test_a_lost_best_step_is_told_for_as_long_as_it_is_lost(tmp_path, state, capsys):
    save(tmp_path, state, {1: 0.9, 2: 0.1, 3: 0.2})
    shutil.rmtree(tmp_path / "step_1")
    for new, latest, best, told in (({}, 3, 3, 3), ({4: 0.3}, 4, 4, 3), ({}, 4, 4, 4), ({5: 0.95}, 5, 5, 4)):
        assert save(tmp_path, state, new) == (latest, best)
        with contextlib.redirect_stderr(io.StringIO()), Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.lost_best == (None if best == 5 else 1)
        said = capsys.readouterr().err
        assert f"step 1, the best one until step {told}, is damaged or missing" in said
    assert save(tmp_path, state, {}) == (5, 5) and capsys.readouterr().err == ""  # a better one was found


def test_where_no_step_is_whole_nothing_is_begun_anew(tmp_path, state):
    save(tmp_path, state, {1: None, 2: None})
    for path in tmp_path.glob("step_*/manifest.ocdbt"):
        flip(path)
    with pytest.raises(
        UserError, match=r"all checkpoints in .* are damaged\. Restore .*step_2.manifest\.ocdbt is damaged"
    ):
        Checkpoints(tmp_path)


def test_a_step_that_the_system_cannot_read_stays(tmp_path, state, monkeypatch):
    save(tmp_path, state, {1: None, 2: None})
    failing = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
    monkeypatch.setattr(stored.files, "file_digest", failing)
    with pytest.raises(UnreadableError, match="Too many open files"):
        Checkpoints(tmp_path)
    monkeypatch.undo()
    assert save(tmp_path, state, {}) == (2, 2)


def test_damage_after_the_opening_is_found(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {}, None)
        checkpoints.wait()
        flip(tmp_path / "step_1/manifest.ocdbt")
        with pytest.raises(UserError, match=r"manifest\.ocdbt is damaged"):
            checkpoints.restore(1, jax.eval_shape(lambda: state))


def test_what_orbax_writes_last_is_never_read(tmp_path, state, capsys):
    save(tmp_path, state, {1: 0.5})
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        for data in (b"", b"[1]", b"\xff{", None):
            (tmp_path / "step_1" / name).unlink() if data is None else (tmp_path / "step_1" / name).write_bytes(data)
            with Checkpoints(tmp_path) as checkpoints:
                assert int(checkpoints.restore(1, jax.eval_shape(lambda: state))[0].step) == 1
    assert capsys.readouterr().err == ""


def test_metrics_of_another_name_are_not_compared(tmp_path, state):
    save(tmp_path, state, {1: 0.9}, metric="accuracy")
    losses = {2: 1.5, 3: 1.2, 4: 1.3, 5: 1.4}
    assert save(tmp_path, state, losses, metric="loss", lower_is_better=True) == (5, 3)


@pytest.mark.parametrize("read_only", [True, False])
def test_what_a_kill_left_half_written_goes_and_reading_leaves_it(tmp_path, state, read_only):
    save(tmp_path, state, {1: None})
    halves = [tmp_path / "step_7.orbax-checkpoint-tmp", tmp_path / "step_0.removed"]
    for half in halves:
        half.mkdir()
        (half / "data").write_bytes(b"x")
    assert save(tmp_path, state, {}, read_only=read_only) == (1, 1)
    assert [half.exists() for half in halves] == [read_only] * 2


@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_errors_of_the_system_keep_their_number(tmp_path, state, monkeypatch, where, number):
    failing = Mock(side_effect=ValueError(f"RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='{number}']"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {}, None)
        checkpoints.wait()
        with monkeypatch.context() as patch, pytest.raises(OSError, match=str(tmp_path)) as caught:
            patch.setattr(checkpoints._checkpointer, where, failing)
            checkpoints.save(at_step(state, 2), {}, None)
            checkpoints.wait()
        assert caught.value.errno == number and checkpoints.latest_step == 1


def test_an_error_in_the_background_is_told_once(tmp_path, state, monkeypatch, capsys):
    monkeypatch.setattr(stored, "list_files", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(state, 1), {}, None)
    assert capsys.readouterr().err == "" and not (tmp_path / "step_1").exists()


def test_asyncio_prints_no_errors_of_arrays_but_all_others(caplog):
    for message in ("Task exception was never retrieved", "unhandled exception during asyncio.run() shutdown"):
        for error in (ValueError("in OCDBT database at"), OSError("See full TensorStore details"), KeyError("other")):
            logging.getLogger("asyncio").error(message, exc_info=error)
    assert [record.exc_info[0] for record in caplog.records] == [KeyError, KeyError]
