"""Searches fields of a configuration for the best validation score, with Optuna.

Poor trials are pruned: they end before their last step. A search that was stopped goes on with the same command.

FOLDER/
  space.json        the configuration and the space that the search began with
  study.jsonl       Optuna's journal
  study.json        the journal's size and digest after the newest trial had begun or ended
  records/          the catalogue's records, shared by all trials
  trials/<digest>/  the workdir of the trial with these values; trials that draw the same values share it
  trials.csv        every trial: its values, its score, its workdir, and why it failed if it did
  trials.png        the scores over each field's values
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config
from fashion_jax.config.values import share_of
from fashion_jax.data.records import is_prepared
from fashion_jax.run.train import lower_is_better, train
from fashion_jax.run.workdir import has_checkpoints, make_records
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError, missing_extra
from fashion_jax.system.pictures import RIGHT, UNKNOWN, render_png, shorten
from fashion_jax.system.progress import say
from fashion_jax.system.text import format_table
from fashion_jax.training.writers import is_whole, read_scalars

if TYPE_CHECKING:
    import optuna

_JOURNAL, _SEAL = "study.jsonl", "study.json"
_REMEDY = "restore the folder from a backup, or choose another folder"
_SEED = 0  # of Optuna's sampler
_TRIALS_BEFORE_PRUNING = 5
_MOST_FAILURES = 3  # in a row; after that the cause is probably something that all trials share
_PARTS = 1000  # in which a schedule is divided, so that evaluations of different batch sizes can be compared
_PANELS_PER_ROW = 4
_LONGEST_VALUE, _LONGEST_NAME = 14, 34  # characters in the picture

_NOT_SEARCHED = {
    "runtime.": "it is set before the first trial begins, for all trials",
    "decision.": "it acts after training, and trials are compared during training",
    "embedding.": "it acts after training, and trials are compared during training",
    "model.second_heads": "it acts after training, and trials are compared during training",
    "train.best_metric": "it changes what the score of a trial measures",
    "data.attributes": "it changes what the score of a trial measures",
    **dict.fromkeys(
        (
            "data.source", "data.schema", "data.corrections", "data.max_side",
            "data.max_bad_fraction", "data.split",
        ),
        "it changes the records, and all trials are compared on the same records",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; only integers where `low`, `high` and `step` are integers."""

    low: float  # the smallest number
    high: float  # the largest number
    log: bool = False  # whether logarithms are drawn evenly
    step: float | None = None  # between neighbouring numbers; None for any number, or 1 for integers

    @property
    def of_integers(self) -> bool:
        """Whether only integers are drawn."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


Space = dict[str, Range | tuple[str, ...]]


def read_space(path: str | Path) -> Space:
    """Reads which fields are searched.

    Args:
        path: a JSON object: field of the configuration -> a list of values, or {"low": ..., "high": ..., "log": true,
            "step": ...}, such as {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": true}}.

    Raises:
        UserError: the file cannot be read, or an entry is neither a list nor a range.
    """
    given, space = files.read_json_object(Path(path)), Space()
    if not given:
        raise UserError(f"{path} names no setting to try")
    for name, entry in given.items():
        if isinstance(entry, list) and entry and all(isinstance(value, (str, int, float)) for value in entry):
            space[name] = tuple(_text(value) for value in entry)
            continue
        if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= {"low", "high", "log", "step"}:
            raise UserError(f'{path}: {name!r} needs a list of values, or {{"low": ..., "high": ...}}, not {entry!r}')
        numbers = [entry[key] for key in ("low", "high", "step") if key in entry]
        if any(type(value) not in (int, float) for value in numbers) or not isinstance(entry.get("log", False), bool):
            raise UserError(f"{path}: {name!r} needs numbers as low, high and step, and log as true or false")
        found = Range(**entry)
        if not found.low < found.high or (found.step is not None and (found.step <= 0 or found.log)):
            raise UserError(f"{path}: {name!r} needs low < high, and a step above 0 (no step with log), not {entry!r}")
        if found.log and found.low <= 0:
            raise UserError(f"{path}: {name!r} needs low above 0 for log, not {found.low!r}")
        space[name] = found
    return space


def sweep(
    config: str | Path,
    space: str | Path,
    folder: str | Path,
    *,
    num_trials: int,
    overrides: Mapping[str, str] | None = None,
    progress: bool = True,
    owns_process: bool = False,
) -> list[dict[str, Any]]:
    """Searches until `num_trials` trials are finished, pruned or failed; trials of earlier calls count.

    A trial trains until the end of its schedule, or until its validation metric (`train.best_metric`) is worse than
    the median of the earlier trials at the same part of their schedule (Golovin et al., KDD 2017, as in Optuna). A
    tree-structured Parzen estimator draws the values (Bergstra et al., NeurIPS 2011). A trial that cannot be trained is
    noted with the reason, for example a learning rate at which the loss becomes NaN. The test split is never scored.

    Args:
        config: a configuration file, as `load_config` takes it.
        space: a JSON file, as `read_space` takes it.
        folder: of the search; the same folder continues the search.
        overrides: dotted key -> text, for every trial.
        owns_process: as in `run.train.train`.

    Returns:
        The trials, the best first, as in trials.csv.

    Raises:
        UserError: Optuna is not installed, the configuration has no such field or refuses a value, the folder belongs
            to another search or another process uses it, or three trials in a row failed.
        Interrupted: a signal came; the trial is saved, and the next call continues it.
    """
    folder, wanted, given = Path(folder), read_space(space), dict(overrides or {})
    if num_trials < 1:
        raise UserError(f"the number of trials must be at least 1, not {num_trials}")
    base = load_config(config, given)
    _check_space(config, given, wanted)
    busy = f"another sweep is using {folder}; wait for it or choose another folder"
    with files.hold_lock(folder / ".lock", what=f"the folder {folder}", busy=busy):
        _claim(folder, base, files.read_json_object(Path(space)))
        study = _open_study(folder, wanted, lower_is_better(base))
        if not is_prepared(Path(base.data.source)):
            make_records(base, folder / "records", progress=progress)
            given |= {"data.source": str(folder / "records"), "data.corrections": ""}
        failures = 0
        while len(_ended(study)) < num_trials:
            trial = study.ask()
            values = {name: _draw(trial, name, entry) for name, entry in wanted.items()}
            _seal_journal(folder)
            shown = ", ".join(f"{name}={value}" for name, value in values.items())
            say(f"trial {len(_ended(study)) + 1} of {num_trials}: {shown}", show=progress)
            workdir = folder / "trials" / files.digest(dict(sorted(values.items())))[:12]
            trial.set_user_attr("workdir", str(workdir))
            try:
                _run(study, trial, load_config(config, {**given, **values}), workdir, progress, owns_process)
                failures = 0
            except (UserError, jax.errors.JaxRuntimeError) as error:
                # JAX's own errors are mostly a lack of memory, which another trial may not need; they have many lines.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                trial.set_user_attr("reason", reason)
                study.tell(trial, state=_states().FAIL)
                failures += 1
                say(f"this trial failed: {reason}", show=progress)
            _seal_journal(folder)
            _write_trials(study, wanted, folder, base)
            if failures == _MOST_FAILURES:
                raise UserError(f"{failures} trials in a row failed; the last one: {reason}")
        return _write_trials(study, wanted, folder, base)


def check_study(folder: Path) -> None:
    """Checks what a search has stored, without its records and trials.

    Raises:
        UserError: a file is damaged or missing.
    """
    for name in ("space.json", _SEAL):
        stored.read_document(folder / name, remedy=_REMEDY)
    _check_journal(folder)


def format_trials(trials: Sequence[Mapping[str, Any]], most: int = 10) -> str:
    """Returns a table of the best trials."""
    known = ("trial", "state", "score", "workdir", "reason")
    names = [name for name in trials[0] if name not in known] if trials else []
    rows = [["state", "score", *names]]
    for trial in trials[:most]:
        score = "-" if trial["score"] is None else f"{trial['score']:.4f}"
        rows.append([trial["state"], score, *(str(trial[name]) for name in names)])
    return format_table(*rows)


def _check_space(config: str | Path, overrides: Mapping[str, str], space: Space) -> None:
    """Tries every listed value and the ends of every range, so that mistakes are found before the first trial."""
    for name, entry in space.items():
        for prefix, reason in _NOT_SEARCHED.items():
            if name.startswith(prefix):
                raise UserError(f"{name!r} cannot be tried: {reason}")
        for value in entry if isinstance(entry, tuple) else (_text(entry.low), _text(entry.high)):
            load_config(config, {**overrides, name: value})


def _claim(folder: Path, config: Config, space: Mapping[str, Any]) -> None:
    """Writes what is searched, or checks that the folder's search began with the same."""
    settings = {name: part for name, part in config.to_dict().items() if name != "runtime"}
    described = {"config": settings, "space": space}
    path = folder / "space.json"
    if not path.exists() and not (folder / _JOURNAL).exists():
        stored.write_document(path, described)
    elif stored.read_document(path, remedy=_REMEDY) != json.loads(json.dumps(described)):
        raise UserError(f"{folder} belongs to a sweep of another configuration or space; choose another folder")


def _open_study(folder: Path, space: Space, minimize: bool) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise missing_extra("a sweep", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if (sealed := _check_journal(folder)) is not None:
        # What follows was written by a trial that did not end, perhaps in part. The trial writes it again.
        os.truncate(folder / _JOURNAL, sealed)
    with stored.reading(folder / _JOURNAL, _REMEDY):
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / _JOURNAL))),
            study_name="fashion-jax",
            load_if_exists=True,
            direction="minimize" if minimize else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING),
        )
        if study.get_trials(deepcopy=False) and not (folder / _SEAL).exists():
            raise UserError(f"{folder / _SEAL} is missing; {_REMEDY}")
        for trial in _ended(study):
            _check_trial(trial, space)
    # With the seed that it began with, a search that goes on would draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=_SEED + len(study.get_trials(deepcopy=False)))
    for trial in study.get_trials(deepcopy=False, states=(_states().RUNNING,)):  # a stopped search left them
        study.tell(trial.number, state=_states().FAIL)
        study.enqueue_trial(trial.params)
    return study


def _check_trial(trial: optuna.trial.FrozenTrial, space: Space) -> None:
    """Raises whatever comes up where no sweep of this space wrote an ended trial."""
    if not isinstance(trial.user_attrs["workdir"], str):
        raise TypeError(f"the workdir of trial {trial.number} is no text")
    for name, entry in space.items():
        value = trial.params[name]
        if not (value in entry if isinstance(entry, tuple) else entry.low <= value <= entry.high):
            raise ValueError(f"trial {trial.number} has a value outside of the space: {name}={value!r}")


def _seal_journal(folder: Path) -> None:
    journal = (folder / _JOURNAL).read_bytes()
    stored.write_document(folder / _SEAL, {"bytes": len(journal), "digest": files.digest(journal)})


def _check_journal(folder: Path) -> int | None:
    """Checks the part of Optuna's journal that was sealed, and returns its size in bytes; None where none was."""
    path = folder / _JOURNAL
    if not (folder / _SEAL).exists():
        return None
    known = stored.read_document(folder / _SEAL, remedy=_REMEDY)
    with stored.reading(path, _REMEDY):
        sealed = path.read_bytes()[: known["bytes"]]
        if files.digest(sealed) != known["digest"] or len(sealed) != known["bytes"] or not sealed.endswith(b"\n"):
            raise ValueError(stored.CHANGED)
        return int(known["bytes"])


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials that are not to be run again: complete, pruned, or failed for a reason of their own."""
    ended = study.get_trials(deepcopy=False, states=(_states().COMPLETE, _states().PRUNED, _states().FAIL))
    return [trial for trial in ended if trial.state != _states().FAIL or "reason" in trial.user_attrs]


def _draw(trial: optuna.Trial, name: str, entry: Range | tuple[str, ...]) -> str:
    if isinstance(entry, tuple):
        return str(trial.suggest_categorical(name, entry))
    if entry.of_integers:
        low, high, step = int(entry.low), int(entry.high), int(entry.step or 1)
        return str(trial.suggest_int(name, low, high, log=entry.log, step=step))
    return repr(trial.suggest_float(name, entry.low, entry.high, log=entry.log, step=entry.step))


def _run(
    study: optuna.Study, trial: optuna.Trial, config: Config, workdir: Path, progress: bool, owns_process: bool
) -> None:
    from optuna import TrialPruned

    name = config.train.best_metric
    journal = workdir / "metrics.jsonl"
    if has_checkpoints(workdir) and not is_whole(journal):
        kept = _free_name(workdir.with_name(f"{workdir.name}.damaged"))
        workdir.rename(kept)
        say(
            f"warning: {journal} is damaged or missing. The trial starts again from step 0; its old files are in {kept}"
        )
    earlier = read_scalars(journal, f"validation/{name}")  # of the part before it was stopped
    every = share_of(config.train.evaluate_every, config.train.duration)
    metrics, reported = list[float](), set[int]()

    def report(step: int, total: int, metric: float) -> None:
        metrics.append(metric)
        part = _part(step, total, every)
        if part not in reported:
            reported.add(part)
            trial.report(metric, part)

    def on_evaluation(step: int, total: int, scores: Mapping[str, float]) -> None:
        while earlier:
            before, metric = earlier.pop(0)
            report(before, total, metric)
        report(step, total, scores[name])
        # At the last step nothing can be saved by pruning; the trial is complete.
        if _part(step, total, every) < _PARTS and trial.should_prune():
            raise TrialPruned

    try:
        train(config, workdir, progress=progress, owns_process=owns_process, on_evaluation=on_evaluation, finish=False)
    except TrialPruned:
        study.tell(trial, state=_states().PRUNED)
        return
    for step, metric in earlier:  # the run had come to its end before
        report(step, earlier[-1][0], metric)
    if not metrics:
        raise UserError(f"{workdir} holds a finished run without validation scores; move it away")
    study.tell(trial, _best(metrics, lower_is_better(config)))


def _free_name(path: Path) -> Path:
    """Returns `path` with the first number behind it that makes it free; none where it is free already."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())


def _part(step: int, total: int, every: float | None) -> int:
    """Returns where in the schedule an evaluation stands, in parts of 1000.

    Trials with different batch sizes take different numbers of steps. An evaluation after a third of the run has the
    same part in all of them.
    """
    if step == total or not every:
        return round(_PARTS * step / total)
    return min(_PARTS, round(_PARTS * every * max(1, round(step / total / every))))


def _best(metrics: Iterable[float], lower: bool) -> float:
    return min(metrics) if lower else max(metrics)


def _write_trials(study: optuna.Study, space: Space, folder: Path, config: Config) -> list[dict[str, Any]]:
    """Writes the table and the picture: complete trials, then pruned ones, then failed ones, each by score."""
    names = {_states().COMPLETE: "complete", _states().PRUNED: "pruned", _states().FAIL: "failed"}
    rows, lower, order = [], lower_is_better(config), list(names.values())
    for trial in _ended(study):
        measured = trial.intermediate_values.values()
        rows.append(
            {
                "trial": trial.number,
                "state": names[trial.state],
                "score": _best(measured, lower) if measured and trial.state != _states().FAIL else None,
                **{name: trial.params.get(name) for name in space},
                "workdir": trial.user_attrs["workdir"],
                "reason": trial.user_attrs.get("reason", ""),
            }
        )
    rows.sort(key=lambda row: (order.index(row["state"]), (1 if lower else -1) * (row["score"] or 0.0)))
    columns = ["trial", "state", "score", *space, "workdir", "reason"]
    files.write_text(folder / "trials.csv", files.format_csv([columns, *([row[c] for c in columns] for row in rows)]))
    write_picture(folder / "trials.png", rows, space, config.train.best_metric)
    return rows


def write_picture(path: Path, trials: Sequence[Mapping[str, Any]], space: Space, metric: str) -> None:
    """Draws the trials' scores over the values of each field, one panel per field, as a PNG.

    Complete trials are filled circles, pruned trials are hollow (at the best score that they had reached), and the best
    trial has a ring. Failed trials have no score; the title counts them.

    Args:
        trials: as `sweep` returns them, the best first.
    """
    from matplotlib.figure import Figure

    scored = [trial for trial in trials if trial["score"] is not None]
    columns = min(_PANELS_PER_ROW, len(space))
    rows = -(-len(space) // columns)
    figure = Figure(figsize=(max(6.0, 3.4 * columns), 0.8 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, entry) in zip(panels, space.items(), strict=False):
        for trial in scored:
            value = float(trial[name]) if isinstance(entry, Range) else entry.index(str(trial[name]))
            whole = trial["state"] == "complete"
            axes.scatter([value], [trial["score"]], s=26, color=RIGHT, facecolors=None if whole else "none", zorder=3)
            if trial is scored[0]:
                axes.scatter([value], [trial["score"]], s=110, color=UNKNOWN, facecolors="none", linewidths=1.2)
        if not isinstance(entry, Range):
            axes.set_xticks(range(len(entry)), [shorten(value, _LONGEST_VALUE) for value in entry], parse_math=False)
            axes.set_xlim(-0.5, len(entry) - 0.5)
        elif entry.log:
            axes.set_xscale("log")
        axes.set_xlabel(shorten(name, _LONGEST_NAME), parse_math=False)
        axes.grid(axis="y", linewidth=0.4)
    for axes in panels[::columns]:
        axes.set_ylabel(metric, parse_math=False)
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    states = {"complete": "complete (filled)", "pruned": "pruned (hollow)", "failed": "failed"}
    counts = [f"{sum(t['state'] == state for t in trials)} {shown}" for state, shown in states.items()]
    figure.suptitle(f"{len(trials)} trials: {', '.join(counts)}", fontsize=10)
    files.write_bytes(path, render_png(figure))


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
