"""What a command costs as the catalogue grows: peak memory, seconds and CPU seconds.

    python benchmarks/growth.py --sizes 1000 4000 16000

Each command is a new process on a drawn catalogue: prepare, ten steps of training, embed and index. Photos are of 80x60
at most, as Kaggle's small ones. A straight line through the results gives the cost of 1,000 more products. Writes
results.json, table.md and growth.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from turns import machine, versions

STEPS = ("prepare", "train, ten steps", "embed", "index build")
MEMORY, SECONDS, CPU = "peak memory, MB", "seconds", "CPU seconds"
_RUN = "from fashion_jax.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    """Runs every command on every size and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000], help="products")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth"))
    flags = parser.parse_args()
    about: dict[str, Any] = {"machine": machine(), "versions": versions("jax", "flax", "numpy"), "results": []}
    for size in flags.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for step, arguments in commands(size, Path(folder)).items():
                about["results"].append({"products": size, "step": step, **cost(arguments)})
                print(json.dumps(about["results"][-1]), flush=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    (flags.out / "table.md").write_text(table(about))
    draw(about, flags.out / "growth.png")
    print(table(about))


def commands(size: int, folder: Path) -> dict[str, list[str]]:
    """Returns the arguments of each command, in their order."""
    records, source = str(folder / "records"), f"synthetic:{size}"
    training = ["--config=configs/small_cpu.py", f"--config.data.source={records}", "--config.train.duration=10 steps",
                "--config.train.evaluate_every=10 steps", "--config.model.second_heads="]  # fmt: skip
    return {
        "prepare": ["prepare", "--source", source, "--max-side", "80", "--out", records],
        "train, ten steps": ["train", f"--workdir={folder / 'run'}", *training],
        "embed": ["embed", "--model", "small", "--source", source, "--out", str(folder / "embeddings.npz")],
        "index build": ["index", "build", "--model", "small", "--source", source, "--out", str(folder / "index")],
    }


def cost(arguments: list[str]) -> dict[str, float]:
    """Runs a command in a new process and returns what it cost."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-c", _RUN, *arguments], stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read().decode()[-2000:])
    return {
        MEMORY: round(used.ru_maxrss / 1024, 1),  # Linux counts in KiB
        SECONDS: round(time.perf_counter() - begin, 1),
        CPU: round(used.ru_utime + used.ru_stime, 1),
    }


def line(about: dict[str, Any], step: str, what: str) -> tuple[float, float]:
    """Returns the cost of no product, and of 1,000 more products, by least squares."""
    rows = [item for item in about["results"] if item["step"] == step]
    slope, start = np.polyfit([item["products"] for item in rows], [item[what] for item in rows], 1)
    return float(start), float(1000 * slope)


def table(about: dict[str, Any]) -> str:
    """Returns Markdown."""
    lines = [f"Measured on {about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.", ""]
    lines += [f"| command | products | {MEMORY} | {SECONDS} | {CPU} |", "|---|---|---|---|---|"]
    for step in STEPS:
        for item in about["results"]:
            if item["step"] == step:
                lines.append(
                    f"| {step} | {item['products']:,} | {item[MEMORY]:,.0f} | {item[SECONDS]:,.0f} | {item[CPU]:,.0f} |"
                )
    lines += ["", f"| command | {MEMORY}, for 1,000 more products | {CPU}, for 1,000 more products |", "|---|---|---|"]
    for step in STEPS:
        lines.append(f"| {step} | {line(about, step, MEMORY)[1]:.1f} | {line(about, step, CPU)[1]:.1f} |")
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], path: Path) -> None:
    """Draws peak memory and CPU seconds against the number of products."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), (MEMORY, CPU), strict=True):
        for step in STEPS:
            rows = [item for item in about["results"] if item["step"] == step]
            axes.plot([item["products"] for item in rows], [item[what] for item in rows], marker="o", label=step)
        axes.set_xlabel("products")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0)
    axes.legend()
    figure.suptitle(about["machine"], fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
