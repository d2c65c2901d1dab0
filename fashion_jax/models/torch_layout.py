"""ResNets in files of others: what torchvision, timm and transformers call our arrays, and which networks are refused.

Names and shapes of the tensors show depth, width and stem. They do not show where a bottleneck has its stride, nor the
activation; these are in config.json and are checked there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fashion_jax.models.architecture import BOTTLENECK_DEPTHS, DEPTHS
from fashion_jax.system.errors import UserError

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
Shapes = Mapping[str, tuple[int, ...]]
# Arguments of timm's ResNet that tensors' names and shapes show, or that do not change what a backbone computes.
_TIMM_ARGUMENTS = {
    "num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "zero_init_last", "layers", "channels",
    "stem_width", "stem_type", "avg_down", "base_width", "cardinality", "pretrained_strict",
}  # fmt: skip
_TIMM_NAME = re.compile(r"(?:tv_|gluon_|ssl_|swsl_)?resnet(?:10|18|34|50|101|152)(?:_v1b|_v1d|_v1c|c|d)?")
# The first pattern that is found in the name of an architecture names its kind.
_KINDS = (
    (r"resnetv2|preact|_bit", "a pre-activation ResNetV2"),
    (r"wide_resnet|wrn", "a wide ResNet"),
    (r"resnext|ig_|swsl_resnext", "a ResNeXt (grouped convolutions)"),
    (r"(legacy_)?se(resnet|net)|ecaresnet|skresnet|gcresnet|_se\b", "a ResNet with channel attention (SE, ECA, SK)"),
    (r"resnetrs", "a ResNet-RS"),
    (r"resnet(aa|blur)", "a ResNet with anti-aliased pooling"),
    (r"resnest|res2net|cspresnet|tresnet|nf_resnet|lambda|halonet", "a relative of ResNet with blocks of its own"),
    (r"clip", "a CLIP network"),
    (r"resnet\w*_gn", "a ResNet with group normalisation"),
    (r"resnet\d+s\b", "a ResNet with a wider stem (s)"),
    (r"resnet\d+t", "a ResNet with a tiered stem (t)"),
    (r"vit|coat|former", "a network with attention"),
    (r"resnet\d+", "a ResNet of another depth or form"),
)
_GRAFTED = ((r"\.se\.|\.attn", "a ResNet with channel attention (SE, ECA, SK)"), (r"\.aa\.", "an anti-aliased ResNet"))
_INSTEAD = (
    "this library builds ResNet v1.5 of depth 10, 18, 34, 50, 101 and 152, with or without ResNet-D's stem and "
    "shortcuts; take for instance timm/resnet50.a1_in1k, timm/resnet50.tv_in1k or microsoft/resnet-50"
)


def torch_name(path: tuple[Any, ...], *, stem: str) -> str:
    """Returns the name that torchvision (and timm, for the stems "deep" and "resnet_d") gives an array of ours.

    Args:
        path: such as ("backbone", "stages", 0, 1, "layers", 0, "conv", "kernel").
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


def transpose_from_torch(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


@dataclass(frozen=True, slots=True)
class Layout:
    """One family of files."""

    title: str  # for people
    block: re.Pattern[str]  # matches the name of an array in a block; its groups are the stage and the block
    stems: Mapping[int, tuple[str, ...]]  # kernels of the stem, by its number of convolutions
    third: str  # a kernel that only bottlenecks have
    first: str  # the first kernel of the first block
    name: Callable[[tuple[Any, ...], str], str]  # path of ours, stem -> name
    other: re.Pattern[str]  # names that belong to no backbone


TIMM = Layout(
    "timm's and torchvision's layout",
    re.compile(r"layer(\d+)\.(\d+)\."),
    {1: ("conv1.weight",), 3: ("conv1.0.weight", "conv1.3.weight", "conv1.6.weight")},
    "layer1.0.conv3.weight",
    "layer1.0.conv1.weight",
    lambda path, stem: torch_name(path, stem=stem),
    re.compile(r"fc\.(weight|bias)|heads\..*|.*\.num_batches_tracked"),
)
TRANSFORMERS = Layout(
    "transformers' layout",
    re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\."),
    {1: ("embedder.embedder.convolution.weight",)},
    "encoder.stages.0.layers.0.layer.2.convolution.weight",
    "encoder.stages.0.layers.0.layer.0.convolution.weight",
    lambda path, stem: transformers_name(path),
    re.compile(r"classifier\.1\.(weight|bias)|.*\.num_batches_tracked"),
)
OWN = Layout(
    "our own layout",
    re.compile(r"params/backbone/stages/(\d+)/(\d+)/"),
    {n: tuple(f"params/backbone/stem/{i}/conv/kernel" for i in range(n)) for n in (1, 3)},
    "params/backbone/stages/0/0/layers/2/conv/kernel",
    "params/backbone/stages/0/0/layers/0/conv/kernel",
    lambda path, stem: "/".join(map(str, ("batch_stats" if path[-1] in ("mean", "var") else "params", *path))),
    # Heads, and what later versions may add: anything but convolutions and batch norms of stem and stages.
    re.compile(r"(params|batch_stats)/(?!backbone/(stem|stages)/).*"),
)


def refuse(where: object, what: str) -> UserError:
    """Returns the error for a network that is none of ours."""
    return UserError(f"{where} cannot be used. It holds {what}; {_INSTEAD}")


def find_layout(where: object, shapes: Shapes) -> Layout:
    """Returns the layout of a file by its tensors' names (transformers' without the prefix "resnet.")."""
    for layout in (TIMM, TRANSFORMERS, OWN):
        if layout.first in shapes and any(all(name in shapes for name in stem) for stem in layout.stems.values()):
            return layout
    if "stem.conv.weight" in shapes and any(name.startswith("stages.") for name in shapes):
        raise refuse(where, "a pre-activation ResNetV2 or another network with stages of its own")
    raise refuse(where, f"no known ResNet (its tensors have names such as {min(shapes, default='nothing')!r})")


def check_config(where: object, config: Mapping[str, Any]) -> None:
    """Refuses networks that config.json shows to be of another kind; the error names the kind.

    Args:
        config: config.json of timm or transformers; empty where there is none.

    Raises:
        UserError: another architecture, a v1 bottleneck, another activation, or an argument that is not known here.
    """
    architecture = str(config.get("architecture") or config.get("pretrained_cfg", {}).get("architecture") or "")
    if architecture and not _TIMM_NAME.fullmatch(architecture.split(".")[0]):
        kinds = [title for pattern, title in _KINDS if re.search(pattern, architecture)]
        raise refuse(where, f"{architecture}, which is {kinds[0] if kinds else 'no ResNet'}")
    if unknown := sorted(config.get("model_args", {}).keys() - _TIMM_ARGUMENTS):
        raise refuse(where, f"{architecture}, changed by model_args.{unknown[0]}")
    kind = config.get("model_type", "resnet")
    if kind != "resnet":
        raise refuse(where, f"a network of the model_type {kind!r}")
    if config.get("downsample_in_bottleneck", False):
        raise refuse(
            where,
            "a ResNet v1 (downsample_in_bottleneck: true; the stride is on the first 1x1 convolution, not the 3x3)",
        )
    if config.get("downsample_in_first_stage", False):
        raise refuse(where, "a ResNet whose first stage has a stride of 2 (downsample_in_first_stage: true)")
    if config.get("hidden_act", "relu") != "relu":
        raise refuse(where, f"a ResNet with the activation {config['hidden_act']!r}")


def read_architecture(where: object, shapes: Shapes, layout: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns depth, width and stem as the tensors have them.

    Args:
        shapes: name -> shape, torch's order of dimensions unless the layout is ours.
        config: config.json; ours says what tensors do not show.

    Raises:
        UserError: it is another network; the error names its kind.
    """
    for pattern, title in _GRAFTED:
        if any(re.search(pattern, name) for name in shapes):
            raise refuse(where, title)
    own = layout is OWN

    def sizes(name: str) -> tuple[int, int, int]:
        """Kernel side, inputs, outputs."""
        shape = shapes.get(name, ())
        if len(shape) != 4:
            raise UserError(f"{where}: {name} has the shape {shape}, which no convolution has")
        return (shape[0], shape[2], shape[3]) if own else (shape[2], shape[1], shape[0])

    number = max(n for n, names in layout.stems.items() if all(name in shapes for name in names))
    kernels = [sizes(name) for name in layout.stems[number]]
    width = kernels[-1][2]
    stem = {1: {7: "imagenet", 3: "small"}.get(kernels[0][0], ""), 3: "deep"}[number]
    if not stem or kernels[0][1] != 3:
        raise refuse(where, f"a ResNet whose stem has a kernel of {kernels[0][0]} and {kernels[0][1]} inputs")
    if stem == "deep" and [k[2] for k in kernels] != [width // 2, width // 2, width]:
        raise refuse(where, f"a ResNet with a deep stem of {', '.join(str(k[2]) for k in kernels)} channels")
    if not 1 <= width <= 1024:
        raise refuse(where, f"a ResNet of {width} channels")
    bottleneck = layout.third in shapes
    inside = sizes(layout.first)[2]
    if inside != width:
        wide = "a wide ResNet" if inside > width else "a ResNet with other widths"
        raise refuse(where, f"{wide}: {inside} channels inside its first block, {width} after its stem")
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if match := layout.block.match(name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    counts = tuple(len(blocks[stage]) for stage in sorted(blocks))
    depths = [d for d, c in DEPTHS.items() if c == counts and (d in BOTTLENECK_DEPTHS) == bottleneck]
    if not depths:
        form = "bottlenecks" if bottleneck else "basic blocks"
        raise refuse(where, f"a ResNet of {', '.join(map(str, counts))} {form} in its stages")
    # ResNet-D keeps a place for the pool before the shortcut's convolution, which is number 1 then.
    pooled = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    if (own and config.get("model", {}).get("stem") == "resnet_d") or pooled:
        if stem != "deep":
            raise refuse(where, "a ResNet with average-pooled shortcuts and a plain stem")
        stem = "resnet_d"
    return {"depth": depths[0], "width": width, "stem": stem}
