"""A package's network as an ONNX graph, written node by node from its weights. No other file imports `onnx`.

The graph takes uint8 photos and returns what `Predictor` needs. It holds preprocessing, the ResNet with every batch
norm folded into the convolution before it, colour features, heads, second heads and the embedding. Where probabilities
are means over a photo and its mirror image, the batch is doubled inside the graph.

All operators exist in ONNX's default operator set 17 (2022), so old runtimes read the graph too. See
https://onnx.ai/onnx/operators for their definitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fashion_jax.decision.decisions import Decision, conditional_chances
from fashion_jax.decision.embedding import EmbeddingPlan
from fashion_jax.models.architecture import (
    CHROMA_BINS,
    CHROMA_FINENESS,
    CHROMA_RANGE,
    FARTHEST,
    HISTOGRAM_SIZE,
    LEAST_WEIGHT,
    LIGHTNESS_BINS,
    NORM_EPSILON,
    PIXEL_FEATURES,
    WHITE_DISTANCE,
    WHITE_SOFTNESS,
    Architecture,
    Convolution,
    ResidualBlock,
    architecture_of,
    stages,
    stem_layers,
)
from fashion_jax.serving.package import Package
from fashion_jax.system.cielab import TO_XYZ
from fashion_jax.system.errors import UserError

OPSET = 17  # of the default domain
IR_VERSION = 8  # of the file's format
PHOTOS = "photos"  # name of the input
_MAX_BYTES = 2**31 - 2**20  # protobuf's limit for a file, less what the nodes need
_TINY = 1e-12


def fits(package: Package) -> bool:
    """Returns whether the network is small enough for an ONNX file: 2 GB."""
    arrays = [*package.weights.values()]
    if package.embedding is not None and package.embedding.components is not None:
        arrays.append(package.embedding.components)
    return sum(array.size * 4 for array in arrays) < _MAX_BYTES


def write_graph(package: Package, *, flip: bool, finished: bool = False) -> bytes:
    """Returns the network as the bytes of an .onnx file.

    Args:
        package: what was trained.
        flip: whether logits are those of the mean probabilities of each photo and its mirror image. Features, energies
            and embeddings are always those of the photo itself.
        finished: whether the graph also computes calibrated probabilities and out-of-catalogue scores.

    Returns:
        The graph's input is `photos`, uint8 RGB (batch, height, width, 3). Its outputs are float32:

        - "logits/NAME" (batch, classes) of each attribute, multi-valued ones too;
        - "features" (batch, features), the pooled features, and "embedding" (batch, size);
        - without `finished`, "energies" (batch,), and "colour_features" (batch, size) where there are colour heads;
        - with `finished`, "probabilities/NAME" (batch, classes), as `Predictor` returns them, and "out_of_catalogue"
          (batch,) where the package has a detector.

    Raises:
        UserError: the graph needs more than the 2 GB that an ONNX file can hold.
    """
    graph = _Graph()
    outputs = _Network(graph, package).outputs(flip)
    if finished:
        outputs |= _finish(graph, package, outputs)
        for name in ("energies", "colour_features"):
            outputs.pop(name, None)
    return graph.to_bytes(package, outputs)


class _Graph:
    """Collects nodes and constants. Values are named by their numbers."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """Returns the name of a constant."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype)), name))
        return name

    def add(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; an input is the name of a value, or a number or array. Returns its output, or outputs."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        found = [f"v{len(self._nodes)}" + ("" if outputs == 1 else f".{place}") for place in range(outputs)]
        self._nodes.append(helper.make_node(operator, names, found, **attributes))
        return found[0] if outputs == 1 else found

    def reshape(self, value: str, shape: Iterable[int]) -> str:
        """Adds a reshape; 0 keeps a size, -1 is what is left."""
        return str(self.add("Reshape", value, self.constant(list(shape), np.int64)))

    def sum_over(self, value: str, axis: int) -> str:
        """Adds a sum over one axis, which stays with size 1."""
        return str(self.add("ReduceSum", value, self.constant([axis], np.int64), keepdims=1))

    def log_sum_exp(self, value: str) -> str:
        """Adds log(sum(exp(x))) over the last axis of (batch, classes), which stays with size 1."""
        return str(self.add("ReduceLogSumExp", value, axes=[1], keepdims=1))

    def log_add_exp(self, first: str, second: str) -> str:
        """Adds log(exp(x) + exp(y)), which neither overflows nor underflows."""
        peak = self.add("Max", first, second)
        rest = (self.add("Exp", self.add("Sub", value, peak)) for value in (first, second))
        return str(self.add("Add", peak, self.add("Log", self.add("Add", *rest))))

    def log_1p(self, value: str) -> str:
        """Adds log(1 + x) for x >= 0, exact near 0 (Kahan: the error of 1 + x is divided out again)."""
        above = self.add("Add", value, 1.0)
        rounded = self.add("Sub", above, 1.0)
        divisor = self.add("Where", self.add("Greater", rounded, 0.0), rounded, 1.0)
        return str(self.add("Mul", self.add("Log", above), self.add("Div", value, divisor)))

    def unit(self, value: str) -> str:
        """Adds a division of (batch, size) rows by their lengths; zeros stay zeros."""
        length = self.add("ReduceL2", value, axes=[1], keepdims=1)
        return str(self.add("Div", value, self.add("Where", self.add("Greater", length, 0.0), length, 1.0)))

    def to_bytes(self, package: Package, outputs: Mapping[str, str]) -> bytes:
        """Returns the file; UserError if it is too large. `outputs` are the name of each output -> the value."""
        if sum(constant.ByteSize() for constant in self._constants) >= _MAX_BYTES:
            raise UserError(f"{package.folder} is too large for ONNX, whose files hold 2 GB")
        height, width = package.preprocessing["height"], package.preprocessing["width"]
        nodes = [*self._nodes, *(helper.make_node("Identity", [value], [name]) for name, value in outputs.items())]
        flat = ("energies", "out_of_catalogue")
        graph = helper.make_graph(
            nodes,
            "fashion_jax",
            [helper.make_tensor_value_info(PHOTOS, onnx.TensorProto.UINT8, ["batch", height, width, 3])],
            [
                helper.make_tensor_value_info(
                    name, onnx.TensorProto.FLOAT, ["batch"] if name in flat else ["batch", _size_of(package, name)]
                )
                for name in outputs
            ],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "fashion-jax"
        helper.set_model_props(model, {"fingerprint": package.fingerprint})
        return bytes(model.SerializeToString())


def _size_of(package: Package, output: str) -> int:
    kind, _, name = output.partition("/")
    sizes = {"features": package.num_features, "embedding": package.embedding_size}
    if kind in sizes:
        return sizes[kind]
    if kind == "colour_features":
        return package.num_colour_features
    return len({**package.vocabularies, **package.tags}[name])


class _Network:
    """Writes the layers of `models.classifier.Classifier` in inference. Maps are NCHW."""

    def __init__(self, graph: _Graph, package: Package) -> None:
        self._graph, self._package, self._weights = graph, package, package.weights
        self._architecture: Architecture = architecture_of(package.model)
        # Height and width of the current map, which padding, pooling and resizing need.
        self._side = (package.preprocessing["height"], package.preprocessing["width"])

    def outputs(self, flip: bool) -> dict[str, str]:
        """Writes the whole network and returns the name of each output -> the value."""
        g, a = self._graph, self._architecture
        photos = PHOTOS
        if flip:
            ints = (g.constant(value, np.int64) for value in ([-1], [-(2**31)], [2], [-1]))
            photos = g.add("Concat", photos, g.add("Slice", photos, *ints), axis=0)
        pixels = g.add("Cast", g.add("Transpose", photos, perm=[0, 3, 1, 2]), to=onnx.TensorProto.FLOAT)
        mean, std = (np.asarray(self._package.preprocessing[key], np.float64) for key in ("mean", "std"))
        x = self._affine(pixels, 1 / (255 * std), -mean / std)
        maps, sides = self._backbone_maps(x)
        features = self._pool(maps[-1])
        seen_colour, coarse = None, None
        if a.colour_heads:
            # Colour heads see RGB in [0, 1]: normalised photos with the network's own mean and deviation undone.
            own_mean, own_std = np.asarray(a.mean, np.float64), np.asarray(a.std, np.float64)
            rgb = self._affine(pixels, own_std / (255 * std), own_mean - mean / std * own_std)
            stride = max(1, round(self._package.preprocessing["height"] / sides[0][0]))
            rgb, side = self._shrink(rgb, self._size, stride)
            seen_colour = self._colour_features(rgb, side, maps[:2], sides[:2])
            coarse = self._shrink(rgb, side, 2)[0]
        logits = self._heads(features, seen_colour)
        if a.second_heads:
            assert seen_colour is not None and coarse is not None
            logits |= self._second_heads(logits, seen_colour, coarse)
        single = {name: logits[name] for name in a.classes}
        mirrored: dict[str, str] = {}
        if flip:
            halves = {name: g.add("Split", value, outputs=2, axis=0) for name, value in logits.items()}
            logits, mirrored = ({name: half[place] for name, half in halves.items()} for place in (0, 1))
            single = {name: logits[name] for name in a.classes}
            features = g.add("Split", features, outputs=2, axis=0)[0]
            seen_colour = seen_colour and g.add("Split", seen_colour, outputs=2, axis=0)[0]
        means = {name: self._mean_of(name, own, mirrored[name]) if flip else own for name, own in logits.items()}
        sums = g.add("Concat", *(g.log_sum_exp(value) for value in single.values()), axis=1)
        found = {f"logits/{name}": value for name, value in means.items()} | {
            "features": features,
            "embedding": _embed(g, self._package.embedding, single, features),
            "energies": g.add("Neg", g.add("ReduceMean", sums, axes=[1], keepdims=0)),
        }
        return found | ({"colour_features": seen_colour} if seen_colour else {})

    @property
    def _size(self) -> tuple[int, int]:
        return self._package.preprocessing["height"], self._package.preprocessing["width"]

    def _affine(self, value: str, factor: np.ndarray, offset: np.ndarray) -> str:
        """Multiplies and shifts the channels of NCHW maps."""
        shape = (1, -1, 1, 1)
        scaled = self._graph.add("Mul", value, factor.astype(np.float32).reshape(shape))
        return str(self._graph.add("Add", scaled, offset.astype(np.float32).reshape(shape)))

    def _norm(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns factor and offset of a batch norm, float64."""
        scale, bias = (self._weights[f"params/{path}/{key}"].astype(np.float64) for key in ("scale", "bias"))
        mean, var = (self._weights[f"batch_stats/{path}/{key}"].astype(np.float64) for key in ("mean", "var"))
        factor = scale / np.sqrt(var + NORM_EPSILON)
        return factor, bias - mean * factor

    def _convolve(self, x: str, layer: Convolution) -> str:
        """Writes a convolution into which its batch norm is folded, with k // 2 zeros on every side."""
        factor, offset = self._norm(f"{layer.path}/norm")
        kernel = self._weights[f"params/{layer.path}/conv/kernel"].astype(np.float64) * factor
        pad = layer.kernel // 2
        height, width = ((side + 2 * pad - layer.kernel) // layer.stride + 1 for side in self._side)
        self._side = (height, width)
        return str(
            self._graph.add(
                "Conv",
                x,
                kernel.transpose(3, 2, 0, 1),
                offset,
                kernel_shape=[layer.kernel] * 2,
                strides=[layer.stride] * 2,
                pads=[pad] * 4,
            )
        )

    def _backbone_maps(self, x: str) -> tuple[list[str], list[tuple[int, int]]]:
        """Writes the ResNet; returns the map of each stage, and its height and width."""
        a = self._architecture
        for layer in stem_layers(a.width, a.stem):
            x = self._graph.add("Relu", self._convolve(x, layer))
        if a.stem != "small":
            x = self._graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
            self._side = ((self._side[0] - 1) // 2 + 1, (self._side[1] - 1) // 2 + 1)
        maps, sides = [], []
        for stage in stages(a.depth, a.width, a.stem):
            for block in stage:
                x = self._block(x, block)
            maps.append(x)
            sides.append(self._side)
        return maps, sides

    def _block(self, x: str, block: ResidualBlock) -> str:
        y, before = x, self._side
        for number, layer in enumerate(block.layers):
            y = self._convolve(y, layer)
            if number < len(block.layers) - 1:
                y = self._graph.add("Relu", y)
        after, self._side = self._side, before
        if block.shortcut:
            if block.pools:
                x, self._side = self._shrink(x, before, 2)
            x = self._convolve(x, block.shortcut)
        assert self._side == after
        return str(self._graph.add("Relu", self._graph.add("Add", y, x)))

    def _shrink(self, x: str, side: tuple[int, int], stride: int) -> tuple[str, tuple[int, int]]:
        """Averages squares of pixels; those at the far edges are means of what there is."""
        if stride == 1:
            return x, side
        below, right = (-length % stride for length in side)
        pooled = self._graph.add(
            "AveragePool",
            x,
            kernel_shape=[stride] * 2,
            strides=[stride] * 2,
            pads=[0, 0, below, right],
            count_include_pad=0,
        )
        return pooled, ((side[0] + below) // stride, (side[1] + right) // stride)

    def _pool(self, x: str) -> str:
        g = self._graph
        if self._architecture.pooling != "gem":
            return str(g.add("ReduceMean", x, axes=[2, 3], keepdims=0))
        power = float(np.clip(self._weights["params/backbone/gem/0/power"][0], 1.0, 10.0))
        wide = g.add("Max", x, 1e-6)
        peak = g.add("ReduceMax", wide, axes=[2, 3], keepdims=1)  # divided by it, so that no power overflows
        mean = g.add("ReduceMean", g.add("Pow", g.add("Div", wide, peak), power), axes=[2, 3], keepdims=1)
        return str(g.add("Flatten", g.add("Mul", g.add("Pow", mean, 1 / power), peak)))

    def _cielab(self, rgb: str) -> str:
        """Returns CIELAB (N, 3, pixels) of sRGB in [0, 1] (N, 3, rows, columns).

        Every step is that of `system.cielab.from_srgb` in JAX, with the same rounding. A grey pixel's a and b are
        rounding errors, and the square roots of the histogram enlarge them.
        """
        g = self._graph
        rgb = g.add("Clip", g.reshape(rgb, (0, 3, -1)), 0.0, 1.0)
        bright = g.add("Exp", g.add("Mul", g.add("Log", g.add("Div", g.add("Add", rgb, 0.055), 1.055)), 2.4))
        linear = g.add("Where", g.add("LessOrEqual", rgb, 0.04045), g.add("Div", rgb, 12.92), bright)
        red, green, blue = (
            g.add("Mul", value, TO_XYZ[:, [place]])
            for place, value in enumerate(g.add("Split", linear, outputs=3, axis=1))
        )
        xyz = g.add("Add", g.add("Add", red, green), blue)  # no matrix product, which rounds differently
        root = g.add("Exp", g.add("Div", g.add("Log", g.add("Max", xyz, 1e-4)), 3.0))
        straight = g.add("Add", g.add("Div", xyz, 3 * (6 / 29) ** 2), 4 / 29)
        f = g.add("Where", g.add("Greater", xyz, (6 / 29) ** 3), root, straight)
        x, y, z = g.add("Split", f, outputs=3, axis=1)
        lightness = g.add("Sub", g.add("Mul", y, 116.0), 16.0)
        a, b = g.add("Mul", g.add("Sub", x, y), 500.0), g.add("Mul", g.add("Sub", y, z), 200.0)
        return str(g.add("Concat", lightness, a, b, axis=1))

    def _foreground(self, cielab: str) -> str:
        """Returns weights (N, 1, pixels): near 0 where a pixel is nearly white, else near 1."""
        g = self._graph
        away = g.add("Sub", cielab, [[100], [0], [0]])
        from_white = g.add("Sqrt", g.add("Add", g.sum_over(g.add("Mul", away, away), 1), 1e-4))
        scaled = g.add("Mul", g.add("Sub", from_white, WHITE_DISTANCE), 1 / WHITE_SOFTNESS)
        return str(g.add("Add", g.add("Sigmoid", scaled), LEAST_WEIGHT))

    def _colour_features(self, rgb: str, side: tuple[int, int], maps: list[str], sides: list[tuple[int, int]]) -> str:
        g = self._graph
        cielab = self._cielab(rgb)
        weight = self._foreground(cielab)
        x = g.add("Div", cielab, 50.0)
        mean = self._pool_foreground(x, weight)
        # The mean is subtracted before squaring: with onnxruntime's float32 sums, mean(x^2) - mean(x)^2 loses digits.
        away = g.add("Sub", x, g.reshape(mean, (0, 3, 1)))
        deviation = g.add("Sqrt", g.add("Max", self._pool_foreground(g.add("Mul", away, away), weight), 1e-4))
        pixels, inputs = g.reshape(x, (0, 3, *side)), 3
        for number, outputs in enumerate(PIXEL_FEATURES):
            kernel = self._weights[f"params/colour/0/pixels/{number}/kernel"].T.reshape(outputs, inputs, 1, 1)
            bias = self._weights.get(f"params/colour/0/pixels/{number}/bias", np.zeros(outputs))
            pixels, inputs = g.add("Relu", g.add("Conv", pixels, kernel, bias, kernel_shape=[1, 1])), outputs
        pooled = []
        for one, size in zip(maps, sides, strict=True):
            own = weight
            if size != side:
                down, across = (_resizing(*lengths) for lengths in zip(side, size, strict=True))
                scaled = g.add("MatMul", g.add("MatMul", down, g.reshape(weight, (0, *side))), across.T)
                own = g.reshape(scaled, (0, 1, -1))
            pooled.append(self._pool_foreground(g.reshape(one, (0, 0, -1)), own))
        of_pixels = self._pool_foreground(g.reshape(pixels, (0, 0, -1)), weight)
        joined = g.add("Concat", *pooled, mean, deviation, of_pixels, axis=1)
        factor, offset = self._norm("colour/0/norm")
        return str(g.add("Add", g.add("Mul", joined, factor[None]), offset[None]))

    def _pool_foreground(self, x: str, weight: str) -> str:
        """Returns the weighted means (N, channels) of (N, channels, pixels) with weights (N, 1, pixels)."""
        g = self._graph
        total = g.add("MatMul", x, g.add("Transpose", weight, perm=[0, 2, 1]))
        return str(g.add("Flatten", g.add("Div", total, g.sum_over(weight, 2))))

    def _histogram(self, rgb: str) -> str:
        g = self._graph
        cielab = self._cielab(rgb)
        weight = self._foreground(cielab)
        lightness, a, b = g.add("Split", cielab, outputs=3, axis=1)
        shares = g.add("Mul", self._memberships(g.add("Div", lightness, 100.0), LIGHTNESS_BINS), weight)
        first, second = (self._memberships(self._place_of(chroma), CHROMA_BINS) for chroma in (a, b))
        both = g.add("Mul", g.add("Unsqueeze", first, self._axis(2)), g.add("Unsqueeze", second, self._axis(1)))
        both = g.reshape(both, (0, CHROMA_BINS**2, -1))
        sums = g.add("MatMul", both, g.add("Transpose", shares, perm=[0, 2, 1]))
        means = g.add("Div", g.add("Transpose", sums, perm=[0, 2, 1]), g.sum_over(weight, 2))
        return g.reshape(g.add("Sqrt", g.add("Max", means, 0.0)), (0, HISTOGRAM_SIZE))

    def _axis(self, axis: int) -> str:
        return self._graph.constant([axis], np.int64)

    def _place_of(self, chroma: str) -> str:
        """Returns where values of a or b lie on an axis that is finer near grey, in [0, 1]."""
        g = self._graph
        scaled = g.log_1p(g.add("Div", g.add("Abs", chroma), CHROMA_FINENESS))
        signed = g.add("Div", g.add("Mul", g.add("Sign", chroma), scaled), math.log1p(CHROMA_RANGE / CHROMA_FINENESS))
        return str(g.add("Div", g.add("Add", signed, 1.0), 2.0))

    def _memberships(self, places: str, bins: int) -> str:
        """Returns how much (N, 1, pixels) in [0, 1] belongs to each centre: (N, bins, pixels)."""
        g = self._graph
        scaled = g.add("Mul", g.add("Clip", places, 0.0, 1.0), float(bins - 1))
        away = g.add("Abs", g.add("Sub", scaled, np.arange(bins)[:, None]))
        return str(g.add("Relu", g.add("Sub", 1.0, away)))

    def _head(self, path: str, x: str, *, hidden: bool) -> str:
        for layer in ("hidden/0", "output") if hidden else ("output",):
            kernel, bias = (self._weights[f"params/{path}/{layer}/{key}"] for key in ("kernel", "bias"))
            x = self._graph.add("Gemm", x, kernel, bias)
            if layer != "output":
                x = self._graph.add("Relu", x)
        return x

    def _heads(self, features: str, colour: str | None) -> dict[str, str]:
        a = self._architecture
        wide = self._graph.add("Concat", features, colour, axis=1) if colour else features
        return {
            name: self._head(
                f"heads/{name}", wide if name in a.colour_heads else features, hidden=name in a.colour_heads
            )
            for name in (*a.classes, *a.tags)
        }

    def _second_heads(self, logits: Mapping[str, str], colour: str, rgb: str) -> dict[str, str]:
        g, a = self._graph, self._architecture
        answers = [g.add("LogSoftmax", logits[name], axis=1) for name in a.classes if name not in a.colour_heads]
        seen = g.add("Concat", *answers, self._histogram(rgb), colour, axis=1)
        found = {}
        for name in a.second_heads:
            factor, offset = self._norm(f"second/{name}/norm")
            scaled = g.add("Add", g.add("Mul", seen, factor[None]), offset[None])
            second = self._head(f"second/{name}/head", g.add("Clip", scaled, -FARTHEST, FARTHEST), hidden=True)
            weight = float(self._weights[f"params/second/{name}/weight"][0])
            parts = zip((logits[name], second), (1 - weight, weight), strict=True)
            pooled = g.add("Add", *(g.add("Mul", g.add("LogSoftmax", one, axis=1), share) for one, share in parts))
            found[name] = g.add("Add", g.add("LogSoftmax", pooled, axis=1), g.log_sum_exp(logits[name]))
        return found

    def _mean_of(self, name: str, own: str, mirrored: str) -> str:
        """Returns logits whose probabilities are the means over photos and their mirror images."""
        g = self._graph
        if name in self._architecture.classes:
            both = g.log_add_exp(*(g.add("LogSoftmax", value, axis=1) for value in (own, mirrored)))
            return str(g.add("Sub", both, math.log(2)))
        # log(sigmoid(x)) = -softplus(-x)
        absent = g.log_add_exp(*(g.add("Neg", g.add("Softplus", value)) for value in (own, mirrored)))
        turned = (g.add("Neg", g.add("Softplus", g.add("Neg", value))) for value in (own, mirrored))
        return str(g.add("Sub", g.log_add_exp(*turned), absent))


def _embed(g: _Graph, plan: EmbeddingPlan | None, logits: Mapping[str, str], features: str) -> str:
    """Writes `EmbeddingPlan.embed`."""
    if plan is None:
        return features
    parts = []
    for subspace in plan.subspaces:
        if subspace.attribute is None:
            part = g.unit(g.add("MatMul", g.unit(features), plan.components))
        else:
            scaled = g.add("Mul", logits[subspace.attribute], 1 / subspace.temperature)
            part = g.add("Sqrt", g.add("Softmax", scaled, axis=1))
        parts.append(g.add("Mul", part, math.sqrt(subspace.share)))
    return g.unit(g.add("Concat", *parts, axis=1))


def _finish(g: _Graph, package: Package, outputs: Mapping[str, str]) -> dict[str, str]:
    """Writes `decisions.log_probabilities`, `tags.tag_probabilities` and `OutOfCatalogue.scores`."""
    decision = package.decision
    found = {}
    for name in package.tags:
        fitted = None if decision is None else decision.tags.get(name)
        value = outputs[f"logits/{name}"]
        if fitted is not None:
            value = g.add("Add", g.add("Mul", value, fitted.scale), fitted.shift)
        found[f"probabilities/{name}"] = g.add("Sigmoid", value)
    logits = {name: outputs[f"logits/{name}"] for name in package.vocabularies}
    if decision is None:
        return {f"probabilities/{name}": g.add("Softmax", value, axis=1) for name, value in logits.items()} | found
    logs = _log_probabilities(g, decision, logits)
    found |= {f"probabilities/{name}": g.add("Exp", logs[name]) for name in package.vocabularies}
    detector = decision.out_of_catalogue
    if detector is None:
        return found
    away = g.add("Sub", outputs["features"], detector.mean[None])
    along = g.add("MatMul", away, detector.directions.T)
    # The part outside of the directions is computed before it is squared, so that float32 is exact enough.
    beside = g.add("Sub", away, g.add("MatMul", along, detector.directions))
    inside = g.add("Div", g.add("Mul", along, along), detector.variances[None])
    outside = g.add("Mul", g.sum_over(g.add("Mul", beside, beside), 1), 1 / detector.rest)
    squared = g.add("Mul", g.add("Add", g.sum_over(inside, 1), outside), 1 / len(detector.mean))
    distance = g.reshape(g.add("Log", g.add("Max", squared, _TINY)), (-1,))
    terms = [
        g.add("Mul", g.add("Sub", value, centre), 1 / spread)
        for value, centre, spread in zip(
            (distance, outputs["energies"]), detector.centres, detector.spreads, strict=True
        )
    ]
    return found | {"out_of_catalogue": g.add("Add", *terms)}


def _log_probabilities(g: _Graph, decision: Decision, logits: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}

    def scale(value: str, temperature: float) -> str:
        return str(g.add("LogSoftmax", g.add("Mul", value, 1 / temperature), axis=1))

    for name in decision.order:
        head = decision.heads[name]
        found[name] = scale(logits[name], head.temperature)
        link = head.link
        if link is None or not link.weight:
            if link is not None:
                found[name] = scale(found[name], link.temperature)
            continue
        sums = g.add("MatMul", g.add("Exp", found[link.finer]), conditional_chances(link.counts))
        pooled = g.add("Log", g.add("Max", sums, _TINY))
        if link.weight < 1 and link.pooling == "log":
            pooled = g.add("Add", g.add("Mul", found[name], 1 - link.weight), g.add("Mul", pooled, link.weight))
        elif link.weight < 1:
            own = g.add("Add", found[name], math.log(1 - link.weight))
            pooled = g.log_add_exp(own, g.add("Add", pooled, math.log(link.weight)))
        found[name] = scale(pooled, link.temperature)
    return found


def _resizing(before: int, after: int) -> np.ndarray:
    """Returns float64 (after, before): `jax.image.resize` of a line, linear, with antialiasing."""
    step = before / after
    places = (np.arange(after) + 0.5) * step - 0.5
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(before)) / max(step, 1.0))
    return np.asarray(weights / weights.sum(1, keepdims=True))
