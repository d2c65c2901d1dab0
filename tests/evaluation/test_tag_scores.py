"""Scores of attributes of several values, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from fashion_jax.evaluation.tags import average_precision, format_tag_scores, summarize_tags


@pytest.mark.parametrize("levels", [3, 20, 10**6])  # of the scores: many ties, and none
def test_average_precision_is_that_of_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    for count in (1, 2, 50, 400):
        scores = np.floor(rng.random(count) * levels) / levels
        truth = rng.random(count) < 0.3
        truth[0] = True
        assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert average_precision(np.ones(3), np.zeros(3, bool)) is None


def test_summaries_count_labelled_rows_only():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.3).astype(np.int8)
    labels[:, 3] = 0
    shares = np.clip(labels * 0.4 + rng.random((200, 4)) * 0.7, 0, 1)
    labels[::9] = -1
    thresholds = np.array([0.3, 0.5, 0.7, 0.9])
    summary = summarize_tags(shares, labels, ("a", "b", "c", "d"), thresholds)
    known = labels[:, 0] >= 0
    truth, chosen = labels[known], shares[known] >= thresholds
    assert summary["count"] == known.sum()
    assert summary["micro_f1"] == pytest.approx(f1_score(truth, chosen, average="micro"))
    assert summary["macro_f1"] == pytest.approx(f1_score(truth[:, :3], chosen[:, :3], average="macro"))
    assert summary["map"] == pytest.approx(average_precision_score(truth[:, :3], shares[known][:, :3]))
    assert summary["per_class"]["d"] == {
        "ap": None, "precision": 0.0 if chosen[:, 3].any() else None, "recall": None, "f1": None, "support": 0,
        "threshold": 0.9,
    }  # fmt: skip
    nothing = summarize_tags(shares, np.full_like(labels, -1), ("a", "b", "c", "d"))
    assert (nothing["count"], nothing["map"], nothing["micro_f1"], nothing["loss"]) == (0, None, None, None)
    assert "a  200" not in format_tag_scores({"tags": summary}) and format_tag_scores({}) == ""
