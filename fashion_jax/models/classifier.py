"""The network: a ResNet, whose pooled features a head per attribute classifies."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fashion_jax.models.architecture import (
    COLOUR_HIDDEN,
    HISTOGRAM_SIZE,
    Architecture,
    architecture_of,
    early_channels,
    num_features,
)
from fashion_jax.models.colour import ColourFeatures
from fashion_jax.models.heads import Head, HeadOutputs, SecondHead, pool_logits
from fashion_jax.models.resnet import BatchNorm, ResNet

Network = TypeVar("Network", bound=nnx.Module)  # a Classifier, or a part of one

_DROP_PATH = 2**31  # folded into a row's random key for the backbone; heads fold in their number


class Classifier(nnx.Module):
    """Holds `nnx.Param` and `nnx.BatchStat` variables only; random keys come as arguments."""

    def __init__(self, architecture: Architecture, *, rngs: nnx.Rngs) -> None:
        """Builds the network; of `rngs` the key "params" is used."""
        a = architecture
        self.backbone = ResNet(
            depth=a.depth,
            width=a.width,
            stem=a.stem,
            drop_path=a.drop_path,
            pooling=a.pooling,
            dtype=jnp.dtype(a.dtype),
            rngs=rngs,
        )
        # Not read from the dictionary of heads: an attribute may have the name of one of its methods.
        self.attributes, self.tags = tuple(a.classes), tuple(a.tags)
        self.colour_heads, self.second_heads = tuple(a.colour_heads), tuple(a.second_heads)
        features, channels = num_features(a.depth, a.width), early_channels(a.depth, a.width)
        colour = [ColourFeatures(channels, mean=a.mean, std=a.std, rngs=rngs)] if a.colour_heads else []
        self.colour = nnx.List(colour)
        heads = {}
        for name, count in [*a.classes.items(), *a.tags.items()]:
            if name in a.colour_heads:
                heads[name] = Head(features + colour[0].size, count, hidden=COLOUR_HIDDEN, rngs=rngs)
            else:
                heads[name] = Head(features, count, rngs=rngs)
        self.heads = nnx.Dict(heads)
        # Second heads are drawn last, so that the rest is drawn as it is without them.
        answers = sum(count for name, count in a.classes.items() if name not in a.colour_heads)
        seen = answers + colour[0].size + HISTOGRAM_SIZE if a.second_heads else 0
        self.second = nnx.Dict({name: SecondHead(seen, a.classes[name], rngs=rngs) for name in a.second_heads})

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> HeadOutputs:
        """Returns logits and features of normalised photos.

        Args:
            images: NHWC.
            train: whether batch norm uses the batch's statistics (and updates the running ones) and dropout and
                stochastic depth drop.
            dropout_keys: one per row; needed when training with dropout or stochastic depth.
        """
        drop_keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, _DROP_PATH)
        features, maps = self.backbone(images, train=train, drop_keys=drop_keys)
        seen_colour = jnp.zeros((images.shape[0], 0), jnp.float32)
        for colour in self.colour:
            seen_colour = colour(images, maps[:2], train=train)
        with_colour = jnp.concatenate([features, seen_colour], -1)
        logits = {}
        for number, name in enumerate((*self.attributes, *self.tags)):
            head = self.heads[name]
            keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, number)
            seen = with_colour if name in self.colour_heads else features
            logits[name] = head(seen, train=train, dropout_keys=keys)
        tags = {name: logits.pop(name) for name in self.tags}
        second_inputs = None
        if self.second_heads and not train:
            answers = [jax.nn.log_softmax(logits[name]) for name in self.attributes if name not in self.colour_heads]
            answers.append(self.colour[0].histogram_of(images, maps[:2]))
            second_inputs = jnp.concatenate([*answers, seen_colour], -1)
            for name in self.second_heads:
                second = self.second[name]
                logits[name] = pool_logits(logits[name], second(second_inputs), second.weight[0])
        return HeadOutputs(logits, features, seen_colour, tags, second_inputs)


def mean_of_mirrored(
    model: Classifier, images: Float[Array, "batch height width 3"], outputs: HeadOutputs
) -> tuple[dict[str, Float[Array, "batch classes"]], dict[str, Float[Array, "batch classes"]]]:
    """Returns logits and tags whose probabilities are the means over photos and their mirror images (test-time flip).

    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", NeurIPS 2012, section 4.1.

    Args:
        model: in inference.
        images: normalised, NHWC.
        outputs: of the model for them.
    """
    mirrored = model(images[:, :, ::-1], train=False)
    logits = {
        name: jnp.logaddexp(jax.nn.log_softmax(own), jax.nn.log_softmax(mirrored.logits[name])) - jnp.log(2.0)
        for name, own in outputs.logits.items()
    }
    present, absent = (
        {
            name: jnp.logaddexp(jax.nn.log_sigmoid(sign * own), jax.nn.log_sigmoid(sign * mirrored.tags[name]))
            for name, own in outputs.tags.items()
        }
        for sign in (1, -1)
    )
    return logits, {name: present[name] - absent[name] for name in present}


def mean_energy(logits: Mapping[str, Float[Array, "batch classes"]]) -> Float[Array, " batch"]:
    """Returns the mean over heads of -logsumexp(logits), the energy of Liu et al., NeurIPS 2020; float32."""
    energies = [-jax.nn.logsumexp(values.astype(jnp.float32), axis=-1) for values in logits.values()]
    return jnp.mean(jnp.stack(energies), axis=0)


def make_classifier(arguments: Mapping[str, Any], seed: int) -> Classifier:
    """Builds the network with the `Architecture` of these JSON values.

    The same seed gives the same parameters on any number of devices.
    """
    return Classifier(architecture_of(arguments), rngs=nnx.Rngs(seed))


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


def training_classifier(
    arguments: Mapping[str, Any], *, groups: int = 1, freeze: bool = False
) -> tuple[nnx.GraphDef[Classifier], frozenset[str]]:
    """Returns the static part of a network in training, and the paths of frozen batch norms: "backbone/stem/0/norm".

    Args:
        groups: parts of a batch that have batch statistics of their own.
        freeze: whether the backbone's batch norms are frozen.
    """
    model = nnx.eval_shape(lambda: make_classifier(arguments, 0))
    frozen = set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.groups = groups
            if freeze and path[0] == "backbone":
                module.frozen = True
                frozen.add("/".join(map(str, path)))
    return split_network(model)[0], frozenset(frozen)
