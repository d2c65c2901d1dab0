"""From stored photos to batches, and whether training waits for them.

    python benchmarks/input.py --records runs/small_cpu/records --torch-python /path/with/torch/bin/python

Two comparisons; in each, the peers take turns:

1. Packed records to batches on one core, beside what a PyTorch user writes: JPEG files, Pillow's decoder, resize, a
   mirror image at random, in a DataLoader. All read the same JPEGs in random order. `stream` decodes every photo each
   time; `host` keeps decoded photos in memory, which is what training chooses where they fit. Mirror images are part of
   our training step, not of our batches. The ratio compares photos per CPU second.
2. Training steps of configs/small_cpu.py on these batches, beside the same steps on one random batch that lies on the
   devices. If the ratio is below 1.00, training waits for photos. The ratio of CPU seconds, which other work on the
   machine disturbs less, is what photos cost where the network needs the same cores.

Our figures include work that a turn does not use: a turn opens the records again, and at its end photos for later steps
are being decoded. Writes results.json, table.md and input.png, in about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from turns import machine, median_ratio, serve, summary, take_turns, versions

STREAM, HOST, TORCH, RANDOM = "stream", "host", "torch", "one random batch"
CONFIG = "small_cpu"
BATCH = 128
MOST_FILES = 8_192  # photos that the peer reads again and again


def main() -> None:
    """Runs all peers in turn and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, required=True, help="a folder that `fashion-jax prepare` wrote")
    parser.add_argument("--size", nargs="*", default=["60x45", "80x60"], help="height x width of batches")
    parser.add_argument("--batches", type=int, default=200, help=f"batches of {BATCH} photos in a turn")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a turn; 0 leaves training out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch, numpy and pillow")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/input"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        task = json.loads(flags.worker)
        serve(make_work(**task), task["count"] * BATCH)
        return
    about: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("jax", "numpy", "grain", "simplejpeg", torch_python=flags.torch_python),
        "batches": [],
        "training": {},
    }

    def measure(peers: tuple[str, ...], **task: Any) -> dict[str, list[tuple[float, float]]]:
        pythons = {peer: flags.torch_python if peer == TORCH else sys.executable for peer in peers}
        commands = {
            peer: [pythons[peer], __file__, "--records", "", "--worker", json.dumps({"peer": peer, **task})]
            for peer in peers
        }
        return take_turns(commands, flags.rounds)

    with tempfile.TemporaryDirectory() as folder:
        write_files(flags.records, Path(folder))
        for size in flags.size:
            measured = measure(
                (STREAM, HOST, TORCH), records=str(flags.records), files=folder, size=size, count=flags.batches
            )
            # CPU seconds of one photo -> photos in a CPU second
            rates = {peer: [1 / cpu for _, cpu in turns] for peer, turns in measured.items()}
            result = {"size": size, **{peer: summary(values, 0) for peer, values in rates.items()}}
            result["ratios"] = {peer: round(median_ratio(rates[peer], rates[TORCH]), 2) for peer in (STREAM, HOST)}
            about["batches"].append(result)
            print(json.dumps(result), flush=True)
    if flags.steps:
        measured = measure((RANDOM, HOST, STREAM), records=str(flags.records), count=flags.steps)
        rates, cpu = ({peer: [turn[place] for turn in turns] for peer, turns in measured.items()} for place in (0, 1))
        about["training"] = {peer: summary(values) for peer, values in rates.items()}
        about["training"]["ratios"] = {
            peer: round(median_ratio(rates[peer], rates[RANDOM]), 3) for peer in (HOST, STREAM)
        }
        about["training"]["cpu_ratios"] = {
            peer: round(median_ratio(cpu[peer], cpu[RANDOM]), 3) for peer in (HOST, STREAM)
        }
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "results.json").write_text(json.dumps(about, indent=1) + "\n")
    (flags.out / "table.md").write_text(table(about))
    draw(about, flags.out / "input.png")
    print(table(about))


def write_files(records: Path, folder: Path) -> None:
    """Writes photos of the training rows as the JPEG files that the peer reads."""
    from fashion_jax.data.records import open_prepared

    prepared = open_prepared(records)
    for row in prepared.indices("train")[:MOST_FILES].tolist():
        (folder / f"{row}.jpg").write_bytes(prepared.read_photo(row))


def make_work(peer: str, records: str, count: int, files: str = "", size: str = "") -> Callable[[], Any]:
    """Returns a function that does one turn of a peer: `count` batches of a size, or steps where no size is given."""
    if not size:
        return training_work(peer, Path(records), count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    height, width = map(int, size.split("x"))
    if peer == TORCH:
        batches = torch_batches(Path(files), height, width)
        return lambda: [next(batches) for _ in range(count)]
    return our_batches(peer, Path(records), height, width, count)


def our_batches(storage: str, records: Path, height: int, width: int, count: int) -> Callable[[], Any]:
    """Returns a function that makes batches as training does, the next ones with each call."""
    from fashion_jax.data.records import open_prepared

    turns = turns_of_batches(storage, open_prepared(records), height, width, count)

    def work() -> None:
        for batch in next(turns):
            assert batch["image"].shape == (BATCH, height, width, 3)

    return work


def turns_of_batches(storage: str, prepared: Any, height: int, width: int, count: int) -> Iterator[Iterator[Any]]:
    """Yields iterators of `count` training batches without end, each opened anew; decoded photos are kept."""
    from fashion_jax.data.loader import ResidentPhotos, StreamedPhotos, training_batches

    if storage == HOST:
        photos = ResidentPhotos(prepared, prepared.indices("train"), height, width, progress=False)
    else:
        photos = StreamedPhotos(prepared, height, width)

    def turn(start: int) -> Iterator[Any]:
        batches = training_batches(prepared, photos, batch_size=BATCH, seed=0, start_step=start)
        with contextlib.closing(batches):
            yield from itertools.islice(batches, count)

    return map(turn, itertools.count(step=count))


def torch_batches(folder: Path, height: int, width: int) -> Iterator[Any]:
    """Yields batches without end, read as PyTorch's users do."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    paths = sorted(folder.glob("*.jpg"))

    class Photos(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> torch.Tensor:
            photo = Image.open(paths[place]).convert("RGB").resize((width, height))
            if torch.rand(()) < 0.5:
                photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(photo))

    # In this process, because between processes batches would be copied, which costs more.
    loader = DataLoader(Photos(), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def training_work(peer: str, records: Path, steps: int) -> Callable[[], Any]:
    """Returns a function that computes training steps, on photos of the records or on one random batch."""
    from fashion_jax.config.files import load_config
    from fashion_jax.system.devices import start_devices

    config = load_config(CONFIG)
    config.data.source, config.train.batch_size = str(records), BATCH
    start_devices(config.runtime.cpu_devices, config.model.dtype)
    import jax

    from fashion_jax.data.records import open_prepared
    from fashion_jax.run.resolve import fill_in
    from fashion_jax.run.session import Session
    from fashion_jax.training.placement import put_batch

    prepared = open_prepared(records)
    storage = HOST if peer == HOST else STREAM
    session = Session(fill_in(config, prepared), prepared, Path(), progress=False, storage=storage)
    state, step = session.first_state(), session.train_step(0)
    turns = turns_of_batches(storage, prepared, config.data.height, config.data.width, steps)
    drawn = next(next(turns))
    drawn["image"] = np.random.default_rng(0).integers(0, 256, drawn["image"].shape, np.uint8)
    resident = put_batch(drawn, session.mesh)

    def work() -> None:
        nonlocal state
        for batch in itertools.repeat(None, steps) if peer == RANDOM else next(turns):
            state, metrics = step(state, put_batch(batch, session.mesh) if batch else resident)
        jax.block_until_ready((state, metrics))

    return work


def table(about: dict[str, Any]) -> str:
    """Returns Markdown."""

    def shown(values: dict[str, Any], digits: int = 0) -> str:
        return f"{values['median']:,.{digits}f} ({values['least']:,.{digits}f} to {values['most']:,.{digits}f})"

    lines = [f"Measured on {about['machine']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.", ""]
    lines += [
        f"| photos in a CPU second, batches of {BATCH} | median (least to most) | over torch and Pillow |",
        "|---|---|---|",
    ]
    for item in about["batches"]:
        for peer in (STREAM, HOST, TORCH):
            name = "torch DataLoader, Pillow" if peer == TORCH else f"fashion_jax, {peer}"
            ratio = item["ratios"].get(peer)
            lines.append(
                f"| {item['size']}: {name} | {shown(item[peer])} | {'' if ratio is None else f'{ratio:.1f}'} |"
            )
    if training := about["training"]:
        lines += [
            "",
            f"| training, configs/{CONFIG}.py | photos a second (least to most) | over one random batch "
            "| the same in CPU seconds |",
            "|---|---|---|---|",
        ]
        for peer in (RANDOM, HOST, STREAM):
            ratios = (f"{training[kind][peer]:.3f}" if peer != RANDOM else "" for kind in ("ratios", "cpu_ratios"))
            name = peer if peer == RANDOM else f"records, {peer}"
            lines.append(f"| {name} | {shown(training[peer], 1)} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def draw(about: dict[str, Any], path: Path) -> None:
    """Draws medians and spreads of the batches."""
    from matplotlib.figure import Figure

    bars = [(item["size"], peer, item[peer]) for item in about["batches"] for peer in (STREAM, HOST, TORCH)]
    figure = Figure(figsize=(8, 1 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (_, peer, values) in enumerate(bars):
        spread = [[values["median"] - values["least"]], [values["most"] - values["median"]]]
        axes.barh(place, values["median"], xerr=spread, color="0.7" if peer == TORCH else "C0")
    names = {STREAM: "fashion_jax, stream", HOST: "fashion_jax, host", TORCH: "torch DataLoader, Pillow"}
    axes.set_yticks(range(len(bars)), [f"{names[peer]} ({size})" for size, peer, _ in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"photos in a CPU second, in batches of {BATCH}")
    axes.set_title(about["machine"], fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
