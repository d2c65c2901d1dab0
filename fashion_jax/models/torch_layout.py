"""Weights as PyTorch lays them out: names of torchvision, timm and transformers, OIHW kernels, (out, in) matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from fashion_jax.models.classifier import abstract_classifier
from fashion_jax.system.errors import UserError

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: tuple[Any, ...], *, stem: str) -> str:
    """Returns the name that torchvision (and timm, for the stems "deep" and "resnet_d") gives an array of ours.

    Args:
        path: such as ("backbone", "stages", 0, 1, "layers", 0, "conv", "kernel").
        stem: of the model.
    """
    leaf = _LEAVES[path[-1]]
    if path[0] == "heads":
        layer = "" if path[2] == "output" else f"hidden.{path[3]}."
        return f"heads.{path[1]}.{layer}{leaf}"
    is_norm = path[-2] == "norm"
    if path[1] == "stem":
        place = int(path[2])
        if stem not in ("deep", "resnet_d"):
            return f"{'bn1' if is_norm else 'conv1'}.{leaf}"
        # timm: conv1 is a sequence conv, norm, relu, conv, norm, relu, conv; its last norm is bn1.
        return f"bn1.{leaf}" if is_norm and place == 2 else f"conv1.{3 * place + is_norm}.{leaf}"
    block = f"layer{int(path[2]) + 1}.{path[3]}"
    if path[4] == "shortcut":
        # ResNet-D pools first, at strides of 2; timm keeps a place for the pool in every deep shortcut.
        return f"{block}.downsample.{(stem == 'resnet_d') + is_norm}.{leaf}"
    return f"{block}.{'bn' if is_norm else 'conv'}{int(path[5]) + 1}.{leaf}"


def transformers_name(path: tuple[Any, ...]) -> str:
    """Returns the name that transformers' ResNetModel gives an array of a backbone of ours.

    Args:
        path: such as ("backbone", "stages", 0, 1, "layers", 0, "conv", "kernel"); of the "imagenet" stem.
    """
    part, leaf = {"conv": "convolution", "norm": "normalization"}[path[-2]], _LEAVES[path[-1]]
    if path[1] == "stem":
        return f"embedder.embedder.{part}.{leaf}"
    block = f"encoder.stages.{path[2]}.layers.{path[3]}"
    place = "shortcut" if path[4] == "shortcut" else f"layer.{path[5]}"
    return f"{block}.{place}.{part}.{leaf}"


def from_torch_layout(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any]
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Converts a state dict.

    Args:
        state: name -> array, as `torch_name` has them; more names than needed are no fault.
        arguments: of `Classifier`, as JSON values.

    Returns:
        Parameters and batch statistics, nested, float32.

    Raises:
        UserError: an array is missing or has another shape.
    """
    _, params, batch_stats = abstract_classifier(arguments)
    flat = {}
    for path, leaf in traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats}).items():
        name = torch_name(path[1:], stem=arguments["stem"])
        if name not in state:
            raise UserError(f"the weights lack {name}")
        array = transpose_from_torch(np.asarray(state[name], np.float32))
        if array.shape != leaf.shape:
            raise UserError(f"{name} has the shape {state[name].shape}, which does not fit {leaf.shape} of this model")
        flat[path] = array
    tree = traverse_util.unflatten_dict(flat)
    return tree["params"], tree["batch_stats"]


def to_torch_layout(
    params: Mapping[Any, Any], batch_stats: Mapping[Any, Any], arguments: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch_layout`."""
    flat = {**traverse_util.flatten_dict(dict(params)), **traverse_util.flatten_dict(dict(batch_stats))}
    return {torch_name(path, stem=arguments["stem"]): _back(np.asarray(array)) for path, array in flat.items()}


def transpose_from_torch(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _back(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
