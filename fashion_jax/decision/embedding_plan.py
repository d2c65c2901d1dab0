"""Chooses what embeddings are made of, on validation rows; see `decision/embedding.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from fashion_jax.data.schema import MISSING
from fashion_jax.decision.embedding import APPEARANCE, EmbeddingPlan, Subspace
from fashion_jax.decision.hierarchy import Pair
from fashion_jax.evaluation.neighbours import join_labels

MOST_ROWS = 4000  # of validation rows that search each other
_FACTORS = (0.5, 2.0)  # by which a share is tried to be changed
_GAIN = 2e-3  # of the mean precision that a change must bring; less is chance
_NEIGHBOURS = 10
_QUERIES_AT_ONCE = 512


def compared_attributes(
    asked: Sequence[str], num_classes: Mapping[str, int], pairs: Sequence[Pair], size: int
) -> tuple[str, ...]:
    """Returns the attributes that embeddings compare.

    Args:
        asked: names, or ("auto",): every attribute that no finer one determines, those of fewest classes first, as far
            as their classes fit.
        num_classes: attribute -> classes.
        pairs: of attributes of which one determines the other.
        size: of an embedding.
    """
    if tuple(asked) != ("auto",):
        return tuple(asked)
    coarser = {pair.coarser for pair in pairs}
    chosen, taken = set(), 0
    for name in sorted(num_classes, key=lambda n: num_classes[n]):
        if name not in coarser and num_classes[name] > 1 and taken + num_classes[name] <= size:
            chosen.add(name)
            taken += num_classes[name]
    return tuple(name for name in num_classes if name in chosen)


def fit_embedding(
    logits: Mapping[str, Float[np.ndarray, "n classes"]],
    labels: Mapping[str, Int[np.ndarray, " n"]],
    groups: Int[np.ndarray, " n"],
    reference: Float[np.ndarray, "some features"],
    *,
    attributes: Sequence[str],
    temperatures: Mapping[str, float],
    size: int,
    appearance: float,
) -> EmbeddingPlan | None:
    """Fits the shares of the attributes: those whose neighbours share most labels, each and all at once.

    Args:
        logits: attribute -> the network's, of validation rows.
        labels: attribute -> labels, MISSING where there is none.
        groups: rows with equal numbers are near-duplicates, which any embedding finds, and do not count.
        reference: pooled features of training rows, to which components are fitted.
        attributes: that are compared; their classes together at most `size`.
        temperatures: attribute -> of its logits.
        size: features of an embedding at most.
        appearance: share of the pooled features in the cosine, in [0, 1).

    Returns:
        Where no attribute is given, the pooled features' first `size` components; None where they have no more.
    """
    if not attributes:
        width = min(size, len(reference))
        if not 0 < width < reference.shape[1]:
            return None
        return EmbeddingPlan((Subspace(APPEARANCE, None, width, 1.0),), principal_directions(reference, width))
    rows = np.unique(np.linspace(0, len(groups) - 1, min(MOST_ROWS, len(groups))).astype(int))
    parts = [
        Subspace(name, name, logits[name].shape[1], 1 / len(attributes), temperatures[name]) for name in attributes
    ]
    wanted = [labels[name][rows] for name in attributes]
    wanted.append(join_labels(labels, tuple(attributes))[rows])
    if len(rows) > _NEIGHBOURS:
        parts = _balance(parts, {n: logits[n][rows] for n in attributes}, wanted, groups[rows])
    return _with_appearance(parts, reference, size, appearance)


def _with_appearance(parts: list[Subspace], reference: np.ndarray, size: int, appearance: float) -> EmbeddingPlan:
    """Adds a subspace of pooled features where there is room for one."""
    left = size - sum(part.size for part in parts)
    width = min(left, reference.shape[1], max(len(reference) - 1, 0)) if appearance else 0
    if width <= 0:
        return EmbeddingPlan(tuple(parts))
    components = principal_directions(reference, width)
    parts = [dataclasses.replace(part, share=part.share * (1 - appearance)) for part in parts]
    name = APPEARANCE if all(part.name != APPEARANCE for part in parts) else f"{APPEARANCE} of the photo"
    return EmbeddingPlan((*parts, Subspace(name, None, width, appearance)), components)


def principal_directions(features: Float[np.ndarray, "n features"], count: int) -> Float[np.ndarray, "features count"]:
    """Returns the directions, float32, on which features of length 1 have the longest shadows.

    They are not centred: the cosine of two shadows is to be near that of the features themselves.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    rows = (features / np.maximum(lengths, 1e-12)).astype(np.float64)
    _, axes = np.linalg.eigh(rows.T @ rows)
    kept = axes[:, ::-1][:, :count]
    # A direction is known but for its sign: the largest entry is made positive, so that every machine agrees.
    kept = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    return np.ascontiguousarray(kept, np.float32)


def _balance(
    parts: list[Subspace],
    logits: Mapping[str, np.ndarray],
    wanted: Sequence[np.ndarray],
    groups: np.ndarray,
) -> list[Subspace]:
    """Moves one share at a time, as long as that finds more."""
    roots = []
    for part in parts:
        assert part.attribute is not None
        scaled = logits[part.attribute].astype(np.float64) / part.temperature
        root = np.exp((scaled - scaled.max(1, keepdims=True)) / 2)
        roots.append((root / np.linalg.norm(root, axis=1, keepdims=True)).astype(np.float32))
    shares = np.array([part.share for part in parts])
    best = _mean_precision(roots, shares, wanted, groups)
    improved = len(parts) > 1
    while improved:
        improved = False
        for place in range(len(parts)):
            for factor in _FACTORS:
                tried = shares.copy()
                tried[place] *= factor
                tried /= tried.sum()
                found = _mean_precision(roots, tried, wanted, groups)
                if found > best + _GAIN:
                    shares, best, improved = tried, found, True
    return [dataclasses.replace(part, share=float(share)) for part, share in zip(parts, shares, strict=True)]


def _mean_precision(
    roots: Sequence[np.ndarray], shares: np.ndarray, wanted: Sequence[np.ndarray], groups: np.ndarray
) -> float:
    """Returns the precision of the ten nearest, averaged over the labels that are wanted."""
    vectors = np.concatenate([r * np.float32(np.sqrt(s)) for r, s in zip(roots, shares, strict=True)], 1)
    hits, counts = np.zeros(len(wanted)), np.zeros(len(wanted))
    for start in range(0, len(vectors), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        similarity = vectors[rows] @ vectors.T
        similarity[groups[rows][:, None] == groups[None, :]] = -1
        nearest = np.argpartition(-similarity, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        for place, labels in enumerate(wanted):
            known = labels[rows] != MISSING
            hits[place] += (labels[nearest] == labels[rows][:, None])[known].sum()
            counts[place] += known.sum() * _NEIGHBOURS
    return float(np.mean(hits / np.maximum(counts, 1)))
