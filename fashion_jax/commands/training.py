"""`fashion-jax train`, `evaluate` and `sweep`: a run, its scores, and a search over its settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fashion_jax.commands.command import Command
from fashion_jax.system.errors import UserError

if TYPE_CHECKING:
    from fashion_jax.config.fields import Config

_CONFIG = "a configuration file, or the name of one that ships with the library, such as small_finetune"


def split_settings(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separates `--config.a.b=value` and `--config.a.b value` from the other arguments."""
    settings: dict[str, str] = {}
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        key, equals, value = item.removeprefix("--config.").partition("=")
        if not equals:
            following = next(items, "--")
            if following.startswith("--"):
                raise UserError(f"{item} needs a value: {item}=VALUE")
            value = following
        settings[key] = value
    return settings, rest


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=_CONFIG)
    parser.add_argument("--workdir", required=True, help="folder of the training: checkpoints, scores, the model")
    parser.add_argument("--corrections", help="a table of corrected labels, such as an audit's findings.csv")
    parser.add_argument(
        "--coordinator-address", help="for several hosts (docs/accelerators.md): HOST:PORT of the first one"
    )
    parser.add_argument("--num-processes", type=int, help="for several hosts: number of processes")
    parser.add_argument("--process-id", type=int, help="for several hosts: number of this process, from 0")
    parser.add_argument("--local-device-ids", type=_integers, help="GPUs of this process, such as 0,1,2,3")


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None


def _photos_at_a_time(config: Config) -> int:
    return config.train.photos // config.train.accumulation_steps


def _train(flags: argparse.Namespace) -> int:
    from fashion_jax.config.files import load_config

    settings = {**flags.settings, **({"data.corrections": flags.corrections} if flags.corrections else {})}
    config = load_config(flags.config, settings)

    # JAX starts only after the flags are known to be sound, and devices are set before anything touches them.
    from fashion_jax.system.devices import start_devices, start_processes

    start_devices(config.runtime.cpu_devices, config.model.dtype, photos=_photos_at_a_time(config))
    start_processes(flags.coordinator_address, flags.num_processes, flags.process_id, flags.local_device_ids)

    from fashion_jax.run.train import format_scores, train

    result = train(config, flags.workdir, owns_process=True)
    if result.test is not None:
        print(f"test scores of step {result.best_step}:\n{format_scores(result.test)}")
    print(f"scores: {result.workdir / 'evaluation'}\nmodel: {result.package}")
    return 0


def _add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the training")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"), help="rows to score")
    parser.add_argument("--retrieval", action="store_true", help="score the similarity search instead of the labels")


def _evaluate(flags: argparse.Namespace) -> int:
    from fashion_jax.run.workdir import load_run_config
    from fashion_jax.system.devices import start_devices

    config = load_run_config(flags.workdir)
    start_devices(config.runtime.cpu_devices, config.model.dtype)
    folder = flags.workdir / "evaluation" / flags.split
    if flags.retrieval:
        from fashion_jax.run.neighbours import format_retrieval, score_retrieval

        print(format_retrieval(score_retrieval(flags.workdir, flags.split)))
        print(f"details: {folder / 'retrieval.json'}")
        return 0
    from fashion_jax.run.train import evaluate, format_scores

    print(format_scores(evaluate(flags.workdir, flags.split)))
    print(f"details: {folder}")
    return 0


def _add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help=_CONFIG)
    parser.add_argument(
        "--space",
        required=True,
        type=Path,
        help="a JSON file with the settings to try (docs/your-catalogue.md shows one)",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the trials; the same folder continues them")
    parser.add_argument("--trials", type=int, default=20, help="number of trials in total; those already done count")


def _sweep(flags: argparse.Namespace) -> int:
    from fashion_jax.config.files import load_config
    from fashion_jax.system.devices import start_devices

    config = load_config(flags.config, flags.settings)
    start_devices(config.runtime.cpu_devices, config.model.dtype, photos=_photos_at_a_time(config))

    from fashion_jax.run.sweep import format_trials, sweep

    trials = sweep(
        flags.config, flags.space, flags.out, num_trials=flags.trials, overrides=flags.settings, owns_process=True
    )
    print(format_trials(trials))
    print(f"all trials: {flags.out / 'trials.csv'}; as a picture: {flags.out / 'trials.png'}")
    return 0


TRAIN = Command(
    "train",
    "trains a model, or continues a training; --config.KEY=VALUE changes a setting",
    _add_train_flags,
    _train,
    (
        "fashion-jax train --config small_finetune --workdir runs/mine --config.data.source=products.csv",
        "fashion-jax train --config demo --workdir runs/short --config.train.duration='1 epochs'",
    ),
    takes_settings=True,
)
EVALUATE = Command(
    "evaluate",
    "scores the best checkpoint of a training on its training, validation or test rows",
    _add_evaluate_flags,
    _evaluate,
    (
        "fashion-jax evaluate --workdir runs/demo --split validation",
        "fashion-jax evaluate --workdir runs/demo --retrieval",
    ),
)
SWEEP = Command(
    "sweep",
    "tries settings for the best validation score; --config.KEY=VALUE fixes one",
    _add_sweep_flags,
    _sweep,
    ("fashion-jax sweep --config demo --space space.json --out runs/sweep --trials 10",),
    takes_settings=True,
)
