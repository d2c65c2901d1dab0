"""The network: a ResNet, its embedding, and a head per attribute."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fashion_jax.models.colour import HISTOGRAM_SIZE, ColourFeatures, colour_size
from fashion_jax.models.heads import Head, HeadOutputs, MetricHead, StackedHead, pool_logits
from fashion_jax.models.resnet import BOTTLENECK_DEPTHS, EXPANSION, BatchNorm, ResNet, embedding_size

Network = TypeVar("Network", bound=nnx.Module)  # a Classifier, or a part of one

_DROP_PATH = 2**31  # the backbone's share of a row's random key; the heads have their numbers
COLOUR_HIDDEN = (256,)  # of a colour head where `head` is linear: a histogram's meaning is not linear
HISTOGRAM_HIDDEN = (512,)  # likewise, with `colour_histogram`


class Classifier(nnx.Module):
    """Holds `nnx.Param` and `nnx.BatchStat` variables only; random keys come as arguments."""

    def __init__(
        self,
        classes: Mapping[str, int],
        *,
        depth: int = 18,
        width: int = 64,
        stem: str = "imagenet",
        deep_shortcut: bool = False,
        head: str = "linear",
        head_hidden: tuple[int, ...] = (512,),
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pooling: str = "average",
        colour_heads: tuple[str, ...] = (),
        colour_histogram: bool = False,
        colour_dropout: float = 0.0,
        metric_heads: Mapping[str, int] | None = None,
        stacked_heads: tuple[str, ...] = (),
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the network.

        Args:
            classes: attribute -> number of classes, at least 1.
            depth: of the ResNet: 10, 18, 34, 50, 101 or 152.
            width: channels of its first stage.
            stem: "imagenet", "small" or "deep".
            deep_shortcut: ResNet-D's shortcuts.
            head: "linear" or "mlp".
            head_hidden: hidden sizes of "mlp".
            dropout: of "mlp", in [0, 1).
            drop_path: stochastic depth of the ResNet, in [0, 1).
            pooling: of the ResNet, "average" or "gem".
            colour_heads: attributes whose head also sees `ColourFeatures`, through an MLP.
            colour_histogram: whether they see a histogram of CIELAB and the colours of the photo's parts too.
            colour_dropout: in [0, 1), of what colour heads see, and of their hidden values where `dropout` is less.
            metric_heads: attribute -> size of the vectors that a metric loss learns for it.
            stacked_heads: attributes whose heads are pooled, in inference, with a `StackedHead` that sees the log
                probabilities of the heads that are no colour heads, the colour features and the colours' histogram;
                there must be a colour head.
            mean: of RGB in [0, 1], that was subtracted from photos; colour heads undo it.
            std: of RGB in [0, 1], that they were divided by.
            dtype: of convolutions and activations.
            rngs: the key "params" is used.
        """
        self.backbone = ResNet(
            depth=depth,
            width=width,
            stem=stem,
            deep_shortcut=deep_shortcut,
            drop_path=drop_path,
            pooling=pooling,
            dtype=dtype,
            rngs=rngs,
        )
        self.attributes = tuple(classes)  # not read off the dictionary, whose methods an attribute may be named after
        features, hidden = embedding_size(depth, width), head_hidden if head == "mlp" else ()
        self.colour = nnx.List(
            [ColourFeatures(_early_channels(depth, width), histogram=colour_histogram, mean=mean, std=std, rngs=rngs)]
            if colour_heads
            else []
        )
        self.colour_heads = tuple(colour_heads)
        heads, metric = {}, {}
        for name, count in classes.items():
            inputs, layers, dropped, dropped_inputs = features, hidden, dropout, 0.0
            if name in colour_heads:
                inputs = features + self.colour[0].size
                layers = hidden or (HISTOGRAM_HIDDEN if colour_histogram else COLOUR_HIDDEN)
                dropped, dropped_inputs = max(dropout, colour_dropout), colour_dropout
            heads[name] = Head(inputs, count, hidden=layers, dropout=dropped, input_dropout=dropped_inputs, rngs=rngs)
            if metric_heads and name in metric_heads:
                metric[name] = MetricHead(inputs, metric_heads[name], count, rngs=rngs)
        self.heads = nnx.Dict(heads)
        self.metric = nnx.Dict(metric)
        self.metric_heads = tuple(metric)
        # Last, so that the rest is drawn as it is without them.
        self.stacked_heads = tuple(stacked_heads)
        answers = sum(count for name, count in classes.items() if name not in colour_heads)
        seen = answers + self.colour[0].size + (0 if colour_histogram else HISTOGRAM_SIZE) if stacked_heads else 0
        self.stacked = nnx.Dict({name: StackedHead(seen, classes[name], rngs=rngs) for name in stacked_heads})

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> HeadOutputs:
        """Returns logits and embedding of normalised photos.

        Args:
            images: NHWC.
            train: whether batch norm uses the batch's statistics (and updates the running ones) and dropout and
                stochastic depth drop.
            dropout_keys: one per row; needed when training with dropout or stochastic depth.
        """
        drop_keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, _DROP_PATH)
        embedding, maps = self.backbone(images, train=train, drop_keys=drop_keys)
        seen_colour = jnp.zeros((len(images), 0), jnp.float32)
        for colour in self.colour:
            seen_colour = colour(images, maps[:2], train=train)
        with_colour = jnp.concatenate([embedding, seen_colour], -1)
        logits, metric = {}, {}
        for number, name in enumerate(self.attributes):
            head = self.heads[name]
            keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, number)
            seen = with_colour if name in self.colour_heads else embedding
            logits[name] = head(seen, train=train, dropout_keys=keys)
            if name in self.metric_heads:
                metric[name] = self.metric[name](seen)
        stacked_inputs = None
        if self.stacked_heads and not train:
            answers = [jax.nn.log_softmax(logits[name]) for name in self.attributes if name not in self.colour_heads]
            if not self.colour[0].histogram:
                answers.append(self.colour[0].histogram_of(images, maps[:2]))
            stacked_inputs = jnp.concatenate([*answers, seen_colour], -1)
            for name in self.stacked_heads:
                second = self.stacked[name]
                logits[name] = pool_logits(logits[name], second(stacked_inputs), second.weight[0])
        return HeadOutputs(logits, embedding, seen_colour, metric, stacked_inputs)

    def proxies(self, name: str) -> Float[Array, "classes size"]:
        """Returns the proxies of a metric head, of any length."""
        found: Array = self.metric[name].proxies[...]
        return found


def num_colour_features(arguments: Mapping[str, Any]) -> int:
    """Returns the size of `HeadOutputs.colour` of the network with these arguments."""
    if not arguments["colour_heads"]:
        return 0
    return colour_size(_early_channels(arguments["depth"], arguments["width"]), arguments["colour_histogram"])


def _early_channels(depth: int, width: int) -> int:
    """Channels of the first two stages together, of which the second has twice as many."""
    return 3 * width * (EXPANSION if depth in BOTTLENECK_DEPTHS else 1)


def mean_of_mirrored(
    model: Classifier, images: Float[Array, "batch height width 3"], outputs: HeadOutputs
) -> dict[str, Float[Array, "batch classes"]]:
    """Returns logits whose probabilities are the means over photos and their mirror images (test-time flip).

    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", NeurIPS 2012, section 4.1.

    Args:
        model: in inference.
        images: normalised, NHWC.
        outputs: of the model for them.
    """
    mirrored = model(images[:, :, ::-1], train=False).logits
    return {
        name: jnp.logaddexp(jax.nn.log_softmax(logits), jax.nn.log_softmax(mirrored[name])) - jnp.log(2.0)
        for name, logits in outputs.logits.items()
    }


def mean_energy(logits: Mapping[str, Float[Array, "batch classes"]]) -> Float[Array, " batch"]:
    """Returns the mean over heads of -logsumexp(logits), the energy of Liu et al., NeurIPS 2020; float32."""
    energies = [-jax.nn.logsumexp(values.astype(jnp.float32), axis=-1) for values in logits.values()]
    return jnp.mean(jnp.stack(energies), axis=0)


def make_classifier(arguments: Mapping[str, Any], seed: int) -> Classifier:
    """Builds the network from arguments as JSON has them; the same seed gives the same parameters on any devices."""
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }
    typed["dtype"] = jnp.dtype(arguments["dtype"])
    return Classifier(**typed, rngs=nnx.Rngs(seed))


def abstract_classifier(
    arguments: Mapping[str, Any],
) -> tuple[nnx.GraphDef[Classifier], dict[Any, Any], dict[Any, Any]]:
    """Returns the static part, and shapes and dtypes of parameters and batch statistics, without making an array."""
    graph, params, batch_stats = _trace_classifier(json.dumps(dict(arguments)))
    return graph, jax.tree.map(lambda leaf: leaf, params), jax.tree.map(lambda leaf: leaf, batch_stats)


@functools.lru_cache(maxsize=32)
def _trace_classifier(arguments: str) -> tuple[nnx.GraphDef[Classifier], dict[Any, Any], dict[Any, Any]]:
    """Traces once what every run, package and predictor of a model asks for; the arguments are JSON, in their order."""
    return split_network(nnx.eval_shape(lambda: make_classifier(json.loads(arguments), 0)))


def split_network(model: Network) -> tuple[nnx.GraphDef[Network], dict[Any, Any], dict[Any, Any]]:
    """Returns a module's static part, parameters and batch statistics; the latter two as nested dictionaries."""
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def merge_network(
    graph: nnx.GraphDef[Network], params: dict[Any, Any], batch_stats: dict[Any, Any]
) -> Network:  # fmt: skip
    """The inverse of `split_network`; cheap, and meant to run inside `jit`."""
    return nnx.merge(graph, nnx.State(params), nnx.State(batch_stats))


def frozen_norm_classifier(arguments: Mapping[str, Any]) -> tuple[nnx.GraphDef[Classifier], frozenset[str]]:
    """Returns the static part of a network whose backbone's batch norms are frozen, and their paths, such as
    "backbone/stem/0/norm"."""
    model = nnx.eval_shape(lambda: make_classifier(arguments, 0))
    paths = set()
    for path, module in nnx.iter_modules(model.backbone):
        if isinstance(module, BatchNorm):
            module.frozen = True
            paths.add("/".join(map(str, ("backbone", *path))))
    return split_network(model)[0], frozenset(paths)
