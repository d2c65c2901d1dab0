"""What "auto" in `loss.imbalance` stands for: each method is tried in a short run, and each head takes its best one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from fashion_jax.config.fields import IMBALANCE_METHODS, Config
from fashion_jax.config.files import config_from_dict
from fashion_jax.config.values import parse_duration, resolve_steps, share_of
from fashion_jax.data.records import Prepared
from fashion_jax.run.workdir import has_checkpoints, load_run_config, training_fields
from fashion_jax.system import files
from fashion_jax.system.devices import first_process_does
from fashion_jax.system.errors import NotFiniteError, UserError

# A head that is trained with "logit_adjustment" is one of "prior" whose logits are shifted, which the package chooses
# for itself.
TRIED = tuple(method for method in IMBALANCE_METHODS if method != "logit_adjustment")
Scores = dict[str, dict[str, float]]  # method -> attribute -> macro-F1


def choose_imbalance(
    config: Config,
    prepared: Prepared,
    workdir: Path,
    run: Callable[[Config, Path], Mapping[str, float]],
    *,
    progress: bool = True,
) -> Config:
    """Returns a copy in which every "auto" is the method with the best macro-F1 on the validation rows.

    That is as the package decides, which shifts logits by the classes' frequency whatever they were trained with.

    All heads that are left open have the same method in a pilot, which is the run itself but shorter
    (`loss.pilot_duration`), in WORKDIR/pilots/DIGEST/METHOD. They share a backbone, so what is best for each of them
    alone need not be best for all of them together; it is what can be found out in as many runs as there are methods. A
    run that has checkpoints keeps what it began with.

    Args:
        config: resolved.
        prepared: the records.
        workdir: of the run; what was found out before with the same settings is not found out again.
        run: trains a configuration in a workdir, goes on where it was stopped there, and returns that macro-F1 of each
            attribute. A method whose run ends in a loss that is not finite is not taken.
        progress: whether to say what was found.

    Raises:
        UserError: there are no validation rows to choose on, no method or no short run at all can be trained, or the
            workdir holds a run that began without a choice.
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
    pilots = workdir / "pilots"
    if has_checkpoints(workdir):
        return _with_methods(config, _begun_with(workdir, names))
    runs = {method: _pilot(config, prepared, names, method) for method in TRIED}
    described = [[training_fields(pilot) for pilot in runs.values()], prepared.fingerprint, names]
    # Runs of other settings are left where they are, and their scores are not taken for these.
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
    place = pilots / digest / "imbalance.json"
    scores: Scores = files.read_json_object(place).get("decided_macro_f1", {}) if place.exists() else {}
    if not scores:
        for method, pilot in runs.items():
            scores[method] = _score(method, pilot, pilots / digest / method, names, run, progress=progress)
        if not any(scores.values()):
            raise UserError(
                "config.loss.imbalance=auto: the loss of every short run ended in what is not finite; lower "
                "optimizer.learning_rate or set optimizer.clip_norm=1"
            )
        if jax.process_index() == 0:
            files.write_json(place, {"duration": _shortened(config), "decided_macro_f1": scores})
        first_process_does("noting the scores of short runs", lambda: None)
    scores = {method: found for method, found in scores.items() if found}
    chosen = {name: max(scores, key=lambda method: scores[method][name]) for name in names}
    if progress:
        print(_format(scores, chosen), file=sys.stderr, flush=True)
    return _with_methods(config, chosen)


def first_pilot(config: Config) -> Config:
    """Returns a copy with a method in place of every "auto", and nothing else changed."""
    open_heads = [name for name, method in config.loss.head_imbalance.items() if method == "auto"]
    return _with_methods(config, dict.fromkeys(open_heads, TRIED[0]))


def _begun_with(workdir: Path, names: list[str]) -> dict[str, str]:
    loss = load_run_config(workdir).loss
    for name in names:
        if name not in loss.head_imbalance:  # where a choice is noted
            raise UserError(
                f"config.loss.imbalance=auto chooses when a run begins, and the one in {workdir} began with "
                f"{loss.imbalance!r} for {name!r}; choose another --workdir, or leave that"
            )
    return {name: loss.head_imbalance[name] for name in names}


def _score(
    method: str,
    pilot: Config,
    folder: Path,
    names: list[str],
    run: Callable[[Config, Path], Mapping[str, float]],
    *,
    progress: bool,
) -> dict[str, float]:
    """Returns attribute -> score of a pilot; nothing where its loss is not finite."""
    if progress:
        print(f"imbalance=auto: a short run with {method!r} ({pilot.train.duration})", file=sys.stderr, flush=True)
    try:
        scores = run(pilot, folder)
    except NotFiniteError as error:
        if progress:
            print(f"imbalance=auto: {method!r} is not taken: {error}", file=sys.stderr, flush=True)
        return {}
    return {name: scores[name] for name in names}


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
    pilot.model.stacked_heads = ()  # they are fitted to the run itself
    train = pilot.train
    train.duration = train.evaluate_every = train.checkpoint_every = _shortened(config)
    train.early_stopping_patience = 0
    train.best_metric = "mean/macro_f1"
    mix, optimizer = train.mix, pilot.optimizer
    examples, whole = len(prepared.indices("train")), config.train.duration

    def share(duration: str) -> str:
        """Returns the same part of the pilot as the duration is of the run."""
        part = share_of(duration, whole)
        if part is None:
            steps, total = (
                resolve_steps(text, num_examples=examples, batch_size=train.batch_size) for text in (duration, whole)
            )
            part = steps / total
        return f"{min(100.0, 100 * part):.6g} percent"

    mix.until, train.progressive_until = share(mix.until), share(train.progressive_until)
    optimizer.warmup = share(optimizer.warmup)
    optimizer.unfreeze = {pattern: share(duration) for pattern, duration in optimizer.unfreeze.items()}
    return pilot


def _format(scores: Scores, chosen: Mapping[str, str]) -> str:
    width = max(len(name) for name in chosen)
    lines = [f"{'macro-F1':<{width}}" + "".join(f"{method:>18}" for method in scores) + "  taken"]
    for name, taken in chosen.items():
        cells = "".join(f"{scores[method][name]:>18.4f}" for method in scores)
        lines.append(f"{name:<{width}}{cells}  {taken}")
    return "\n".join(lines)
