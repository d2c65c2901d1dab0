"""Finds labels that may be wrong by three kinds of evidence: the photo, near-duplicates, and the row's other labels.

They become one probability for each class and row. The photo's part comes from classifiers that were not fitted on the
row (`judges`). Near-duplicates and the row's other labels are multiplied with it as in a naive Bayes classifier. Their
weights are measured in the same table: how often near-duplicates agree, and how much one attribute tells about another.
Confident learning (Northcutt, Jiang and Chuang 2021), by cleanlab, estimates how many labels of an attribute are wrong;
that many labels with the lowest probability are findings. So is every label that is not the most probable class, and
every label that near-duplicates contradict. Findings are ranked: towards the end of the list most labels are right, so
a person may stop anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from scipy.stats import entropy

from fashion_jax.audit.judges import Probabilities
from fashion_jax.system.errors import missing_extra

_FLOOR = 1e-6  # added to a photo's probabilities, so that a photo cannot outweigh all other evidence
_MOST_EVIDENCE = 6.0  # nats, the most that near-duplicates add to a class
_PRIOR_ROWS = 5.0  # rows with the overall shares that are added to those of a class
_CLEARED = 0.95  # A label with this probability is no finding, whatever labels its near-duplicates have.


@dataclass(frozen=True, slots=True)
class Finding:
    """A label that may be wrong."""

    row: int  # of the records
    attribute: str  # for example colour
    given: int  # class number in the catalogue
    suggested: int  # the most probable other class
    score: float  # 1 minus the probability of the given class by all evidence, in [0, 1]; for ranking, not calibrated
    reason: str  # for people
    # of a multi-valued attribute, the class that may be missing (given 0) or too much (given 1); empty for others
    tag: str = ""


def require_cleanlab() -> Any:
    """Returns cleanlab's filter; UserError with the extra's name where it is not installed."""
    try:
        from cleanlab import filter as cleanlab_filter
    except ImportError as error:
        raise missing_extra(f"the audit ({error})", "audit") from error
    return cleanlab_filter


def find_wrong_labels(
    probabilities: Probabilities,
    labels: Int32[np.ndarray, "n attributes"],
    groups: Int64[np.ndarray, " n"],
    vocabularies: Mapping[str, Sequence[str]],
    audited: Sequence[str] | None = None,
) -> list[Finding]:
    """Returns the labels that may be wrong; the one that is most probably wrong comes first.

    Args:
        probabilities: for each attribute, from the photos alone, not fitted on the row's label.
        labels: class numbers, negative where missing.
        groups: group number of each row; near-duplicates share one.
        vocabularies: attribute -> names of the classes, in the order of the columns of `labels`.
        audited: attributes whose labels are checked; the others are only evidence. None: all.

    Raises:
        UserError: cleanlab is not installed.
    """
    names = list(vocabularies)
    combined = weigh_evidence(probabilities, labels, groups)
    findings: list[Finding] = []
    for place, name in enumerate(names):
        if audited is not None and name not in audited:
            continue
        given = labels[:, place].astype(np.int64)
        known = np.flatnonzero(given >= 0)
        if len(np.unique(given[known])) < 2:
            continue
        share = np.where(given >= 0, combined[place][np.arange(len(given)), np.maximum(given, 0)], 1.0)
        contradicted, others = disagreeing(given, groups, combined[place])
        most_probable = combined[place].argmax(1)
        found = np.zeros(len(given), bool)
        found[known] = confident_learning(combined[place][known], given[known])
        found |= (given >= 0) & (most_probable != given)
        found |= contradicted & (share < _CLEARED)
        rest = combined[place].copy()
        rest[np.arange(len(given)), np.maximum(given, 0)] = -1
        suggested = rest.argmax(1)
        classes = vocabularies[name]
        for row in np.flatnonzero(found).tolist():
            reason = _reason(row, place, suggested[row], classes, labels, probabilities, others)
            score = float(np.clip(1 - share[row], 0, 1))
            findings.append(Finding(row, name, int(given[row]), int(suggested[row]), score, "; ".join(reason)))
    order = {name: place for place, name in enumerate(names)}
    return sorted(findings, key=lambda f: (-f.score, f.row, order[f.attribute]))


def weigh_evidence(
    probabilities: Probabilities, labels: Int32[np.ndarray, "n attributes"], groups: Int64[np.ndarray, " n"]
) -> list[Float64[np.ndarray, "n classes"]]:
    """Returns for each attribute the probabilities by photo, near-duplicates and the row's other labels; rows sum to 1.

    The row's own label of the attribute is not used. Any number of near-duplicates counts as one piece of evidence, by
    the shares of their labels. The evidence of another attribute is weighted by its uncertainty coefficient (Theil
    1970): the share of the attribute's entropy that it explains, near 0 for unrelated attributes.
    """
    combined = []
    for place, photo in enumerate(probabilities):
        logs = np.log(photo.astype(np.float64) + _FLOOR)
        given, count = labels[:, place].astype(np.int64), photo.shape[1]
        logs += _duplicates_evidence(given, groups, count)
        for other in range(labels.shape[1]):
            if other != place:
                logs += _label_evidence(given, labels[:, other].astype(np.int64), count, probabilities[other].shape[1])
        powers = np.exp(logs - logs.max(1, keepdims=True))
        combined.append(powers / powers.sum(1, keepdims=True))
    return combined


def confident_learning(
    probabilities: Float64[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Returns which labels are wrong: those with the lowest probability, as many as confident learning estimates.

    Ranking by the given class's probability finds more planted errors than ranking by margin or by class-adjusted
    probabilities (`experiments/2026-11-25-label-audit`).
    """
    find = require_cleanlab().find_label_issues
    present, numbers = np.unique(labels, return_inverse=True)
    shares = probabilities[:, present] + 1e-12
    shares /= shares.sum(1, keepdims=True)
    found: np.ndarray = find(numbers, shares, filter_by="low_self_confidence", n_jobs=1)
    return found


def disagreeing(
    given: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], combined: Float64[np.ndarray, "n classes"]
) -> tuple[Bool[np.ndarray, " n"], dict[int, dict[int, int]]]:
    """Finds doubtful labels in groups of near-duplicates whose labels differ.

    The group's label is the one of its labels that is most probable over all its rows. Rows with another label are
    doubtful.

    Args:
        given: class numbers, negative where missing.
        groups: of near-duplicates.
        combined: probabilities of each row.

    Returns:
        Whether each row is doubtful; and for every row of such a group, class -> number of the group's other rows.
    """
    doubtful, others = np.zeros(len(given), bool), dict[int, dict[int, int]]()
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1 if not len(order) else groups[order[0]] - 1))
    for members in np.split(order, starts[1:]):
        known = members[given[members] >= 0]
        classes, counts = np.unique(given[known], return_counts=True)
        if len(classes) < 2:
            continue
        likely = np.log(combined[known][:, classes] + _FLOOR).sum(0)
        best = classes[likely.argmax()]
        doubtful[known[given[known] != best]] = True
        for row in known.tolist():
            rest = dict(zip(classes.tolist(), counts.tolist(), strict=True))
            rest[int(given[row])] -= 1
            others[row] = rest
    return doubtful, others


def _duplicates_evidence(
    given: Int64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "n classes"]:
    """Returns the nats that a row's near-duplicates add to each class; 0 for a row without near-duplicates."""
    known = np.flatnonzero(given >= 0)
    _, number = np.unique(groups, return_inverse=True)
    members = np.zeros((int(number.max(initial=-1)) + 1, count))
    np.add.at(members, (number[known], given[known]), 1)
    others = members[number]
    others[known, given[known]] -= 1
    several = others.sum(1)
    shares = others / np.maximum(several, 1)[:, None]
    asked = known[several[known] > 0]
    if not len(asked):
        return np.zeros((len(given), count))
    agreement = float(np.clip(shares[asked, given[asked]].mean(), 0.0, 1 - 1e-3))
    prior = np.bincount(given[known], minlength=count) / len(known)
    chance = (1 - agreement) * prior + 1e-9
    nats = np.clip(np.log((agreement + chance) / chance), 0, _MOST_EVIDENCE)
    return np.asarray(shares * nats)


def _label_evidence(
    given: Int64[np.ndarray, " n"], other: Int64[np.ndarray, " n"], count: int, other_count: int
) -> Float64[np.ndarray, "n classes"]:
    """Returns the nats that a row's label `other` adds to each class, by how often other rows have both labels."""
    counts, both = np.zeros((count, other_count)), (given >= 0) & (other >= 0)
    np.add.at(counts, (given[both], other[both]), 1)
    if not both.any():
        return np.zeros((len(given), count))
    own = entropy(counts.sum(1))
    shared = own + entropy(counts.sum(0)) - entropy(counts.ravel())
    weight = float(np.clip(shared / own, 0, 1)) if own > 0 else 0.0
    # A row does not count for itself: where few rows have the label `other`, its own label would be the evidence.
    rows = np.arange(len(given))
    itself = np.zeros((len(given), count))
    itself[rows[both], given[both]] = 1
    column = np.maximum(other, 0)
    prior = ((counts.sum(0)[column] - both) / max(counts.sum() - 1, 1))[:, None]
    shares = (counts.T[column] - itself + _PRIOR_ROWS * prior) / (counts.sum(1) - itself + _PRIOR_ROWS)
    nats = weight * np.log((shares + 1e-9) / (prior + 1e-9))
    return np.where(other[:, None] >= 0, nats, 0.0)


def _reason(
    row: int,
    place: int,
    suggested: int,
    classes: Sequence[str],
    labels: np.ndarray,
    probabilities: Sequence[Float32[np.ndarray, "n classes"]],
    others: Mapping[int, Mapping[int, int]],
) -> list[str]:
    photo, given = probabilities[place][row], int(labels[row, place])
    looks = int(photo.argmax())
    parts = []
    if looks != given:
        parts.append(
            f"the photo looks like {classes[looks]} ({photo[looks]:.1%}), not {classes[given]} ({photo[given]:.1%})"
        )
    rest = {number: count for number, count in others.get(row, {}).items() if count and number != given}
    if rest:
        named = ", ".join(f"{classes[n]} ({c})" for n, c in sorted(rest.items(), key=lambda i: (-i[1], i[0]))[:3])
        parts.append(f"near-duplicates have {named}")
    return parts or [f"the row's other labels suggest {classes[suggested]}"]
