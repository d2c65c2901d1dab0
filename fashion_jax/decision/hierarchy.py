"""Finds attributes that determine other attributes in the training rows, and counts predictions that contradict this.

An article type nearly always has one sub-category. Such pairs are measured, not configured. They may be soft: socks
have two master categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from fashion_jax.data.schema import MISSING
from fashion_jax.decision.decisions import MAX_TABLE, Applicability, JointHeads

DETERMINED = 0.95  # smallest share of rows whose coarser label follows from the finer one, for a pair
_KEPT_ERROR = 0.1  # largest share of the errors of always predicting the most common class that may remain
_RARE = 0.01  # A coarser class with a smaller share of a finer class's rows contradicts it.
_FEWEST_ROWS = 20
_MOST_COMBINATIONS = 50_000  # of heads whose labels are chosen together


@dataclass(frozen=True, slots=True)
class Pair:
    """A finer attribute that determines a coarser one in nearly all training rows."""

    finer: str  # attribute
    coarser: str  # attribute
    counts: Int64[np.ndarray, "finer coarser"]  # int64 (finer classes, coarser classes), training rows
    determined: float  # share of rows whose coarser label is the commonest of the *other* rows of their finer class

    @classmethod
    def measure(cls, finer: str, coarser: str, counts: Int64[np.ndarray, "finer coarser"]) -> Pair | None:
        """Returns the pair, or None where the finer attribute does not determine the coarser one."""
        share, rows = share_determined(counts), int(counts.sum())
        constant = counts.sum(0).max() / max(1, rows)
        sound = rows >= _FEWEST_ROWS and share >= DETERMINED and 1 - share <= _KEPT_ERROR * (1 - constant)
        return cls(finer, coarser, counts, share) if sound else None

    def allowed(self) -> Bool[np.ndarray, "finer coarser"]:
        """Returns which combinations do not contradict the pair.

        These are combinations with at least 1 % of the finer class's rows, the most common combination of each coarser
        class, and all combinations of a class that has no training row with a label of the other attribute.
        """
        rows = self.counts.sum(1, keepdims=True)
        allowed = (self.counts >= np.maximum(_RARE * rows, 1)) | (rows == 0) | (self.counts.sum(0) == 0)[None, :]
        seen = np.flatnonzero(self.counts.sum(0))
        allowed[self.counts[:, seen].argmax(0), seen] = True
        return allowed


def count_pairs(
    finer: Int[np.ndarray, " n"], coarser: Int[np.ndarray, " n"], shape: tuple[int, int]
) -> Int64[np.ndarray, "finer coarser"]:
    """Returns the number of rows with each [finer, coarser] label; rows that lack one of them do not count."""
    known = (finer != MISSING) & (coarser != MISSING)
    places = finer[known].astype(np.int64) * shape[1] + coarser[known]
    return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64)


def share_determined(counts: Int64[np.ndarray, "finer coarser"]) -> float:
    """Returns the share of rows whose coarser label is the single most common one of the other rows of their class.

    The row itself does not count. Otherwise an attribute with one class for each product would determine everything.
    """
    best = counts.argmax(1)
    top = counts[np.arange(len(counts)), best]
    others = counts.copy()
    others[np.arange(len(counts)), best] = -1
    second = others.max(1) if counts.shape[1] > 1 else np.zeros(len(counts), counts.dtype)
    return float(top[top - 1 > second].sum() / max(1, counts.sum()))


def measure_pairs(labels: Mapping[str, Int[np.ndarray, " n"]], num_classes: Mapping[str, int]) -> list[Pair]:
    """Finds the pairs of attributes of which the finer determines the coarser.

    Args:
        labels: attribute -> labels of the training rows, MISSING where there is none.
        num_classes: attribute -> classes.

    Returns:
        Pairs whose finer attribute has more classes and leaves at most a tenth of the errors of always predicting the
        most common class, so that a nearly constant attribute follows from nothing.
    """
    pairs = []
    for coarser, few in num_classes.items():
        for finer, many in num_classes.items():
            if many <= few or few < 2 or many * few > MAX_TABLE:
                continue
            pair = Pair.measure(finer, coarser, count_pairs(labels[finer], labels[coarser], (many, few)))
            if pair is not None:
                pairs.append(pair)
    return pairs


def measure_applicability(
    labels: Mapping[str, Int[np.ndarray, " n"]], num_classes: Mapping[str, int], not_applicable: Mapping[str, int]
) -> dict[str, Applicability]:
    """Finds the attributes whose classes say whether another attribute applies.

    Args:
        labels: attribute -> labels of the training rows, MISSING where there is none.
        num_classes: attribute -> classes.
        not_applicable: attribute -> the number of its class "does not apply".

    Returns:
        Attribute -> by the attribute that determines best whether it applies; attributes that none determines are left
        out.
    """
    found = {}
    for name, number in not_applicable.items():
        outside = np.where(labels[name] == MISSING, MISSING, labels[name] == number)
        pairs = [
            Pair.measure(finer, name, count_pairs(labels[finer], outside, (many, 2)))
            for finer, many in num_classes.items()
            if finer != name
        ]
        best = max((pair for pair in pairs if pair is not None), key=lambda pair: pair.determined, default=None)
        if best is not None:
            rows = best.counts.sum(1)
            # A few labels are wrong in every catalogue, so that some rows say that it does not apply.
            never = (rows > 0) & (best.counts[:, 1] < (1 - DETERMINED) * rows)
            found[name] = Applicability(number, best.finer, never)
    return found


def joint_heads(pairs: Sequence[Pair], labels: Mapping[str, Int[np.ndarray, " n"]]) -> tuple[JointHeads, ...]:
    """Returns the groups of attributes that pairs connect, with the combinations of classes that may be predicted.

    These are the combinations of training rows that contradict no pair. A missing label of a row may be any class that
    contradicts no pair, or as few pairs as possible. A class that training rows have only in contradictions gets all
    combinations that contradict no pair. A group with too many combinations is left out, and the labels of its heads
    are chosen one by one.
    """
    groups: list[list[str]] = []
    for pair in pairs:
        touching = [g for g in groups if {pair.finer, pair.coarser} & set(g)]
        merged = list(dict.fromkeys([name for g in touching for name in g] + [pair.finer, pair.coarser]))
        groups = [g for g in groups if g not in touching] + [merged]
    joint = []
    for names in groups:
        columns = np.stack([labels[name] for name in names], 1).astype(np.int64)
        found = _complete(columns, names, pairs)
        if found is None:
            continue
        missing = [
            np.setdiff1d(np.unique(labels[name][labels[name] != MISSING]), found[:, place])
            for place, name in enumerate(names)
        ]
        if len(found) * (1 + sum(map(len, missing))) > _MOST_COMBINATIONS:
            continue  # Comparing every photo with so many is slow, and the mixture alone leaves few contradictions.
        more = []
        for place, numbers in enumerate(missing):
            for number in numbers.tolist():
                changed = found.copy()
                changed[:, place] = number
                more.append(changed[_count_against(changed, names, pairs) == 0])
        found = np.unique(np.concatenate([found, *more]), axis=0)
        if len(found):
            joint.append(JointHeads(tuple(names), found))
    return tuple(joint)


def _complete(
    columns: Int64[np.ndarray, "n heads"], names: Sequence[str], pairs: Sequence[Pair]
) -> Int64[np.ndarray, "combinations heads"] | None:
    """Returns the combinations of complete rows and those that rows with missing labels may have; None for too many.

    A row with missing labels adds nothing where a combination contains all its known labels.
    """
    rows = np.unique(columns, axis=0)
    rows = rows[_count_against(rows, names, pairs) == 0]
    known = rows != MISSING
    found = rows[known.all(1)]
    classes = [np.unique(column[column != MISSING]) for column in columns.T]
    masks = np.unique(known[~known.all(1) & known.any(1)], axis=0)
    for mask in masks[np.argsort(-masks.sum(1), kind="stable")]:  # rows with the most labels first
        seen = set(map(tuple, found[:, mask].tolist()))
        more = [row for row in rows[(known == mask).all(1)] if tuple(row[mask].tolist()) not in seen]
        completed = [_complete_row(row, classes, names, pairs) for row in more]
        found = np.unique(np.concatenate([found, *completed]), axis=0)
        if len(found) > _MOST_COMBINATIONS:
            return None
    return found


def _complete_row(
    row: Int64[np.ndarray, " heads"], classes: Sequence[np.ndarray], names: Sequence[str], pairs: Sequence[Pair]
) -> Int64[np.ndarray, "combinations heads"]:
    """Returns the ways to fill in a row's missing labels that contradict the fewest pairs."""
    found = row[None, :]
    for place in np.flatnonzero(row == MISSING).tolist():
        count = len(found)
        found = np.repeat(found, len(classes[place]), axis=0)
        found[:, place] = np.tile(classes[place], count)
        against = _count_against(found, names, pairs)
        found = found[against == against.min(initial=len(pairs))]
    return found


def _count_against(
    found: Int64[np.ndarray, "n heads"], names: Sequence[str], pairs: Sequence[Pair]
) -> Int64[np.ndarray, " n"]:
    """Returns how many pairs each row contradicts; a missing label contradicts none."""
    against = np.zeros(len(found), np.int64)
    for pair in (p for p in pairs if p.finer in names):
        finer, coarser = found[:, names.index(pair.finer)], found[:, names.index(pair.coarser)]
        against += ~(pair.allowed()[finer, coarser] | (finer == MISSING) | (coarser == MISSING))
    return against


def count_contradictions(
    pairs: Sequence[Pair], labels: Mapping[str, Int[np.ndarray, " n"]]
) -> dict[str, dict[str, float]]:
    """Counts the rows whose labels contradict the measured pairs.

    Args:
        pairs: from `measure_pairs`.
        labels: attribute -> classes; rows where one is MISSING do not count.

    Returns:
        "finer -> coarser" -> `rows`, `contradictions`, `share`; and "any": rows that contradict at least one pair.
    """
    found: dict[str, dict[str, float]] = {}
    any_row = np.zeros(len(next(iter(labels.values()))) if labels else 0, bool)
    for pair in pairs:
        finer, coarser = labels[pair.finer], labels[pair.coarser]
        known = (finer != MISSING) & (coarser != MISSING)
        against = np.zeros(len(finer), bool)
        against[known] = ~pair.allowed()[finer[known], coarser[known]]
        any_row |= against
        found[f"{pair.finer} -> {pair.coarser}"] = _counted(int(known.sum()), int(against.sum()))
    found["any"] = _counted(len(any_row), int(any_row.sum()))
    return found


def _counted(rows: int, contradictions: int) -> dict[str, float]:
    return {"rows": rows, "contradictions": contradictions, "share": contradictions / max(1, rows)}
