"""Trains: `python -m fashion_jax.main --config=configs/X.py --workdir=W [--config.a.b=value ...]`.

It resumes by itself when the workdir holds checkpoints. A run of several processes starts the same command on each,
with `--coordinator-address=HOST:PORT --num-processes=N --process-id=I`; on SLURM, Open MPI and Cloud TPU,
FASHION_JAX_DISTRIBUTED=auto stands for these flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fashion_jax.commands.training import add_train_flags, run_train, split_settings
from fashion_jax.system.errors import exit_on_user_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 for bad input, 130 or 143 when stopped by a signal."""
    return exit_on_user_error(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fashion_jax.main",
        description="Trains a model, or resumes the run of a workdir; --config.KEY=VALUE changes a setting.",
    )
    add_train_flags(parser)
    settings, rest = split_settings(arguments)
    flags = parser.parse_args(rest)
    flags.settings = settings
    return run_train(flags)


if __name__ == "__main__":
    sys.exit(main())
