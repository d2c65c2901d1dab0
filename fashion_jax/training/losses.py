"""Losses: cross-entropy of several heads over the rows that have the label, and what is done about rare classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int, Int64

from fashion_jax.config.fields import LossConfig
from fashion_jax.data.frequencies import log_frequencies
from fashion_jax.data.schema import MISSING

_FOCAL_GAMMA = 2.0
_TAG_FACTOR = 4.0  # 0.5 ** -_FOCAL_GAMMA


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """How one head's loss is computed."""

    # share of the probability that is spread over all classes, in [0, 1); one for all rows, or per class, of the rows
    # that have it
    smoothing: float | Float32[np.ndarray, " classes"] = 0.0
    weight: float = 1.0  # of the head's loss in the sum
    class_weights: Float32[np.ndarray, " classes"] | None = None  # per class, the factor of its rows; None for 1
    # per class, where the bias of the head's output starts; None for 0
    first_bias: Float32[np.ndarray, " classes"] | None = None
    focal_gamma: float = 0.0  # rows that are right already count less by (1 - p) ** gamma (Lin et al., ICCV 2017)
    # per class, its part of `smoothing`; sums to 1; None for even parts
    spread: Float32[np.ndarray, " classes"] | None = None


def make_head_loss(name: str, class_counts: Int64[np.ndarray, " classes"], config: LossConfig) -> HeadLoss:
    """Returns how a head's loss is computed. `config.imbalance` says what is done about rare classes:

    "none"      plain cross-entropy
    "prior"     the head's bias starts at the classes' log-frequencies (Lin et al., ICCV 2017, section 3.3). This is
                the training of logit adjustment (Menon et al., ICLR 2021), but the shift stays in the bias, so that
                probabilities are those of the catalogue's own class frequencies.
    "focal"     (1 - p) ** 2 times cross-entropy (Lin et al., ICCV 2017): rows that are right already count less
    "balanced"  weights by inverse frequency, for retraining heads: every class weighs the same

    Args:
        class_counts: labelled training rows per class.
    """
    smoothing: float | Float32[np.ndarray, " classes"]
    smoothing = config.head_label_smoothing.get(name, config.label_smoothing)
    if config.rare_label_smoothing >= 0:
        smoothing = label_aware_smoothing(class_counts, smoothing, config.rare_label_smoothing)
    weights = bias = spread = None
    if config.imbalance == "balanced":
        weights = balanced_weights(class_counts)
    elif config.imbalance == "prior":
        bias = log_frequencies(class_counts)
        # Smoothing that gave each class the same probability would give rare classes far more than their frequency.
        spread = scipy.special.softmax(bias)
    return HeadLoss(
        smoothing=smoothing,
        weight=config.head_weights.get(name, 1.0),
        class_weights=weights,
        first_bias=bias,
        focal_gamma=_FOCAL_GAMMA if config.imbalance == "focal" else 0.0,
        spread=spread,
    )


def label_aware_smoothing(
    class_counts: Int64[np.ndarray, " classes"], common: float, rare: float
) -> Float32[np.ndarray, " classes"]:
    """Returns a smoothing per class, from `rare` for the rarest to `common` for the commonest.

    In between it follows a quarter of a sine over the rows (Zhong et al., "Improving calibration for long-tailed
    recognition", CVPR 2021, equation 8): networks are too sure of common classes above all.

    Args:
        class_counts: training rows.
        common: in [0, 1).
        rare: in [0, 1).
    """
    span = max(1, int(class_counts.max()) - int(class_counts.min()))
    place = (class_counts - class_counts.min()) / span
    return (rare + (common - rare) * np.sin(place * np.pi / 2)).astype(np.float32)


def balanced_weights(class_counts: Int64[np.ndarray, " classes"]) -> Float32[np.ndarray, " classes"]:
    """Returns weights in proportion to 1 / rows, whose mean over the rows is 1; 0 for a class without rows."""
    weights = np.where(class_counts > 0, 1 / np.maximum(class_counts, 1), 0.0)
    mean = (weights * class_counts).sum() / max(1, class_counts.sum())
    return (weights / mean if mean > 0 else np.ones(len(weights))).astype(np.float32)


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
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_probabilities, safe[:, None], axis=-1)[:, 0]
    smoothing = how.smoothing if isinstance(how.smoothing, float) else jnp.asarray(how.smoothing)[safe]
    spread = None if how.spread is None else jnp.asarray(how.spread)
    loss = -(1 - smoothing) * picked - smoothing * jnp.average(log_probabilities, axis=-1, weights=spread)
    if how.focal_gamma:
        # Next to certainty 1 - p rounds to 0, whose power has no gradient.
        loss = loss * jnp.maximum(-jnp.expm1(picked), 1e-7) ** how.focal_gamma
    if how.class_weights is not None:
        loss = loss * jnp.asarray(how.class_weights)[safe]
    return jnp.where(known, loss, 0.0)


def tag_losses(logits: Float[Array, "batch classes"], labels: Int[Array, "batch classes"]) -> Float[Array, " batch"]:
    """Returns a multi-valued head's loss per row, summed over its classes; zero where the label is missing.

    The focal loss (Lin et al., ICCV 2017): (1 - p) ** 2 times the cross-entropy of each class, p being the probability
    of the right answer. It is multiplied by 4, so that a class at p = 0.5 counts as in cross-entropy. Without this
    factor other heads outweigh it (`experiments/2026-11-30-tag-loss`, which also says how the asymmetric loss did).

    Args:
        logits: unbounded.
        labels: 1 for each class that the row has and 0 for the others, or MISSING.
    """
    right = jnp.where(labels == 1, logits, -logits)
    # Next to certainty 1 - p rounds to 0, whose power has no gradient.
    wrong = jnp.maximum(jax.nn.sigmoid(-right), 1e-7)
    rows = -_TAG_FACTOR * jnp.sum(wrong**_FOCAL_GAMMA * jax.nn.log_sigmoid(right), -1)
    return jnp.where(is_labelled(labels), rows, 0.0)


def is_labelled(labels: Int[Array, "batch ..."]) -> Bool[Array, " batch"]:
    """Returns which rows have a label; a row of a multi-valued attribute has all of its classes or none."""
    return jnp.all(labels.reshape(len(labels), -1) != MISSING, -1)


def log_odds(counts: Int64[np.ndarray, " classes"], rows: int) -> Float32[np.ndarray, " classes"]:
    """Returns the log odds of each class's share of the rows, with half a row added to both sides.

    Args:
        counts: of the rows that have the class.
        rows: that have the label.
    """
    return np.log((counts + 0.5) / (rows - counts + 0.5)).astype(np.float32)


def _row_losses(logits: Float[Array, "batch classes"], labels: Int[Array, "batch ..."], how: HeadLoss) -> Array:
    return tag_losses(logits, labels) if labels.ndim == 2 else head_cross_entropy(logits, labels, how)


@struct.dataclass
class MixedTarget:
    """What a row that is mixed with another one should be."""

    # the other row's labels, in [0, classes), or MISSING; for a multi-valued attribute (batch, classes)
    partners: Int[Array, "batch ..."]
    own: Float[Array, " batch"]  # how much the row's own label counts, in [0, 1]; 0 where it is missing
    other: Float[Array, " batch"]  # how much the partner's label counts, in [0, 1]; 0 where it is missing


def multi_head_loss(
    logits: Mapping[str, Float[Array, "batch classes"]],
    labels: Mapping[str, Int[Array, "batch ..."]],
    counts: Mapping[str, Float[Array, ""]],
    losses: Mapping[str, HeadLoss],
    targets: Mapping[str, MixedTarget] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted sum over heads of each head's mean loss over its labelled rows.

    Args:
        logits: per head.
        labels: per head; MISSING rows count nothing. A multi-valued attribute has labels (batch, classes).
        counts: labelled rows of the *whole* batch per head, so that the parts of an accumulated batch, or of a
            batch spread over devices, add up to exactly the loss of the batch in one piece.
        targets: of mixed photos; None where none are.

    Returns:
        The total, and per head the loss before its weight; a head without a labelled row counts 0.
    """
    per_head = {}
    for name in logits:
        rows = _row_losses(logits[name], labels[name], losses[name])
        if targets is not None:
            target = targets[name]
            rows = target.own * rows + target.other * _row_losses(logits[name], target.partners, losses[name])
        per_head[name] = jnp.sum(rows) / jnp.maximum(counts[name], 1.0)
    total = jnp.asarray(sum(losses[name].weight * loss for name, loss in per_head.items()), jnp.float32)
    return total, per_head
