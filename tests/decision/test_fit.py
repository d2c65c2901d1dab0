"""Decisions are fitted on some rows and hold on others."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.special

from fashion_jax.data.drawn.not_products import KINDS, draw_not_products
from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import calibration_error, fit_threshold
from fashion_jax.decision.decisions import (
    Decision,
    HeadDecision,
    choose_labels,
    choose_sets,
    log_frequencies,
    log_probabilities,
)
from fashion_jax.decision.fit import OUTSIDE_SHARE, fit_decision, score_decision
from fashion_jax.decision.operating_points import best_strength, label_scores, sweep_strengths
from fashion_jax.decision.out_of_catalogue import auroc, fit_out_of_catalogue, score_detection, threshold_above
from fashion_jax.decision.report import format_accepted, format_report
from fashion_jax.evaluation.evaluate import RowOutputs
from fashion_jax.evaluation.metrics import summarize

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
ASKED = {"precision": 0.95, "coverage": 0.9}


class Rows(NamedTuple):
    outputs: RowOutputs
    labels: dict[str, np.ndarray]


def drawn(count: int, seed: int, *, sharp: float = 2.0) -> Rows:
    """Rows of two heads; `group` follows from `kind`. Logits are `sharp` times as large as calibrated ones."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, count, p=PRIOR)
    centres = np.random.default_rng(99).normal(size=(4, 8)) * 0.6
    seen = centres[kind] + rng.normal(size=(count, 8))
    true = seen @ centres.T - 0.5 * (centres**2).sum(1) + np.log(PRIOR)
    group = (kind >= 2).astype(int)
    coarse = np.stack([scipy.special.logsumexp(true[:, :2], axis=1), scipy.special.logsumexp(true[:, 2:], axis=1)], 1)
    logits = {"kind": sharp * true, "group": coarse + rng.normal(size=(count, 2))}
    labels = {"kind": kind.copy(), "group": group.copy()}
    labels["kind"][::17] = MISSING
    return Rows(RowOutputs(logits, seen, -scipy.special.logsumexp(true, axis=1), logits), labels)


def rows_of(outputs: RowOutputs, chosen: np.ndarray) -> RowOutputs:
    logits = {name: values[chosen] for name, values in outputs.logits.items()}
    return RowOutputs(logits, outputs.features[chosen], outputs.energies[chosen], logits)


@pytest.fixture(scope="module")
def fitted():
    validation, test = drawn(6000, 0), drawn(6000, 1)
    training = drawn(4000, 2)
    decision, pairs = fit_decision(*validation, training.labels, training.outputs.features, **ASKED)
    return decision, pairs, validation, test


def test_what_is_fitted_holds_on_other_rows(fitted):
    decision, pairs, _, test = fitted
    report = score_decision(decision, pairs, *test).report
    kind, group = report["heads"]["kind"], report["heads"]["group"]
    assert decision.heads["kind"].temperature == pytest.approx(2, rel=0.1)
    assert kind["ece"]["before"] > 0.05
    assert kind["ece"]["after"] < 0.02
    for name in ("kind", "group"):
        losses = report["heads"][name]["nll"]
        assert losses["after"] <= losses["temperature"] + 1e-3 <= losses["before"] + 2e-3
    assert group["hierarchy"]["finer"] == "kind"
    assert group["operating_points"]["accuracy"]["accuracy"] > group["plain"]["accuracy"] + 0.02
    taken = kind["operating_points"]["accuracy"]["accepted"]
    assert taken["precision"] > 0.94
    assert taken["coverage"] > 0.3
    assert kind["label_sets"]["coverage"] == pytest.approx(0.9, abs=0.02)
    assert 1 <= kind["label_sets"]["mean_size"] < 2
    assert report["contradictions"]["before"]["any"]["contradictions"] > 100
    assert report["contradictions"]["after (accuracy)"]["any"]["contradictions"] == 0
    assert report["contradictions"]["after (macro_f1)"]["any"]["contradictions"] == 0
    assert report["out_of_catalogue"]["products_above_threshold"] == pytest.approx(OUTSIDE_SHARE, abs=0.005)


def test_temperature_never_changes_the_accuracy(fitted):
    decision, _, _, test = fitted
    log_probs = log_probabilities(decision, test.outputs.logits)["kind"]  # nothing but a temperature
    assert np.array_equal(log_probs.argmax(1), test.outputs.logits["kind"].argmax(1))
    assert np.allclose(np.exp(log_probs).sum(1), 1)


def test_the_error_of_calibrated_probabilities_is_small():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(5), 40_000)
    labels = (rng.random((40_000, 1)) > np.cumsum(chances, 1)).sum(1).clip(max=4)
    assert calibration_error(chances.max(1), chances.argmax(1) == labels) < 0.01


def test_rows_without_the_label_do_not_count(fitted):
    decision, pairs, _, test = fitted
    known = test.labels["kind"] != MISSING
    some = Rows(rows_of(test.outputs, known), {name: values[known] for name, values in test.labels.items()})
    assert (
        score_decision(decision, pairs, *some).report["heads"]["kind"]
        == score_decision(decision, pairs, *test).report["heads"]["kind"]
    )


def test_fitting_does_not_look_at_unlabelled_rows(fitted):
    decision, _, validation, _ = fitted
    strange = {n: v.copy() for n, v in validation.outputs.logits.items()}
    strange["kind"][validation.labels["kind"] == MISSING] = 37.0
    training = drawn(4000, 2)
    outputs = dataclasses.replace(validation.outputs, logits=strange)
    other, _ = fit_decision(outputs, validation.labels, training.labels, training.outputs.features, **ASKED)
    assert other.heads["kind"].temperature == decision.heads["kind"].temperature
    assert other.heads["kind"].thresholds == decision.heads["kind"].thresholds
    assert other.heads["kind"].label_set == decision.heads["kind"].label_set


def test_a_head_without_validation_labels_is_left_alone():
    validation, training = drawn(300, 0), drawn(300, 2)
    labels = {**validation.labels, "kind": np.full(300, MISSING)}
    rows = Rows(validation.outputs, labels)
    decision, pairs = fit_decision(*rows, training.labels, training.outputs.features, **ASKED)
    head = decision.heads["kind"]
    assert (head.temperature, head.strengths, head.label_set) == (1.0, {"accuracy": 0.0, "macro_f1": 0.0}, 0.0)
    assert head.thresholds == {"accuracy": math.inf, "macro_f1": math.inf}
    report = score_decision(decision, pairs, *rows).report
    assert report["heads"]["kind"]["plain"]["accuracy"] is None
    assert "kind" in format_report(report, fitted_here=True)
    assert "no threshold reaches it" in format_accepted(report)


def test_a_console_has_both_scores_of_each_operating_point(fitted):
    decision, pairs, validation, _ = fitted
    report = copy.deepcopy(score_decision(decision, pairs, *validation).report)
    points = report["heads"]["kind"]["operating_points"]
    points["accuracy"].update(accuracy=0.9, macro_f1=0.5)
    points["macro_f1"].update(accuracy=0.8, macro_f1=0.6)
    (line,) = [line for line in format_accepted(report).splitlines() if line.startswith("kind ")]
    assert line.split()[1:7] == ["0.9000", "/", "0.5000", "0.8000", "/", "0.6000"]


def test_strength_zero_is_plain_and_one_is_for_even_classes():
    rng = np.random.default_rng(0)
    log_probs = scipy.special.log_softmax(rng.normal(size=(500, 4)), axis=1)
    labels, rows = rng.integers(0, 4, 500), np.array([600, 250, 100, 50])
    (plain,) = sweep_strengths(log_probs, labels, rows, [0.0])
    assert plain["accuracy"] == np.mean(log_probs.argmax(1) == labels)
    assert plain["won"] == plain["lost"] == 0
    (even,) = sweep_strengths(log_probs, labels, rows, [1.0])
    balanced = np.exp(log_probs) / (rows / rows.sum())
    assert even["accuracy"] == np.mean(balanced.argmax(1) == labels)
    assert np.allclose(log_frequencies(rows), np.log(rows / rows.sum()))


def test_the_adjustment_of_a_loss_is_undone(fitted):
    """A network that was trained for even classes is most accurate at strength -1, one for the rows near 0."""
    _, _, validation, _ = fitted
    known = validation.labels["kind"] != MISSING
    true, labels = validation.outputs.logits["kind"][known] / 2, validation.labels["kind"][known]
    rows = (PRIOR * 10_000).astype(int)
    sweep = sweep_strengths(scipy.special.log_softmax(true, axis=1), labels, rows)
    assert 0 <= best_strength(sweep, "accuracy") <= 0.25
    even = scipy.special.log_softmax(true - np.log(PRIOR), axis=1)
    assert best_strength(sweep_strengths(even, labels, rows), "accuracy") == pytest.approx(-1, abs=0.35)
    assert best_strength(sweep, "macro_f1") > 0
    best = max(point["macro_f1"] for point in sweep)
    chosen = next(p for p in sweep if p["strength"] == best_strength(sweep, "macro_f1"))
    assert chosen["macro_f1"] > best - 0.01


def test_an_accuracy_that_chance_explains_changes_nothing():
    sweep = [
        {"strength": s, "accuracy": a, "macro_f1": 0.5, "macro_f1_supported": None, "won": w, "lost": v}
        for s, a, w, v in ((-0.1, 0.503, 8, 5), (0.0, 0.5, 0, 0), (0.1, 0.49, 2, 12))
    ]
    assert best_strength(sweep, "accuracy") == 0
    sweep[0].update(won=40, lost=5, accuracy=0.535)
    assert best_strength(sweep, "accuracy") == -0.1
    assert best_strength([], "accuracy") == 0


def test_little_accuracy_is_given_for_much_macro_f1():
    def sweep(gain, supported_gain, lost=0.001):
        strengths = [round(-0.2 + 0.1 * step, 1) for step in range(9)]
        return [
            {
                "strength": s, "accuracy": 0.7 - lost * max(s, 0), "macro_f1": 0.3 + gain * s,
                "macro_f1_supported": 0.4 + supported_gain * s, "won": 0, "lost": 5,
            }
            for s in strengths
        ]  # fmt: skip

    # At most 0.002 of accuracy is lost, and the strength is at most 0.25 higher.
    assert best_strength(sweep(0.1, 0.1), "accuracy") == 0.2
    assert best_strength(sweep(0.1, 0.1, lost=0.015), "accuracy") == 0.1
    assert best_strength(sweep(0.1, 0.1, lost=0.05), "accuracy") == 0
    assert best_strength(sweep(0.04, 0.1), "accuracy") == 0
    assert best_strength(sweep(0.1, 0.01), "accuracy") == 0  # by classes of a few rows alone
    assert best_strength(sweep(-0.1, -0.1), "accuracy") == 0  # never against rare classes
    # The other operating point is another one only where that is worth something.
    assert best_strength(sweep(0.1, 0.1, lost=0.05), "macro_f1") == 0.6
    assert best_strength(sweep(0.005, 0.005, lost=0.05), "macro_f1") == 0
    assert best_strength(sweep(0.005, 0.1, lost=0.05), "macro_f1") == best_strength(sweep(0.005, 0.1), "accuracy")
    assert best_strength(sweep(0.1, 0.1), "macro_f1") == 0.6
    assert best_strength(sweep(0.1, 0.1, lost=0.11), "macro_f1") == 0.4  # at most 0.05 of accuracy is lost


def test_what_is_given_is_given_on_the_rows_themselves():
    """Not on the mean with the neighbouring strengths alone, in which a single bad one is lost."""

    def taken(at_peak, score, peak=3):
        strengths = [round(-0.2 + 0.1 * step, 1) for step in range(9)]
        sweep = [
            {"strength": s, "accuracy": 0.7, "macro_f1": 0.3, "macro_f1_supported": 0.3, "won": 0, "lost": 5}
            for s in strengths
        ]
        for place, value in ((peak, 0.5), (peak + 1, 0.4)):
            sweep[place].update(macro_f1=value, macro_f1_supported=value)
        sweep[peak]["accuracy"] = at_peak
        return best_strength(sweep, score)

    assert taken(0.7, "accuracy") == taken(0.7, "macro_f1") == 0.1
    assert taken(0.695, "accuracy") == 0.2
    assert taken(0.66, "macro_f1", peak=6) == 0.4
    assert taken(0.6, "macro_f1", peak=6) == 0.5


def test_what_is_said_is_in_its_label_set():
    head = HeadDecision(1.0, np.array([90, 9, 1]), {}, {}, label_set=0.3)
    log_probs = {"kind": np.log(np.array([[0.8, 0.15, 0.05], [0.45, 0.35, 0.2]]))}
    sets = choose_sets(Decision({"kind": head}), log_probs, {"kind": np.array([2, 2])})["kind"]
    assert sets.tolist() == [[True, False, True], [True, True, True]]


def test_scores_are_those_of_the_summary():
    rng = np.random.default_rng(0)
    labels, said = rng.choice(6, 200, p=[0.5, 0.3, 0.15, 0.03, 0.02, 0]), rng.integers(0, 6, 200)
    confusion = np.zeros((6, 6), int)
    np.add.at(confusion, (labels, said), 1)
    wanted = summarize(confusion, 0, 200, 0.0, tuple("abcdef"))
    assert label_scores(labels, said, 6) == pytest.approx(
        {key: wanted[key] for key in ("accuracy", "macro_f1", "macro_f1_supported")}
    )


def test_few_rows_promise_no_precision():
    sure, right = np.linspace(0.5, 1, 40), np.ones(40, bool)
    assert fit_threshold(sure, right, 0.98) == 0.5
    assert fit_threshold(sure, right, 0.98, level=0.9) == math.inf
    assert fit_threshold(np.linspace(0.5, 1, 400), np.ones(400, bool), 0.98, level=0.9) == 0.5
    # As often as the level says, what is accepted has the precision on all rows like these.
    rng, kept = np.random.default_rng(0), 0
    for _ in range(200):
        confidence = rng.random(1000)
        found = fit_threshold(confidence, rng.random(1000) < 0.8 + 0.2 * confidence, 0.95, level=0.9)
        # Above t, right rows are a share of .8 + .1 (1 + t).
        kept += not math.isfinite(found) or 0.9 + 0.1 * found >= 0.95
    assert kept > 0.8 * 200


def test_the_auroc_is_the_chance_of_a_higher_score():
    rng = np.random.default_rng(0)
    inside, outside = np.round(rng.normal(size=60), 1), np.round(rng.normal(size=40) + 0.7, 1)  # with ties
    slowly = np.mean([(b > a) + 0.5 * (b == a) for a in inside for b in outside])
    assert auroc(inside, outside) == pytest.approx(slowly)
    assert auroc(np.zeros(3), np.ones(3)) == 1


def test_the_threshold_flags_no_more_than_asked():
    flagged = []
    for seed in range(200):
        scores = np.random.default_rng(seed).normal(size=400)
        flagged.append(np.mean(scores[200:] > threshold_above(scores[:200], 0.05)))
    assert 0.03 < np.mean(flagged) <= 0.055


def test_strange_photos_score_higher(fitted):
    decision, _, _, test = fitted
    score, rng = decision.out_of_catalogue, np.random.default_rng(0)
    far = rng.normal(size=(200, 8)) * 6
    found = score_detection(
        score.scores(test.outputs.features, test.outputs.energies),
        score.scores(far, np.full(200, test.outputs.energies.mean())),
        ["x"] * 200, {"x": "group"}, score.threshold,
    )  # fmt: skip
    assert found["others"]["all"]["auroc"] > 0.9
    assert found["others"]["x"] == found["others"]["group"] == found["others"]["all"]


def test_the_distance_is_mahalanobis_where_all_directions_are_kept():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    score = fit_out_of_catalogue(rows, rows, np.zeros(500), 0.05)
    cov, mean = np.cov(rows.T), rows.mean(0)
    wanted = [np.log((r - mean) @ np.linalg.inv(cov) @ (r - mean) / 6) for r in rows[:20]]
    assert np.allclose(score.log_distances(rows[:20]), wanted, atol=1e-6)


def test_degenerate_embeddings_give_finite_scores():
    assert fit_out_of_catalogue(np.zeros((1, 4)), np.zeros((5, 4)), np.zeros(5), 0.1) is None
    score = fit_out_of_catalogue(np.zeros((10, 4)), np.zeros((5, 4)), np.zeros(5), 0.1)
    assert np.isfinite(score.scores(np.ones((3, 4)), np.ones(3))).all()


def test_not_products_are_drawn_anew_and_alike():
    images, kinds = draw_not_products(2, 32, 24, seed=3)
    again, _ = draw_not_products(2, 32, 24, seed=3)
    assert images.shape == (2 * len(KINDS), 32, 24, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert kinds[::2] == list(KINDS)
    assert all(not np.array_equal(a, b) for a, b in zip(images[::2], images[1::2], strict=True))
    assert (images.std(axis=(1, 2, 3)) > 5).all()  # nothing is left blank
    assert draw_not_products(0, 32, 24)[0].shape == (0, 32, 24, 3)
    assert draw_not_products(20, 8, 8)[0].shape == (20 * len(KINDS), 8, 8, 3)  # the smallest photos of a model


def test_labels_at_both_points_come_from_the_same_probabilities(fitted):
    decision, _, _, test = fitted
    log_probs = log_probabilities(decision, test.outputs.logits)
    best, rare = (choose_labels(decision, log_probs, point) for point in ("accuracy", "macro_f1"))
    truth, known = test.labels["kind"], test.labels["kind"] != MISSING
    scores = [label_scores(truth[known], said["kind"][known], 4) for said in (best, rare)]
    assert scores[0]["accuracy"] >= scores[1]["accuracy"] - 0.002
    assert scores[1]["macro_f1"] >= scores[0]["macro_f1"] - 0.002
