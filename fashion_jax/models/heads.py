"""Classification heads, one per attribute, and what a model returns."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float, Key

from fashion_jax.models.architecture import FARTHEST, SECOND_HIDDEN
from fashion_jax.models.resnet import BatchNorm

SECOND_DROPOUT = 0.2


@struct.dataclass
class HeadOutputs:
    """What a model returns for a batch."""

    logits: dict[str, Float[Array, "batch classes"]]  # attribute -> float32 (batch, classes), unbounded
    features: Float[Array, "batch features"]  # float32 (batch, features), what the backbone pools; at least 0
    colour: Float[Array, "batch size"]  # float32 (batch, size), the colour features; size 0 without colour heads
    # multi-valued attribute -> float32 (batch, classes), unbounded; the sigmoid of each is the probability of its class
    tags: dict[str, Float[Array, "batch classes"]]
    # float32 (batch, size), what second heads see; None without them, and in training
    second_inputs: Float[Array, "batch size"] | None = None


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
            features: number of inputs.
            hidden: sizes of the layers between; none make the head linear.
            dropout: probability with which a hidden value is zeroed in training, in [0, 1).
            input_dropout: probability with which an input is zeroed in training, in [0, 1).
        """
        sizes = (features, *hidden)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        # Small weights let every class start equally likely, whatever the features' scale.
        self.output = nnx.Linear(sizes[-1], classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.dropout, self.input_dropout = dropout, input_dropout

    def __call__(
        self, features: Float[Array, "batch features"], *, train: bool, dropout_keys: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch classes"]:
        """Returns float32 logits. Dropout needs one key per row, so that it does not depend on the row's place."""
        x = features
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


class SecondHead(nnx.Module):
    """A head that is fitted after training to the network's own outputs, and pooled with the attribute's first head.

    `weight`, in [0, 1], is the second head's share in the pooled logits. Whoever fits the head sets it.

    This is stacking (Wolpert, "Stacked generalization", Neural Networks 5, 1992) with one difference: the second head
    is fitted on the training rows of the network, because Wolpert's unseen rows would need a network for each fold.
    """

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs) -> None:
        """Builds the layers.

        Args:
            features: number of inputs. Whoever fits the head sets their means and variances.
        """
        self.norm = BatchNorm(features)
        self.weight = nnx.Param(jnp.full(1, 0.5, jnp.float32))
        self.head = Head(
            features, classes, hidden=SECOND_HIDDEN, dropout=SECOND_DROPOUT, input_dropout=SECOND_DROPOUT, rngs=rngs
        )

    def __call__(self, seen: Float[Array, "batch features"]) -> Float[Array, "batch classes"]:
        """Returns float32 logits, in inference."""
        return self.head(self.normalize(seen), train=False)

    def normalize(self, seen: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        """Returns inputs with mean 0 and variance 1 over training photos, clipped to [-10, 10].

        Without the limit, a colour that is rare in training photos would lie hundreds of deviations from the mean and
        outweigh all other inputs.
        """
        return jnp.clip(self.norm(seen[:, None, None], train=False)[:, 0, 0], -FARTHEST, FARTHEST)


def pool_logits(
    first: Float[Array, "batch classes"], second: Float[Array, "batch classes"], weight: float | Float[Array, ""]
) -> Float[Array, "batch classes"]:
    """Returns logits whose probabilities are the normalised weighted geometric mean of two heads.

    Their logsumexp is that of the first head, so that the energy, a score made of logsumexp, stays the same.

    Args:
        first: logits.
        second: logits.
        weight: of the second, in [0, 1].
    """
    pooled = (1 - weight) * jax.nn.log_softmax(first) + weight * jax.nn.log_softmax(second)
    return jax.nn.log_softmax(pooled) + jax.nn.logsumexp(first, -1, keepdims=True)


def _drop(x: Float[Array, "batch features"], keys: Key[Array, " batch"], rate: float) -> Float[Array, "batch features"]:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0.0)
