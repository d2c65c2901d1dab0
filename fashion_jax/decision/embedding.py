"""How a package makes embeddings: subspaces side by side, each of which compares one thing.

A network that was trained to label products contains their similarity twice: in its pooled features, mixed with much
that shoppers do not ask for, and in the probabilities of its heads. The square roots of a head's probabilities have
length 1, and their cosine is the Bhattacharyya coefficient of two label distributions (Bhattacharyya, Bulletin of the
Calcutta Mathematical Society, 1943): 1 where both photos certainly have the same class, and less where the head is
uncertain. A subspace of pooled features keeps what no label names, such as a pattern. Each subspace has a share of the
cosine, and a search may weigh the subspaces differently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int

from fashion_jax.data.schema import MISSING
from fashion_jax.decision.hierarchy import Pair
from fashion_jax.evaluation.neighbours import join_labels
from fashion_jax.system.vectors import unit

if TYPE_CHECKING:
    from jaxtyping import Array  # which imports JAX

APPEARANCE = "appearance"
MOST_ROWS = 4000  # of the validation rows that search each other
_FACTORS = (0.5, 2.0)  # A share is tried at half and at twice its value.
_GAIN = 2e-3  # A change must raise the mean precision by more than this; less is chance.
_NEIGHBOURS = 10
_QUERIES_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Subspace:
    """One part of an embedding."""

    name: str  # by which a search weighs it
    attribute: str | None  # whose predicted labels are compared; None for the pooled features
    size: int  # of the part
    share: float  # of the cosine, in (0, 1]
    temperature: float = 1.0  # divides the logits of the head; 1 for the pooled features


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """How to make embeddings from the outputs of a network."""

    subspaces: tuple[Subspace, ...]  # in the order of their parts of the embedding; their shares sum to 1
    # float32 (features, size of the subspace of pooled features), orthonormal columns; None where there is no such
    # subspace
    components: Float32[np.ndarray, "features size"] | None = None

    @property
    def size(self) -> int:
        """Size of an embedding."""
        return sum(subspace.size for subspace in self.subspaces)

    @property
    def sizes(self) -> dict[str, int]:
        """Name of each subspace -> its size, in order."""
        return {subspace.name: subspace.size for subspace in self.subspaces}

    def embed(
        self, logits: Mapping[str, Float[Array, "batch classes"]], features: Float[Array, "batch features"]
    ) -> Float[Array, "batch size"]:
        """Returns float32 embeddings of length 1.

        Args:
            logits: attribute -> of the network.
            features: pooled, of the same photos.
        """
        import jax  # here, because prediction on CPUs does not need it
        import jax.numpy as jnp

        parts = []
        for subspace in self.subspaces:
            if subspace.attribute is None:
                assert self.components is not None
                part = unit(unit(features.astype(jnp.float32), jnp) @ jnp.asarray(self.components), jnp)
            else:
                scaled = logits[subspace.attribute].astype(jnp.float32) / subspace.temperature
                part = jnp.exp(jax.nn.log_softmax(scaled) / 2)
            parts.append(part * float(np.sqrt(subspace.share)))
        # The last `unit` matters for features that are orthogonal to all components: their part is zero.
        return unit(jnp.concatenate(parts, -1), jnp)


def compared_attributes(
    asked: Sequence[str], num_classes: Mapping[str, int], pairs: Sequence[Pair], size: int
) -> tuple[str, ...]:
    """Returns the attributes that embeddings compare.

    Args:
        asked: names, or ("auto",): all attributes that no finer one determines; where their classes do not fit, those
            with the fewest classes.
        num_classes: attribute -> number of classes.
        pairs: of attributes of which one determines the other.
        size: largest size of an embedding.
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
    size: int,
    appearance: float,
) -> EmbeddingPlan | None:
    """Chooses the shares of the attributes: those with which the nearest neighbours share most labels.

    Args:
        logits: attribute -> of the network, of validation rows.
        labels: attribute -> labels, MISSING where there is none.
        groups: rows with equal numbers are near-duplicates, which do not count because any embedding finds them.
        reference: pooled features of training rows, to which components are fitted.
        attributes: to compare; they have at most `size` classes together.
        size: largest size of an embedding.
        appearance: share of the pooled features in the cosine, in [0, 1).

    Returns:
        Without attributes, the first `size` components of the pooled features, or None where they have no more.
    """
    from fashion_jax.decision.calibration import fit_temperature  # here, because it imports much of SciPy

    if not attributes:
        width = min(size, len(reference))
        if not 0 < width < reference.shape[1]:
            return None
        return EmbeddingPlan((Subspace(APPEARANCE, None, width, 1.0),), principal_directions(reference, width))
    rows = np.unique(np.linspace(0, len(groups) - 1, min(MOST_ROWS, len(groups))).astype(int))
    parts = []
    for name in attributes:
        known = labels[name] != MISSING
        temperature = fit_temperature(logits[name][known], labels[name][known])
        parts.append(Subspace(name, name, logits[name].shape[1], 1 / len(attributes), temperature))
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
    """Returns the principal directions of features that are scaled to length 1, float32.

    The features are not centred, so that the cosine of two projections is close to that of the features themselves.
    """
    rows = unit(features).astype(np.float64)
    _, axes = np.linalg.eigh(rows.T @ rows)
    kept = axes[:, ::-1][:, :count]
    # The sign of a direction is arbitrary. Its largest entry is made positive, so that all machines agree.
    kept = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    return np.ascontiguousarray(kept, np.float32)


def _balance(
    parts: list[Subspace], logits: Mapping[str, np.ndarray], wanted: Sequence[np.ndarray], groups: np.ndarray
) -> list[Subspace]:
    """Changes one share at a time, as long as that raises the precision."""
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
    """Returns the precision of the ten nearest rows, averaged over the wanted labels."""
    embeddings = np.concatenate([r * np.float32(np.sqrt(s)) for r, s in zip(roots, shares, strict=True)], 1)
    hits, counts = np.zeros(len(wanted)), np.zeros(len(wanted))
    for start in range(0, len(embeddings), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        similarity = embeddings[rows] @ embeddings.T
        similarity[groups[rows][:, None] == groups[None, :]] = -1
        nearest = np.argpartition(-similarity, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        for place, labels in enumerate(wanted):
            known = labels[rows] != MISSING
            hits[place] += (labels[nearest] == labels[rows][:, None])[known].sum()
            counts[place] += known.sum() * _NEIGHBOURS
    return float(np.mean(hits / np.maximum(counts, 1)))
