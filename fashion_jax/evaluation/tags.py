"""Scores of attributes of several values: average precision and F1 of each class, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8

from fashion_jax.data.schema import MISSING
from fashion_jax.system.text import format_table

TAG_SCORES = ("map", "micro_f1", "macro_f1", "loss")
_TINY = 1e-7


def summarize_tags(
    probabilities: Float[np.ndarray, "n classes"],
    labels: Int8[np.ndarray, "n classes"],
    class_names: Sequence[str],
    thresholds: Float[np.ndarray, " classes"] | float = 0.5,
) -> dict[str, Any]:
    """Scores the predictions of one attribute over the rows that have its label.

    Args:
        probabilities: in [0, 1].
        labels: 1, 0, or MISSING in all classes of a row.
        class_names: in the order of the classes.
        thresholds: from which on a class is predicted.

    Returns:
        count (rows), map (mean average precision over the classes that a row has), micro_f1, macro_f1 (over the classes
        that a row has), loss (mean of the summed cross-entropies, nats), and per_class: name -> ap, precision, recall,
        f1, support, threshold. What is undefined is None, as in `metrics.summarize`.
    """
    known = (labels != MISSING).all(1)
    scores, truth = np.asarray(probabilities[known], np.float64), labels[known] == 1
    predicted = scores >= np.broadcast_to(thresholds, scores.shape[1:])[None]
    hits, support, chosen = (predicted & truth).sum(0), truth.sum(0), predicted.sum(0)
    f1 = 2 * hits / np.maximum(support + chosen, 1)
    aps = [average_precision(scores[:, place], truth[:, place]) for place in range(len(class_names))]
    present = support > 0
    clipped = np.clip(scores, _TINY, 1 - _TINY)
    losses = -np.where(truth, np.log(clipped), np.log1p(-clipped)).sum(1)
    total = int(support.sum() + chosen.sum())
    per_class = {
        name: {
            "ap": aps[i],
            "precision": float(hits[i] / chosen[i]) if chosen[i] else None,
            "recall": float(hits[i] / support[i]) if support[i] else None,
            "f1": float(f1[i]) if support[i] else None,
            "support": int(support[i]),
            "threshold": float(np.broadcast_to(thresholds, (len(class_names),))[i]),
        }
        for i, name in enumerate(class_names)
    }
    return {
        "count": int(known.sum()),
        "map": float(np.mean([ap for ap in aps if ap is not None])) if present.any() else None,
        "micro_f1": float(2 * hits.sum() / total) if total else None,
        "macro_f1": float(f1[present].mean()) if present.any() else None,
        "loss": float(losses.mean()) if known.any() else None,
        "per_class": per_class,
    }


def average_precision(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float | None:
    """Returns the mean, over the rows that have the class, of the precision among the rows with at least their score.

    Without interpolation; rows with equal scores count together. None where no row has the class.
    """
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last row of each score
    gained = np.diff(found[ends], prepend=0)
    return float((gained * found[ends] / (ends + 1)).sum() / positives)


def format_tag_scores(summaries: dict[str, dict[str, Any]]) -> str:
    """Returns a table of scores, one attribute a line: rows, mAP, micro-F1, macro-F1; empty text for no attribute."""
    if not summaries:
        return ""
    rows = [["several values", "rows", "mAP", "micro-F1", "macro-F1"]]
    for name, summary in summaries.items():
        scores = [summary[key] for key in ("map", "micro_f1", "macro_f1")]
        rows.append([name, f"{summary['count']:,}", *("-" if score is None else f"{score:.4f}" for score in scores)])
    return format_table(*rows)
