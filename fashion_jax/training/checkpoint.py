"""Checkpoints: the newest and the best states of a run, with digests that are checked before a state is restored.

FOLDER/step_STEP/
  checkpoint.json   step, run, metrics, what early stopping counts, and the digests of Orbax's files
  ...               Orbax's files
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fashion_jax.system import stored
from fashion_jax.system.devices import first_process_does
from fashion_jax.system.errors import UnreadableError, UserError
from fashion_jax.system.progress import say
from fashion_jax.training.state import TrainState

NUM_NEWEST = 2
_DOCUMENT = "checkpoint.json"
# Orbax writes the last two after the document; nothing that is restored comes from them.
_NOT_LISTED = (_DOCUMENT, "_CHECKPOINT_METADATA", "commit_success.txt")
_NOT_USED, _REMOVED_LATER = "this checkpoint is not used", "this checkpoint is not used; the next save removes it"
# What a kill left: states that were written in part, and states that were removed in part.
_HALF, _REMOVED = ".orbax-checkpoint-tmp", ".removed"
# Orbax cuts replicated arrays into a slice per device, to write them in parallel; of the many small ones of a network
# on eight devices that takes a hundred times longer than writing them.
_LEAST_SLICE = 16 << 20  # bytes
_IN_BACKGROUND = ("async_checkpointer", "future")  # modules of Orbax
_OF_TENSORSTORE = ("OCDBT", "TensorStore")  # in the text of errors of arrays that cannot be read
_OF_THE_SYSTEM = re.compile(r"os_error_code='(\d+)'")  # in the text of TensorStore's errors


class Checkpoints:
    """Saves and restores a run's state, and what early stopping counts.

    Saves run in the background; an error in one surfaces at the next save or at `close`. A save that was cut short by
    a kill leaves no step behind: a step appears by a rename, with its digests. Damaged steps are not used. They are
    removed when the next state has been written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        metric: str = "metric",
        lower_is_better: bool = False,
        run: str = "",
        read_only: bool = False,
    ) -> None:
        """Opens `folder`, made if absent, and checks every step; every process takes part.

        Warnings on standard error name the damaged steps, and the step that is used instead.

        Args:
            folder: of this run alone.
            metric: the name of what is given to `save`; a checkpoint with another metric is never the best.
            lower_is_better: whether it is a loss.
            run: names the run; a checkpoint of another run counts as damaged.
            read_only: leaves the folder, which a run may be writing, as it is. Otherwise what a kill left
                half-written is removed.

        Raises:
            UserError: the folder cannot be made, all steps in it are damaged, or one cannot be read.
        """
        self._folder, self._metric, self._run, self._read_only = folder.resolve(), metric, run, read_only
        self._sign = -1.0 if lower_is_better else 1.0
        self._saving: dict[str, Any] = {}  # the document of the newest save
        self._best_ever: dict[int, float | None] = {}  # the best step and its metric, lost or not
        try:
            if not read_only:
                self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"checkpoints cannot be kept in {folder}: {error.strerror or error}") from error
        found = first_process_does("checking the checkpoints", self._check_all)
        self._metrics: dict[int, float | None] = {step: metric for step, metric, _ in found}
        self._checked = {step: early_stopping for step, _, early_stopping in found}
        self._checkpointer = ocp.AsyncCheckpointer(
            _state_handler(), async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        )

    @property
    def latest_step(self) -> int | None:
        """The newest undamaged checkpoint's step; None if there is none."""
        return max(self._metrics, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the undamaged checkpoint with the best metric; the newest where none has a metric."""
        return self._best(self._metrics)

    @property
    def lost_best(self) -> int | None:
        """The step of the best checkpoint ever, if it is lost and none since is as good; known to the first process."""
        best = self._best({**self._best_ever, **self._metrics})
        return None if best in self._metrics else best

    def save(self, state: TrainState, early_stopping: dict[str, Any], metric: float | None) -> None:
        """Saves in the background; a step that is there already is left alone.

        Args:
            state: at `state.step`.
            early_stopping: JSON values.
            metric: of this state's evaluation; None when it was not evaluated.
        """
        step = int(state.step)
        if step in self._metrics:
            return
        with self._writing():
            self._checkpointer.wait_until_finished()  # it reads what follows
        self._checked.clear()
        self._metrics[step] = metric if metric is not None and math.isfinite(metric) else None
        known = self._metrics | self._best_ever
        best = self._best(known)
        assert best is not None
        self._best_ever = {best: known[best]}
        self._saving = {
            "step": step,
            "run": self._run,
            "metrics": {} if self._metrics[step] is None else {self._metric: self._metrics[step]},
            "best": [best, known[best]],
            "early_stopping": early_stopping,
        }
        with self._writing():
            # A damaged step of this number is replaced.
            self._checkpointer.save(self._path(step), args=ocp.args.PyTreeSave(state), force=True)

    def restore(self, step: int, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state at `step`, on the devices that `target` names, and the JSON values.

        Args:
            target: ShapeDtypeStructs with shardings, of any topology.

        Raises:
            UserError: the checkpoint is damaged or of another model.
        """
        path = self._path(step)
        if step in self._checked:
            early_stopping = self._checked[step]
        else:
            again = "run the command again; it uses an undamaged checkpoint"
            early_stopping = first_process_does(
                f"checking {path}", lambda: check_step(path, self._run, remedy=again)["early_stopping"]
            )
        places = ocp.checkpoint_utils.construct_restore_args(target)
        changed = "if you changed the settings of the model, use the old ones; otherwise train in a new --workdir"
        with stored.reading(path, changed):
            state = self._checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=target, restore_args=places))
        return state, early_stopping

    def wait(self) -> None:
        """Returns when all that was saved is on the disk; raises what a background save raised."""
        with self._writing():
            self._checkpointer.wait_until_finished()
            if not self._read_only and jax.process_index() == 0:
                self._prune()
        self._saving = {}

    def close(self) -> None:
        """Waits for the disk and lets go of the folder; raises what a background save raised."""
        try:
            self.wait()
        except BaseException:
            with contextlib.suppress(Exception):  # it would raise the same again
                self._checkpointer.close()
            raise
        self._checkpointer.close()

    def _check_all(self) -> list[tuple[int, float | None, dict[str, Any]]]:
        """Returns step, metric, and what early stopping counts of every undamaged step; warns of the others."""
        if not self._read_only:
            for path in self._folder.glob("step_*"):
                if path.name.endswith(_REMOVED) or _HALF in path.name:
                    shutil.rmtree(path, ignore_errors=True)
        while True:
            steps = sorted(find_steps(self._folder))
            with ThreadPoolExecutor() as threads:
                found = dict(zip(steps, threads.map(self._check_one, steps), strict=True))
            if set(steps) <= set(find_steps(self._folder)):
                break  # else the run that goes on removed an old step meanwhile
        whole = {step: document for step, document in found.items() if isinstance(document, dict)}
        damaged = {step: error for step, error in found.items() if isinstance(error, UserError)}
        if damaged and not whole:
            package, newest = self._folder.parent / "package", damaged[max(damaged)]
            raise UserError(
                f"all checkpoints in {self._folder} are damaged. Restore {self._folder} from a backup, or train in "
                f"a new --workdir. {package}, if it is there, still works. The newest checkpoint: {newest}"
            )
        metrics = {step: document["metrics"].get(self._metric) for step, document in whole.items()}
        for error in damaged.values():
            say(f"warning: {error}")
        if whole:
            latest, best = max(whole), self._best(metrics)
            step, metric = whole[latest]["best"]
            self._best_ever = {step: metric}
            # Where the newest step is damaged, an older best one may have been removed for it.
            lost = step not in whole and (step in damaged or not damaged or max(damaged) < latest)
            if damaged and not self._read_only:
                say(f"warning: the run goes on from the checkpoint of step {latest}")
            if lost:
                say(f"warning: the checkpoint of step {step}, the best one until step {latest}, is damaged or missing")
            if lost or (damaged and self._read_only):
                say(f"warning: the best undamaged checkpoint is that of step {best}")
        return [(step, metrics[step], document["early_stopping"]) for step, document in whole.items()]

    def _check_one(self, step: int) -> dict[str, Any] | UserError:
        try:
            return check_step(self._path(step), self._run, remedy=_NOT_USED if self._read_only else _REMOVED_LATER)
        except UnreadableError:
            raise  # the step may be undamaged, and the next save would remove it
        except UserError as error:
            return error

    def _best(self, metrics: dict[int, float | None]) -> int | None:
        known = [(self._sign * metric, step) for step, metric in metrics.items() if metric is not None]
        return max(known)[1] if known else max(metrics, default=None)

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def _seal(self) -> None:
        """Writes the document of a step whose files are written, before Orbax renames its folder.

        Orbax calls it in the background, on the first process.
        """
        aside = self._folder / f"{self._path(self._saving['step']).name}{_HALF}"
        listing = stored.list_files(aside, besides=_NOT_LISTED)
        assert listing, f"Orbax has written nothing into {aside}"  # another version may name its folder otherwise
        stored.write_document(aside / _DOCUMENT, {**self._saving, "files": listing})
        self._prune(not_there_yet=self._saving["step"])

    def _prune(self, not_there_yet: int | None = None) -> None:
        """Removes all steps but the newest ones and the best one."""
        there = {step: metric for step, metric in self._metrics.items() if step != not_there_yet}
        kept = {*sorted(self._metrics)[-NUM_NEWEST:], self.best_step, self._best(there)}
        for step, path in find_steps(self._folder).items():
            if step not in kept:
                # A step goes as a whole, as it came. One that cannot be removed must not stop the new one.
                with contextlib.suppress(OSError):
                    shutil.rmtree(path.rename(path.with_name(path.name + _REMOVED)), ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Forgets the newest save where it fails, and finds the OSError in the text of TensorStore's error."""
        try:
            with stored.writing(self._folder):
                yield
        except BaseException as error:
            self._metrics.pop(self._saving.get("step", -1), None)
            if code := _OF_THE_SYSTEM.search(str(error)):
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(self._folder)) from error
            raise

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


def find_steps(folder: Path) -> dict[int, Path]:
    """Returns the folder of every step that was saved, damaged or not."""
    names = {path: re.fullmatch(r"step_(0|[1-9]\d{0,17})", path.name) for path in folder.glob("step_*")}
    return {int(match[1]): path for path, match in names.items() if match}


def check_step(path: Path, run: str, *, remedy: str) -> dict[str, Any]:
    """Returns the document of a step whose files are all as they were saved; UserError otherwise.

    Args:
        path: of the step's folder.
        run: the name of the run that it must belong to.
        remedy: what a user can do about a damaged step, as the end of a sentence.
    """
    document = stored.read_document(path / _DOCUMENT, remedy=remedy)
    if path.name != f"step_{document.get('step')}" or document.get("run") != run:
        raise UserError(f"{path} is the checkpoint of another run or step; {remedy}")
    with stored.reading(path / _DOCUMENT, remedy):
        best, metric = document["best"]
        numbers = [*document["metrics"].values(), *([] if metric is None else [metric])]
        if type(best) is not int or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise TypeError("a step or a metric is no number")
        if not isinstance(document["early_stopping"], dict):
            raise TypeError("early_stopping is no JSON object")
    stored.check_files(path, document.get("files"), remedy=remedy)
    return document


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _tell_errors_once() -> None:
    """Keeps Orbax and TensorStore from printing the tracebacks of errors that our calls raise anyway.

    An error in the background is raised at the next call. Where several arrays cannot be read, the first error is.
    """
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and record.module in _IN_BACKGROUND))
    logging.getLogger("asyncio").addFilter(lambda record: not _is_of_an_unread_array(record))
    hook = sys.unraisablehook

    def without_late_writes(unraisable: Any) -> None:
        # A thread of TensorStore has finished a write after another one failed, and nobody waits for it any more.
        trace, error = unraisable.exc_traceback, unraisable.exc_value
        outermost = trace.tb_frame.f_code.co_name if trace else ""
        if not (outermost == "call_soon_threadsafe" and str(error) == "Event loop is closed"):
            hook(unraisable)

    sys.unraisablehook = without_late_writes


def _is_of_an_unread_array(record: logging.LogRecord) -> bool:
    """True for what asyncio logs when it forgets a task that failed, or cancels it at its end."""
    error = record.exc_info[1] if record.exc_info else None
    return any(name in str(error) for name in _OF_TENSORSTORE)


_tell_errors_once()
