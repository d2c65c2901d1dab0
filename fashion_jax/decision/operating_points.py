"""Chooses on validation rows how strongly log probabilities are adjusted by the frequency of the classes.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.2: the predicted class has the highest
log p(class) - strength * log prior(class). Strength 0 is the plain prediction, and 1 the one for classes of equal
frequency. A negative strength undoes an adjustment of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from fashion_jax.decision.decisions import adjust
from fashion_jax.evaluation.metrics import SUPPORTED_ROWS

_Z = 2.33  # one-sided 99 %, because many strengths are tried
# "accuracy" accepts a loss of at most 0.002 of accuracy. For that, macro-F1 must rise by 0.01, and macro-F1 over
# classes with 10 rows or more by 0.005, because single rows hardly change the latter.
MAX_ACCURACY_LOSS, _LEAST_GAIN, _LEAST_SUPPORTED_GAIN = 0.002, 0.01, 0.005
# "macro_f1" accepts a loss of at most 0.05 of accuracy. For that, macro-F1 must rise by 0.005.
_MAX_MACRO_LOSS, _LEAST_MACRO_GAIN = 0.05, 0.005
_FARTHEST = 0.25  # largest distance from the most accurate strength; few rows could lead far away from it
STRENGTHS = tuple(round(-1 + 0.05 * step, 2) for step in range(61))  # -1 to 2


def label_scores(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], num_classes: int
) -> dict[str, float | None]:
    """Returns accuracy, macro-F1 over the classes of the labels, and over classes with 10 rows or more.

    A score is None where there is no row for it.

    Args:
        labels: in [0, classes).
        predictions: in [0, classes).
        num_classes: of the head.
    """
    if not len(labels):
        return {"accuracy": None, "macro_f1": None, "macro_f1_supported": None}
    hits = np.bincount(labels[labels == predictions], minlength=num_classes)
    support, predicted = (np.bincount(values, minlength=num_classes) for values in (labels, predictions))
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    supported = support >= SUPPORTED_ROWS
    return {
        "accuracy": float(np.mean(labels == predictions)),
        "macro_f1": float(f1[support > 0].mean()),
        "macro_f1_supported": float(f1[supported].mean()) if supported.any() else None,
    }


def sweep_strengths(
    log_probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], class_rows: Int64[np.ndarray, " classes"]
) -> list[dict[str, Any]]:
    """Scores every strength.

    Args:
        log_probs: of validation rows that have a label.
        labels: in [0, classes).
        class_rows: training rows per class.

    Returns:
        For each strength: `strength`, the scores of `label_scores`, and the number of rows where this prediction is
        right and the plain one wrong (`won`), or the plain one right and this one wrong (`lost`).
    """
    plain, points = log_probs.argmax(1) == labels, []
    for strength in STRENGTHS:
        chosen = adjust(log_probs, class_rows, strength).argmax(1)
        right = chosen == labels
        counts = {"won": int((right & ~plain).sum()), "lost": int((plain & ~right).sum())}
        points.append({"strength": strength, **label_scores(labels, chosen, log_probs.shape[1]), **counts})
    return points


def best_strength(sweep: Sequence[dict[str, Any]], score: str) -> float:
    """Returns the strength of an operating point.

    Scores are smoothed over three neighbouring strengths, because one row of a rare class changes macro-F1 much. Of
    equal scores, the strength nearest to 0 wins.

    1. The most accurate strength: 0, or another one whose accuracy is better than the plain one by 2.33 standard errors
       of the paired difference.
    2. "accuracy" takes the best macro-F1 among strengths that are at most 0.25 higher and lose at most 0.002 of
       accuracy, if it gains 0.01 of macro-F1 and 0.005 of macro-F1 over the classes with 10 rows or more.
    3. "macro_f1" takes the best macro-F1 among strengths that lose at most 0.05 of accuracy, if it gains 0.005 over
       the strength of "accuracy": with few rows, the best macro-F1 could cost half of the accuracy.

    Args:
        sweep: from `sweep_strengths`, ascending.
        score: "accuracy" or "macro_f1".
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
    # A loss is limited on the rows themselves, too: in the mean of three strengths a single bad one could hide.
    cheap = (np.minimum(accuracy - accuracy[best], raw - raw[best]) >= -MAX_ACCURACY_LOSS - 1e-9) & near
    fair = _highest(np.where(cheap, macro_f1, -1.0), strengths)
    gain, supported_gain = macro_f1[fair] - macro_f1[best], supported[fair] - supported[best]
    taken = fair if gain >= _LEAST_GAIN and supported_gain >= _LEAST_SUPPORTED_GAIN else best
    bearable = np.minimum(accuracy - accuracy[taken], raw - raw[taken]) >= -_MAX_MACRO_LOSS - 1e-9
    highest = _highest(np.where(bearable, macro_f1, -1.0), strengths)
    if score == "macro_f1" and macro_f1[highest] - macro_f1[taken] >= _LEAST_MACRO_GAIN:
        return strengths[highest]
    return strengths[taken]


def _smooth(values: Sequence[float]) -> Float[np.ndarray, " strengths"]:
    padded = np.array([values[0], *values, values[-1]], float)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _highest(values: Float[np.ndarray, " strengths"], strengths: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (round(float(values[i]), 9), -abs(strengths[i])))
