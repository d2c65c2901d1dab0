"""Decides which values of a multi-valued attribute a product has: calibrated probabilities, and a threshold per class.

The probabilities of an attribute are sigmoid(scale * logits + shift) (Platt 1999), with two numbers for all classes,
fitted on validation rows, because the loss of training makes probabilities that are too unsure. A class is predicted
from its threshold on. The threshold is the one with the best F1 on validation rows, a choice that maximises macro-F1
(Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML 2014). A class with
few validation rows takes the threshold that is best for all classes of the attribute together (micro-F1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int8

from fashion_jax.data.schema import MISSING

_LEAST_ROWS = 10  # validation rows with a class, and without it, from which the class gets its own threshold
_MOST = 30.0  # largest scale and shift
_DEFAULT = 0.5


@dataclass(frozen=True, slots=True)
class TagDecision:
    """The fitted numbers of one multi-valued attribute."""

    scale: float  # factor of the logits, above 0
    shift: float  # is added to the scaled logits
    thresholds: Float[np.ndarray, " classes"]  # float64 (classes,), in [0, 1]; from this probability on


def fit_tags(logits: Float[np.ndarray, "n classes"], labels: Int8[np.ndarray, "n classes"]) -> TagDecision:
    """Fits a decision on validation rows.

    Args:
        logits: of the network.
        labels: 1, 0, or MISSING in all classes of a row.
    """
    import scipy.optimize  # here, because prediction does not need it

    known = (labels != MISSING).all(1)
    scores, truth = np.asarray(logits[known], np.float64), labels[known] == 1
    thresholds = np.full(labels.shape[1], _DEFAULT)
    if not truth.any() or truth.all():
        return TagDecision(1.0, 0.0, thresholds)

    def loss(numbers: np.ndarray) -> float:
        values = np.exp(numbers[0]) * scores + numbers[1]
        return float(np.mean(np.logaddexp(0, values) - truth * values))

    bounds = [(-np.log(_MOST), np.log(_MOST)), (-_MOST, _MOST)]
    found = scipy.optimize.minimize(loss, np.zeros(2), bounds=bounds, method="L-BFGS-B").x
    scale, shift = float(np.exp(found[0])), float(found[1])
    probabilities = scipy.special.expit(scale * scores + shift)
    thresholds[:] = best_threshold(probabilities.ravel(), truth.ravel())
    for place in range(labels.shape[1]):
        if min(truth[:, place].sum(), (~truth[:, place]).sum()) >= _LEAST_ROWS:
            thresholds[place] = best_threshold(probabilities[:, place], truth[:, place])
    return TagDecision(scale, shift, thresholds)


def best_threshold(probabilities: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Returns the threshold with the best F1: half-way between two neighbouring probabilities.

    Of thresholds with the same F1, the one nearest to 0.5 is taken.
    """
    order = np.argsort(-probabilities, kind="stable")
    ordered, hits = probabilities[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    between = (ordered + np.append(ordered[1:], 0.0)) / 2
    allowed = np.append(np.diff(ordered) != 0, True)  # rows with equal probabilities are predicted together
    best = np.where(allowed, f1, -1.0)
    candidates = np.flatnonzero(best >= best.max() - 1e-12)
    return float(between[candidates[np.abs(between[candidates] - _DEFAULT).argmin()]])


def tag_probabilities(
    decisions: Mapping[str, TagDecision], logits: Mapping[str, Float[np.ndarray, "n classes"]]
) -> dict[str, Float[np.ndarray, "n classes"]]:
    """Returns the probability of each class, float64; an attribute without a decision gets sigmoid(logits)."""
    found = {}
    for name, values in logits.items():
        one = decisions.get(name)
        scaled = np.asarray(values, np.float64) if one is None else one.scale * values.astype(np.float64) + one.shift
        found[name] = scipy.special.expit(scaled)
    return found


def choose_tags(
    decisions: Mapping[str, TagDecision], probabilities: Mapping[str, Float[np.ndarray, "n classes"]]
) -> dict[str, Bool[np.ndarray, "n classes"]]:
    """Returns which classes are predicted, from the probabilities of photos or from means over a product's photos.

    Without a decision the threshold is 0.5.
    """
    thresholds = {name: decisions[name].thresholds if name in decisions else _DEFAULT for name in probabilities}
    return {
        name: values >= np.broadcast_to(thresholds[name], values.shape[1:])[None]
        for name, values in probabilities.items()
    }
