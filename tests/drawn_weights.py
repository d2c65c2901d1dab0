"""Checkpoints of others, with random weights, that the tests write for themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import nnx

from fashion_jax.models.resnet import ResNet, embedding_size
from fashion_jax.models.torch_layout import to_torch_layout


def write_hub_folder(folder: Path, *, seed: int = 0, depth: int = 10, width: int = 4) -> dict[str, np.ndarray]:
    """Writes a random ResNet in timm's layout, as the Hub has it; returns its state dict."""
    arguments = {"depth": depth, "width": width, "stem": "imagenet", "deep_shortcut": False}
    model = ResNet(depth=depth, width=width, stem="imagenet", rngs=nnx.Rngs(seed))
    _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    trees = ({"backbone": nnx.to_pure_dict(params)}, {"backbone": nnx.to_pure_dict(stats)})
    state = {n: np.ascontiguousarray(a) for n, a in to_torch_layout(*trees, arguments).items()}
    state["fc.weight"] = np.zeros((1000, embedding_size(depth, width)), np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    about = {"architecture": f"resnet{depth}", "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}}
    (folder / "config.json").write_text(json.dumps(about))
    return state
