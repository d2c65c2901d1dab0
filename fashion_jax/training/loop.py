"""The training loop: order only. What each part does stands in the part."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fashion_jax.system.errors import Interrupted, NotFiniteError
from fashion_jax.system.interrupt import StopRequest
from fashion_jax.training.ahead import CompileAhead
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.placement import put_batch
from fashion_jax.training.progress import ProgressLine
from fashion_jax.training.state import TrainState
from fashion_jax.training.step import Metrics, TrainStep
from fashion_jax.training.writers import MetricWriter

_LAG = 2  # steps by which the host may run ahead of the devices
_READ_EVERY_S = 1.0  # between two readings of metrics for the progress line


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps at which things happen; intervals in steps."""

    total: int  # optimiser steps of the run
    log: int  # training metrics are written
    evaluate: int  # the validation split is scored
    checkpoint: int  # the state is saved, besides after each evaluation and at the end
    patience: int = 0  # evaluations without a better metric after which the run ends; 0 for never


@dataclass(slots=True)
class EarlyStopping:
    """The best metric so far, and how long ago it was reached. Every checkpoint holds it."""

    metric: str  # the name of what `best` measures
    best: float | None = None  # the best value so far; None before the first evaluation
    evaluations_without_gain: int = 0  # the number of evaluations since then
    stopped: bool = False  # whether the run has ended because of them

    def record(self, value: float, *, lower_is_better: bool, patience: int) -> None:
        """Counts an evaluation; sets `stopped` when patience has run out. NaN and infinity are no gain."""
        better = self.best is None or (value < self.best if lower_is_better else value > self.best)
        gain = better and math.isfinite(value)
        self.best = value if gain else self.best
        self.evaluations_without_gain = 0 if gain else self.evaluations_without_gain + 1
        self.stopped = bool(patience) and self.evaluations_without_gain >= patience


@dataclass(frozen=True, slots=True)
class Training:
    """What the loop trains with."""

    schedule: Schedule  # what happens at which step
    mesh: Mesh  # of the state
    step_at: Callable[[int], TrainStep]  # step -> the function that computes it, from `make_train_step`
    later_functions: Callable[[int], list[TrainStep]]  # step -> the other functions, which compute later steps
    batches: Iterator[Mapping[str, np.ndarray]]  # this process's rows, beginning with the batch of the first step
    # adds photos that lie on the devices to a batch there
    add_photos: Callable[[dict[str, jax.Array]], dict[str, jax.Array]]
    # state -> scores of the validation split; None where it is empty
    evaluate: Callable[[TrainState], dict[str, float]] | None
    lower_is_better: bool  # whether the metric that chooses the best checkpoint is a loss
    learning_rate: Callable[[int], Any]  # step -> its learning rate, to be logged
    name_batch: Callable[[int], str]  # step -> a sentence that names its products, for errors


def run_loop(
    state: TrainState,
    early_stopping: EarlyStopping,
    training: Training,
    *,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    progress: ProgressLine,
    stop: StopRequest,
) -> TrainState:
    """Trains from `state.step` to the end of the schedule and returns the last state, which is saved.

    Args:
        state: donated; do not use it afterwards.
        early_stopping: of the checkpoint that the state comes from.

    Raises:
        NotFiniteError: the loss, the gradient or the new state is not finite; nothing was saved since.
        Interrupted: a signal came; the state is saved.
    """
    schedule, evaluate = training.schedule, training.evaluate
    pending: deque[tuple[int, Metrics]] = deque()
    since_log: list[dict[str, float]] = []
    last_read = time.monotonic()

    def settle(keep: int) -> None:
        """Reads the metrics of all but the last `keep` steps; a step that is not finite ends the run here."""
        nonlocal last_read
        last_read = time.monotonic()
        for one in list(pending)[: len(pending) - keep]:
            one[1].values.copy_to_host_async()
        while len(pending) > keep:
            step, on_device = pending.popleft()
            metrics = on_device.read()
            if not metrics.pop("finite"):
                raise NotFiniteError(
                    f"the loss, its gradient or the parameters are NaN or infinite at step {step} (loss "
                    f"{metrics['loss']}); {training.name_batch(step)}. Lower optimizer.learning_rate or set "
                    "optimizer.clip_norm=1, and use a new --workdir. Checkpoints of this run are from before this step"
                )
            since_log.append(metrics)
            progress.update(step, metrics["loss"])

    def save(metric: float | None) -> None:
        settle(0)  # before anything is written: a state that went through NaN must not replace a good one
        checkpoints.save(state, asdict(early_stopping), metric)

    step, ahead = int(state.step), None
    try:
        while step < schedule.total and not early_stopping.stopped:
            batch = training.add_photos(put_batch(dict(next(training.batches)), training.mesh))
            compute = training.step_at(step)
            if ahead:
                ahead.wait(compute)
            state, metrics = compute(state, batch)
            ahead = ahead or CompileAhead(training.later_functions(step), state, batch)
            step += 1
            pending.append((step - 1, metrics))
            if len(pending) > _LAG:
                pending[-1 - _LAG][1].values.block_until_ready()
            if time.monotonic() - last_read >= _READ_EVERY_S:
                settle(_LAG)

            last = step == schedule.total
            if step % schedule.log == 0 or last:
                settle(0)
                rate = {"train/learning_rate": float(training.learning_rate(step - 1))}
                writer.write_scalars(step, {**_mean(since_log), **rate, **progress.rates()})
                since_log.clear()

            metric = None
            if evaluate is not None and (step % schedule.evaluate == 0 or last):
                settle(0)
                with progress.paused():
                    scores = evaluate(state)
                metric = scores[early_stopping.metric]
                early_stopping.record(metric, lower_is_better=training.lower_is_better, patience=schedule.patience)
                writer.write_scalars(step, {f"validation/{name}": value for name, value in scores.items()})
            stopping = stop.reached(step)
            if metric is not None or last or stopping or step % schedule.checkpoint == 0:
                save(metric)
            if stopping:
                break
    finally:
        if ahead:
            ahead.cancel()
    checkpoints.wait()
    writer.flush()
    if stop.signal_number:  # whenever it came: what is left, if only scoring and packaging, is for another time
        raise Interrupted(step, stop.signal_number)
    return state


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {f"train/{name}": float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else {})}
