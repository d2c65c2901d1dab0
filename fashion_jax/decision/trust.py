"""Fits on validation rows what turns logits into decisions, and judges it on other rows.

Pure functions of arrays: what the network said of rows, and their labels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import calibration_error, fit_label_sets, fit_temperature, fit_threshold
from fashion_jax.decision.decisions import (
    OPERATING_POINTS,
    POOLINGS,
    Decision,
    HeadDecision,
    Link,
    accepted,
    choose_labels,
    choose_sets,
    confidences,
    log_probabilities,
    pool,
    scale,
    sum_along,
)
from fashion_jax.decision.hierarchy import Pair, count_contradictions, joint_heads, measure_pairs
from fashion_jax.decision.operating_points import best_strength, label_scores, sweep_strengths
from fashion_jax.decision.out_of_catalogue import fit_out_of_catalogue, judge_scores

_WEIGHTS = tuple(step / 20 for step in range(1, 21))
FLAGGED_SHARE = 0.01  # of the validation photos that lie above the out-of-catalogue threshold
_LEVEL = 0.9  # of confidence that accepted labels have the asked precision
_LOWEST = -80.0  # log probability that a judged row costs at most, as float32 logits could tell


@dataclass(frozen=True, slots=True)
class Rows:
    """What the network said of rows, and what they are.

    Attributes:
        logits: attribute -> float32 (n, classes).
        labels: attribute -> int (n,), MISSING where there is none.
        embeddings: float32 (n, features).
        energies: float32 (n,), mean over the heads of -logsumexp(logits).
    """

    logits: Mapping[str, Float[np.ndarray, "n classes"]]
    labels: Mapping[str, Int[np.ndarray, " n"]]
    embeddings: Float[np.ndarray, "n features"]
    energies: Float[np.ndarray, " n"]


def fit_decision(
    validation: Rows,
    train_labels: Mapping[str, Int[np.ndarray, " rows"]],
    reference: Float[np.ndarray, "some features"],
    *,
    precision: float,
    coverage: float,
) -> tuple[Decision, list[Pair]]:
    """Fits everything: temperatures, hierarchy, operating points, thresholds, label sets, out-of-catalogue score.

    Args:
        validation: rows that training has not seen.
        train_labels: attribute -> labels of the training rows, MISSING where there is none.
        reference: embeddings of some training rows.
        precision: of labels that are accepted automatically, in (0, 1].
        coverage: of label sets, in (0, 1); 0 for none.

    Returns:
        The decision, and the pairs of attributes by which contradictions are counted.
    """
    num_classes = {name: logits.shape[1] for name, logits in validation.logits.items()}
    pairs = measure_pairs(train_labels, num_classes)
    heads: dict[str, HeadDecision] = {}
    found: dict[str, np.ndarray] = {}
    # A finer head has more classes than those that it determines, so it comes first.
    for name in sorted(num_classes, key=lambda n: -num_classes[n]):
        labels, logits = validation.labels[name], validation.logits[name]
        known = labels != MISSING
        temperature = fit_temperature(logits[known], labels[known])
        own = scale(logits, temperature)
        link = _fit_link([p for p in pairs if p.coarser == name], own, found, labels)
        heads[name] = HeadDecision(temperature, _class_rows(train_labels[name], num_classes[name]), {}, {}, None, link)
        found[name] = own if link is None else _mixture(own, found, link)
    for name, head in heads.items():
        labels, log_probs = validation.labels[name], found[name]
        known = labels != MISSING
        sweep = sweep_strengths(log_probs[known], labels[known], head.class_rows)
        sets = fit_label_sets(np.exp(log_probs[known]), labels[known], coverage) if coverage else None
        strengths = {point: best_strength(sweep, point) for point in OPERATING_POINTS}
        heads[name] = dataclasses.replace(head, strengths=strengths, label_set=sets)
    outside = fit_out_of_catalogue(reference, validation.embeddings, validation.energies, FLAGGED_SHARE)
    decision = Decision(
        {name: heads[name] for name in num_classes}, joint_heads(pairs, train_labels), outside, precision, coverage
    )
    return _with_thresholds(decision, found, validation.labels), pairs


def _class_rows(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels[labels != MISSING], minlength=num_classes).astype(np.int64)


def _mixture(own: np.ndarray, found: Mapping[str, np.ndarray], link: Link) -> np.ndarray:
    summed = sum_along(found[link.finer], link.counts)
    return scale(pool(own, summed, pooling=link.pooling, weight=link.weight), link.temperature)


def _fit_link(
    pairs: Sequence[Pair], own: np.ndarray, found: Mapping[str, np.ndarray], labels: np.ndarray
) -> Link | None:
    """Returns the finer head, pooling and weight with the lowest loss on the rows; None where the head alone has it."""
    known = labels != MISSING
    if not known.any():
        return None
    best, lowest = None, mean_loss(own[known], labels[known])
    for pair in pairs:
        summed = sum_along(found[pair.finer], pair.counts)[known]
        for pooling in POOLINGS:
            for weight in _WEIGHTS:
                loss = mean_loss(scale(pool(own[known], summed, pooling=pooling, weight=weight), 1.0), labels[known])
                if loss < lowest - 1e-9:
                    best, lowest = Link(pair.finer, pair.counts, pooling, weight, 1.0), loss
    if best is None:
        return None
    mixed = _mixture(own, found, best)[known]
    return dataclasses.replace(best, temperature=fit_temperature(mixed, labels[known]))


def _with_thresholds(
    decision: Decision, log_probs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> Decision:
    """Adds the confidences from which labels are accepted, by operating point."""
    thresholds: dict[str, dict[str, float]] = {name: {} for name in decision.heads}
    for point in OPERATING_POINTS:
        said = choose_labels(decision, log_probs, point)
        for name, confidence in confidences(log_probs, said).items():
            known = labels[name] != MISSING
            right = said[name][known] == labels[name][known]
            thresholds[name][point] = fit_threshold(
                confidence[known], right, decision.precision, level=_LEVEL
            ).confidence
    heads = {n: dataclasses.replace(h, thresholds=thresholds[n]) for n, h in decision.heads.items()}
    return dataclasses.replace(decision, heads=heads)


def mean_loss(log_probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Returns the mean of -log p(label) in nats; 0 of no rows."""
    if not len(labels):
        return 0.0
    return float(-np.maximum(log_probs[np.arange(len(labels)), labels], _LOWEST).mean())


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found on rows that nothing was fitted on.

    Attributes:
        report: JSON values; `trust_report` shows them.
        confidences: attribute -> "before" and "after" -> confidences and whether they were right, of labelled rows.
    """

    report: dict[str, Any]
    confidences: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def judge(
    decision: Decision,
    pairs: Sequence[Pair],
    rows: Rows,
    *,
    outside: Rows | None = None,
    kinds: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
) -> Judgement:
    """Judges a decision: calibration, operating points, acceptance, label sets, hierarchy, out of catalogue.

    Args:
        decision: fitted on other rows.
        pairs: by which contradictions are counted.
        rows: to judge on.
        outside: what the network said of photos of no products.
        kinds: of each of these.
        groups: kind -> its group.
    """
    raw = {name: scale(logits, 1.0) for name, logits in rows.logits.items()}
    log_probs = log_probabilities(decision, rows.logits)
    plain = {name: values.argmax(1) for name, values in raw.items()}
    said = {point: choose_labels(decision, log_probs, point) for point in OPERATING_POINTS}
    alone = choose_labels(decision, log_probs, OPERATING_POINTS[0], joint=False)
    sets = choose_sets(decision, log_probs, said[OPERATING_POINTS[0]])
    heads, curves = {}, {}
    for name, head in decision.heads.items():
        labels = rows.labels[name]
        known = labels != MISSING
        truth = labels[known]
        scaled = scale(rows.logits[name][known], head.temperature)

        def reliability(values: np.ndarray, chosen: np.ndarray, truth: np.ndarray = truth) -> tuple[Any, Any]:
            return np.exp(values[np.arange(len(truth)), chosen]), chosen == truth

        before = reliability(raw[name][known], plain[name][known])
        after = reliability(log_probs[name][known], said["accuracy"][name][known])
        curves[name] = {"before": before, "after": after}
        heads[name] = {
            "rows": len(truth),
            "temperature": head.temperature,
            "ece": {
                "before": calibration_error(*before),
                "temperature": calibration_error(*reliability(scaled, plain[name][known])),
                "after": calibration_error(*after),
            },
            "nll": {
                "before": mean_loss(raw[name][known], truth),
                "temperature": mean_loss(scaled, truth),
                "after": mean_loss(log_probs[name][known], truth),
            },
            "hierarchy": None if head.link is None else _describe_link(head.link),
            "plain": label_scores(truth, plain[name][known], scaled.shape[1]),
            "operating_points": {
                point: _judge_point(decision, name, point, log_probs, said[point], known, truth)
                for point in OPERATING_POINTS
            },
        }
        if name in sets and len(truth):
            chosen = sets[name][known]
            heads[name]["label_sets"] = {
                "asked": decision.coverage,
                "coverage": float(chosen[np.arange(len(truth)), truth].mean()),
                "mean_size": float(chosen.sum(1).mean()),
            }
    report: dict[str, Any] = {"precision": decision.precision, "heads": heads}
    if pairs:
        report["contradictions"] = {
            "pairs": {f"{p.finer} -> {p.coarser}": p.determined for p in pairs},
            "labels": count_contradictions(pairs, rows.labels),
            "before": count_contradictions(pairs, plain),
            "mixed": count_contradictions(pairs, alone),
            **{f"after ({point})": count_contradictions(pairs, said[point]) for point in OPERATING_POINTS},
        }
    score = decision.out_of_catalogue
    if score is not None:
        strange = np.empty(0) if outside is None else score.scores(outside.embeddings, outside.energies)
        inside = score.scores(rows.embeddings, rows.energies)
        found = judge_scores(inside, strange, kinds, groups or {}, score.threshold)
        report["out_of_catalogue"] = {"threshold": score.threshold, **found}
    return Judgement(report, curves)


def _judge_point(
    decision: Decision,
    name: str,
    point: str,
    log_probs: Mapping[str, np.ndarray],
    said: Mapping[str, np.ndarray],
    known: np.ndarray,
    truth: np.ndarray,
) -> dict[str, Any]:
    head, chosen = decision.heads[name], said[name][known]
    sure = confidences({name: log_probs[name][known]}, {name: chosen})
    taken = accepted(decision, sure, point)[name]
    threshold = head.thresholds[point]
    return {
        "strength": head.strengths[point],
        **label_scores(truth, chosen, log_probs[name].shape[1]),
        "accepted": {
            "threshold": threshold if math.isfinite(threshold) else None,
            "coverage": float(taken.mean()) if len(taken) else None,
            "precision": float((chosen == truth)[taken].mean()) if taken.any() else None,
        },
    }


def _describe_link(link: Link) -> dict[str, Any]:
    return {"finer": link.finer, "pooling": link.pooling, "weight": link.weight, "temperature": link.temperature}
