"""Checkpoints of others, with random weights, that the tests write for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util

from fashion_jax.models.architecture import num_features
from fashion_jax.models.classifier import abstract_classifier
from fashion_jax.models.resnet import ResNet
from fashion_jax.models.torch_layout import torch_name, transpose_from_torch

_MEAN, _STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def to_torch_layout(params: dict, batch_stats: dict, arguments: dict) -> dict[str, np.ndarray]:
    """Returns parameters and batch statistics as a state dict of torch."""
    flat = {**traverse_util.flatten_dict(params), **traverse_util.flatten_dict(batch_stats)}
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {torch_name(p, stem=arguments["stem"]): np.asarray(a).transpose(axes[a.ndim]) for p, a in flat.items()}


def from_torch_layout(state: dict[str, np.ndarray], arguments: dict) -> tuple[dict, dict]:
    """The inverse of `to_torch_layout`."""
    _, params, batch_stats = abstract_classifier(arguments)
    paths = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
    names = {path: torch_name(path[1:], stem=arguments["stem"]) for path in paths}
    tree = traverse_util.unflatten_dict({path: transpose_from_torch(state[name]) for path, name in names.items()})
    return tree["params"], tree["batch_stats"]


def write_hub_folder(folder: Path, *, seed: int = 0, depth: int = 10, width: int = 4) -> dict[str, np.ndarray]:
    """Writes a random ResNet in timm's layout, as the Hub has it; returns its state dict."""
    arguments = {"depth": depth, "width": width, "stem": "imagenet"}
    model = ResNet(depth=depth, width=width, stem="imagenet", rngs=nnx.Rngs(seed))
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    trees = ({"backbone": nnx.to_pure_dict(params)}, {"backbone": nnx.to_pure_dict(stats)})
    state = {n: np.ascontiguousarray(a) for n, a in to_torch_layout(*trees, arguments).items()}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"architecture": f"resnet{depth}", "pretrained_cfg": {"mean": _MEAN, "std": _STD}}
    state["fc.weight"] = np.zeros((1000, num_features(depth, width)), np.float32)
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(about))
    return state
