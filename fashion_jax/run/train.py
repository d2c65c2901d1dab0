"""A whole run in order of time: open the workdir, train, score the best checkpoint, write the model package.

WORKDIR/
  config.json       the resolved configuration
  trained_on.json   the records' fingerprint, and the ids of the training products
  records/          unless the source is prepared already
  pretrained/       the weights that the run began with, if any
  checkpoints/      the newest and the best
  metrics.jsonl     (tensorboard/)
  evaluation/test/  metrics.json, predictions.csv, decisions.md, confusion matrices, contact_sheet.png
  package/          what load_model reads
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import jax

from fashion_jax.config.fields import Config
from fashion_jax.config.files import checked_copy
from fashion_jax.data.catalog_report import format_understood
from fashion_jax.data.records import remedy
from fashion_jax.evaluation.evaluate import Evaluation
from fashion_jax.evaluation.tags import format_tag_scores
from fashion_jax.run.finish import Result, finish_run, fit_on_validation, format_scores, format_summaries, score_split
from fashion_jax.run.resolve import resolve
from fashion_jax.run.second_heads import fit_second_heads, restore_second_heads
from fashion_jax.run.session import Session
from fashion_jax.run.start import prepare_pretrained, warn_of_known_products
from fashion_jax.run.workdir import (
    check_workdir,
    claim_workdir,
    find_records,
    has_checkpoints,
    load_run_config,
    prepare_records,
    run_name,
)
from fashion_jax.system import files, stored
from fashion_jax.system.devices import first_process_does
from fashion_jax.system.errors import Interrupted, UserError
from fashion_jax.system.interrupt import stop_on_signals
from fashion_jax.system.progress import say
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.loop import EarlyStopping, Training, run_loop
from fashion_jax.training.progress import ProgressLine
from fashion_jax.training.state import TrainState
from fashion_jax.training.writers import MetricWriter

OnEvaluation = Callable[[int, int, Mapping[str, float]], None]  # step, last step, scores of the validation split

__all__ = ["Result", "evaluate", "format_scores", "train"]


def train(
    config: Config,
    workdir: str | Path,
    *,
    progress: bool = True,
    owns_process: bool = False,
    on_evaluation: OnEvaluation | None = None,
    finish: bool = True,
) -> Result:
    """Trains to the end, then scores the test split and writes the package.

    A workdir with checkpoints of the same configuration continues from the newest one; the result is the same as
    without the interruption.

    Args:
        config: what to train, on what, and how.
        workdir: folder of the run; made if absent.
        owns_process: for command lines. A second Ctrl-C ends the process instead of raising KeyboardInterrupt.
        on_evaluation: called after each evaluation with the step, the last step and the scores of the validation
            split. An exception from it ends the run, which can continue from its last checkpoint. One process only.
        finish: whether to score the test split and write the package.

    Raises:
        UserError: bad input, a loss that is not finite, or a workdir with another run.
        Interrupted: SIGTERM or Ctrl-C; the run is saved.
    """
    with _open(config, Path(workdir), progress=progress and jax.process_index() == 0) as session:
        if on_evaluation is not None and not len(session.prepared.indices("validation")):
            raise UserError(
                "trials are compared on the validation split, which is empty; give it a share in "
                "config.data.split_fractions"
            )
        run = first_process_does(
            "claiming the workdir", lambda: claim_workdir(session.workdir, session.config, session.prepared)
        )
        with _checkpoints(session, run) as checkpoints:
            _train(session, checkpoints, owns_process=owns_process, on_evaluation=on_evaluation)
            if finish:
                _keep_better_package(session, checkpoints)
            step, state = _best(session, checkpoints)
        return finish_run(session, state, step) if finish else Result(session.workdir, step)


def evaluate(workdir: str | Path, split: str = "test", *, progress: bool = True) -> Evaluation:
    """Scores the best checkpoint of a workdir on a split and writes `evaluation/<split>`.

    With `model.second_heads`, second heads come from the workdir's package. While the run goes on there is none of
    this checkpoint; then the second heads are fitted first, on the training photos.

    Args:
        workdir: of a run that has a checkpoint.
        split: "train", "validation" or "test".

    Raises:
        UserError: the workdir holds no such run, or the split is empty.
    """
    workdir = Path(workdir)
    config = load_run_config(workdir)
    prepared = find_records(config, workdir)
    check_workdir(workdir, config, prepared)
    if not has_checkpoints(workdir):
        raise UserError(f"{workdir} holds no checkpoint yet")
    session = Session(config, prepared, workdir, progress=progress)
    with _checkpoints(session, run_name(workdir), read_only=True) as checkpoints:
        _, state = _best(session, checkpoints)
    session, state = restore_second_heads(session, state) or fit_second_heads(session, state)
    result = score_split(session, state, split, fit_on_validation(session, state))
    if result is None:
        raise UserError(f"the split {split!r} holds no rows")
    return result


@contextlib.contextmanager
def _open(config: Config, workdir: Path, *, progress: bool) -> Iterator[Session]:
    """Locks the workdir, makes the records, and resolves the configuration."""
    given = checked_copy(config)
    with contextlib.ExitStack() as stack:

        def prepare() -> None:
            busy = f"another run is using {workdir}; wait for it or choose another workdir"
            stack.enter_context(files.hold_lock(workdir / ".lock", what=f"the workdir {workdir}", busy=busy))
            files.remove_stale(workdir / "package")
            prepare_records(given, workdir, progress=progress)
            prepare_pretrained(given, workdir, progress=progress)

        first_process_does("preparing the records", prepare)
        prepared = find_records(given, workdir)
        with stored.reading(prepared.folder / "manifest.json", remedy(prepared.folder)):
            say(format_understood(prepared.report), show=progress)
        resolved = resolve(given, prepared, workdir)
        session = Session(resolved, prepared, workdir, progress=progress)
        check_workdir(workdir, resolved, prepared)
        if progress:
            warn_of_known_products(prepared, workdir)
        yield session


def _train(
    session: Session, checkpoints: Checkpoints, *, owns_process: bool, on_evaluation: OnEvaluation | None
) -> None:
    """Trains from the newest checkpoint, or from the first state, to the end."""
    latest, schedule = checkpoints.latest_step, session.schedule()
    if latest is None:
        state, early_stopping = session.first_state(), EarlyStopping(session.config.train.best_metric)
    else:
        state, values = checkpoints.restore(latest, session.target)
        early_stopping = _early_stopping(session, values)
        say(f"resuming at step {latest}", show=session.progress)
    start = int(state.step)
    if start >= schedule.total or early_stopping.stopped:
        return
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals(owns_process=owns_process))
        # Several processes agree on a stop by step numbers, so the first number is given before anything slow.
        if stop.reached(start) and latest is not None:
            raise Interrupted(start, stop.signal_number)
        say(_describe(session, state), show=session.progress)
        if session.config.train.mix.active and not session.colours:
            say(
                "note: no attribute has 'colour' or 'color' in its name, so mixed photos (mixup, CutMix) train all "
                "attributes; name attributes of colour with --config.model.colour_heads=NAME",
                show=session.progress,
            )
        batches, add_photos = session.batches.training(start)
        if hasattr(batches, "close"):
            stack.callback(batches.close)
        line = ProgressLine(
            start=start,
            total=schedule.total,
            batch_size=session.config.train.photos,
            num_examples=session.num_examples,
            show=session.progress,
        )
        stack.callback(line.close)
        writer = stack.enter_context(
            MetricWriter(
                session.workdir,
                resume_step=start,
                tensorboard=session.config.runtime.tensorboard,
                is_first_process=jax.process_index() == 0,
            )
        )
        training = Training(
            schedule=schedule,
            mesh=session.mesh,
            step_at=session.train_step,
            later_functions=session.later_functions,
            batches=batches,
            add_photos=add_photos,
            evaluate=_validation(session, on_evaluation),
            lower_is_better=lower_is_better(session.config),
            learning_rate=session.learning_rate,
            name_batch=lambda step: _name_batch(session, step),
        )
        run_loop(state, early_stopping, training, checkpoints=checkpoints, writer=writer, progress=line, stop=stop)


def _validation(
    session: Session, on_evaluation: OnEvaluation | None
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns a function from a state to the scores of the validation split, which it shows; None for an empty one."""
    if not len(session.prepared.indices("validation")):
        return None
    score = session.evaluator("validation")

    def evaluate(state: TrainState) -> dict[str, float]:
        evaluation = score(state)
        step, scores = int(state.step), evaluation.scalars()
        title = f"validation after step {step:,} of {session.total_steps:,}: loss {scores['loss']:.4f}"
        tables = [format_summaries(evaluation.summaries), format_tag_scores(evaluation.tags)]
        say("\n".join([title, *filter(None, tables)]), show=session.progress)
        if on_evaluation is not None:
            on_evaluation(step, session.total_steps, scores)
        return scores

    return evaluate


def _early_stopping(session: Session, values: Mapping[str, Any]) -> EarlyStopping:
    """Returns what a checkpoint holds; UserError where somebody changed it."""
    checkpoints = session.workdir / "checkpoints"
    with stored.reading(checkpoints, "restore the folder from a backup, or train in a new --workdir"):
        early = EarlyStopping(**values)
        kinds = ((early.best, (float, int, NoneType)), (early.evaluations_without_gain, int), (early.stopped, bool))
        if early.metric != session.config.train.best_metric or not all(isinstance(*pair) for pair in kinds):
            raise ValueError("its values of early stopping are impossible")
    return early


def _checkpoints(session: Session, run: str, *, read_only: bool = False) -> Checkpoints:
    return Checkpoints(
        session.workdir / "checkpoints",
        metric=session.config.train.best_metric,
        lower_is_better=lower_is_better(session.config),
        run=run,
        read_only=read_only,
    )


def _best(session: Session, checkpoints: Checkpoints) -> tuple[int, TrainState]:
    best = checkpoints.best_step
    assert best is not None  # every run saves at its end
    return best, checkpoints.restore(best, session.target)[0]


def lower_is_better(config: Config) -> bool:
    """Returns whether the metric that chooses the best checkpoint is a loss."""
    return config.train.best_metric.rsplit("/", 1)[-1] == "loss"


def _keep_better_package(session: Session, checkpoints: Checkpoints) -> None:
    """Raises UserError where the best checkpoint is lost, so that a worse package would replace the present one."""
    lost = first_process_does("looking for the best checkpoint", lambda: checkpoints.lost_best)
    package = session.workdir / "package"
    if lost is not None and package.is_dir():
        raise UserError(
            f"the checkpoint of step {lost}, the best one of this run, is damaged or missing. {package} was made "
            f"before and stays as it is. To make a package of step {checkpoints.best_step} instead, move {package} "
            "away, and run the same command again"
        )


def _name_batch(session: Session, step: int) -> str:
    """Writes the ids of a step's batch to a file, and returns a part of a sentence that names the file."""
    ids = session.batches.training_ids(step)
    path = session.workdir / "non_finite_batch.json"
    if jax.process_index() == 0:
        files.write_json(path, {"step": step, "ids": ids})
    return f"its batch holds the products {', '.join(ids[:8])}, ... (all {len(ids)} are listed in {path})"


def _describe(session: Session, state: TrainState) -> str:
    devices, data = jax.devices(), session.config.data
    heads = ", ".join(f"{n} ({len(classes)})" for n, classes in [*session.vocabularies.items(), *session.tags.items()])
    parameters = sum(array.size for array in jax.tree.leaves(state.params))
    group = session.config.train.photos // session.config.train.accumulation_steps // session.norm_groups
    norm = f"over {group} photos on {max(1, session.mesh.size // session.norm_groups)} devices"
    return (
        f"model: {parameters:,} parameters, heads: {heads}\n"
        f"data: {session.num_examples:,} training photos of {data.height}x{data.width}, kept on: {session.storage}\n"
        f"training: {session.total_steps:,} steps of {session.config.train.photos} photos on {len(devices)} "
        f"{devices[0].platform} devices in {jax.process_count()} processes\n"
        f"batch norm: {'frozen' if session.config.optimizer.freeze_batch_norm else norm}"
    )
