"""`fashion-jax verify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fashion_jax.commands.command import Command, start_for_prediction
from fashion_jax.system.errors import EXIT_BAD_INPUT


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, help="a workdir, prepared records, a model package, an index, or the folder of a sweep"
    )


def _run(flags: argparse.Namespace) -> int:
    from fashion_jax.run.verify import verify

    start_for_prediction()
    parts = []
    for part in verify(flags.path):
        parts.append(part)
        word = "DAMAGED" if part.problem else "ok" if part.is_checked else "-"
        print(f"{word:<8} {part.path}: {part.about}")
        if part.problem:
            print(f"         {part.problem}")
    damaged = sum(bool(part.problem) for part in parts)
    if damaged:
        verb = "is" if damaged == 1 else "are"
        print(f"error: {damaged} of {len(parts)} parts {verb} damaged", file=sys.stderr)
        return EXIT_BAD_INPUT
    print("nothing is damaged")
    return 0


VERIFY = Command(
    "verify",
    "checks the digests of a workdir's configuration, checkpoints, records, package and index",
    _add_flags,
    _run,
    ("fashion-jax verify runs/demo",),
)
