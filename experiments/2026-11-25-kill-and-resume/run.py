"""Does a run that is killed again and again end with the same parameters as one that is left alone?

Command: python experiments/2026-11-25-kill-and-resume/run.py --source RECORDS_OR_CATALOGUE --kills 10

Trains a narrow ResNet-18 on one device, once in peace, then in another workdir with SIGKILL at random moments, from the
first second of the process on. A moment that falls after the end of the run does not count as a kill.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds after a start within which a kill falls")
    flags = parser.parse_args()
    dice = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        begin = time.monotonic()
        if run(flags, whole, stderr=None).wait():
            return 1  # it has said why
        print(f"uninterrupted: {time.monotonic() - begin:.0f} s", flush=True)
        kills = 0
        while kills < flags.kills:
            process = run(flags, killed)
            moment = dice.uniform(0.5, flags.longest)
            try:
                process.wait(moment)
                print(f"the run ended before its kill at {moment:.1f} s; started anew")
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
            checkpoints = sorted(p.name for p in (killed / "checkpoints").glob("step_*"))
            print(f"kill {kills} after {moment:.1f} s; checkpoints: {', '.join(checkpoints)}", flush=True)
        assert run(flags, killed).wait() == 0
        return compare(whole, killed, kills)


def run(flags: argparse.Namespace, workdir: Path, stderr: int | None = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Starts a training run."""
    values = {
        "data.source": flags.source.resolve(),
        "model.width": 8,
        "train.batch_size": 32,
        "train.duration": f"{flags.steps} steps",
        "train.checkpoint_every": "7 steps",
        "train.evaluate_every": f"{max(1, flags.steps // 2)} steps",
        "train.log_every": "5 steps",
    }
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "fashion_jax.main", "--config=base", f"--workdir={workdir}", *overrides],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def compare(whole: Path, killed: Path, kills: int) -> int:
    """Prints whether all tensors are equal; returns the exit code."""
    a, b = (safetensors.numpy.load_file(w / "package" / "weights.safetensors") for w in (whole, killed))
    different = [n for n in a.keys() | b.keys() if n not in a or n not in b or not np.array_equal(a[n], b[n])]
    print(f"{kills} kills, {len(a)} tensors, {len(different)} of them different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
