"""A search over fields of a configuration, by Optuna: bad trials are pruned, and a stopped search goes on.

FOLDER/
  space.json        what is searched, as given when the search began
  study.jsonl       Optuna's journal
  records/          of the catalogue, shared by the trials
  trials/<digest>/  the workdir of the trial with these values; trials that draw the same values share it
  trials.csv        every trial with its values, its score, its workdir, and why it failed if it did
  trials.png        their scores over each field's values
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from fashion_jax.config.fields import Config
from fashion_jax.config.files import config_from_dict, load_config
from fashion_jax.config.values import share_of
from fashion_jax.data.records import is_prepared
from fashion_jax.run.sweep_picture import write_sweep_picture
from fashion_jax.run.sweep_space import Range, Space, check_space, read_space
from fashion_jax.run.train import lower_is_better, train
from fashion_jax.system import files
from fashion_jax.system.errors import UserError
from fashion_jax.training.writers import read_scalars

if TYPE_CHECKING:
    import optuna

SAMPLER_SEED = 0
_STARTUP_TRIALS = 5  # before any is pruned
_STUDY = "fashion-jax"
_MOST_FAILURES = 3  # in a row, after which what all trials share must be at fault
_PARTS = 1000  # of a run, in which its evaluations are numbered
_REASON = "reason"  # of a trial's failure


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
    """Searches until `num_trials` trials are finished, pruned or failed, those of earlier calls among them.

    A trial is trained to the end of its schedule or until its validation metric (`train.best_metric`) is worse than the
    median of the earlier ones' at the same part of their schedule (Golovin et al., KDD 2017, as Optuna has it). Values
    are drawn by a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011). A trial that cannot be trained, as
    with a rate at which the loss ends in NaN or a size that the memory does not hold, is noted with the reason. Nothing
    is scored on the test split.

    Args:
        config: a configuration file, as `load_config` takes it.
        space: a JSON file, as `read_space` takes it.
        folder: of the search; the same folder goes on where it was.
        num_trials: in all.
        overrides: dotted key -> text, for every trial.
        progress: whether to show what is going on.
        owns_process: see `experiment.train`.

    Returns:
        The trials, the best first, as they stand in trials.csv.

    Raises:
        UserError: Optuna is not installed, a field or a value is not one of the configuration, the folder belongs to
            another search or one is going on there, or three trials in a row failed.
        Interrupted: a signal; the trial is saved and goes on with the next call.
    """
    study_of = _import_optuna()
    folder, wanted, given = Path(folder), read_space(space), dict(overrides or {})
    if num_trials < 1:
        raise UserError(f"the number of trials must be at least 1, not {num_trials}")
    base = load_config(config, given)
    check_space(config, given, wanted)
    busy = f"another search is using {folder}; wait for it or choose another folder"
    with files.hold_lock(folder / ".lock", what=f"the folder {folder}", busy=busy):
        described = base.to_dict()
        del described["runtime"]  # where it runs
        _claim(folder, {"config": described, "space": files.read_json_object(Path(space))})
        study = study_of(folder / "study.jsonl", lower_is_better(base))
        if not is_prepared(Path(base.data.source)) and not base.data.prepared:
            given["data.prepared"] = str(folder / "records")
        _take_up_stopped(study)
        failures = 0
        while len(_ended(study)) < num_trials:
            trial = study.ask()
            values = {name: _draw(trial, name, entry) for name, entry in wanted.items()}
            shown = ", ".join(f"{name}={value}" for name, value in values.items())
            _say(progress, f"trial {len(_ended(study)) + 1} of {num_trials}: {shown}")
            workdir = folder / "trials" / _digest(values)
            trial.set_user_attr("workdir", str(workdir))
            try:
                _run(study, trial, load_config(config, {**given, **values}), workdir, progress, owns_process)
                failures = 0
            except (UserError, jax.errors.JaxRuntimeError) as error:
                # What the runtime refuses is mostly memory, of which another trial takes less; its message is long.
                trial.set_user_attr(_REASON, (str(error).strip() or type(error).__name__).splitlines()[0])
                study.tell(trial, state=_states().FAIL)
                failures += 1
                reason = trial.user_attrs[_REASON]
                _say(progress, f"this trial failed: {reason}")
                if failures == _MOST_FAILURES:
                    raise UserError(f"{failures} trials in a row failed; the last one: {reason}") from error
            _write_trials(study, wanted, folder, base)
        return _write_trials(study, wanted, folder, base)


def format_trials(trials: list[dict[str, Any]], most: int = 10) -> str:
    """Returns a table of the best trials, for people."""
    names = (
        [name for name in trials[0] if name not in ("trial", "state", "score", "workdir", _REASON)] if trials else []
    )
    lines = [f"{'score':>8}  {'state':<9}" + "  ".join(names)]
    for trial in trials[:most]:
        score = "-" if trial["score"] is None else f"{trial['score']:.4f}"
        lines.append(f"{score:>8}  {trial['state']:<9}" + "  ".join(f"{name}={trial[name]}" for name in names))
    return "\n".join(lines)


def _import_optuna() -> Any:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UserError("a sweep needs Optuna: pip install 'fashion-jax[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def study_of(path: Path, lower_is_better: bool) -> optuna.Study:
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=_STUDY,
            load_if_exists=True,
            direction="minimize" if lower_is_better else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
        )
        # A search that goes on would draw its first values again with the seed that it began with.
        study.sampler = optuna.samplers.TPESampler(seed=SAMPLER_SEED + len(study.get_trials(deepcopy=False)))
        return study

    return study_of


def _draw(trial: optuna.Trial, name: str, entry: Range | tuple[str, ...]) -> str:
    if isinstance(entry, tuple):
        return str(trial.suggest_categorical(name, entry))
    if entry.of_integers:
        low, high, step = int(entry.low), int(entry.high), int(entry.step or 1)
        return str(trial.suggest_int(name, low, high, log=entry.log, step=step))
    return repr(trial.suggest_float(name, entry.low, entry.high, log=entry.log, step=entry.step))


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]


def _claim(folder: Path, described: Mapping[str, Any]) -> None:
    """Writes what is searched, or checks that it is what the folder's search began with."""
    if not (folder / "space.json").exists():
        files.write_json(folder / "space.json", described)
        return
    before = files.read_json_object(folder / "space.json")
    # What an earlier version did not know of it did as the default does.
    before["config"] = config_from_dict(before.get("config", {})).to_dict()
    del before["config"]["runtime"]
    if before != json.loads(json.dumps(described)):
        raise UserError(f"{folder} belongs to a search of another configuration or space; choose another folder")


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _take_up_stopped(study: optuna.Study) -> None:
    """Trials that a stopped search left are asked for again; their workdirs know how far they came."""
    for trial in study.get_trials(deepcopy=False, states=(_states().RUNNING,)):
        study.tell(trial.number, state=_states().FAIL)
        study.enqueue_trial(trial.params)


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Returns trials that are not to be run again: trained, pruned, or failed for a reason of their own."""
    ended = study.get_trials(deepcopy=False, states=(_states().COMPLETE, _states().PRUNED, _states().FAIL))
    return [trial for trial in ended if trial.state != _states().FAIL or _REASON in trial.user_attrs]


def _run(
    study: optuna.Study, trial: optuna.Trial, config: Config, workdir: Path, progress: bool, owns_process: bool
) -> None:
    from optuna import TrialPruned

    name = config.train.best_metric
    earlier = read_scalars(workdir / "metrics.jsonl", f"validation/{name}")
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
        # A run at its end has cost what it costs, and is ranked by its score.
        if _part(step, total, every) < _PARTS and trial.should_prune():
            raise TrialPruned

    try:
        train(config, workdir, progress=progress, owns_process=owns_process, on_evaluation=on_evaluation, finish=False)
    except TrialPruned:
        study.tell(trial, state=_states().PRUNED)
        return
    for step, metric in earlier:  # a run that had come to its end before
        report(step, earlier[-1][0], metric)
    if not metrics:
        raise UserError(f"{workdir} holds a run at its end without its validation scores; move it away")
    study.tell(trial, _best(metrics, lower_is_better(config)))


def _part(step: int, total: int, every: float | None) -> int:
    """Returns the number of an evaluation, the same for batches of every size, though these take other steps."""
    if step == total or not every:
        return round(_PARTS * step / total)
    return min(_PARTS, round(_PARTS * every * max(1, round(step / total / every))))


def _best(metrics: Iterable[float], lower: bool) -> float:
    return min(metrics) if lower else max(metrics)


def _write_trials(study: optuna.Study, space: Space, folder: Path, config: Config) -> list[dict[str, Any]]:
    """Writes the trials that ended: the best first, then pruned ones by the best that they had reached, then failed."""
    names = {_states().COMPLETE: "complete", _states().PRUNED: "pruned", _states().FAIL: "failed"}
    rows, lower = [], lower_is_better(config)
    for trial in _ended(study):
        measured = trial.intermediate_values.values()
        rows.append(
            {
                "trial": trial.number,
                "state": names[trial.state],
                "score": _best(measured, lower) if measured and trial.state != _states().FAIL else None,
                **{name: trial.params.get(name) for name in space},
                "workdir": trial.user_attrs["workdir"],
                _REASON: trial.user_attrs.get(_REASON, ""),
            }
        )
    sign = 1 if lower else -1
    order = list(names.values())
    rows.sort(key=lambda row: (order.index(row["state"]), sign * (row["score"] or 0.0)))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trial", "state", "score", *space, "workdir", _REASON], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / "trials.csv", text.getvalue())
    write_sweep_picture(folder / "trials.png", rows, space, config.train.best_metric)
    return rows
