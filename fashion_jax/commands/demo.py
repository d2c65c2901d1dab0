"""`fashion-jax demo`: the whole way, on drawn products."""

from __future__ import annotations

import argparse
from pathlib import Path

from fashion_jax.commands.command import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="folder of the run (runs/demo)")


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.system.devices import start_devices

    start_devices(training=True)
    from fashion_jax.run.demo import run_demo

    return run_demo(flags.workdir)


DEMO = Command(
    "demo",
    "trains on drawn products, scores the model, and builds an index to search",
    _add_flags,
    _run,
    ("fashion-jax demo",),
)
