"""What is done about rare classes, per head: weights, shifted logits, or a loss that leaves easy rows alone.

"none"              plain cross-entropy
"balanced"          weights by inverse frequency, the original project's; every class weighs the same
"effective"         weights by the effective number of samples (Cui et al., CVPR 2019)
"logit_adjustment"  logits shifted by the classes' log-frequency in training (Menon et al., ICLR 2021); rare
                    classes get no more of smoothed labels and soft colours than their frequency then
"prior"             the same training, but the shift is where the head's bias starts (Lin et al., ICCV 2017, section
                    3.3, of rare foreground), and stays in it: what the head says is of rows as they come
"focal"             (1 - p) ** gamma times cross-entropy (Lin et al., ICCV 2017)

"auto" is one of these by the time that a loss is made; see imbalance_pilots.py.
"""

from __future__ import annotations

import numpy as np
import scipy.special
from jaxtyping import Float32, Int64

from fashion_jax.config.fields import LossConfig
from fashion_jax.training.losses import HeadLoss


def make_head_loss(
    name: str,
    class_counts: Int64[np.ndarray, " classes"],
    config: LossConfig,
    similar: Float32[np.ndarray, "classes classes"] | None = None,
) -> HeadLoss:
    """Returns how a head's loss is computed.

    Args:
        name: of the attribute.
        class_counts: labelled training rows per class.
        config: of the run.
        similar: of a colour attribute, which colours look alike; see data/class_colours.py.
    """
    method = config.head_imbalance.get(name, config.imbalance)
    assert method != "auto"
    weights = offsets = bias = spread = None
    if method == "balanced":
        weights = balanced_weights(class_counts)
    elif method == "effective":
        weights = effective_weights(class_counts, config.effective_beta)
    elif method in ("logit_adjustment", "prior"):
        shift = config.logit_adjustment * log_frequencies(class_counts)
        offsets, bias = (shift, None) if method == "logit_adjustment" else (None, shift)
        # Probability given evenly to rare classes would be far more than their frequency, so their logits, once the
        # shift is gone, would rise above the right class's: smoothing of .1 left a head right in .002 of the rows.
        spread = scipy.special.softmax(shift)
        if similar is not None:
            similar = _held_back(similar, shift)
    return HeadLoss(
        smoothing=_smoothing(config.head_label_smoothing.get(name, config.label_smoothing), class_counts, config),
        spread=spread,
        weight=config.head_weights.get(name, 1.0),
        class_weights=weights,
        logit_offsets=offsets,
        first_bias=bias,
        similar=similar,
        softness=config.colour_softness if similar is not None else 0.0,
        focal_gamma=config.focal_gamma if method == "focal" else 0.0,
    )


def _held_back(
    similar: Float32[np.ndarray, "classes classes"], offsets: Float32[np.ndarray, " classes"]
) -> Float32[np.ndarray, "classes classes"]:
    """Returns what classes give to similar ones, less to those rarer than themselves; they keep the rest."""
    given = similar * np.exp(np.minimum(0, offsets[None, :] - offsets[:, None]))
    return given + np.diag(1 - given.sum(1))


def _smoothing(
    common: float, class_counts: Int64[np.ndarray, " classes"], config: LossConfig
) -> float | Float32[np.ndarray, " classes"]:
    if config.rare_label_smoothing < 0:
        return common
    return label_aware_smoothing(class_counts, common, config.rare_label_smoothing)


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
    return _normalise(np.where(class_counts > 0, 1 / np.maximum(class_counts, 1), 0.0), class_counts)


def effective_weights(class_counts: Int64[np.ndarray, " classes"], beta: float) -> Float32[np.ndarray, " classes"]:
    """Returns weights in proportion to (1 - beta) / (1 - beta ** rows), whose mean over the rows is 1."""
    effective = -np.expm1(class_counts * np.log(beta)) if beta > 0 else np.ones(len(class_counts))
    return _normalise(np.where(class_counts > 0, 1 / np.maximum(effective, 1e-12), 0.0), class_counts)


def _normalise(weights: np.ndarray, class_counts: np.ndarray) -> Float32[np.ndarray, " classes"]:
    mean = (weights * class_counts).sum() / max(1, class_counts.sum())
    return (weights / mean if mean > 0 else np.ones(len(weights))).astype(np.float32)


def log_frequencies(class_rows: Int64[np.ndarray, " classes"]) -> Float32[np.ndarray, " classes"]:
    """Returns the logarithm of each class's share of the rows; a class without rows counts as half a row."""
    counts = np.maximum(class_rows, 0.5)
    return np.log(counts / counts.sum()).astype(np.float32)
