"""Compiles the steps of all configurations for TPUs and H100s, on a machine without them, and names the bottlenecks.

    make bench-accelerators
    .venv-aot/bin/python benchmarks/accelerators.py --configs small_cpu --targets v5e:1x1 v5e:4x4 --steps train

libtpu (Linux on x86-64) and the CUDA plugin compile without a chip. Nothing runs. FLOPs are counted in the model.
Memory, traffic, collectives and cycles are the compiler's. Times are computed from published peak speeds (rooflines). A
combination of a configuration, a step and a target takes one to ten minutes of one core. It is written to results.json
as soon as it is done, and not compiled again as long as the code is the same. Writes results.json, table.md and
rooflines.png. The exit code is 1 where a step does not compile or does not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update({
    "JAX_PLATFORMS": "cpu",
    # libtpu asks a metadata server otherwise, and waits for it.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # otherwise only one process may load libtpu, even without a chip
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Autotuning and Triton would run kernels on a device.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    **os.environ,
})  # fmt: skip

import jax
import jax.numpy as jnp
import numpy as np

from fashion_jax.config.files import load_config
from fashion_jax.data.records import Prepared
from fashion_jax.evaluation.metrics import HeadMetrics
from fashion_jax.models.classifier import mean_energy, merge_network
from fashion_jax.run.resolve import fill_in
from fashion_jax.run.session import Session
from fashion_jax.run.start import prepare_pretrained
from fashion_jax.serving.package import zoo_models
from fashion_jax.system import files
from fashion_jax.training.placement import batch_sharding, replicated
from hlo import Program, read_program

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
CONFIGS = tuple(sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "base"))
STEPS = ("train", "evaluate", "embed")
# Kaggle's catalogue: attributes and their numbers of classes.
CLASSES = {
    "masterCategory": 7, "subCategory": 45, "articleType": 142, "baseColour": 46, "gender": 5, "season": 4, "usage": 8,
}  # fmt: skip
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""  # XLA's tools/hlo_opt/gpu_specs


@dataclass(frozen=True, slots=True)
class Chip:
    """Published figures of one chip."""

    flops: float  # bfloat16, a second
    bandwidth: float  # of its memory, bytes a second
    memory: float  # bytes
    links: float  # to other chips, bytes a second in one direction


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * GIB, 200e9),
    "v6e": Chip(918e12, 1640e9, 32 * GIB, 448e9),
    "v5p": Chip(459e12, 2765e9, 95 * GIB, 600e9),
    "h100": Chip(989e12, 3352e9, 80 * GIB, 450e9),
}
TARGETS = ("v5e:1x1", "v5e:4x4", "v6e:4x4", "v5p:2x2x1", "h100:1", "h100:8")


@dataclass(frozen=True, slots=True)
class Report:
    """What a step became on a target. Figures are of one device, unless they name the batch."""

    config: str
    step: str
    target: str
    code: str  # digest of the code that was compiled
    per_device: int = 0  # photos
    devices: int = 0
    gflops: float = 0.0  # of the model, for one photo
    megabytes: float = 0.0  # of traffic, for one photo
    float32_share: float = 0.0  # of the traffic
    memory_gib: float = 0.0  # at its peak
    fits: bool = False
    # photos on a device that fill its memory, in proportion to what they take now; negative if the state does not fit
    largest_batch: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    collective_megabytes: float = 0.0
    loops_with_collectives: int = 0
    largest_gather: int = 0  # elements of its result
    aliased: int = 0  # arrays of the state whose memory the new state takes over
    state_arrays: int = 0
    megacycles: float = 0.0  # as a TPU's compiler estimates them
    milliseconds: dict[str, float] = field(default_factory=dict)  # what each resource takes at its peak
    compile_seconds: float = 0.0
    error: str = ""

    @property
    def binds(self) -> str:
        """The resource that takes longest."""
        return max(self.milliseconds, key=lambda name: self.milliseconds[name]) if self.milliseconds else ""

    @property
    def photos_per_second(self) -> float:
        """At the roofline, of all devices."""
        longest = max(self.milliseconds.values(), default=0.0)
        return self.per_device * self.devices / longest * 1000 if longest else 0.0


def main() -> int:
    """Compiles what is asked for and writes the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", default=CONFIGS)
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--steps", nargs="*", default=STEPS, choices=STEPS)
    parser.add_argument("--per-device", type=int, default=128, help="photos on each device")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the configuration")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/accelerators")
    parser.add_argument("--programs", type=Path, help="folder for the texts of the compiled programs")
    flags = parser.parse_args()
    path, settings = flags.out / "results.json", dict(item.split("=", 1) for item in flags.set)
    codes = {config: digest_of(config, flags.per_device, settings) for config in flags.configs}
    flags.out.mkdir(parents=True, exist_ok=True)
    reports = [Report(**row) for row in json.loads(path.read_text())["reports"]] if path.exists() else []
    reports = [one for one in reports if one.code == codes.get(one.config, one.code)]
    done = {(one.config, one.step, one.target) for one in reports if not one.error}
    todo = [(c, s, t) for t in flags.targets for c in flags.configs for s in flags.steps if (c, s, t) not in done]
    for number, (config, step, target) in enumerate(todo, 1):
        text, report = compile_step(config, step, target, flags.per_device, settings, codes[config])
        if flags.programs and text:
            flags.programs.mkdir(parents=True, exist_ok=True)
            (flags.programs / f"{config}-{step}-{target.replace(':', '-')}.hlo").write_text(text)
        print(f"{number}/{len(todo)}", json.dumps(dataclasses.asdict(report)), flush=True)
        reports = [one for one in reports if (one.config, one.step, one.target) != (config, step, target)]
        reports.append(report)
        files.write_text(path, json.dumps(about(reports), indent=1))
    (flags.out / "table.md").write_text(table(reports))
    draw([one for one in reports if one.step == "train" and not one.error], flags.out / "rooflines.png")
    return 0 if all(one.fits for one in reports) else 1


def digest_of(config: str, per_device: int, settings: dict[str, str]) -> str:
    """Returns a digest of all that decides a report of a configuration: code, settings, compilers."""
    package = ROOT / "fashion_jax"
    sources = sorted([
        *(package / "models").glob("*.py"), *(package / "training").glob("*.py"), package / "data/augment.py",
        package / "config/fields.py", package / "evaluation/evaluate.py", package / "evaluation/metrics.py",
        ROOT / "benchmarks/hlo.py",
    ])  # fmt: skip
    told = [dataclasses.asdict(load_config(config, settings)), per_device, versions()]
    texts = [path.read_bytes() for path in sources] + [json.dumps(told).encode()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Returns the versions of what compiles."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-plugin"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def about(reports: list[Report]) -> dict[str, Any]:
    """Returns the reports and what compiled them."""
    return {"versions": versions(), "reports": [dataclasses.asdict(one) for one in reports]}


def compile_step(
    config: str, step: str, target: str, per_device: int, settings: dict[str, str], code: str
) -> tuple[str, Report]:
    """Compiles a step for a target. Returns the program's text and its report, which tells what went wrong."""
    began = time.monotonic()
    try:
        devices = target_devices(target)
        mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        session = make_session(config, mesh, per_device * len(devices), settings)
        traced = trace_step(session, step, per_device * len(devices))
        platform = devices[0].platform
        compiled = traced.lower(lowering_platforms=("cuda",) if platform in ("gpu", "cuda") else None).compile()
    except Exception as error:  # what does not compile is what is looked for
        return "", Report(config, step, target, code, error=f"{type(error).__name__}: {error}"[:2000])
    text, memory, chip = compiled.as_text(), compiled.memory_analysis(), CHIPS[target.split(":")[0]]
    program = read_program(text)
    fixed = memory.argument_size_in_bytes - per_device * photo_bytes(session)
    peak = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    flops = count_flops(traced.jaxpr.jaxpr) / (per_device * len(devices))
    traffic = sum(program.traffic.values())
    return text, Report(
        config,
        step,
        target,
        code,
        per_device=per_device,
        devices=len(devices),
        gflops=round(flops / 1e9, 3),
        megabytes=round(traffic / per_device / 1e6, 2),
        float32_share=round(program.traffic.get("f32", 0.0) / max(traffic, 1.0), 3),
        memory_gib=round(peak / GIB, 3),
        fits=peak <= chip.memory,
        largest_batch=int((chip.memory - fixed) / max(peak - fixed, 1) * per_device),
        collectives=program.collectives,
        collective_megabytes=round(program.collective_bytes / 1e6, 2),
        loops_with_collectives=program.loops_with_collectives,
        largest_gather=program.largest_gather,
        aliased=program.aliased,
        state_arrays=len(jax.tree.leaves(session.target)),
        megacycles=round(program.cycles / 1e6, 3),
        milliseconds=roofline(flops * per_device, traffic, program, chip, len(devices)),
        compile_seconds=round(time.monotonic() - began, 1),
    )


def roofline(flops: float, traffic: float, program: Program, chip: Chip, devices: int) -> dict[str, float]:
    """Returns the milliseconds of each resource at its published peak."""
    sent = 2 * (devices - 1) / devices * program.collective_bytes  # of a ring
    seconds = {"products": flops / chip.flops, "memory": traffic / chip.bandwidth, "links": sent / chip.links}
    return {name: round(value * 1e3, 3) for name, value in seconds.items()}


def target_devices(target: str) -> list[Any]:
    """Returns devices that can only be compiled for, such as those of "v5e:4x4" or "h100:8"."""
    chip, shape = target.split(":")
    if chip == "h100":
        from jax._src import xla_bridge

        xla_bridge._discover_and_register_pjrt_plugins()
        # topologies.get_topology_desc cannot be used: it starts a backend, which is missing here (jax issue 23971).
        make = xla_bridge._topology_factories["cuda"]
        return list(make("", target_config=H100, topology=f"1x1x{shape}")._make_compile_only_devices())
    from jax.experimental import topologies

    one = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=target, **one).devices)


def make_session(name: str, mesh: jax.sharding.Mesh, batch: int, settings: dict[str, str]) -> Session:
    """Returns a session on records without photos, which are not read before training."""
    config = load_config(name, {"data.storage": "host", "train.batch_size": str(batch), **settings})
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # as on every accelerator
    random, rows = np.random.default_rng(0), 44_000
    prepared = Prepared(
        folder=Path("nowhere"), fingerprint="", stamp="", max_side=256, schema=None,
        vocabularies={name: tuple(f"{name}{i}" for i in range(count)) for name, count in CLASSES.items()},
        ids=np.arange(rows).astype(str), titles=[],
        labels=np.stack([random.integers(0, count, rows) for count in CLASSES.values()], 1).astype(np.int32),
        splits=np.sort(random.choice(3, rows, p=(0.7, 0.1, 0.2))).astype(np.int8),
        groups=np.arange(rows), report={},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as workdir:
        if config.model.pretrained in zoo_models():
            prepare_pretrained(config, Path(workdir), progress=False)
        else:
            config.model.pretrained = ""  # not at hand; the configuration names the same architecture
        filled = fill_in(config, prepared, Path(workdir))
    return Session(filled, prepared, Path("nowhere"), mesh=mesh, progress=False)


def trace_step(session: Session, step: str, batch: int) -> Any:
    """Returns the traced step, of shapes alone."""
    everywhere, rows, data = replicated(session.mesh), batch_sharding(session.mesh), session.config.data

    def of_rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=rows)

    photos = {
        "image": of_rows((data.height, data.width, 3), jnp.uint8),
        "row": of_rows((), jnp.int32),
        "label": of_rows((len(session.prepared.attributes),), jnp.int32),
        "valid": of_rows((), jnp.bool_),
    }
    if step == "train":
        # The first step at which photos have their full size.
        return session.train_step(session.steps(session.config.train.progressive_until)).trace(session.target, photos)
    if step == "evaluate":
        empty = jax.eval_shape(lambda: {name: HeadMetrics.empty(len(v)) for name, v in session.vocabularies.items()})
        totals = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), empty)
        return session.evaluation_step.trace(*session.target.scored, totals, photos)

    def embed(params: Any, batch_stats: Any, images: jax.Array) -> tuple[Any, ...]:
        network = merge_network(session.graph, params, batch_stats)
        outputs = network(session.network.normalize(images), train=False)
        return outputs.logits, outputs.features, mean_energy(outputs.logits), outputs.colour

    forward = jax.jit(embed, in_shardings=(everywhere, everywhere, rows), out_shardings=rows)
    return forward.trace(*session.target.scored, photos["image"])


def photo_bytes(session: Session) -> int:
    """Returns the bytes of a photo in a batch."""
    return session.config.data.height * session.config.data.width * 3


def count_flops(jaxpr: Any, times: float = 1.0) -> float:
    """Returns the FLOPs of a program's convolutions and matrix products, over all devices; each counts 2."""
    total = 0.0
    for one in jaxpr.eqns:
        if one.primitive.name == "conv_general_dilated":
            numbers = one.params["dimension_numbers"]
            kernel, out = one.invars[1].aval.shape, one.outvars[0].aval.shape
            inputs = [side for place, side in enumerate(kernel) if place != numbers.rhs_spec[0]]
            # Zeros that dilate an operand are not multiplied: they belong to a stride of the forward pass.
            zeros = np.prod(one.params["lhs_dilation"])
            total += 2.0 * times * np.prod(out, dtype=float) * np.prod(inputs, dtype=float) / zeros
        elif one.primitive.name == "dot_general":
            (contracted, _), _ = one.params["dimension_numbers"]
            sides = [one.invars[0].aval.shape[place] for place in contracted]
            total += 2.0 * times * np.prod(one.outvars[0].aval.shape, dtype=float) * np.prod(sides, dtype=float)
        inner = times
        if one.primitive.name == "scan":
            inner *= one.params["length"]
        elif one.primitive.name == "shard_map":
            inner *= one.params["mesh"].size
        nested = list(_nested(one.params))
        # The last branch of a choice by platform is the default one.
        for part in nested[-1:] if one.primitive.name == "cond" else nested:
            total += count_flops(part, inner)
    return total


def _nested(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def table(reports: list[Report]) -> str:
    """Returns the reports as Markdown."""
    lines = [
        "Compiled, not run. MB a photo: what a device reads and writes. float32: its share of these bytes.",
        "Collectives: messages between devices in a step. Roofline: the upper bound from published peak speeds.",
        "Binds: the bottleneck (products: matrix products; memory: the device's memory; links: between devices).",
        "",
        "| target | configuration | step | photos a device | GFLOP a photo | MB a photo | float32 | memory, GiB | "
        "largest batch | collectives | cycles, M | roofline, photos/s | binds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(reports, key=lambda r: (TARGETS.index(r.target), r.config, STEPS.index(r.step))):
        if one.error:
            lines.append(f"| {one.target} | {one.config} | {one.step} | {one.error.splitlines()[0][:80]} |" + " |" * 9)
            continue
        lines.append(
            f"| {one.target} | {one.config} | {one.step} | {one.per_device} | {one.gflops:.2f} | {one.megabytes:.1f} | "
            f"{one.float32_share:.0%} | {one.memory_gib:.2f} | {one.largest_batch:,} | "
            f"{sum(one.collectives.values())} | {f'{one.megacycles:.1f}' if one.megacycles else ''} | "
            f"{one.photos_per_second:,.0f} | {one.binds} |"
        )
    there = {(one.target, one.config, one.step) for one in reports}
    for target in TARGETS:
        missing = {config: [step for step in STEPS if (target, config, step) not in there] for config in CONFIGS}
        named = [
            config if steps == list(STEPS) else f"{config} ({', '.join(steps)})"
            for config, steps in missing.items() if steps
        ]  # fmt: skip
        if named:
            lines.append(f"\nNot compiled for {target}: {'; '.join(named)}.")
    return "\n".join(lines) + "\n"


def draw(reports: list[Report], path: Path) -> None:
    """Draws the rooflines of training: photos a second for each device, a panel for each target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    targets = [target for target in TARGETS if any(one.target == target for one in reports)]
    if not targets:
        return
    colours = {"products": "tab:blue", "memory": "tab:orange", "links": "tab:red"}
    figure, axes = plt.subplots(1, len(targets), figsize=(3 * len(targets), 4), sharex=True, sharey=True, squeeze=False)
    for axis, target in zip(axes[0], targets, strict=True):
        rows = [one for one in reports if one.target == target]
        rates = [one.photos_per_second / one.devices for one in rows]
        axis.barh([one.config for one in rows], rates, color=[colours[one.binds] for one in rows])
        axis.set_xscale("log")
        axis.set_xlim(1e3, 1e6)
        axis.set_title(target)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    figure.legend(handles, [f"bottleneck: {name}" for name in colours], loc="lower center", ncols=3)
    figure.suptitle("Training, upper bound: photos a second for each device (compiled, not run)")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
