"""Calibrated probabilities: temperature scaling, calibration error, thresholds, and label sets.

Everything is fitted on validation rows and scored on other rows. The caller leaves out rows without a label.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Int

BINS = 15
_TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Returns the temperature that minimises the negative log-likelihood of softmax(logits / temperature).

    Guo et al., "On calibration of modern neural networks", ICML 2017. One number for each head, so the order of the
    classes and the accuracy stay the same.

    Args:
        logits: of validation rows.
        labels: in [0, classes).

    Returns:
        In [0.05, 20]; 1 where there is no row.
    """
    if not len(labels):
        return 1.0
    wide, rows = logits.astype(np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = wide / math.exp(log_temperature)
        return float(np.mean(scipy.special.logsumexp(scaled, axis=1) - scaled[rows, labels]))

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    found = scipy.optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(math.exp(found.x))


def calibration_error(confidences: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]) -> float:
    """Returns the expected calibration error: mean |accuracy - confidence| over bins of equal width, weighted by rows.

    Args:
        confidences: of the predicted class, in [0, 1].
        correct: whether it was right.

    Returns:
        In [0, 1]; 0 where there is no row.
    """
    if not len(confidences):
        return 0.0
    _, hits, sums = reliability_bins(confidences, correct)
    return float(np.abs(hits - sums).sum() / len(confidences))


def reliability_bins(
    confidences: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " bins"], Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Returns rows, right rows and summed confidences of each bin of equal width; a bin contains its upper end."""
    place = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    return rows, np.bincount(place, correct, BINS), np.bincount(place, confidences, BINS)


def fit_threshold(
    confidences: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], precision: float, *, level: float = 0.0
) -> float:
    """Returns the smallest confidence that accepts rows with at least the given precision; infinite where none does.

    Args:
        confidences: of the predicted class, in [0, 1].
        correct: whether it was right.
        precision: that is asked for, in (0, 1].
        level: 0 compares the share of right rows itself. Otherwise its lower bound at this confidence level must reach
            the precision (Clopper and Pearson, Biometrika 1934), so that few rows do not reach it by luck.
    """
    if not len(confidences):
        return math.inf
    order = np.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], np.cumsum(correct[order])
    accepted = np.arange(1, len(ranked) + 1)
    # Rows of equal confidence are accepted together or not at all.
    last = np.append(ranked[1:] < ranked[:-1], True)
    shares = scipy.stats.beta.ppf(1 - level, hits, accepted - hits + 1) if level else hits / accepted
    good = np.flatnonzero(last & (shares >= precision - 1e-12))
    if not len(good):
        return math.inf
    return float(ranked[good[-1]])


def fit_label_sets(
    probabilities: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], coverage: float
) -> float:
    """Returns the smallest probability that puts a class into a row's set of labels (split conformal prediction).

    For rows that are similar to those of the fit, the set contains the true label with at least the given probability,
    for any model (Sadinle, Lei and Wasserman, JASA 2019; the finite-sample quantile of Vovk et al. 2005).

    Args:
        probabilities: of validation rows, each row sums to 1.
        labels: in [0, classes).
        coverage: that is asked for, in (0, 1).

    Returns:
        In [0, 1]. Where there are too few rows for the coverage it is 0, so that every set contains every class.
    """
    count = len(labels)
    rank = math.ceil((count + 1) * coverage)
    if rank > count:
        return 0.0
    scores = np.sort(1 - probabilities[np.arange(count), labels].astype(np.float64))
    return float(max(0.0, 1 - scores[rank - 1]))
