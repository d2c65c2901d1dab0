"""Finds the trained packages that come with the library, and stores a package in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from fashion_jax.serving.package import load_package, write_package
from fashion_jax.system.errors import UserError

ZOO = Path(__file__).resolve().parent / "packages"
_LARGEST_HALF = float(np.finfo(np.float16).max)


def zoo_models() -> tuple[str, ...]:
    """Returns the names of the packages that come with the library."""
    return tuple(sorted(file.parent.name for file in ZOO.glob("*/config.json")))


def find_model(path: str | Path) -> Path:
    """Returns `path` where it exists, else the folder of the library's package of that name, if there is one."""
    given = Path(path)
    if not given.exists() and given.parent == Path() and given.name in zoo_models():
        return ZOO / given.name
    return given


def halve_package(source: str | Path, out: str | Path) -> int:
    """Writes a copy of a package with kernels in float16, and returns the size of its weights in bytes.

    Biases, batch norm and values that are too large for float16 stay in float32: they are few, and small variances
    would lose their digits. Labels and decisions stay the same.

    Args:
        source: a package, or a workdir.
        out: folder of the new package; a package that is there is replaced.

    Raises:
        UserError: there is no sound package at `source`, or `out` holds something else.
        OSError: `out` cannot be written.
    """
    package = load_package(source)
    if Path(out).exists() and not (Path(out) / "weights.safetensors").is_file():
        raise UserError(f"{out} exists and is no model package; choose another folder")
    tensors = safetensors.numpy.load_file(package.folder / "weights.safetensors")
    halved = {name: _halve(tensor) for name, tensor in tensors.items()}
    config = json.loads((package.folder / "config.json").read_text(encoding="utf-8"))
    write_package(
        Path(out),
        weights=halved,
        model=config["model"],
        vocabularies=package.vocabularies,
        preprocessing=package.preprocessing,
        extra=package.extra,
        decision=package.decision,
        embedding=package.embedding,
    )
    return (Path(out) / "weights.safetensors").stat().st_size


def _halve(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim < 2 or np.abs(tensor).max(initial=0) > _LARGEST_HALF:
        return tensor
    return tensor.astype(np.float16)
