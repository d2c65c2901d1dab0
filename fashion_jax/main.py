"""Trains: `python -m fashion_jax.main --config=configs/X.py --workdir=W [--config.a.b=value ...]`.

It is `fashion-jax train`, and continues by itself where the workdir holds checkpoints. A training of several processes
starts the same command on each, with `--coordinator-address=HOST:PORT --num-processes=N --process-id=I`; on SLURM, Open
MPI and Cloud TPU, FASHION_JAX_DISTRIBUTED=auto stands for these flags.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fashion_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `fashion-jax train` and returns its exit code."""
    return cli.main(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
