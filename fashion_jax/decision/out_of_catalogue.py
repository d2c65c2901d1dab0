"""Fits and scores the detector of photos that show no product of the catalogue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from fashion_jax.decision.decisions import OutOfCatalogue

REFERENCE_ROWS = 5000  # largest number of training photos whose features describe the catalogue
_DIRECTIONS = 64  # of the features' covariance that are kept


def fit_out_of_catalogue(
    reference: Float[np.ndarray, "rows features"],
    features: Float[np.ndarray, "n features"],
    energies: Float[np.ndarray, " n"],
    share: float,
) -> OutOfCatalogue | None:
    """Fits the parts of the score and its threshold.

    Args:
        reference: features of training photos.
        features: of validation photos.
        energies: of validation photos.
        share: of validation photos that may lie above the threshold, in (0, 1).

    Returns:
        None where there are fewer than two reference rows or no validation row.
    """
    if len(reference) < 2 or not len(features):
        return None
    rows = np.asarray(reference, np.float64)
    mean = rows.mean(0)
    variances, directions = np.linalg.eigh(np.cov((rows - mean[None, :]).T).reshape(rows.shape[1], -1))
    variances, directions = np.maximum(variances[::-1], 0.0), directions[:, ::-1].T
    floor = max(1e-6 * float(variances.mean()), 1e-12)  # A feature that is constant must not dominate the distance.
    kept = max(1, min(_DIRECTIONS, rows.shape[1] - 1, len(rows) - 1))
    rest = max(float(variances[kept:].mean()) if kept < len(variances) else floor, floor)
    found = OutOfCatalogue(
        mean, directions[:kept], np.maximum(variances[:kept], rest), rest, (0.0, 0.0), (1.0, 1.0), 0.0
    )
    parts = (found.log_distances(features), np.asarray(energies, np.float64))
    spreads = [float(np.subtract(*np.quantile(part, [0.75, 0.25]))) for part in parts]
    found = dataclasses.replace(
        found,
        centres=(float(np.median(parts[0])), float(np.median(parts[1]))),
        spreads=(max(spreads[0], 1e-6), max(spreads[1], 1e-6)),
    )
    return dataclasses.replace(found, threshold=threshold_above(found.scores(features, energies), share))


def threshold_above(scores: Float[np.ndarray, " n"], share: float) -> float:
    """Returns the conformal quantile: at most this share of similar rows lies above it.

    Where there are too few rows for the share, it is the highest score.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - share)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """Returns the probability that a photo of no product scores higher than one of a product; ties count half.

    Args:
        inside: scores of products, at least one.
        outside: scores of the others, at least one.
    """
    ranks = scipy.stats.rankdata(np.concatenate([inside, outside]))
    above = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def score_detection(
    products: Float[np.ndarray, " n"],
    others: Float[np.ndarray, " m"],
    kinds: Sequence[str],
    groups: Mapping[str, str],
    threshold: float,
) -> dict[str, object]:
    """Compares the scores of products with those of other photos.

    Args:
        products: scores of products.
        others: scores of the other photos.
        kinds: of each of the other photos.
        groups: kind -> its group.
        threshold: a photo with a higher score counts as out of the catalogue.

    Returns:
        `products_above_threshold` (share), and under `others`, for "all", each group and each kind, `auroc` and
        `above_threshold` (share).
    """
    share = float(np.mean(products > threshold)) if len(products) else None
    if not len(products) or not len(others):
        return {"products_above_threshold": share, "others": {}}
    each, by_group = np.array(kinds), np.array([groups[kind] for kind in kinds])
    masks = {"all": np.ones(len(others), bool)}
    masks |= {group: by_group == group for group in dict.fromkeys(groups.values())}
    masks |= {kind: each == kind for kind in groups}
    found = {
        name: {"auroc": auroc(products, others[mask]), "above_threshold": float(np.mean(others[mask] > threshold))}
        for name, mask in masks.items()
        if mask.any()
    }
    return {"products_above_threshold": share, "others": found}
