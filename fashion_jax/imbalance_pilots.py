"""What "auto" in `loss.imbalance` stands for: each method is tried in a short run, and each head takes its best one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from fashion_jax import files
from fashion_jax.config import IMBALANCE_METHODS, Config
from fashion_jax.config_files import config_from_dict
from fashion_jax.config_values import parse_duration
from fashion_jax.data.manifest import Prepared
from fashion_jax.errors import UserError
from fashion_jax.runtime import first_process_does
from fashion_jax.training.writers import read_scalars
from fashion_jax.workdir import read_json

Scores = dict[str, dict[str, float]]  # method -> attribute -> macro-F1


def choose_imbalance(
    config: Config, prepared: Prepared, workdir: Path, run: Callable[[Config, Path], object], *, progress: bool = True
) -> Config:
    """Returns a copy in which every "auto" is the method with the best macro-F1 on the validation rows.

    All heads that are left open have the same method in a pilot, which is the run itself but shorter
    (`loss.pilot_duration`), in WORKDIR/pilots/METHOD. They share a backbone, so what is best for each of them alone
    need not be best for all of them together; it is what can be found out in as many runs as there are methods.

    Args:
        config: resolved.
        prepared: the records.
        workdir: of the run; what was found out before is not found out again.
        run: trains a configuration in a workdir, and goes on where it was stopped there.
        progress: whether to say what was found.

    Raises:
        UserError: there are no validation rows to choose on.
    """
    loss = config.loss
    names = [name for name in config.data.attributes if loss.head_imbalance.get(name, loss.imbalance) == "auto"]
    if not names:
        return config
    if not len(prepared.indices("validation")):
        raise UserError(
            "config.loss.imbalance=auto chooses on the validation split, which is empty; name a method, or give the "
            "split a share in config.data.split_fractions"
        )
    place = workdir / "pilots" / "imbalance.json"
    asked = {
        "attributes": names,
        "methods": list(IMBALANCE_METHODS),
        "duration": _shortened(config),
        "fingerprint": prepared.fingerprint,
    }
    known = read_json(place) if place.exists() else {}
    if {name: known.get(name) for name in asked} == asked:
        scores: Scores = known["macro_f1"]
    else:
        scores = {}
        for method in IMBALANCE_METHODS:
            if progress:
                print(f"imbalance=auto: a short run with {method!r} ({asked['duration']})", file=sys.stderr, flush=True)
            folder = workdir / "pilots" / method
            run(_pilot(config, prepared, names, method), folder)
            first_process_does("a short run", lambda: None)  # which writes the scores
            scores[method] = _last_scores(folder, names)
        if jax.process_index() == 0:
            files.write_json(place, asked | {"macro_f1": scores})
    chosen = {name: max(IMBALANCE_METHODS, key=lambda method: scores[method][name]) for name in names}
    if progress:
        print(_format(scores, chosen), file=sys.stderr, flush=True)
    return _with_methods(config, chosen)


def _with_methods(config: Config, methods: Mapping[str, str]) -> Config:
    changed = config_from_dict(config.to_dict())
    changed.loss.imbalance = "none" if changed.loss.imbalance == "auto" else changed.loss.imbalance
    changed.loss.head_imbalance |= methods
    return changed


def _shortened(config: Config) -> str:
    """Returns the pilots' duration; a share is of the run's own."""
    amount, unit = parse_duration(config.loss.pilot_duration)
    if unit != "percent":
        return config.loss.pilot_duration
    whole, unit = parse_duration(config.train.duration)
    return f"{whole * amount / 100:g} {unit}"


def _pilot(config: Config, prepared: Prepared, names: list[str], method: str) -> Config:
    pilot = _with_methods(config, dict.fromkeys(names, method))
    pilot.data.source, pilot.data.prepared, pilot.data.corrections = str(prepared.folder), "", ""
    train = pilot.train
    train.duration = train.evaluate_every = train.checkpoint_every = _shortened(config)
    train.early_stopping_patience = 0
    train.best_metric = "mean/macro_f1"
    return pilot


def _last_scores(folder: Path, names: list[str]) -> dict[str, float]:
    """Returns what the validation at the end of a pilot said; an attribute without labelled rows has 0."""
    said = {name: read_scalars(folder / "metrics.jsonl", f"validation/{name}/macro_f1") for name in names}
    return {name: scores[-1][1] if scores else 0.0 for name, scores in said.items()}


def _format(scores: Scores, chosen: Mapping[str, str]) -> str:
    width = max(len(name) for name in chosen)
    lines = [f"{'macro-F1':<{width}}" + "".join(f"{method:>18}" for method in scores) + "  taken"]
    for name, taken in chosen.items():
        cells = "".join(f"{scores[method][name]:>18.4f}" for method in scores)
        lines.append(f"{name:<{width}}{cells}  {taken}")
    return "\n".join(lines)
