"""Metrics of classification as counts that add up, so that every row weighs the same however it was batched."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from fashion_jax.data.schema import MISSING

SUPPORTED_ROWS = 10  # rows of a class from which it counts for `macro_f1_supported`
TOP = 5


@struct.dataclass
class HeadMetrics:
    """Counts of one head over some rows; a pytree."""

    confusion: Int[Array, "classes classes"]  # int32 (classes, classes), rows by [label, prediction]
    top5: Int[Array, ""]  # int32, rows whose label is among the five highest scores
    count: Int[Array, ""]  # int32, rows that have the label
    loss: Float[Array, ""]  # float32, summed cross-entropy in nats

    @classmethod
    def empty(cls, num_classes: int) -> HeadMetrics:
        """Returns the counts of no rows."""
        zero = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros((num_classes, num_classes), jnp.int32), zero, zero, jnp.zeros((), jnp.float32))

    @classmethod
    def from_logits(
        cls, logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], valid: Bool[Array, " batch"]
    ) -> HeadMetrics:
        """Counts a batch; rows that are not valid or have no label are left out.

        Args:
            logits: unbounded; the lowest class wins a tie.
            labels: in [0, classes), or MISSING.
            valid: False for padding.
        """
        num_classes = logits.shape[-1]
        known = valid & (labels != MISSING)
        safe = jnp.where(known, labels, 0)
        predictions = jnp.argmax(logits, -1)
        confusion = jnp.zeros((num_classes, num_classes), jnp.int32).at[safe, predictions].add(known.astype(jnp.int32))
        log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_probabilities, safe[:, None], -1)[:, 0]
        _, best = jax.lax.top_k(logits, min(TOP, num_classes))
        hits = jnp.any(best == safe[:, None], -1) & known
        return cls(
            confusion,
            jnp.sum(hits, dtype=jnp.int32),
            jnp.sum(known, dtype=jnp.int32),
            jnp.sum(jnp.where(known, losses, 0.0)),
        )

    def merge(self, other: HeadMetrics) -> HeadMetrics:
        """Returns the counts of both; the order does not matter."""
        return jax.tree.map(jnp.add, self, other)


def summarize(
    confusion: np.ndarray, top5: int, count: int, loss: float, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Turns counts into scores.

    Args:
        confusion: integers (classes, classes), [label, prediction].
        top5: rows whose label is among the five highest scores.
        count: rows.
        loss: summed cross-entropy.
        class_names: in the order of the labels.

    Returns:
        accuracy, macro_f1 (mean over the classes present among the labels), macro_f1_supported (over those with 10
        rows or more), weighted_f1 (by rows), top5_accuracy, loss (mean, nats), count, and per_class: name ->
        precision, recall, f1, support. What is undefined is None: all scores of no rows, recall and F1 of a class
        without rows, precision of a class that was never predicted.
    """
    confusion = np.asarray(confusion, np.int64)
    hits, support, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    present, supported = support > 0, support >= SUPPORTED_ROWS

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    per_class = {
        name: {
            "precision": float(hits[i] / predicted[i]) if predicted[i] else None,
            "recall": float(hits[i] / support[i]) if support[i] else None,
            "f1": float(f1[i]) if support[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(class_names)
    }
    return {
        "count": int(count),
        "accuracy": float(hits.sum() / count) if count else None,
        "macro_f1": mean(f1[present]),
        "macro_f1_supported": mean(f1[supported]),
        "weighted_f1": float((f1 * support).sum() / count) if count else None,
        "top5_accuracy": top5 / count if count else None,
        "loss": loss / count if count else None,
        "per_class": per_class,
    }
