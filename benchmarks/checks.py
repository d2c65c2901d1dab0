"""What the checks of stored files cost: opening with and without them, in turns.

    python benchmarks/checks.py --records runs/small_cpu/records --out benchmarks/results/checks

Without the checks, every digest counts as right and no file is read for it. Everything is opened once before, so files
come from memory. Writes results.json and table.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax

from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.search.index import Index
from fashion_jax.serving.package import ZOO, load_package
from fashion_jax.system import files, stored
from fashion_jax.training.checkpoint import Checkpoints
from fashion_jax.training.state import TrainState, abstract_state, create_state

NUM_VECTORS, DIM = 40_000, 256
CLASSES = {"masterCategory": 4, "subCategory": 32, "baseColour": 44, "gender": 5}
NETWORKS = {
    "ResNet-18 of width 32": {"depth": 18, "width": 32, "stem": "small"},
    "ResNet-50": {"depth": 50, "width": 64, "stem": "imagenet"},
}
OPTIMIZER = optax.adamw(1e-3)


class _Any(str):
    """A digest that equals every other one."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


_digest, _document_digest = files.digest, stored.document_digest
_known: dict[Any, str] = {}  # keys of a document -> its digest, by which a journal knows its index


def _note_digest(value: Mapping[str, Any]) -> str:
    found = _known[(*value, value.get("step"))] = _document_digest(value)
    return found


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Takes every digest for right."""
    with (
        mock.patch.object(files, "file_digest", lambda path: _Any()),
        mock.patch.object(files, "digest", lambda value: _Any() if isinstance(value, bytes) else _digest(value)),
        mock.patch.object(stored, "document_digest", lambda value: _known[(*value, value.get("step"))]),
    ):
        yield


def compare(action: Callable[[], Any], turns: int) -> dict[str, float]:
    """Returns the milliseconds of an action with and without the checks: medians, and the range with them."""
    with mock.patch.object(stored, "document_digest", _note_digest):
        action()
    times: dict[str, list[float]] = {"with": [], "without": []}
    for turn in range(2 * turns):
        name = ("with", "without")[turn % 2]
        with without_checks() if name == "without" else contextlib.nullcontext():
            begin = time.perf_counter()
            action()
            times[name].append(1e3 * (time.perf_counter() - begin))
    mine, bare = (statistics.median(times[name]) for name in ("with", "without"))
    return {
        "without": bare,
        "with": mine,
        "ratio": mine / bare,
        "least": min(times["with"]),
        "most": max(times["with"]),
    }


def open_records(folder: Path) -> None:
    """Opens records and reads a photo of each of their splits."""
    prepared = open_prepared(folder)
    for split in np.unique(prepared.splits):
        prepared.read_photo(int(np.flatnonzero(prepared.splits == split)[0]))


def make_index(folder: Path) -> None:
    """Saves an index of random vectors."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(NUM_VECTORS, DIM)).astype(np.float32)
    columns = {"colour": generator.choice(["red", "blue", "green"], NUM_VECTORS).tolist()}
    with Index.build(vectors, [str(n) for n in range(NUM_VECTORS)], columns) as index:
        index.save(folder)


def saved(network: dict[str, Any], folder: Path) -> TrainState:
    """Saves as many checkpoints as a run keeps, and returns what to restore."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    arguments = {"classes": CLASSES, "dtype": "float32", **network}
    state = create_state(arguments, OPTIMIZER, 0, mesh)
    with Checkpoints(folder) as checkpoints:
        for step, metric in ((1, 0.9), (2, 0.1), (3, 0.2)):
            number = jax.device_put(np.int32(step), state.step.sharding)
            checkpoints.save(state.replace(step=number), {}, metric)
    return abstract_state(arguments, OPTIMIZER, mesh)


def restore(folder: Path, target: TrainState) -> None:
    """Opens checkpoints and restores the newest one, as a run does that goes on."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.latest_step is not None
        jax.block_until_ready(checkpoints.restore(checkpoints.latest_step, target))


def main() -> None:
    """Measures everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, help="prepared records; 2,000 drawn products where none are given")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checks"))
    flags = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)

        def measure(name: str, action: Callable[[], Any]) -> None:
            rows[name] = compare(action, flags.turns)
            print(name, json.dumps({key: round(value, 3) for key, value in rows[name].items()}), flush=True)

        measure("package `small`: open", lambda: load_package(ZOO / "small"))
        make_index(root / "index")
        measure(f"index of {NUM_VECTORS:,} products: open", lambda: Index.load(root / "index").close())
        records = flags.records
        if records is None:
            records = root / "records"
            prepare("synthetic", records, PrepareOptions(), progress=False)
        measure(
            f"records of {len(open_prepared(records)):,} photos: open, and read a photo of each split",
            lambda: open_records(records),
        )
        for name, network in NETWORKS.items():
            folder = root / name.replace(" ", "_")
            target = saved(network, folder)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
            measure(f"checkpoints of {name} ({size:,.0f} MB): open, and restore one", partial(restore, folder, target))
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in ("jax", "orbax-checkpoint", "numpy")}
    machine = f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"
    lines = ["| what | without checks | with checks | ratio |", "|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['without']:.0f} ms | {row['with']:.0f} ms | {row['ratio']:.2f} |")
    flags.out.mkdir(parents=True, exist_ok=True)
    files.write_json(flags.out / "results.json", {"machine": machine, "versions": versions, "milliseconds": rows})
    files.write_text(flags.out / "table.md", f"Measured on {machine}.\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
