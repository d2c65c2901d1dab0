"""Fits the score by which photos that show no product of the catalogue are told, and judges it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from fashion_jax.decision.decisions import OutOfCatalogue

REFERENCE_ROWS = 5000  # training photos whose embeddings describe the catalogue, at most
_DIRECTIONS = 64  # of the embeddings' covariance that are kept


def fit_out_of_catalogue(
    reference: Float[np.ndarray, "rows features"],
    embeddings: Float[np.ndarray, "n features"],
    energies: Float[np.ndarray, " n"],
    share: float,
) -> OutOfCatalogue | None:
    """Fits the score's parts and its threshold.

    Args:
        reference: embeddings of training photos.
        embeddings: of validation photos.
        energies: of validation photos.
        share: of validation photos that are to lie above the threshold, in (0, 1).

    Returns:
        None where there are fewer than two reference rows or no validation row.
    """
    if len(reference) < 2 or not len(embeddings):
        return None
    rows = np.asarray(reference, np.float64)
    mean = rows.mean(0)
    variances, directions = np.linalg.eigh(np.cov((rows - mean[None, :]).T).reshape(rows.shape[1], -1))
    variances, directions = np.maximum(variances[::-1], 0.0), directions[:, ::-1].T
    floor = max(1e-6 * float(variances.mean()), 1e-12)  # a feature that never moves must not decide alone
    kept = max(1, min(_DIRECTIONS, rows.shape[1] - 1, len(rows) - 1))
    rest = max(float(variances[kept:].mean()) if kept < len(variances) else floor, floor)
    found = OutOfCatalogue(
        mean, directions[:kept], np.maximum(variances[:kept], rest), rest, (0.0, 0.0), (1.0, 1.0), 0.0
    )
    parts = (found.log_distances(embeddings), np.asarray(energies, np.float64))
    spreads = [float(np.subtract(*np.quantile(part, [0.75, 0.25]))) for part in parts]
    found = dataclasses.replace(
        found,
        centres=(float(np.median(parts[0])), float(np.median(parts[1]))),
        spreads=(max(spreads[0], 1e-6), max(spreads[1], 1e-6)),
    )
    return dataclasses.replace(found, threshold=threshold_above(found.scores(embeddings, energies), share))


def threshold_above(scores: Float[np.ndarray, " n"], share: float) -> float:
    """Returns the score above which a share of rows like these lies at most: the conformal quantile of the scores.

    The highest score where there are too few rows for the share.
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - share)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """Returns the chance that a photo of no product scores higher than a product's, ties counting half.

    Args:
        inside: scores of products, at least one.
        outside: scores of the others, at least one.
    """
    ranks = scipy.stats.rankdata(np.concatenate([inside, outside]))
    above = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def judge_scores(
    inside: Float[np.ndarray, " n"],
    outside: Float[np.ndarray, " m"],
    kinds: Sequence[str],
    groups: Mapping[str, str],
    threshold: float,
) -> dict[str, object]:
    """Judges scores of products against those of other photos.

    Args:
        inside: scores of products.
        outside: scores of the others.
        kinds: of each of the others.
        groups: kind -> its group.
        threshold: scores above it are flagged.

    Returns:
        `flagged_products` (share), and for "all", each group and each kind `auroc` and `flagged` (share).
    """
    if not len(inside) or not len(outside):
        return {"flagged_products": float(np.mean(inside > threshold)) if len(inside) else None, "others": {}}
    each, by_group = np.array(kinds), np.array([groups[kind] for kind in kinds])
    masks = {"all": np.ones(len(outside), bool)}
    masks |= {group: by_group == group for group in dict.fromkeys(groups.values())}
    masks |= {kind: each == kind for kind in groups}
    return {
        "flagged_products": float(np.mean(inside > threshold)),
        "others": {
            name: {"auroc": auroc(inside, outside[mask]), "flagged": float(np.mean(outside[mask] > threshold))}
            for name, mask in masks.items()
            if mask.any()
        },
    }
