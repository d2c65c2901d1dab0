"""Writes a copy of a package with its kernels in float16: python halve_package.py PACKAGE OUT

Biases, batch norm and values that are too large for float16 stay in float32: they are few, and small variances would
lose their digits. Labels and decisions stay the same.
"""

import json
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

from fashion_jax.serving.package import load_package, write_package


def halve(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim < 2 or np.abs(tensor).max(initial=0) > np.finfo(np.float16).max:
        return tensor
    return tensor.astype(np.float16)


if __name__ == "__main__":
    package = load_package(sys.argv[1])
    tensors = safetensors.numpy.load_file(package.folder / "weights.safetensors")
    write_package(
        Path(sys.argv[2]),
        weights={name: halve(tensor) for name, tensor in tensors.items()},
        model=json.loads((package.folder / "config.json").read_text(encoding="utf-8"))["model"],
        vocabularies=package.vocabularies,
        preprocessing=package.preprocessing,
        extra=package.extra,
        decision=package.decision,
        embedding=package.embedding,
    )
