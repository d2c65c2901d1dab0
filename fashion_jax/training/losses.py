"""Cross-entropy of several heads, over the rows that hold the label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32, Int

from fashion_jax.data.schema import MISSING


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """How one head's loss is computed.

    Attributes:
        smoothing: share of the probability that is spread over all classes, in [0, 1); one for all rows, or per class,
            of the rows that have it.
        weight: of the head's loss in the sum.
        class_weights: per class, the factor of its rows; None for 1.
        logit_offsets: per class, added to the logits in training alone; None for 0.
        first_bias: per class, where the bias of the head's output starts; None for 0.
        similar: per class, how `softness` is shared among classes; rows sum to 1; None for no softness.
        softness: share of the probability that goes to classes like the right one, in [0, 1).
        focal_gamma: rows that are right already count less by (1 - p) ** gamma (Lin et al., ICCV 2017).
        spread: per class, its part of `smoothing`; sums to 1; None for even parts.
    """

    smoothing: float | Float32[np.ndarray, " classes"] = 0.0
    weight: float = 1.0
    class_weights: Float32[np.ndarray, " classes"] | None = None
    logit_offsets: Float32[np.ndarray, " classes"] | None = None
    first_bias: Float32[np.ndarray, " classes"] | None = None
    similar: Float32[np.ndarray, "classes classes"] | None = None
    softness: float = 0.0
    focal_gamma: float = 0.0
    spread: Float32[np.ndarray, " classes"] | None = None


def head_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], how: HeadLoss
) -> Float[Array, " batch"]:
    """Returns a head's cross-entropy per row in nats, float32; zero where the label is missing.

    Label smoothing is that of Szegedy et al. (2016, section 7), per class that of Zhong et al. (CVPR 2021).

    Args:
        logits: unbounded.
        labels: in [0, classes), or MISSING.
        how: what is done about smoothing and rare classes.
    """
    known = labels != MISSING
    safe = jnp.where(known, labels, 0)
    logits = logits.astype(jnp.float32)
    if how.logit_offsets is not None:
        logits = logits + jnp.asarray(how.logit_offsets)[None, :]
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, safe[:, None], axis=-1)[:, 0]
    right = picked
    if how.similar is not None:
        like = jnp.sum(jnp.asarray(how.similar)[safe] * log_probabilities, axis=-1)
        right = (1 - how.softness) * picked + how.softness * like
    smoothing = how.smoothing if isinstance(how.smoothing, float) else jnp.asarray(how.smoothing)[safe]
    spread = None if how.spread is None else jnp.asarray(how.spread)
    loss = -(1 - smoothing) * right - smoothing * jnp.average(log_probabilities, axis=-1, weights=spread)
    if how.focal_gamma:
        # Next to certainty 1 - p rounds to 0, whose power has no gradient.
        loss = loss * jnp.maximum(-jnp.expm1(picked), 1e-7) ** how.focal_gamma
    if how.class_weights is not None:
        loss = loss * jnp.asarray(how.class_weights)[safe]
    return jnp.where(known, loss, 0.0)


@struct.dataclass
class MixedTarget:
    """What a row that is mixed with another one should be.

    Attributes:
        partners: the other row's labels, in [0, classes), or MISSING.
        own: how much the row's own label counts, in [0, 1]; 0 where it is missing.
        other: how much the partner's label counts, likewise.
    """

    partners: Int[Array, " batch"]
    own: Float[Array, " batch"]
    other: Float[Array, " batch"]


def multi_head_loss(
    logits: Mapping[str, Float[Array, "batch classes"]],
    labels: Mapping[str, Int[Array, " batch"]],
    counts: Mapping[str, Float[Array, ""]],
    losses: Mapping[str, HeadLoss],
    targets: Mapping[str, MixedTarget] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum over heads of each head's mean loss over its labelled rows.

    Args:
        logits: per head.
        labels: per head; MISSING rows count nothing.
        counts: labelled rows of the *whole* batch per head, so that the parts of an accumulated batch, or of a
            batch spread over devices, add up to exactly the loss of the batch in one piece.
        losses: how each head's loss is computed.
        targets: of mixed photos; None where none are.

    Returns:
        The total, and per head the loss before its weight; a head without a labelled row counts 0.
    """
    per_head = {}
    for name in logits:
        rows = head_cross_entropy(logits[name], labels[name], losses[name])
        if targets is not None:
            target = targets[name]
            rows = target.own * rows + target.other * head_cross_entropy(logits[name], target.partners, losses[name])
        per_head[name] = jnp.sum(rows) / jnp.maximum(counts[name], 1.0)
    total = jnp.asarray(sum(losses[name].weight * loss for name, loss in per_head.items()), jnp.float32)
    return total, per_head
