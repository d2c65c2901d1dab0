"""Metrics: a plain reference, merging, masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.metrics import HeadMetrics, summarize

NAMES = tuple("abcdefghij")


def problem(rows: int = 200, seed: int = 0):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 11) ** 2
    labels = rng.choice(10, rows, p=weights / weights.sum()).astype(np.int32)
    labels[labels == 7] = 6  # a class without rows
    logits = rng.normal(0, 1, (rows, 10)).astype(np.float32)
    logits[np.arange(rows), labels] += 1.0
    labels[::9] = MISSING
    return logits, labels


def measure(logits, labels, valid=None) -> HeadMetrics:
    valid = np.ones(len(labels), bool) if valid is None else valid
    return HeadMetrics.from_logits(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(valid))


def summary(metrics: HeadMetrics):
    return summarize(np.asarray(metrics.confusion), int(metrics.top5), int(metrics.count), float(metrics.loss), NAMES)


def reference(logits, labels):
    """The definitions, word by word."""
    known = labels != MISSING
    y, p, logits = labels[known], logits[known].argmax(1), logits[known]
    per_class, f1s, supported, weighted = {}, [], [], 0.0
    for c in range(10):
        tp, fp, fn = ((p == c) & (y == c)).sum(), ((p == c) & (y != c)).sum(), ((p != c) & (y == c)).sum()
        f1, support = 2 * tp / max(2 * tp + fp + fn, 1), tp + fn
        per_class[NAMES[c]] = (tp / (tp + fp) if tp + fp else None, tp / support if support else None, support)
        weighted += f1 * support / len(y)
        f1s += [f1] if support else []
        supported += [f1] if support >= 10 else []
    ranks = (logits > logits[np.arange(len(y)), y][:, None]).sum(1)
    log_sum = np.log(np.exp(logits.astype(np.float64)).sum(1))
    return {
        "accuracy": (p == y).mean(),
        "macro_f1": np.mean(f1s),
        "macro_f1_supported": np.mean(supported),
        "weighted_f1": weighted,
        "top5_accuracy": (ranks < 5).mean(),
        "loss": (log_sum - logits[np.arange(len(y)), y]).mean(),
        "count": len(y),
    }, per_class


def test_equals_the_definitions():
    logits, labels = problem()
    ours = summary(measure(logits, labels))
    wanted, per_class = reference(logits, labels)
    for name, value in wanted.items():
        assert ours[name] == pytest.approx(value, rel=1e-5), name
    for name, (precision, recall, support) in per_class.items():
        scores = ours["per_class"][name]
        assert scores["support"] == support
        assert scores["precision"] == (None if precision is None else pytest.approx(precision))
        assert scores["recall"] == (None if recall is None else pytest.approx(recall))


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_batches_merge_to_the_whole(size):
    logits, labels = problem()
    total = HeadMetrics.empty(10)
    for start in range(0, 200, size):
        total = total.merge(measure(logits[start : start + size], labels[start : start + size]))
    whole = measure(logits, labels)
    assert np.array_equal(total.confusion, whole.confusion) and int(total.count) == int(whole.count)
    assert float(total.loss) == pytest.approx(float(whole.loss), rel=1e-5)


def test_masked_is_subset():
    logits, labels = problem()
    valid = np.random.default_rng(3).random(200) < 0.5
    masked, subset = measure(logits, labels, valid), measure(logits[valid], labels[valid])
    for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(subset), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_few_classes_have_a_top_five():
    logits, labels = problem()
    metrics = HeadMetrics.from_logits(jnp.asarray(logits[:, :3]), jnp.asarray(labels % 3), jnp.ones(200, bool))
    assert int(metrics.top5) == int(metrics.count) == 200


def test_no_rows_have_no_scores():
    scores = summary(HeadMetrics.empty(10))
    named = ("count", "accuracy", "macro_f1", "macro_f1_supported", "weighted_f1", "top5_accuracy", "loss")
    assert [scores[name] for name in named] == [0] + [None] * 6
