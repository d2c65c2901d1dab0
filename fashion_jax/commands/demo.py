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
    from fashion_jax.system.process import num_cores

    # One device a core, in a number that divides the batch: its few photos are too small a part for several on a core.
    devices = 2 ** (min(8, num_cores()).bit_length() - 1)
    start_devices(devices, load_config("demo").model.dtype)
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
