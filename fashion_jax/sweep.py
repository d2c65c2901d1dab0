"""A search over fields of a configuration, by Optuna: bad trials are pruned, and a stopped search goes on.

FOLDER/
  space.json        what is searched, as given when the search began
  study.jsonl       Optuna's journal
  records/          of the catalogue, shared by the trials
  trials/<digest>/  the workdir of the trial with these values; trials that draw the same values share it
  trials.csv        every trial with its values, its score and its workdir
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashion_jax import files
from fashion_jax.config import Config
from fashion_jax.config_files import load_config
from fashion_jax.data.manifest import is_prepared
from fashion_jax.errors import UserError
from fashion_jax.experiment import lower_is_better, train

if TYPE_CHECKING:
    import optuna

SAMPLER_SEED = 0
_STARTUP_TRIALS = 5  # before any is pruned
_STUDY = "fashion-jax"
_RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; integers where both are.

    Attributes:
        low: smallest.
        high: largest.
        log: whether their logarithms are drawn evenly.
        step: between neighbours; None for any number (1 for integers).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


Space = dict[str, Range | tuple[str, ...]]


def read_space(path: str | Path) -> Space:
    """Reads what is to be searched.

    Args:
        path: a JSON object: field of the configuration -> a list of values, or {"low": ..., "high": ..., "log": true,
            "step": ...}, such as {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": true}}.

    Raises:
        UserError: the file cannot be read, or an entry is neither.
    """
    given, space = files.read_json_object(Path(path)), Space()
    if not given:
        raise UserError(f"{path} names no field to search")
    for name, entry in given.items():
        if isinstance(entry, list) and entry and all(isinstance(value, (str, int, float)) for value in entry):
            space[name] = tuple(_text(value) for value in entry)
            continue
        if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= _RANGE_KEYS:
            raise UserError(f'{path}: {name!r} needs a list of values, or {{"low": ..., "high": ...}}, not {entry!r}')
        numbers = [entry[key] for key in ("low", "high", "step") if key in entry]
        if any(type(value) not in (int, float) for value in numbers) or not isinstance(entry.get("log", False), bool):
            raise UserError(f"{path}: {name!r} has a low, high or step that is no number, or a log that is not true")
        found = Range(**entry)
        if not found.low < found.high or (found.step is not None and (found.step <= 0 or found.log)):
            raise UserError(f"{path}: {name!r} needs low < high, and a step above 0 without log: {entry!r}")
        if found.log and found.low <= 0:
            raise UserError(f"{path}: {name!r} needs a low above 0 for log, not {found.low!r}")
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
) -> list[dict[str, Any]]:
    """Searches until there are `num_trials` finished or pruned trials, those of earlier calls among them.

    A trial is trained to the end of its schedule or until its validation metric (`train.best_metric`) is worse than the
    median of the earlier ones' at the same step (Golovin et al., KDD 2017, as Optuna has it). Values are drawn by a
    tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011). Nothing is scored on the test split.

    Args:
        config: a configuration file, as `load_config` takes it.
        space: a JSON file, as `read_space` takes it.
        folder: of the search; the same folder goes on where it was.
        num_trials: in all.
        overrides: dotted key -> text, for every trial.
        progress: whether to show what is going on.

    Returns:
        The trials, the best first, as they stand in trials.csv.

    Raises:
        UserError: Optuna is not installed, a field or a value is not one of the configuration, or the folder belongs to
            another search.
        Interrupted: a signal; the trial is saved and goes on with the next call.
    """
    study_of = _import_optuna()
    folder, wanted, given = Path(folder), read_space(space), dict(overrides or {})
    if num_trials < 1:
        raise UserError(f"the number of trials must be at least 1, not {num_trials}")
    base = load_config(config, given)
    _check_space(config, given, wanted)
    described = {"config": base.to_dict(), "space": files.read_json_object(Path(space))}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "space.json").exists():
        if files.read_json_object(folder / "space.json") != json.loads(json.dumps(described)):
            raise UserError(f"{folder} belongs to a search of another configuration or space; choose another folder")
    else:
        files.write_json(folder / "space.json", described)
    lower = lower_is_better(base)
    study = study_of(folder / "study.jsonl", lower)
    if not is_prepared(Path(base.data.source)) and not base.data.prepared:
        given["data.prepared"] = str(folder / "records")
    _take_up_stopped(study)
    while _count_done(study) < num_trials:
        trial = study.ask()
        values = {name: _draw(trial, name, entry) for name, entry in wanted.items()}
        if progress:
            shown = ", ".join(f"{name}={value}" for name, value in values.items())
            print(f"trial {_count_done(study) + 1} of {num_trials}: {shown}", file=sys.stderr, flush=True)
        workdir = folder / "trials" / _digest(values)
        trial.set_user_attr("workdir", str(workdir))
        _run(study, trial, load_config(config, {**given, **values}), workdir, lower, progress)
        _write_trials(study, wanted, folder / "trials.csv", lower)
    return _write_trials(study, wanted, folder / "trials.csv", lower)


def format_trials(trials: list[dict[str, Any]], most: int = 10) -> str:
    """Returns a table of the best trials, for people."""
    names = [name for name in trials[0] if name not in ("trial", "state", "score", "workdir")] if trials else []
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


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_space(config: str | Path, overrides: Mapping[str, str], space: Space) -> None:
    """Tries every listed value, and the ends of every range, so that no trial fails for them."""
    for name, entry in space.items():
        tried = entry if isinstance(entry, tuple) else (_text(entry.low), _text(entry.high))
        for value in tried:
            load_config(config, {**overrides, name: value})


def _draw(trial: optuna.Trial, name: str, entry: Range | tuple[str, ...]) -> str:
    if isinstance(entry, tuple):
        return str(trial.suggest_categorical(name, entry))
    if isinstance(entry.low, int) and isinstance(entry.high, int):
        return str(trial.suggest_int(name, entry.low, entry.high, log=entry.log, step=int(entry.step or 1)))
    return repr(trial.suggest_float(name, entry.low, entry.high, log=entry.log, step=entry.step))


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:12]


def _take_up_stopped(study: optuna.Study) -> None:
    """Trials that a stopped search left are asked for again; their workdirs know how far they came."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _count_done(study: optuna.Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _run(
    study: optuna.Study, trial: optuna.Trial, config: Config, workdir: Path, lower_is_better: bool, progress: bool
) -> None:
    from optuna import TrialPruned
    from optuna.trial import TrialState

    name, seen = config.train.best_metric, dict[int, float]()

    def report(step: int, metric: float) -> None:
        if step not in seen:
            seen[step] = metric
            trial.report(metric, step)

    def on_evaluation(step: int, scores: Mapping[str, float]) -> None:
        report(step, scores[name])
        if trial.should_prune():
            raise TrialPruned

    for step, metric in _earlier_scores(workdir / "metrics.jsonl", f"validation/{name}"):
        report(step, metric)
    try:
        train(config, workdir, progress=progress, owns_process=True, on_evaluation=on_evaluation, finish=False)
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        return
    if not seen:
        raise UserError("a sweep compares trials on the validation split, which is empty; choose other split_fractions")
    study.tell(trial, min(seen.values()) if lower_is_better else max(seen.values()))


def _earlier_scores(path: Path, name: str) -> list[tuple[int, float]]:
    """Returns what a run that was stopped has measured."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a crash
        if isinstance(row.get(name), (int, float)):
            found.append((int(row["step"]), float(row[name])))
    return found


def _write_trials(study: optuna.Study, space: Space, path: Path, lower_is_better: bool) -> list[dict[str, Any]]:
    """Writes the trials that ended, the best first."""
    from optuna.trial import TrialState

    rows = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        values = {name: trial.params.get(name) for name in space}
        best = trial.value
        if best is None and trial.intermediate_values:
            ends = trial.intermediate_values.values()
            best = min(ends) if lower_is_better else max(ends)
        state = "complete" if trial.state == TrialState.COMPLETE else "pruned"
        rows.append(
            {"trial": trial.number, "state": state, "score": best, **values, "workdir": trial.user_attrs["workdir"]}
        )
    sign = 1 if lower_is_better else -1
    rows.sort(key=lambda row: (row["state"] != "complete", row["score"] is None, sign * (row["score"] or 0.0)))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["trial", "state", "score", *space, "workdir"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
    return rows
