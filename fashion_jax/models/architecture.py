"""What a network is made of, as plain values: sizes, options, and the name and shape of every parameter.

Nothing here needs JAX. So a package can be checked, and its network written as an ONNX graph, without starting JAX.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

DEPTHS = {  # blocks of each stage
    10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip
BOTTLENECK_DEPTHS = (50, 101, 152)
EXPANSION = 4  # channels that leave a bottleneck, over those inside it
STEMS = ("imagenet", "small", "deep", "resnet_d")
POOLINGS = ("average", "gem")
NORM_EPSILON = 1e-5  # is added to the variance in every batch norm

COLOUR_HIDDEN = (256,)  # hidden sizes of a colour head, which is an MLP: colours are no linear function of its inputs
SECOND_HIDDEN = (512,)  # of a second head
FARTHEST = 10.0  # standard deviations from the mean that an input of a second head counts as at most

PIXEL_FEATURES = (32, 64)  # of the 1x1 convolutions over CIELAB
LIGHTNESS_BINS = 8  # of the colour histogram
CHROMA_BINS = 9  # of a and of b each
HISTOGRAM_SIZE = LIGHTNESS_BINS * CHROMA_BINS**2
CHROMA_RANGE = 60.0  # of a and b; what lies beyond counts in the outermost bins
CHROMA_FINENESS = 10.0  # near grey, where most names of colours are, bins are narrow up to about this
WHITE_DISTANCE = 8.0  # in CIELAB, from white: where a pixel is as likely product as background
WHITE_SOFTNESS = 1.0
LEAST_WEIGHT = 1e-4  # of a background pixel, so that a photo of nothing but white has a mean


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network is made of; `config.json` of a package holds these values."""

    classes: Mapping[str, int]  # attribute -> number of classes, at least 1; in the order of the heads
    depth: int = 18  # of the ResNet: 10, 18, 34, 50, 101 or 152
    width: int = 64  # channels of its first stage
    stem: str = "imagenet"  # "imagenet", "small", "deep" or "resnet_d"; see `ResNet`
    drop_path: float = 0.0  # stochastic depth of the ResNet, in [0, 1)
    pooling: str = "average"  # of the ResNet, "average" or "gem"
    colour_heads: tuple[str, ...] = ()  # attributes whose head also sees `ColourFeatures`, through an MLP
    # attributes whose head is pooled, in inference, with a `SecondHead`. Second heads see the log probabilities of the
    # heads that are no colour heads, the colour features and the colour histogram, so there must be a colour head.
    second_heads: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of RGB in [0, 1], that was subtracted from photos; colour heads undo it
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # of RGB in [0, 1], that photos were divided by
    dtype: str = "float32"  # of convolutions and activations, "float32" or "bfloat16"
    # multi-valued attribute -> number of classes, at least 1; in the order of their heads, which come after the others
    tags: Mapping[str, int] = field(default_factory=dict)


def architecture_of(arguments: Mapping[str, Any]) -> Architecture:
    """Returns the architecture that JSON values describe."""
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }
    return Architecture(**typed)


def num_features(depth: int, width: int) -> int:
    """Returns the number of features after pooling."""
    return width * 8 * (EXPANSION if depth in BOTTLENECK_DEPTHS else 1)


def early_channels(depth: int, width: int) -> int:
    """Returns the channels of the first two stages together, of which the second has twice as many."""
    return 3 * width * (EXPANSION if depth in BOTTLENECK_DEPTHS else 1)


def colour_size(channels: int) -> int:
    """Returns the number of `ColourFeatures` of feature maps that have so many channels together."""
    return channels + 6 + PIXEL_FEATURES[-1]


def num_colour_features(arguments: Mapping[str, Any]) -> int:
    """Returns the size of `HeadOutputs.colour` of the network with these arguments."""
    if not arguments["colour_heads"]:
        return 0
    return colour_size(early_channels(arguments["depth"], arguments["width"]))


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution without bias, with the batch norm that follows it."""

    path: str  # under which its weights are stored, such as "backbone/stem/0"
    inputs: int
    outputs: int
    kernel: int  # side
    stride: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each array -> its shape."""
        kernel = (self.kernel, self.kernel, self.inputs, self.outputs)
        return {f"params/{self.path}/conv/kernel": kernel, **_norm(f"{self.path}/norm", self.outputs)}


@dataclass(frozen=True, slots=True)
class ResidualBlock:
    """A block of a ResNet."""

    layers: tuple[Convolution, ...]
    shortcut: Convolution | None  # the projection beside the layers; None where the shape stays
    pools: bool  # whether the shortcut averages 2x2 pixels first (ResNet-D)


def stem_layers(width: int, stem: str) -> list[Convolution]:
    """Returns the convolutions of the stem, each followed by a ReLU."""
    half = width // 2
    sizes = {"imagenet": [(3, width, 7, 2)], "small": [(3, width, 3, 2)]}.get(
        stem, [(3, half, 3, 2), (half, half, 3, 1), (half, width, 3, 1)]
    )
    return [Convolution(f"backbone/stem/{number}", *size) for number, size in enumerate(sizes)]


def stages(depth: int, width: int, stem: str) -> list[list[ResidualBlock]]:
    """Returns the blocks of each stage."""
    bottleneck, inputs, found = depth in BOTTLENECK_DEPTHS, width, []
    for number, count in enumerate(DEPTHS[depth]):
        inner = width * 2**number
        outputs, blocks = inner * (EXPANSION if bottleneck else 1), []
        for index in range(count):
            path, stride = f"backbone/stages/{number}/{index}", 2 if index == 0 and number else 1
            if bottleneck:
                sizes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
            else:
                sizes = [(inputs, inner, 3, stride), (inner, outputs, 3, 1)]
            layers = tuple(Convolution(f"{path}/layers/{place}", *size) for place, size in enumerate(sizes))
            pools = stem == "resnet_d" and stride == 2
            changes = stride != 1 or inputs != outputs
            projection = Convolution(f"{path}/shortcut/0/project", inputs, outputs, 1, 1 if pools else stride)
            blocks.append(ResidualBlock(layers, projection if changes else None, pools))
            inputs = outputs
        found.append(blocks)
    return found


def parameter_shapes(arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the name of each array of a network -> its shape. All arrays are float32.

    Args:
        arguments: values of `Architecture`, as JSON has them.

    Returns:
        Names as packages store them, such as "params/backbone/stem/0/conv/kernel".
    """
    return dict(_parameters(architecture_of(arguments)))


def _parameters(a: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    for layer in stem_layers(a.width, a.stem):
        yield from layer.shapes.items()
    for block in itertools.chain(*stages(a.depth, a.width, a.stem)):
        for layer in (*block.layers, *([block.shortcut] if block.shortcut else [])):
            yield from layer.shapes.items()
    if a.pooling == "gem":
        yield "params/backbone/gem/0/power", (1,)
    features, colour = num_features(a.depth, a.width), 0
    if a.colour_heads:
        colour, inputs = colour_size(early_channels(a.depth, a.width)), 3
        for number, outputs in enumerate(PIXEL_FEATURES):
            yield from _linear(f"colour/0/pixels/{number}", inputs, outputs, bias=outputs != PIXEL_FEATURES[-1])
            inputs = outputs
        yield from _norm("colour/0/norm", colour).items()
    for name, classes in [*a.classes.items(), *a.tags.items()]:
        coloured = name in a.colour_heads
        hidden, inputs = (COLOUR_HIDDEN, features + colour) if coloured else ((), features)
        yield from _head(f"heads/{name}", inputs, hidden, classes)
    seen = sum(count for name, count in a.classes.items() if name not in a.colour_heads) + colour + HISTOGRAM_SIZE
    for name in a.second_heads:
        yield from _norm(f"second/{name}/norm", seen).items()
        yield f"params/second/{name}/weight", (1,)
        yield from _head(f"second/{name}/head", seen, SECOND_HIDDEN, a.classes[name])


def _head(path: str, inputs: int, hidden: tuple[int, ...], classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    sizes = (inputs, *hidden)
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        yield from _linear(f"{path}/hidden/{number}", before, after)
    yield from _linear(f"{path}/output", sizes[-1], classes)


def _linear(path: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"params/{path}/kernel", (inputs, outputs)
    if bias:
        yield f"params/{path}/bias", (outputs,)


def _norm(path: str, size: int) -> dict[str, tuple[int, ...]]:
    names = (f"params/{path}/scale", f"params/{path}/bias", f"batch_stats/{path}/mean", f"batch_stats/{path}/var")
    return dict.fromkeys(names, (size,))
