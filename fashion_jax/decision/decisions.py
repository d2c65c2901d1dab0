"""Turns a network's logits into calibrated probabilities, labels, accepted labels, and out-of-catalogue scores.

`decision.fit` fits the numbers on validation rows; these pure functions apply them, so that a run's scores and a
package's predictions come from the same code. The probabilities of each head are

1. softmax(logits / temperature), Guo et al., ICML 2017;
2. where a finer attribute determines the head's, a mixture with the finer head's probabilities, summed along the
   hierarchy;
3. that mixture with a temperature of its own.

The predicted label is the class with the highest log p - strength * log prior (post-hoc logit adjustment, Menon et al.,
ICLR 2021); each operating point has a strength. Heads that a hierarchy joins get their labels together, from the
combinations of classes that do not contradict it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from fashion_jax.data.frequencies import log_frequencies
from fashion_jax.decision.tags import TagDecision

OPERATING_POINTS = ("accuracy", "macro_f1")
POOLINGS = ("linear", "log")
MAX_TABLE = 2**24  # cells of a hierarchy's table
_TINY = 1e-12
_PRIOR_ROWS = 0.1  # added to the rows of each finer class, with the overall shares of the classes
_CELLS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Link:
    """How a head's probabilities are mixed with those of a finer head."""

    finer: str  # the finer attribute
    counts: Int64[np.ndarray, "finer classes"]  # int64 (classes of the finer attribute, classes), training rows
    pooling: str  # "linear" mixes probabilities, "log" their logarithms
    weight: float  # of the finer head, in [0, 1]
    temperature: float  # divides the log probabilities of the mixture


@dataclass(frozen=True, slots=True)
class HeadDecision:
    """The fitted numbers of one head."""

    temperature: float  # divides its logits
    class_rows: Int64[np.ndarray, " classes"]  # int64 (classes,), training rows of each class
    strengths: Mapping[str, float]  # operating point -> strength of the logit adjustment
    # operating point -> smallest confidence of an accepted label; infinite where none is accepted
    thresholds: Mapping[str, float]
    label_set: float | None = None  # smallest probability of a class in a label set; None without label sets
    link: Link | None = None  # to a finer head; None without one
    product_temperature: float = 1.0  # divides the logarithm of the mean of several photos' probabilities


@dataclass(frozen=True, slots=True)
class JointHeads:
    """Heads whose labels are chosen together."""

    names: tuple[str, ...]  # of the attributes
    # int64 (combinations, heads), the classes that may be predicted together
    combinations: Int64[np.ndarray, "combinations heads"]


@dataclass(frozen=True, slots=True)
class Applicability:
    """The products that cannot have an attribute's class "does not apply", by the class of a finer attribute."""

    number: int  # of the class "does not apply"
    finer: str  # the finer attribute
    never: Bool[np.ndarray, " finer"]  # bool (finer classes,), True where a product of that class cannot have it


@dataclass(frozen=True, slots=True)
class OutOfCatalogue:
    """Detects photos that show no product of the catalogue.

    The score is the sum of two parts. Each is centred by its median and divided by its interquartile range on
    validation photos. The first part is the logarithm of the Mahalanobis distance of the features from those of
    training photos (Lee et al., NeurIPS 2018), with one Gaussian whose covariance has low rank plus a multiple of the
    identity (Tipping and Bishop, JRSS B 1999). The second is the energy, the mean over heads of -logsumexp(logits)
    (Liu et al., NeurIPS 2020).
    """

    mean: Float[np.ndarray, " features"]  # float64 (features,), of the features of training photos
    directions: Float[np.ndarray, "k features"]  # float64 (k, features), of largest variance, orthonormal
    variances: Float[np.ndarray, " k"]  # float64 (k,), along them, above 0
    rest: float  # variance along every other direction, above 0
    centres: tuple[float, float]  # medians of log distance and energy
    spreads: tuple[float, float]  # their interquartile ranges, above 0
    threshold: float  # a photo with a higher score counts as out of the catalogue

    def log_distances(self, features: Float[np.ndarray, "n features"], xp: Any = np) -> Float[np.ndarray, " n"]:
        """Returns the logarithm of the squared Mahalanobis distance per feature."""
        away = _widen(features, xp) - self.mean[None, :]
        along = away @ self.directions.T
        # The part outside of the directions is computed before it is squared, so that float32 is exact enough.
        beside = xp.square(away - along @ self.directions).sum(1)
        squared = (xp.square(along) / self.variances[None, :]).sum(1) + beside / self.rest
        found: Float[np.ndarray, " n"] = xp.log(xp.maximum(squared / len(self.mean), _TINY))
        return found

    def scores(
        self, features: Float[np.ndarray, "n features"], energies: Float[np.ndarray, " n"], xp: Any = np
    ) -> Float[np.ndarray, " n"]:
        """Returns the score of each photo: about 0 for a typical product, higher for photos that differ more."""
        distance = (self.log_distances(features, xp) - self.centres[0]) / self.spreads[0]
        found: Float[np.ndarray, " n"] = distance + (_widen(energies, xp) - self.centres[1]) / self.spreads[1]
        return found


@dataclass(frozen=True, slots=True)
class Decision:
    """The fitted numbers of a model."""

    heads: Mapping[str, HeadDecision]  # attribute -> numbers of its head
    joint: tuple[JointHeads, ...] = ()  # groups of heads that a hierarchy joins
    out_of_catalogue: OutOfCatalogue | None = None  # None where it was not fitted
    precision: float = 0.0  # that was asked for of accepted labels
    coverage: float = 0.0  # that was asked for of label sets; 0 for no label sets
    tags: Mapping[str, TagDecision] = field(default_factory=dict)  # multi-valued attribute -> its numbers
    applicability: Mapping[str, Applicability] = field(default_factory=dict)  # attribute -> where it applies
    order: tuple[str, ...] = field(init=False)  # the attributes, each after the finer one to which it is linked

    def __post_init__(self) -> None:
        done: list[str] = []
        while len(done) < len(self.heads):
            ready = [n for n, h in self.heads.items() if n not in done and (h.link is None or h.link.finer in done)]
            if not ready:
                raise ValueError("the hierarchy runs in a circle, or names an attribute that is not there")
            done += ready
        object.__setattr__(self, "order", tuple(done))


def conditional_chances(counts: Int64[np.ndarray, "finer classes"]) -> Float[np.ndarray, "finer classes"]:
    """Returns P(class | finer class): shares of rows, slightly smoothed towards the overall shares; rows sum to 1.

    Args:
        counts: training rows by [finer, coarser] label.
    """
    total = counts.sum()
    prior = counts.sum(0) / total if total else np.full(counts.shape[1], 1 / counts.shape[1])
    return np.asarray((counts + _PRIOR_ROWS * prior) / (counts.sum(1, keepdims=True) + _PRIOR_ROWS))


def _widen(values: Any, xp: Any) -> Any:
    """Returns the array in float64; in float32 for JAX."""
    return xp.asarray(values, np.float64 if xp is np else np.float32)


def scale(logits: Float[np.ndarray, "n classes"], temperature: float, xp: Any = np) -> Float[np.ndarray, "n classes"]:
    """Returns log softmax(logits / temperature), float64; float32 where `xp` is jax.numpy and not numpy."""
    values = _widen(logits, xp) / temperature
    values = values - values.max(1, keepdims=True)
    found: Float[np.ndarray, "n classes"] = values - xp.log(xp.exp(values).sum(1, keepdims=True))
    return found


def sharpen(log_probs: Float[np.ndarray, "n classes"], temperature: float) -> Float[np.ndarray, "n classes"]:
    """Returns log probabilities divided by a temperature and normalised again."""
    return log_probs if temperature == 1 else scale(log_probs, temperature)


def pool(
    own: Float[np.ndarray, "n classes"],
    summed: Float[np.ndarray, "n classes"],
    *,
    pooling: str,
    weight: float,
    xp: Any = np,
) -> Float[np.ndarray, "n classes"]:
    """Returns the logarithm of a mixture of two distributions; with "log" it is not normalised.

    Args:
        own: log probabilities of the head.
        summed: log probabilities from the finer head.
        pooling: "linear" or "log" (Genest and Zidek, Statistical Science 1986).
        weight: of `summed`, in [0, 1].
        xp: the module of the arrays, numpy or jax.numpy.
    """
    if pooling == "log":
        return (1 - weight) * own + weight * summed
    with np.errstate(divide="ignore"):
        found: Float[np.ndarray, "n classes"] = xp.logaddexp(own + np.log(1 - weight), summed + np.log(weight))
    return found


def sum_along(
    finer: Float[np.ndarray, "n finer"], counts: Int64[np.ndarray, "finer classes"], xp: Any = np
) -> Float[np.ndarray, "n classes"]:
    """Returns log P(class) = log sum over finer classes of P(finer) P(class | finer).

    Args:
        finer: log probabilities of the finer head.
        counts: training rows by [finer, coarser] label.
    """
    found: Float[np.ndarray, "n classes"] = xp.log(xp.maximum(xp.exp(finer) @ conditional_chances(counts), _TINY))
    return found


def log_probabilities(
    decision: Decision, logits: Mapping[str, Float[np.ndarray, "n classes"]], xp: Any = np
) -> dict[str, Float[np.ndarray, "n classes"]]:
    """Returns calibrated log probabilities per head, float64; each row's probabilities sum to 1.

    Args:
        logits: attribute -> of the network, float32 or float64.
        xp: the module of the arrays, numpy or jax.numpy; for JAX the result is float32.
    """
    found: dict[str, np.ndarray] = {}
    for name in decision.order:
        head = decision.heads[name]
        found[name] = scale(logits[name], head.temperature, xp)
        if head.link is not None:
            link = head.link
            summed = sum_along(found[link.finer], link.counts, xp)
            mixed = pool(found[name], summed, pooling=link.pooling, weight=link.weight, xp=xp)
            found[name] = scale(mixed, link.temperature, xp)
    return {name: found[name] for name in decision.heads}


def choose_labels(
    decision: Decision,
    log_probs: Mapping[str, Float[np.ndarray, "n classes"]],
    operating_point: str = "accuracy",
    *,
    joint: bool = True,
) -> dict[str, Int64[np.ndarray, " n"]]:
    """Returns the label of each row and head.

    Args:
        log_probs: from `log_probabilities`.
        operating_point: "accuracy" or "macro_f1".
        joint: whether heads that a hierarchy joins get their labels together.
    """
    scores = {
        name: adjust(log_probs[name], head.class_rows, head.strengths[operating_point])
        for name, head in decision.heads.items()
    }
    labels = {name: score.argmax(1) for name, score in scores.items()}
    for group in decision.joint if joint else ():
        combinations, count = group.combinations, len(next(iter(labels.values())))
        step = max(1, _CELLS_AT_ONCE // len(combinations))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            total = sum(scores[name][rows][:, combinations[:, i]] for i, name in enumerate(group.names))
            best = combinations[np.asarray(total).argmax(1)]
            for i, name in enumerate(group.names):
                labels[name][rows] = best[:, i]
    for name, found in decision.applicability.items():
        contradicts = (labels[name] == found.number) & found.never[labels[found.finer]]
        others = np.delete(scores[name][contradicts], found.number, axis=1).argmax(1)
        labels[name][contradicts] = others + (others >= found.number)
    return labels


def adjust(
    log_probs: Float[np.ndarray, "n classes"], class_rows: Int64[np.ndarray, " classes"], strength: float
) -> Float[np.ndarray, "n classes"]:
    """Returns log p - strength * log prior; strength 0 leaves the scores as they are."""
    return log_probs - strength * log_frequencies(class_rows).astype(np.float64)[None, :] if strength else log_probs


def confidences(
    log_probs: Mapping[str, Float[np.ndarray, "n classes"]], labels: Mapping[str, Int64[np.ndarray, " n"]]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Returns the calibrated probability of each label."""
    return {name: np.exp(np.take_along_axis(log_probs[name], labels[name][:, None], 1)[:, 0]) for name in labels}


def accepted(
    decision: Decision, confidence: Mapping[str, Float[np.ndarray, " n"]], operating_point: str
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Returns which labels are accepted: their confidence reaches the threshold of the operating point."""
    return {name: c >= decision.heads[name].thresholds[operating_point] for name, c in confidence.items()}


def choose_sets(
    decision: Decision,
    log_probs: Mapping[str, Float[np.ndarray, "n classes"]],
    labels: Mapping[str, Int64[np.ndarray, " n"]],
) -> dict[str, Bool[np.ndarray, "n classes"]]:
    """Returns the classes of each row's conformal label set, with the predicted one, for heads that have label sets.

    "does not apply" is left out where the attribute applies to every class in the set of the finer attribute.
    """
    sets = {}
    for name, head in decision.heads.items():
        if head.label_set is not None:
            sets[name] = label_sets(np.exp(log_probs[name]), head.label_set)
            sets[name][np.arange(len(sets[name])), labels[name]] = True
    for name, found in decision.applicability.items():
        if name in sets and found.finer in sets:
            impossible = (sets[found.finer] <= found.never[None]).all(1)
            sets[name][impossible, found.number] = False
    return sets


def label_sets(probabilities: Float[np.ndarray, "n classes"], threshold: float) -> Bool[np.ndarray, "n classes"]:
    """Returns which classes are in each row's set: all that reach the threshold, and always the most probable one."""
    chosen = probabilities >= threshold - _TINY
    chosen[np.arange(len(chosen)), probabilities.argmax(1)] = True
    return chosen
