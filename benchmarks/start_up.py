"""How long first commands take, in new processes, and how long other libraries take.

    python benchmarks/start_up.py --photo photo.jpg --torch-python /path/with/torch/bin/python

Every line is a process of its own; the processes take turns, several rounds. CPU seconds are those of the process, user
and system together. JAX keeps compiled programs only in the row "compiled by an earlier command". Writes results.json
and table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import machine, versions

_KEPT = "the same with JAX, compiled by an earlier command"
_PREDICT = "from fashion_jax.cli import main; main(['predict', '--model', 'small', '--source', {photo!r}])"
_WITH_JAX = """
from fashion_jax.system.devices import start_devices
start_devices(training=False)
from fashion_jax.serving.predictor import load_model
print(load_model("small", engine="jax").predict({photo!r}))
"""
_TORCH = """
import sys
sys.path.insert(0, {benchmarks!r})
import numpy as np, torch
from torch_network import Network
from json import loads
from pathlib import Path
place = Path({place!r})
with np.load(place / "weights.npz") as arrays:
    network = Network(dict(arrays), loads((place / "torch.json").read_text())).eval()
with torch.inference_mode():
    network(torch.zeros((1, 80, 60, 3), dtype=torch.uint8))
"""
_RUNTIME = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({place!r} + "/model.onnx")
session.run(None, {{"photos": np.zeros((1, 80, 60, 3), np.uint8)}})
"""


def main() -> None:
    """Runs every process in turn and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="a JPEG")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and numpy")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/start_up"))
    flags = parser.parse_args()
    about: dict[str, Any] = {"machine": machine(), "results": []}
    about["versions"] = versions("jax", "numpy", "onnx", "onnxruntime", torch_python=flags.torch_python)
    measured: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        names = {"photo": str(flags.photo), "place": folder, "benchmarks": str(Path(__file__).parent)}
        commands = {
            "fashion-jax predict, one photo": [sys.executable, "-c", _PREDICT.format(**names)],
            "the same with JAX instead of onnxruntime": [sys.executable, "-c", _WITH_JAX.format(**names)],
            _KEPT: [sys.executable, "-c", _WITH_JAX.format(**names)],
            "import torch, the same network, one forward pass": [flags.torch_python, "-c", _TORCH.format(**names)],
            "import onnxruntime, the exported model, one run": [sys.executable, "-c", _RUNTIME.format(**names)],
            "label_photo.py beside the exported model, one photo": [
                sys.executable, f"{folder}/label_photo.py", str(flags.photo),
            ],
            "import fashion_jax": [sys.executable, "-c", "import fashion_jax"],
        }  # fmt: skip
        kept = {"XDG_CACHE_HOME": str(Path(folder).resolve())}
        seconds(commands[_KEPT], kept)  # fills the cache
        for _ in range(flags.rounds):
            for name, command in commands.items():
                environment = kept if name == _KEPT else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
                measured.setdefault(name, []).append(seconds(command, environment))
    for name, rounds in measured.items():
        cpu, wall = ([round(value, 2) for value in values] for values in zip(*rounds, strict=True))
        about["results"].append({"what": name, "cpu_seconds": cpu, "wall_seconds": wall})
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    (flags.out / "table.md").write_text(table(about))
    print(table(about))


def prepare(place: Path) -> None:
    """Exports `small`, and writes its weights for torch."""
    import numpy as np

    from fashion_jax.serving.export import export_model
    from fashion_jax.serving.package import find_model, load_package

    package = load_package(find_model("small"))
    export_model(package, place, kind="onnx")
    np.savez(place / "weights.npz", **package.weights)
    (place / "torch.json").write_text(json.dumps(package.model))


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Returns CPU and wall seconds of a process with some more variables."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - begin


def table(about: dict[str, Any]) -> str:
    """Returns Markdown."""
    lines = [f"Measured on {about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.", ""]
    lines += ["| process | CPU seconds (least to most) | seconds |", "|---|---|---|"]
    for item in about["results"]:
        cpu, wall = item["cpu_seconds"], item["wall_seconds"]
        spread = f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
        lines.append(f"| {item['what']} | {spread} | {statistics.median(wall):.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
