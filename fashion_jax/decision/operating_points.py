"""Rare classes after the fact: how strongly logits are adjusted by the classes' frequency, swept on validation rows.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.2: the class with the highest
log p(class) - strength * log prior(class). Strength 0 is the plain prediction, 1 the one for even classes; below 0 it
undoes an adjustment of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from fashion_jax.decision.decisions import adjust
from fashion_jax.evaluation.metrics import SUPPORTED_ROWS

SPARED = 0.002  # of accuracy, unless a configuration says otherwise
_Z = 2.33  # one-sided 99 %: many strengths are tried
_LEAST_GAIN = 0.01  # of macro-F1, for which "accuracy" gives of its accuracy
_LEAST_SUPPORTED_GAIN = 0.005  # of the classes with 10 rows and more: a single row of a rare class moves the others
_LEAST_MACRO_GAIN = 0.005  # of it, for which "macro_f1" leaves the strength that "accuracy" takes
_MOST_LOST = 0.05  # of accuracy, that "macro_f1" gives
_FARTHEST = 0.25  # from the most accurate strength: few rows would carry it far off
STRENGTHS = tuple(round(-1 + 0.05 * step, 2) for step in range(61))  # -1 to 2


def label_scores(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int
) -> dict[str, float | None]:
    """Returns accuracy, macro-F1 over the classes of the labels, and over those with 10 rows or more; None of no rows.

    Args:
        labels: in [0, classes).
        predictions: in [0, classes).
        num_classes: of the head.
    """
    if not len(labels):
        return {"accuracy": None, "macro_f1": None, "macro_f1_supported": None}
    hits = np.bincount(labels[labels == predictions], minlength=num_classes)
    support, said = (np.bincount(values, minlength=num_classes) for values in (labels, predictions))
    f1 = 2 * hits / np.maximum(support + said, 1)
    often = support >= SUPPORTED_ROWS
    return {
        "accuracy": float(np.mean(labels == predictions)),
        "macro_f1": float(f1[support > 0].mean()),
        "macro_f1_supported": float(f1[often].mean()) if often.any() else None,
    }


def sweep_strengths(
    log_probs: Float[np.ndarray, "n classes"],
    labels: Int[np.ndarray, " n"],
    class_rows: Int64[np.ndarray, " classes"],
    strengths: Sequence[float] = STRENGTHS,
) -> list[dict[str, Any]]:
    """Scores every strength.

    Args:
        log_probs: of validation rows that have the label.
        labels: in [0, classes).
        class_rows: training rows per class.
        strengths: to try.

    Returns:
        Per strength `strength`, what `label_scores` returns, and the rows that are right where the plain prediction is
        wrong (`won`) and the other way round (`lost`).
    """
    plain, points = log_probs.argmax(1) == labels, []
    for strength in strengths:
        chosen = adjust(log_probs, class_rows, strength).argmax(1)
        right = chosen == labels
        counts = {"won": int((right & ~plain).sum()), "lost": int((plain & ~right).sum())}
        points.append({"strength": strength, **label_scores(labels, chosen, log_probs.shape[1]), **counts})
    return points


def best_strength(sweep: Sequence[dict[str, Any]], score: str, *, spared: float = SPARED) -> float:
    """Returns the strength with the best score, smoothed over its neighbours, the one nearest to 0 among equals.

    A single strength's macro-F1 jumps with a single row of a rare class; the mean of three does so less. Another
    accuracy than the plain one must be better by more than chance: by 2.33 standard errors of the paired difference.
    Where `spared` of the best accuracy (on the rows of the sweep) buys .01 of macro-F1, and .005 of that of the classes
    with 10 rows and more, "accuracy" takes the best macro-F1 that it buys with a strength that is at most .25 higher:
    so little accuracy is near to chance, and a class that is never said is of no use. "macro_f1" takes another strength
    than "accuracy" where that is worth .005, and costs .05 of accuracy at most: of a few hundred rows the best may lie
    where half of the accuracy is lost.

    Args:
        sweep: from `sweep_strengths`, ascending.
        score: "accuracy" or "macro_f1".
        spared: at most, in [0, 1); with 0 nothing is given.
    """
    if not sweep or sweep[0][score] is None:
        return 0.0
    strengths = [float(point["strength"]) for point in sweep]
    accuracy, macro_f1, supported = (
        _smooth([0.0 if point[name] is None else point[name] for point in sweep])
        for name in ("accuracy", "macro_f1", "macro_f1_supported")
    )
    raw = np.array([point["accuracy"] for point in sweep])
    gains = np.array([point["won"] - point["lost"] for point in sweep], float)
    errors = np.sqrt([point["won"] + point["lost"] for point in sweep])
    best = _highest(np.where((gains > _Z * errors) | (np.array(strengths) == 0), accuracy, -1.0), strengths)
    near = [0 <= round(strength - strengths[best], 9) <= _FARTHEST for strength in strengths]
    # What is given is given on the rows themselves, not on the mean of three strengths alone.
    spares = (np.minimum(accuracy - accuracy[best], raw - raw[best]) >= -spared - 1e-9) & near
    fair = _highest(np.where(spares, macro_f1, -1.0), strengths)
    gain, supported_gain = macro_f1[fair] - macro_f1[best], supported[fair] - supported[best]
    taken = fair if gain >= _LEAST_GAIN and supported_gain >= _LEAST_SUPPORTED_GAIN else best
    bearable = np.minimum(accuracy - accuracy[taken], raw - raw[taken]) >= -_MOST_LOST - 1e-9
    highest = _highest(np.where(bearable, macro_f1, -1.0), strengths)
    if score == "macro_f1" and macro_f1[highest] - macro_f1[taken] >= _LEAST_MACRO_GAIN:
        return strengths[highest]
    return strengths[taken]


def _smooth(values: Sequence[float]) -> Float[np.ndarray, " strengths"]:
    padded = np.array([values[0], *values, values[-1]], float)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _highest(values: Float[np.ndarray, " strengths"], strengths: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (round(float(values[i]), 9), -abs(strengths[i])))
