"""Classification heads, one per attribute, and what a model returns."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float, Key

from fashion_jax.models.resnet import BatchNorm

STACKED_HIDDEN = (512,)
STACKED_DROPOUT = 0.2
_FARTHEST = 10.0  # standard deviations from the mean that an input of a stacked head counts as at most
_TINY = 1e-12


@struct.dataclass
class HeadOutputs:
    """What a model returns for a batch.

    Attributes:
        logits: attribute -> float32 (batch, classes), unbounded.
        embedding: float32 (batch, features), the pooled features before the heads; at least 0.
        colour: float32 (batch, size), what colour heads see besides; of no size without them.
        metric: attribute -> float32 (batch, size) of length 1, by which photos are compared; of metric heads alone.
        stacked_inputs: float32 (batch, size), what stacked heads see; None without them, and in training.
    """

    logits: dict[str, Float[Array, "batch classes"]]
    embedding: Float[Array, "batch features"]
    colour: Float[Array, "batch size"]
    metric: dict[str, Float[Array, "batch size"]] = struct.field(default_factory=dict)
    stacked_inputs: Float[Array, "batch size"] | None = None


class Head(nnx.Module):
    """A linear layer, or an MLP with ReLU and dropout before it, as the original project had."""

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        hidden: tuple[int, ...] = (),
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layers.

        Args:
            features: of the embedding.
            classes: of the attribute.
            hidden: sizes of the layers between; none make the head linear.
            dropout: probability with which a hidden value is zeroed in training, in [0, 1).
            input_dropout: likewise of the features.
            rngs: the key "params" is used.
        """
        sizes = (features, *hidden)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        # Small weights let every class start equally likely, whatever the features' scale.
        self.output = nnx.Linear(sizes[-1], classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.dropout, self.input_dropout = dropout, input_dropout

    def __call__(
        self,
        embedding: Float[Array, "batch features"],
        *,
        train: bool,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits. Dropout needs one key per row, so that it does not depend on the row's place."""
        x = embedding
        if train and self.input_dropout:
            x = _drop(x, _keys(dropout_keys, len(self.hidden)), self.input_dropout)
        for number, layer in enumerate(self.hidden):
            x = nnx.relu(layer(x))
            if train and self.dropout:
                x = _drop(x, _keys(dropout_keys, number), self.dropout)
        return self.output(x).astype(jnp.float32)


def _keys(dropout_keys: Key[Array, " batch"] | None, layer: int) -> Key[Array, " batch"]:
    if dropout_keys is None:
        raise ValueError("a head with dropout needs dropout_keys in training")
    return jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, layer)


class StackedHead(nnx.Module):
    """A second head, fitted after training on what the network says of training photos, that the first is pooled with.

    Its `weight` in that, in [0, 1], is for who fits it to set.

    Stacking: Wolpert, "Stacked generalization", Neural Networks 5, 1992; but what it is fitted to is said of rows that
    the network was trained on, where Wolpert's first level has not seen them: those would take a network per fold.
    """

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            features: that it sees; their means and variances over training photos are for who fits it to set.
            classes: of the attribute.
            rngs: the key "params" is used.
        """
        self.norm = BatchNorm(features)
        self.weight = nnx.Param(jnp.full(1, 0.5, jnp.float32))
        self.head = Head(
            features, classes, hidden=STACKED_HIDDEN, dropout=STACKED_DROPOUT, input_dropout=STACKED_DROPOUT, rngs=rngs
        )

    def __call__(self, seen: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        """Returns float32 logits, in inference."""
        return self.head(self.normalize(seen), train=False)

    def normalize(self, seen: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        """Returns what the layers see: features of mean 0 and variance 1 over training photos, in [-10, 10].

        A colour that training photos hardly have would otherwise lie hundreds of deviations away, and decide alone.
        """
        return jnp.clip(self.norm(seen[:, None, None], train=False)[:, 0, 0], -_FARTHEST, _FARTHEST)


def pool_logits(
    first: Float[Array, "batch classes"], second: Float[Array, "batch classes"], weight: float | Float[Array, ""]
) -> Float[Array, "batch classes"]:
    """Returns logits whose probabilities are normalised weighted geometric means, with the first ones' logsumexp.

    So a score that is made of logsumexp, such as the energy, stays that of the first.

    Args:
        first: logits.
        second: logits.
        weight: of the second, in [0, 1].
    """
    pooled = (1 - weight) * jax.nn.log_softmax(first) + weight * jax.nn.log_softmax(second)
    return jax.nn.log_softmax(pooled) + jax.nn.logsumexp(first, -1, keepdims=True)


class MetricHead(nnx.Module):
    """A linear layer whose outputs have length 1, and a proxy per class that a metric loss pulls them to."""

    def __init__(self, features: int, size: int, classes: int, *, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            features: that it sees.
            size: of its vectors.
            classes: of the attribute.
            rngs: the key "params" is used.
        """
        self.output = nnx.Linear(features, size, use_bias=False, rngs=rngs)
        self.proxies = nnx.Param(jax.random.normal(rngs.params(), (classes, size), jnp.float32))

    def __call__(self, seen: Float[Array, "batch features"]) -> Float[Array, "batch size"]:
        """Returns float32 vectors of length 1."""
        return unit(self.output(seen))


def _drop(x: Float[Array, "batch features"], keys: Key[Array, " batch"], rate: float) -> Float[Array, "batch features"]:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0.0)


def unit(vectors: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
    """Returns vectors of length 1, float32; zeros stay zeros."""
    wide = vectors.astype(jnp.float32)
    return wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), _TINY)
