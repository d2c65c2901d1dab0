"""Weights and inputs that both sides of the golden files draw for themselves. Needs numpy alone."""

from __future__ import annotations

import zlib

import numpy as np

_CLASSES = {"a": 4, "b": 11}


def _case(depth: int, stem: str, height: int, width: int) -> tuple[dict, int, int]:
    arguments = {
        "classes": _CLASSES, "depth": depth, "width": 8, "stem": stem,
        "dtype": "float32",
    }  # fmt: skip
    return arguments, height, width


# Odd sizes show paddings that are wrong at stride 2.
CASES = {
    "resnet18_small": _case(18, "small", 40, 30),
    "resnet18_imagenet": _case(18, "imagenet", 70, 65),
    "resnet50_small": _case(50, "small", 40, 31),
    "resnet50_imagenet": _case(50, "imagenet", 64, 64),
}


def draw_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array for a name of torch's layout, of a size that keeps activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        centre = 1.0 if name.endswith("weight") else 0.0  # of a batch norm, or a bias
        return (centre + rng.normal(0, 0.1, shape)).astype(np.float32)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)


def draw_input(height: int, width: int) -> np.ndarray:
    """Returns normalised photos, float32 (6, height, width, 3)."""
    return np.random.default_rng(0).normal(0, 1, (6, height, width, 3)).astype(np.float32)
