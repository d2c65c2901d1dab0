"""A training step beside PyTorch's: the same network, photos, optimizer and batch. Both take turns.

    python benchmarks/train_step.py --torch-python /path/with/torch/bin/python
    python benchmarks/train_step.py --isa avx2                  as on a CPU without AVX-512
    python benchmarks/train_step.py --compile --cases gpu       on a GPU

A step is forward, four cross-entropies, backward and AdamW, on photos that lie in memory, without augmentation. Each
peer has a process of its own and waits while another one runs. PyTorch uses channels_last, and autocast for bfloat16.
Writes results.json, table.md and train_step.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turns import machine, median_ratio, serve, summary, take_turns, versions

CLASSES = {"masterCategory": 4, "subCategory": 32, "baseColour": 44, "gender": 5}
OURS, TORCH = "fashion_jax", "torch"
STEPS = 5  # of one turn


@dataclass(frozen=True)
class Case:
    """A network and its photos."""

    depth: int
    width: int
    height: int
    columns: int  # of a photo
    batch: int
    dtype: str  # of the convolutions

    def __str__(self) -> str:
        return (
            f"ResNet-{self.depth}, width {self.width}, {self.height}x{self.columns}, batch {self.batch}, {self.dtype}"
        )


_PLAIN = Case(18, 32, 80, 60, 128, "float32")
CASES = {
    "goal": (_PLAIN,),
    # images a second against batch, depth, width and size
    "growth": (
        *(Case(18, 32, 80, 60, batch, "float32") for batch in (16, 32, 64, 256)),
        Case(34, 32, 80, 60, 128, "float32"),
        Case(50, 32, 80, 60, 128, "float32"),
        Case(18, 64, 80, 60, 128, "float32"),
        Case(18, 32, 160, 120, 32, "float32"),
        Case(18, 32, 80, 60, 128, "bfloat16"),
    ),
    "gpu": (
        Case(50, 64, 224, 224, 256, "bfloat16"),
        Case(18, 64, 80, 60, 1024, "bfloat16"),
        Case(50, 64, 80, 60, 512, "bfloat16"),
    ),
}
# Variables that make both peers compute as on a CPU without AVX-512.
AVX2 = {
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
}


def main() -> None:
    """Runs both peers in turn and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=["goal"], choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--isa", choices=("native", "avx2"), default="native", help="instructions that CPUs may use")
    parser.add_argument("--compile", action="store_true", help="compile PyTorch's network with torch.compile")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch and numpy")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_step"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        peer, case = flags.worker
        make_work = our_work if peer == OURS else torch_work
        case = Case(**json.loads(case))
        serve(make_work(case, flags.compile), case.batch * STEPS)
        return
    about: dict[str, Any] = {
        "machine": machine(),
        "isa": flags.isa,
        "compile": flags.compile,
        "versions": versions("jax", "flax", "numpy", torch_python=flags.torch_python),
        "results": [],
    }
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(AVX2 if flags.isa == "avx2" else {})}
    for case in (case for name in flags.cases for case in CASES[name]):
        commands = {
            peer: [python, __file__, "--worker", peer, json.dumps(asdict(case)), *(["--compile"] * flags.compile)]
            for peer, python in ((OURS, sys.executable), (TORCH, flags.torch_python))
        }
        measured = take_turns(commands, flags.rounds, environment)
        rates = {peer: [rate for rate, _ in rounds] for peer, rounds in measured.items()}
        ratio = round(median_ratio(rates[OURS], rates[TORCH]), 3)
        result = {"case": asdict(case), "ratio": ratio, **{peer: summary(values) for peer, values in rates.items()}}
        about["results"].append(result)
        print(json.dumps(result), flush=True)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    (flags.out / "table.md").write_text(table(about))
    draw(about, flags.out / "train_step.png")
    print(table(about))


def our_work(case: Case, compile_torch: bool) -> Callable[[], Any]:
    """Returns a function that computes some steps with this library."""
    del compile_torch
    from fashion_jax.system.devices import make_mesh, start_devices

    start_devices(dtype=case.dtype)
    import jax

    from fashion_jax.config.fields import AugmentConfig, Config
    from fashion_jax.data.records import Prepared
    from fashion_jax.data.schema import Attribute, Schema
    from fashion_jax.run.resolve import fill_in
    from fashion_jax.run.session import Session
    from fashion_jax.training.placement import put_batch
    from fashion_jax.training.state import create_state

    config = Config()
    config.data.height, config.data.width, config.data.storage = case.height, case.columns, "host"
    config.data.augment = AugmentConfig(
        min_crop_area=1.0, flip_probability=0.0, max_rotation=0.0, erase_probability=0.0
    )
    config.model.depth, config.model.width, config.model.dtype = case.depth, case.width, case.dtype
    config.train.batch_size, config.optimizer.learning_rate = case.batch, 1e-3
    rng, rows = np.random.default_rng(0), 10 * case.batch
    labels = np.stack([rng.integers(0, count, rows) for count in CLASSES.values()], 1).astype(np.int32)
    prepared = Prepared(
        folder=Path(), fingerprint="", stamp="", max_side=max(case.height, case.columns),
        schema=Schema("drawn", attributes=tuple(Attribute(name) for name in CLASSES)),
        vocabularies={name: tuple(f"{name} {i}" for i in range(count)) for name, count in CLASSES.items()},
        ids=np.arange(rows).astype(str), titles=[""] * rows, labels=labels,
        splits=np.sort(rng.choice(3, rows, p=(0.8, 0.1, 0.1))).astype(np.int8), groups=np.arange(rows), report={},
    )  # fmt: skip
    session = Session(fill_in(config, prepared), prepared, Path(), mesh=make_mesh(), progress=False)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(session.target.params))
    print(f"{parameters:,} parameters, {session.mesh.size} devices", file=sys.stderr)
    batch = put_batch(
        {
            "image": rng.integers(0, 256, (case.batch, case.height, case.columns, 3), np.uint8),
            "row": np.arange(case.batch, dtype=np.int32),
            "label": labels[: case.batch],
            "valid": np.ones(case.batch, bool),
        },
        session.mesh,
    )
    state = create_state(session.arguments, session.optimizer, 0, session.mesh, averaged=session.averaged)
    step = session.train_step(0)

    def work() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return work


def torch_work(case: Case, compile_torch: bool) -> Callable[[], Any]:
    """Returns a function that computes some steps with PyTorch, as its users write them."""
    import torch
    from torch.nn import functional

    from torch_network import MultiHeadResNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    network = MultiHeadResNet(case.depth, case.width, CLASSES, small=max(case.height, case.columns) <= 96)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", file=sys.stderr)
    network = network.to(device).to(memory_format=torch.channels_last)
    photos = torch.randint(0, 256, (case.batch, 3, case.height, case.columns), dtype=torch.uint8, device=device)
    photos = photos.to(memory_format=torch.channels_last)
    labels = {name: torch.randint(0, count, (case.batch,), device=device) for name, count in CLASSES.items()}
    run = torch.compile(network, mode="max-autotune-no-cudagraphs") if compile_torch else network
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=device == "cuda")

    def work() -> None:
        for _ in range(STEPS):
            with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
                logits = run((photos.float() / 255 - 0.5) / 0.25)
                loss = sum(functional.cross_entropy(logits[name].float(), labels[name]) for name in CLASSES)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work


def table(about: dict[str, Any]) -> str:
    """Returns Markdown."""
    compiled = ", PyTorch compiled" if about["compile"] else ""
    lines = [
        f"Measured on {about['machine']}, instructions: {about['isa']}{compiled}; "
        f"{', '.join(f'{k} {v}' for k, v in about['versions'].items())}.",
        "",
        "| network and photos | fashion_jax, photos a second (least to most) | torch | ratio |",
        "|---|---|---|---|",
    ]
    for item in about["results"]:
        rates = (f"{r['median']:.0f} ({r['least']:.0f} to {r['most']:.0f})" for r in (item[OURS], item[TORCH]))
        lines.append(f"| {Case(**item['case'])} | {' | '.join(rates)} | {item['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], path: Path) -> None:
    """Draws medians and spreads."""
    from matplotlib.figure import Figure

    results = about["results"]
    figure = Figure(figsize=(8, 1.5 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots()
    for offset, peer, colour in ((-0.2, OURS, "C0"), (0.2, TORCH, "0.7")):
        for place, item in enumerate(results):
            rate = item[peer]
            spread = [[rate["median"] - rate["least"]], [rate["most"] - rate["median"]]]
            axes.barh(place + offset, rate["median"], 0.4, xerr=spread, color=colour, label="" if place else peer)
    axes.set_yticks(range(len(results)), [str(Case(**item["case"])) for item in results])
    axes.invert_yaxis()
    axes.set_xlabel("photos a second in training")
    axes.set_title(about["machine"], fontsize=9)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
