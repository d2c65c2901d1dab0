"""Checkpoints: a thin layer over Orbax that keeps the newest and the best."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fashion_jax.system.errors import UserError
from fashion_jax.training.state import TrainState

NUM_NEWEST = 2
# Orbax warns at every checkpoint between evaluations, which has no metric on purpose.
logging.getLogger("absl").addFilter(lambda record: "did not provide metrics" not in record.getMessage())
# Orbax cuts replicated arrays into a slice per device, to write them in parallel; of the many small ones of a network
# on eight devices that takes a hundred times longer than writing them.
_LEAST_SLICE = 16 << 20  # bytes
_DISK_IS_FULL = ("No space left on device", "Disk quota exceeded")


class Checkpoints:
    """Saves and restores a run's state, and what early stopping counts.

    Saves run in the background; an error in one surfaces at the next save or at `close`. A save that was cut short by
    a kill leaves no step behind: Orbax publishes by a rename.
    """

    def __init__(
        self, folder: Path, *, metric: str = "metric", lower_is_better: bool = False, read_only: bool = False
    ) -> None:
        """Opens `folder`, made if absent.

        Args:
            folder: of this run alone.
            metric: the name of what is given to `save`; a checkpoint with another metric is never the best.
            lower_is_better: whether it is a loss.
            read_only: leaves the folder, which a run may be writing, as it is. Otherwise what a kill left
                half-written is removed.
        """
        sign = -1.0 if lower_is_better else 1.0
        self._metric = metric

        def score(metrics: Any) -> float:
            return sign * float(metrics[metric]) if metric in metrics else -math.inf

        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(NUM_NEWEST),
                checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=score,
            best_mode="max",
            step_prefix="step",
            enable_async_checkpointing=True,
            create=not read_only,
            read_only=read_only,
        )
        if not read_only and jax.process_index() == 0:
            for half in folder.glob("step_*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
        try:
            self._manager = ocp.CheckpointManager(
                folder.resolve(),
                options=options,
                item_handlers={"state": _state_handler(), "early_stopping": ocp.JsonCheckpointHandler()},
            )
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {folder}: {error.strerror or error}") from error

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step; None if there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best metric; the newest where none has a metric."""
        best = self._manager.best_step()
        return self.latest_step if best is None else best

    def save(self, state: TrainState, early_stopping: dict[str, Any], metric: float | None) -> None:
        """Saves in the background; a step that is there already is left alone.

        Args:
            state: at `state.step`.
            early_stopping: JSON values.
            metric: of this state's evaluation; None when it was not evaluated.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._naming_a_full_disk():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), early_stopping=ocp.args.JsonSave(early_stopping)
                ),
                metrics=None if metric is None or not math.isfinite(metric) else {self._metric: metric},
            )

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state at `step`, on the devices that `target` names, and the JSON values.

        Args:
            target: ShapeDtypeStructs with shardings, of any topology.

        Raises:
            UserError: the checkpoint is damaged or of another model.
        """
        places = ocp.checkpoint_utils.construct_restore_args(target)
        wanted = ocp.args.PyTreeRestore(item=target, restore_args=places)
        args = ocp.args.Composite(state=wanted, early_stopping=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise UserError(
                f"the checkpoint of step {step} in {self._manager.directory} cannot be restored ({first_line}); "
                "it is damaged, or the model has changed; use the old settings, or a new --workdir"
            ) from error
        return restored["state"], restored["early_stopping"]

    def wait(self) -> None:
        """Returns when all that was saved is on the disk; raises what a background save raised."""
        with self._naming_a_full_disk():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the disk and lets go of the folder; raises what a background save raised."""
        try:
            self.wait()
        except BaseException:
            with contextlib.suppress(Exception):  # it would raise the same again
                self._manager.close()
            raise
        self._manager.close()

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        """Makes the OSError that it was of what TensorStore wraps into a ValueError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) or not any(sign in str(error) for sign in _DISK_IS_FULL):
                raise
            raise OSError(errno.ENOSPC, "No space left on device", str(self._manager.directory)) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as at_close:
            if error is None:
                raise
            error.add_note(f"closing the checkpoints failed too: {at_close}")


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
