"""Prediction on CPUs, side by side: fashion_jax with onnxruntime and with JAX, raw onnxruntime, and PyTorch.

    python benchmarks/predict.py --photos folder --torch-python /path/with/torch/bin/python

All run the same network on the same photos: `small` as it is, and its backbone with plain heads alone. Each photo
passes through the network once, without its mirror image. Each peer has a process of its own and waits while another
one runs; they take turns, several rounds. fashion_jax also calibrates and chooses labels, which the peers do not.
`catalogue` is `predict_source` on the folder: reading, decoding and resizing too, and two forward passes a photo,
because `small` asks for mirror images. Writes results.json, table.md and predict.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from turns import machine, median_ratio, serve, summary, take_turns, versions

NETWORKS = ("small", "backbone and plain heads")
PEERS = ("fashion_jax, onnx", "fashion_jax, jax", "onnxruntime", "torch eager")
REFERENCE = "torch eager"
BATCHES = (32, 64, 128)  # onnxruntime and torch use the fastest of these


def main() -> None:
    """Runs every peer in turn and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder with JPEGs")
    parser.add_argument("--count", type=int, default=512, help="photos in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and numpy")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/predict"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        peer, folder, photos = flags.worker
        serve(*make_work(peer, Path(folder), Path(photos)))
        return
    about: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("jax", "flax", "numpy", "onnx", "onnxruntime", torch_python=flags.torch_python),
        "results": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            place = Path(folder) / network
            prepare(network, place, flags)
            peers = [*PEERS, "catalogue"] if network == "small" else PEERS
            commands = {peer: command_of(peer, place, flags) for peer in peers}
            for peer, measured in take_turns(commands, flags.rounds).items():
                rates, cpu = map(list, zip(*measured, strict=True))
                milliseconds = round(1000 * statistics.median(cpu), 2)
                result = {"network": network, "peer": peer, **summary(rates), "cpu_ms": milliseconds}
                about["results"].append(result)
                print(json.dumps(about["results"][-1]), flush=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    (flags.out / "table.md").write_text(table(about))
    draw(about, flags.out / "predict.png")
    print(table(about))


def prepare(network: str, place: Path, flags: argparse.Namespace) -> None:
    """Writes the package, its weights for torch, the decoded photos and the raw graph."""
    from fashion_jax.models.architecture import parameter_shapes
    from fashion_jax.serving.onnx_graph import write_graph
    from fashion_jax.serving.package import find_model, load_package, write_package
    from fashion_jax.serving.predictor import Predictor

    package = load_package(find_model("small"))
    decision, weights, model = package.decision, package.weights, package.model
    if network != "small":
        model, rng, decision = {**model, "colour_heads": [], "second_heads": []}, np.random.default_rng(0), None
        drawn = {
            name: rng.normal(size=shape).astype(np.float32) * 0.05 for name, shape in parameter_shapes(model).items()
        }
        weights = {name: weights[name] if weights.get(name, value).shape == value.shape and name in weights else value
                   for name, value in drawn.items()}  # fmt: skip
    write_package(
        place / "package", weights=weights, model=model, vocabularies=package.vocabularies,
        preprocessing=package.preprocessing, extra={}, decision=decision, embedding=package.embedding,
    )  # fmt: skip
    written = load_package(place / "package")
    (place / "graph.onnx").write_bytes(write_graph(written, flip=False))
    np.savez(place / "weights.npz", **written.weights)
    (place / "model.json").write_text(json.dumps(model))
    reader = Predictor(written, engine="onnx")
    paths = sorted(flags.photos.glob("*.jpg"))[: flags.count]
    images = np.stack([reader.read(path) for path in paths])
    np.save(place / "photos.npy", images)
    (outputs,) = reader._engine.run([images[: reader.batch_size]], False)
    np.savez(place / "logits.npz", **outputs.logits)


def command_of(peer: str, place: Path, flags: argparse.Namespace) -> list[str]:
    """Returns the command that serves as a peer."""
    python = flags.torch_python if peer.startswith("torch") else sys.executable
    return [python, __file__, "--photos", str(flags.photos), "--worker", peer, str(place), str(flags.photos)]


def make_work(peer: str, place: Path, photos: Path) -> tuple[Callable[[], Any], int]:
    """Returns a function that does one round, and the number of its photos."""
    images = np.load(place / "photos.npy")
    if peer == "torch eager":
        import torch

        from torch_network import Network

        with np.load(place / "weights.npz") as arrays:
            network = Network(dict(arrays), json.loads((place / "model.json").read_text()))
        network = network.eval().to(memory_format=torch.channels_last)
        given = torch.from_numpy(images)

        def forward(batch: int) -> None:
            with torch.inference_mode():
                for start in range(0, len(given), batch):
                    network(given[start : start + batch])

        with torch.inference_mode(), np.load(place / "logits.npz") as wanted:
            for name, values in network(given[: len(next(iter(wanted.values())))])[
                0
            ].items():  # it must be the same network
                np.testing.assert_allclose(values.numpy(), wanted[name], rtol=1e-3, atol=1e-2)
        return fastest(forward), len(images)
    if peer == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(place / "graph.onnx", providers=["CPUExecutionProvider"])

        def run(batch: int) -> None:
            for start in range(0, len(images), batch):
                session.run(None, {"photos": images[start : start + batch]})

        return fastest(run), len(images)
    if peer == "catalogue":
        from fashion_jax.serving.predict import predict_source
        from fashion_jax.serving.predictor import load_model

        model = load_model(place / "package", engine="onnx")
        count = len(predict_source(model, photos, progress=False))
        return (lambda: predict_source(model, photos, progress=False)), count
    from fashion_jax.system.devices import start_devices

    start_devices(training=False)
    from fashion_jax.serving.predictor import load_model

    ours = load_model(place / "package", engine=peer.partition(", ")[2])
    return (lambda: ours.predict_arrays(images, flip=False)), len(images)


def fastest(run: Callable[[int], None]) -> Callable[[], None]:
    """Returns a round with the batch size that is fastest on this machine."""
    times = {}
    for batch in BATCHES:
        run(batch)
        begin = time.perf_counter()
        run(batch)
        times[batch] = time.perf_counter() - begin
    best = min(times, key=lambda batch: times[batch])
    return lambda: run(best)


def table(about: dict[str, Any]) -> str:
    """Returns Markdown."""
    lines = [f"Measured on {about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.", ""]
    lines += ["| network | peer | photos a second (least to most) | over torch eager | CPU ms a photo |"]
    lines.append("|---|---|---|---|---|")
    bases = {item["network"]: item["rounds"] for item in about["results"] if item["peer"] == REFERENCE}
    for item in about["results"]:
        ratio = median_ratio(item["rounds"], bases[item["network"]])
        over = "" if item["peer"] == "catalogue" else f"{ratio:.2f}"
        lines.append(
            f"| {item['network']} | {item['peer']} | {item['median']:.0f} ({item['least']:.0f} to {item['most']:.0f}) "
            f"| {over} | {item['cpu_ms']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], path: Path) -> None:
    """Draws medians and spreads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    shown = [item for item in about["results"] if item["peer"] != "catalogue"]
    for place, item in enumerate(shown):
        spread = [[item["median"] - item["least"]], [item["most"] - item["median"]]]
        axes.barh(place, item["median"], xerr=spread, color="C0" if "fashion_jax" in item["peer"] else "0.7")
    axes.set_yticks(range(len(shown)), [f"{item['peer']} ({item['network']})" for item in shown])
    axes.invert_yaxis()
    axes.set_xlabel("photos a second")
    axes.set_title(about["machine"], fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
