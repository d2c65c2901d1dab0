"""Cross-entropy of several heads, over the rows that hold the label."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fashion_jax.data.schema import MISSING


def smoothed_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], smoothing: float
) -> Float[Array, " batch"]:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), zero where the label is missing.

    Args:
        logits: float32, unbounded.
        labels: in [0, classes), or MISSING.
        smoothing: share of the probability that is spread evenly over all classes, in [0, 1).

    Returns:
        Loss per row in nats, float32.
    """
    known = labels != MISSING
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_probabilities, jnp.where(known, labels, 0)[:, None], axis=-1)[:, 0]
    loss = -(1 - smoothing) * picked - smoothing * jnp.mean(log_probabilities, axis=-1)
    return jnp.where(known, loss, 0.0)


def multi_head_loss(
    logits: Mapping[str, Float[Array, "batch classes"]],
    labels: Mapping[str, Int[Array, " batch"]],
    counts: Mapping[str, Float[Array, ""]],
    *,
    smoothing: Mapping[str, float],
    weights: Mapping[str, float],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum over heads of each head's mean loss over its labelled rows.

    Args:
        logits: per head.
        labels: per head; MISSING rows count nothing.
        counts: labelled rows of the *whole* batch per head, so that the parts of an accumulated batch, or of a
            batch spread over devices, add up to exactly the loss of the batch in one piece.
        smoothing: label smoothing per head.
        weights: weight per head.

    Returns:
        The total, and the unweighted loss per head; a head without a labelled row counts 0.
    """
    per_head = {
        name: jnp.sum(smoothed_cross_entropy(logits[name], labels[name], smoothing[name]))
        / jnp.maximum(counts[name], 1.0)
        for name in logits
    }
    total = jnp.asarray(sum(weights[name] * loss for name, loss in per_head.items()), jnp.float32)
    return total, per_head
