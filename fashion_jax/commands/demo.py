"""`fashion-jax demo`: the whole way, on generated products."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashion_jax.commands.command import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="folder of the training")


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.config.files import load_config
    from fashion_jax.system.devices import start_devices

    config = load_config("demo")
    start_devices(dtype=config.model.dtype, photos=config.train.photos)
    from fashion_jax.run.demo import run_demo

    run_demo(flags.workdir)
    return 0


DEMO = Command(
    "demo",
    "trains on generated products, scores the model, and builds an index that you can search",
    _add_flags,
    _run,
    ("fashion-jax demo",),
)
