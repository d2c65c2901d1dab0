"""Fits a decision on validation rows, and scores it on other rows. Pure functions of arrays."""

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
from fashion_jax.decision.hierarchy import Pair, count_contradictions, joint_heads, measure_applicability, measure_pairs
from fashion_jax.decision.operating_points import best_strength, label_scores, sweep_strengths
from fashion_jax.decision.out_of_catalogue import fit_out_of_catalogue, score_detection
from fashion_jax.evaluation.evaluate import RowOutputs

OUTSIDE_SHARE = 0.01  # share of validation photos above the out-of-catalogue threshold
_WEIGHTS = tuple(step / 20 for step in range(1, 21))
_LEVEL = 0.9  # confidence level at which accepted labels have the precision that was asked for
_LEAST_PRODUCTS = 30  # with several photos, for a temperature of products
_LOWEST = -80.0  # smallest log probability that counts, because float32 logits tell no smaller ones apart


def fit_decision(
    outputs: RowOutputs,
    labels: Mapping[str, Int[np.ndarray, " n"]],
    train_labels: Mapping[str, Int[np.ndarray, " rows"]],
    reference: Float[np.ndarray, "some features"],
    *,
    products: Int[np.ndarray, " n"],
    precision: float,
    coverage: float,
    not_applicable: Mapping[str, int] | None = None,
) -> tuple[Decision, list[Pair]]:
    """Fits temperatures, hierarchy, operating points, thresholds, label sets and the out-of-catalogue score.

    Args:
        outputs: of the network for validation rows, which training has not seen.
        labels: attribute -> labels of the validation rows, MISSING where there is none.
        train_labels: attribute -> labels of the training rows, MISSING where there is none.
        reference: features of some training rows.
        products: numbers of the validation rows' products; photos of one product share theirs.
        precision: of labels that are accepted automatically, in (0, 1].
        coverage: of label sets, in (0, 1); 0 for no label sets.
        not_applicable: attribute -> the number of its class "does not apply"; None for none.

    Returns:
        The decision, and the pairs of attributes by which contradictions are counted.
    """
    num_classes = {name: logits.shape[1] for name, logits in outputs.logits.items()}
    pairs = measure_pairs(train_labels, num_classes)
    heads: dict[str, HeadDecision] = {}
    log_probs: dict[str, np.ndarray] = {}
    # A finer attribute has more classes than the coarser ones that it determines, so it comes first.
    for name in sorted(num_classes, key=lambda n: -num_classes[n]):
        logits, known = outputs.logits[name], labels[name] != MISSING
        temperature = fit_temperature(logits[known], labels[name][known])
        own = scale(logits, temperature)
        link = _fit_link([p for p in pairs if p.coarser == name], own, log_probs, labels[name])
        heads[name] = HeadDecision(temperature, _class_rows(train_labels[name], num_classes[name]), {}, {}, None, link)
        log_probs[name] = own if link is None else _mixture(own, log_probs, link)
    for name, head in heads.items():
        known = labels[name] != MISSING
        truth, found = labels[name][known], log_probs[name][known]
        sweep = sweep_strengths(found, truth, head.class_rows)
        sets = fit_label_sets(np.exp(found), truth, coverage) if coverage else None
        strengths = {point: best_strength(sweep, point) for point in OPERATING_POINTS}
        temperature = _fit_products(found, truth, products[known])
        heads[name] = dataclasses.replace(head, strengths=strengths, label_set=sets, product_temperature=temperature)
    detector = fit_out_of_catalogue(reference, outputs.features, outputs.energies, OUTSIDE_SHARE)
    decision = Decision(
        {name: heads[name] for name in num_classes},
        joint_heads(pairs, train_labels),
        detector,
        precision,
        coverage,
        applicability=measure_applicability(train_labels, num_classes, not_applicable or {}),
    )
    return _with_thresholds(decision, log_probs, labels), pairs


def _fit_products(log_probs: np.ndarray, labels: np.ndarray, products: np.ndarray) -> float:
    """Returns the temperature for means of several photos' probabilities; 1 where too few products have several.

    Products whose photos have different labels are left out.
    """
    order = np.argsort(products, kind="stable")
    starts = np.flatnonzero(np.diff(products[order], prepend=-1))
    if not len(starts):
        return 1.0
    counts = np.diff(np.append(starts, len(order)))
    truth = labels[order]
    low, high = np.minimum.reduceat(truth, starts), np.maximum.reduceat(truth, starts)
    chosen = (counts > 1) & (low == high)
    if chosen.sum() < _LEAST_PRODUCTS:
        return 1.0
    means = np.add.reduceat(np.exp(log_probs[order]), starts)[chosen] / counts[chosen, None]
    return fit_temperature(np.log(np.maximum(means, np.exp(_LOWEST))), low[chosen])


def _class_rows(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels[labels != MISSING], minlength=num_classes).astype(np.int64)


def _mixture(own: np.ndarray, log_probs: Mapping[str, np.ndarray], link: Link) -> np.ndarray:
    summed = sum_along(log_probs[link.finer], link.counts)
    return scale(pool(own, summed, pooling=link.pooling, weight=link.weight), link.temperature)


def _fit_link(
    pairs: Sequence[Pair], own: np.ndarray, log_probs: Mapping[str, np.ndarray], labels: np.ndarray
) -> Link | None:
    """Returns the finer head, pooling and weight with the lowest loss; None where no mixture lowers the loss."""
    known = labels != MISSING
    if not known.any():
        return None
    best, lowest = None, mean_loss(own[known], labels[known])
    for pair in pairs:
        summed = sum_along(log_probs[pair.finer], pair.counts)[known]
        for pooling in POOLINGS:
            for weight in _WEIGHTS:
                loss = mean_loss(scale(pool(own[known], summed, pooling=pooling, weight=weight), 1.0), labels[known])
                if loss < lowest - 1e-9:
                    best, lowest = Link(pair.finer, pair.counts, pooling, weight, 1.0), loss
    if best is None:
        return None
    mixed = _mixture(own, log_probs, best)[known]
    return dataclasses.replace(best, temperature=fit_temperature(mixed, labels[known]))


def _with_thresholds(
    decision: Decision, log_probs: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> Decision:
    """Adds the smallest confidences of accepted labels, for each operating point."""
    thresholds: dict[str, dict[str, float]] = {name: {} for name in decision.heads}
    for point in OPERATING_POINTS:
        chosen = choose_labels(decision, log_probs, point)
        for name, confidence in confidences(log_probs, chosen).items():
            known = labels[name] != MISSING
            right = chosen[name][known] == labels[name][known]
            thresholds[name][point] = fit_threshold(confidence[known], right, decision.precision, level=_LEVEL)
    heads = {n: dataclasses.replace(h, thresholds=thresholds[n]) for n, h in decision.heads.items()}
    return dataclasses.replace(decision, heads=heads)


def mean_loss(log_probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Returns the mean of -log p(label) in nats; 0 where there is no row."""
    if not len(labels):
        return 0.0
    return float(-np.maximum(log_probs[np.arange(len(labels)), labels], _LOWEST).mean())


@dataclass(frozen=True, slots=True)
class DecisionScores:
    """Scores of a decision."""

    report: dict[str, Any]  # JSON values; `decision.report` shows them
    # attribute -> "before" and "after" -> confidences of labelled rows, and whether they were right
    confidences: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def score_decision(
    decision: Decision,
    pairs: Sequence[Pair],
    outputs: RowOutputs,
    labels: Mapping[str, Int[np.ndarray, " n"]],
    *,
    outside: RowOutputs | None = None,
    kinds: Sequence[str] = (),
    groups: Mapping[str, str] | None = None,
) -> DecisionScores:
    """Scores calibration, operating points, accepted labels, label sets, contradictions and out-of-catalogue photos.

    Args:
        decision: fitted on other rows.
        pairs: by which contradictions are counted.
        outputs: of the network for the rows.
        labels: attribute -> labels of the rows, MISSING where there is none.
        outside: of the network for photos that show no product.
        kinds: of each photo of `outside`.
        groups: kind -> its group.
    """
    plain_probs = {name: scale(logits, 1.0) for name, logits in outputs.logits.items()}
    log_probs = log_probabilities(decision, outputs.logits)
    plain = {name: values.argmax(1) for name, values in plain_probs.items()}
    chosen = {point: choose_labels(decision, log_probs, point) for point in OPERATING_POINTS}
    alone = choose_labels(decision, log_probs, OPERATING_POINTS[0], joint=False)
    sets = choose_sets(decision, log_probs, chosen[OPERATING_POINTS[0]])
    heads, curves = {}, {}
    for name, head in decision.heads.items():
        known = labels[name] != MISSING
        truth = labels[name][known]
        scaled = scale(outputs.logits[name][known], head.temperature)

        def reliability(values: np.ndarray, picked: np.ndarray, truth: np.ndarray = truth) -> tuple[Any, Any]:
            return np.exp(values[np.arange(len(truth)), picked]), picked == truth

        before = reliability(plain_probs[name][known], plain[name][known])
        after = reliability(log_probs[name][known], chosen["accuracy"][name][known])
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
                "before": mean_loss(plain_probs[name][known], truth),
                "temperature": mean_loss(scaled, truth),
                "after": mean_loss(log_probs[name][known], truth),
            },
            "hierarchy": None if head.link is None else _describe_link(head.link),
            "plain": label_scores(truth, plain[name][known], scaled.shape[1]),
            "operating_points": {
                point: _score_point(decision, name, point, log_probs[name][known], chosen[point][name][known], truth)
                for point in OPERATING_POINTS
            },
        }
        if name in sets and len(truth):
            members = sets[name][known]
            heads[name]["label_sets"] = {
                "asked": decision.coverage,
                "coverage": float(members[np.arange(len(truth)), truth].mean()),
                "mean_size": float(members.sum(1).mean()),
            }
    report: dict[str, Any] = {"precision": decision.precision, "heads": heads}
    if pairs:
        report["contradictions"] = {
            "pairs": {f"{p.finer} -> {p.coarser}": p.determined for p in pairs},
            "labels": count_contradictions(pairs, labels),
            "before": count_contradictions(pairs, plain),
            "mixed": count_contradictions(pairs, alone),
            **{f"after ({point})": count_contradictions(pairs, chosen[point]) for point in OPERATING_POINTS},
        }
    detector = decision.out_of_catalogue
    if detector is not None:
        others = np.empty(0) if outside is None else detector.scores(outside.features, outside.energies)
        products = detector.scores(outputs.features, outputs.energies)
        found = score_detection(products, others, kinds, groups or {}, detector.threshold)
        report["out_of_catalogue"] = {"threshold": detector.threshold, **found}
    return DecisionScores(report, curves)


def _score_point(
    decision: Decision, name: str, point: str, log_probs: np.ndarray, chosen: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    head = decision.heads[name]
    confidence = confidences({name: log_probs}, {name: chosen})
    taken = accepted(decision, confidence, point)[name]
    threshold = head.thresholds[point]
    return {
        "strength": head.strengths[point],
        **label_scores(truth, chosen, log_probs.shape[1]),
        "accepted": {
            "threshold": threshold if math.isfinite(threshold) else None,
            "coverage": float(taken.mean()) if len(taken) else None,
            "precision": float((chosen == truth)[taken].mean()) if taken.any() else None,
        },
    }


def _describe_link(link: Link) -> dict[str, Any]:
    return {"finer": link.finer, "pooling": link.pooling, "weight": link.weight, "temperature": link.temperature}
