"""How long does a training step take with each part of the recipe, beside the baseline's?

Command: python experiments/2026-11-27-ablation/step_times.py --source RECORDS

The step of every variant of run.py that trains another one is compiled, and all are run turn and turn about on the same
batch of real photos; results/step_times.md has the median of a step in seconds, and the median over the rounds of its
ratio to the baseline's of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fashion_jax import files
from fashion_jax.config_files import load_config
from fashion_jax.data.manifest import Prepared, open_prepared
from fashion_jax.resolve import resolve
from fashion_jax.runtime import start_devices
from fashion_jax.session import Session
from fashion_jax.training.sharding import put_batch
from fashion_jax.training.state import create_state

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import HERE, ROOT, VARIANTS

# The others train the baseline's step on other weights or targets, or steps of several kinds.
SHOWN = (
    "baseline", "no colour head", "colour histogram", "focal", "normalised softmax", "supervised contrastive",
    "proxy anchor", "no mixing", "RandAugment 1 x .2", "erasing .25", "moving average .998", "GeM",
    "ResNet-D's shortcut", "stochastic depth .1", "photos of 80x60",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, type=Path, help="prepared records")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of every variant in a round")
    parser.add_argument("--variants", nargs="+", default=list(SHOWN), choices=list(SHOWN))
    flags = parser.parse_args()
    config = load_config(str(ROOT / "configs" / "small_cpu.py"))
    start_devices(config.runtime.cpu_devices, config.model.dtype)
    names = tuple(dict.fromkeys(("baseline", *flags.variants)))
    prepared = open_prepared(flags.source)
    runs = {name: open_run(prepared, name) for name in names}
    for name, run in runs.items():
        print(f"compiling the step of {name}", file=sys.stderr, flush=True)
        run()
    rounds: list[dict[str, float]] = []
    for number in range(flags.rounds):
        # Every other round goes backwards, so that none always comes after the slowest.
        order = names if number % 2 == 0 else names[::-1]
        rounds.append({name: measure(runs[name], flags.steps) for name in order})
        print(f"round {number + 1} of {flags.rounds}", file=sys.stderr, flush=True)
    text = table(names, rounds)
    files.write_text(HERE / "results" / "step_times.md", text)
    print(text)


def open_run(prepared: Prepared, name: str) -> Callable[[], None]:
    """Returns what takes the variant's next step, on the batch that all have."""
    overrides = {
        "data.source": str(prepared.folder),
        "data.storage": "stream",
        "model.stacked_heads": "",
        **VARIANTS[name],
    }
    config = resolve(load_config(str(ROOT / "configs" / "small_cpu.py"), overrides), prepared)
    session = Session(config, prepared, HERE, progress=False)
    batches, complete = session.training_batches(0)
    batch = complete(put_batch(next(batches), session.mesh))
    state: Any = create_state(
        session.arguments, session.optimizer, config.train.seed, session.mesh, averaged=session.averaged
    )
    step = session.train_step(0)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return run


def measure(run: Callable[[], None], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begin) / steps


def table(names: tuple[str, ...], rounds: list[dict[str, float]]) -> str:
    """Returns a Markdown table, a line per variant."""
    lines = [
        f"# A training step of small_cpu.py's batch, {len(rounds)} rounds, {jax.device_count()} devices",
        "",
        "| variant | s | times the baseline's |",
        "|---|---|---|",
    ]
    for name in names:
        seconds = statistics.median(measured[name] for measured in rounds)
        ratio = statistics.median(measured[name] / measured["baseline"] for measured in rounds)
        lines.append(f"| {name} | {seconds:.3f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
