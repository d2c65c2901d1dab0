"""A whole run: records, training, the test split's scores, and a model package, in one folder.

WORKDIR/
  config.json               as resolved
  trained_on.json           the records' fingerprint, and the ids of the training products
  records/                  unless the source is prepared already
  checkpoints/              newest and best
  metrics.jsonl             (tensorboard/)
  evaluation/test/          metrics.json, predictions.csv, trust.md, confusion matrices, contact_sheet.png
  package/                  what load_model reads
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from clu import parameter_overview

from fashion_jax.config.fields import Config
from fashion_jax.config.files import checked_copy
from fashion_jax.evaluation.evaluate import Evaluation
from fashion_jax.run.checks import check_training
from fashion_jax.run.finish import fit_trust, format_scores, score_split
from fashion_jax.run.resolve import refuse_without_effect, resolve
from fashion_jax.run.run_package import write_run_package
from fashion_jax.run.second_heads import fit_second_heads, restore_second_heads
from fashion_jax.run.session import Session
from fashion_jax.run.start import adopt_pretrained, first_state, prepare_pretrained, warn_of_known_products
from fashion_jax.run.workdir import (
    check_workdir,
    claim_workdir,
    find_records,
    has_checkpoints,
    keep_dtype,
    load_run_config,
    lock_workdir,
    prepare_records,
)
from fashion_jax.system import files
from fashion_jax.system.devices import first_process_does
from fashion_jax.system.errors import UserError
from fashion_jax.system.interrupt import Interrupted, StopRequest, stop_on_signals
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.loop import Facts, Schedule, run_loop
from fashion_jax.training.progress import ProgressLine
from fashion_jax.training.state import TrainState
from fashion_jax.training.writers import open_writer

OnEvaluation = Callable[[int, int, Mapping[str, float]], None]  # step, the last one, scores of the validation split

__all__ = ["Result", "evaluate", "format_scores", "train"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run left.

    Attributes:
        workdir: the folder.
        package: the model package in it; not written where the run was not to be finished.
        best_step: of the checkpoint that was scored and packaged.
        test: scores of the test split; None where it is empty, or was not asked for.
    """

    workdir: Path
    package: Path
    best_step: int
    test: Evaluation | None


def train(
    config: Config,
    workdir: str | Path,
    *,
    progress: bool = True,
    owns_process: bool = False,
    on_evaluation: OnEvaluation | None = None,
    finish: bool = True,
) -> Result:
    """Trains to the end, or goes on where an earlier run of the same workdir stopped; then scores and packages.

    Args:
        config: checked here.
        workdir: made if absent.
        progress: whether to show what is going on, on standard error.
        owns_process: for command lines: a second Ctrl-C ends the process instead of raising KeyboardInterrupt.
        on_evaluation: called with the step, the step at which the run ends and the validation split's scores; what it
            raises ends the run, which goes on from its last checkpoint. One process only.
        finish: whether to score the test split and write the package.

    Raises:
        UserError: bad input, a non-finite loss, or a workdir of another run.
        Interrupted: SIGTERM or Ctrl-C; the run is saved.
    """
    config, workdir = checked_copy(config), Path(workdir)
    progress = progress and jax.process_index() == 0

    with contextlib.ExitStack() as stack:

        def open_workdir() -> None:
            stack.enter_context(lock_workdir(workdir))
            files.remove_stale(workdir / "package")
            prepare_records(config, workdir, progress=progress)
            prepare_pretrained(config, workdir, progress=progress)

        first_process_does("preparing the records", open_workdir)
        prepared = find_records(config, workdir)
        config = resolve(keep_dtype(adopt_pretrained(config, workdir), workdir), prepared)
        if not has_checkpoints(workdir):
            refuse_without_effect(config)
        session = Session(config, prepared, workdir, progress=progress)
        check_training(session, compared=on_evaluation is not None)
        check_workdir(workdir, config, prepared)
        if progress:
            warn_of_known_products(prepared, workdir)
        with _open_checkpoints(session) as checkpoints:
            _train(session, checkpoints, owns_process=owns_process, on_evaluation=on_evaluation)
            best = checkpoints.best_step
            assert best is not None
            if not finish:
                return Result(workdir, workdir / "package", best, None)
            state, _ = checkpoints.restore(best, session.target)
        session, state = restore_second_heads(session, state) or fit_second_heads(session, state)
        trust = fit_trust(session, state)
        test = score_split(session, state, "test", trust)
        package = workdir / "package"
        if jax.process_index() == 0:
            write_run_package(session, state, package, best, test, trust)
        return Result(workdir, package, best, test)


def evaluate(workdir: str | Path, split: str = "test", *, progress: bool = True) -> Evaluation:
    """Scores the best checkpoint of a workdir on a split and writes `evaluation/<split>`.

    With `model.second_heads`, second heads are those of the workdir's package; where it has none of this very
    checkpoint, as while a run goes on, they are fitted first, on the training photos.

    Raises:
        UserError: the workdir holds no finished or started run, or the split is empty.
    """
    workdir = Path(workdir)
    config = load_run_config(workdir)
    prepared = find_records(config, workdir)
    check_workdir(workdir, config, prepared)
    session = Session(config, prepared, workdir, progress=progress)
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet")
    with _open_checkpoints(session, read_only=True) as checkpoints:
        best = checkpoints.best_step
        assert best is not None
        state, _ = checkpoints.restore(best, session.target)
    session, state = restore_second_heads(session, state) or fit_second_heads(session, state)
    result = score_split(session, state, split, fit_trust(session, state))
    if result is None:
        raise UserError(f"the split {split!r} holds no rows")
    return result


def _train(
    session: Session,
    checkpoints: Checkpoints,
    *,
    owns_process: bool,
    on_evaluation: OnEvaluation | None,
) -> None:
    config, first = session.config, jax.process_index() == 0
    latest = checkpoints.latest_step
    if latest is None:
        state = first_state(session)
        facts = Facts(config.train.best_metric)
    else:
        state, values = checkpoints.restore(latest, session.target)
        facts = Facts(**values)
        _say(session, f"resuming at step {latest}")
    if first:
        claim_workdir(session.workdir, config, session.prepared)
    start, schedule = int(state.step), session.schedule()
    if start >= schedule.total or facts.stopped_early:
        return
    with stop_on_signals(owns_process=owns_process) as stop:
        # With several processes a stop is agreed on by step numbers, so the first is told before anything slow.
        if stop.reached(start) and latest is not None:
            raise Interrupted(start, stop.signal_number)
        _run(session, checkpoints, state, facts, schedule, stop, on_evaluation)


def _run(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    facts: Facts,
    schedule: Schedule,
    stop: StopRequest,
    on_evaluation: OnEvaluation | None,
) -> None:
    config, start = session.config, int(state.step)
    _say(session, _describe(session, state))
    score = session.evaluator("validation") if len(session.prepared.indices("validation")) else None

    def evaluate(state: TrainState) -> dict[str, float]:
        assert score is not None
        scores = score(state).scalars()
        if on_evaluation is not None:
            on_evaluation(int(state.step), schedule.total, scores)
        return scores

    batches, complete = session.training_batches(start)
    line = ProgressLine(
        start=start,
        total=schedule.total,
        batch_size=config.train.batch_size,
        num_examples=session.num_examples,
        show=session.progress,
    )
    try:
        with open_writer(
            session.workdir,
            resume_step=start,
            tensorboard=config.runtime.tensorboard,
            is_first_process=jax.process_index() == 0,
        ) as writer:
            run_loop(
                state,
                facts,
                session.train_step,
                batches,
                schedule=schedule,
                mesh=session.mesh,
                checkpoints=checkpoints,
                writer=writer,
                progress=line,
                stop=stop,
                evaluate=None if score is None else evaluate,
                lower_is_better=lower_is_better(config),
                learning_rate=session.learning_rate,
                name_batch=lambda step: _name_batch(session, step),
                prepare_batch=complete,
            )
    finally:
        line.close()
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _open_checkpoints(session: Session, *, read_only: bool = False) -> Checkpoints:
    return Checkpoints(
        session.workdir / "checkpoints",
        metric=session.config.train.best_metric,
        lower_is_better=lower_is_better(session.config),
        read_only=read_only,
    )


def lower_is_better(config: Config) -> bool:
    """Returns whether the validation metric that chooses the best checkpoint is a loss."""
    return config.train.best_metric.rsplit("/", 1)[-1] == "loss"


def _name_batch(session: Session, step: int) -> str:
    ids = session.batch_ids(step)
    record = session.workdir / "non_finite_batch.json"
    if jax.process_index() == 0:
        files.write_json(record, {"step": step, "ids": ids})
    return f"its batch holds the products {', '.join(ids[:8])}, ... ({len(ids)}, listed in {record})"


def _describe(session: Session, state: TrainState) -> str:
    devices, data = jax.devices(), session.config.data
    heads = ", ".join(f"{name} ({len(classes)})" for name, classes in session.vocabularies.items())
    return (
        f"{parameter_overview.get_parameter_overview(state.params, include_stats=False)}\n"
        f"{session.num_examples:,} photos of {data.height}x{data.width} (kept on: {session.storage}), heads: {heads}\n"
        f"{len(devices)} {devices[0].platform} devices in {jax.process_count()} processes, "
        f"{session.total_steps:,} steps of {session.config.train.batch_size} photos"
    )


def _say(session: Session, text: str) -> None:
    if session.progress:
        print(text, file=sys.stderr, flush=True)
