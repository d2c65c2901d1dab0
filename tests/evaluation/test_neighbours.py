"""Scores of neighbours: by the definitions, written out slowly."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.evaluation.neighbours import join_labels, retrieval_scores
from fashion_jax.run.neighbours import colour_histogram

RANDOM = np.random.default_rng(0)
COUNT = 120
EMBEDDINGS = RANDOM.normal(size=(COUNT, 5)).astype(np.float32)
LABELS = RANDOM.integers(-1, 4, COUNT)
LABELS[0] = 4  # which no other row has
GROUPS = np.where(np.arange(COUNT) < 20, np.arange(COUNT) // 2, 1000 + np.arange(COUNT))


def slowly() -> dict[str, float]:
    unit = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    rows = []
    for query in range(COUNT):
        others = [i for i in range(COUNT) if GROUPS[i] != GROUPS[query]]
        others.sort(key=lambda i: -float(unit[query] @ unit[i]))
        relevant = [LABELS[i] == LABELS[query] for i in others]
        if LABELS[query] < 0 or not any(relevant):
            continue
        number = sum(relevant)
        precisions = [sum(relevant[: r + 1]) / (r + 1) for r in range(number) if relevant[r]]
        gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(relevant[:10]))
        ideal = sum(1 / np.log2(rank + 2) for rank in range(min(10, number)))
        rows.append([relevant[0], sum(relevant[:10]) / 10, sum(precisions) / number, gain / ideal])
    scores = dict(zip(("p@1", "p@10", "map@r", "ndcg@10"), np.mean(rows, 0), strict=True))
    return {**scores, "queries": len(rows), "p@10_labelled": sum(r[1] for r in rows) / sum(LABELS >= 0)}


def test_scores_follow_their_definitions(monkeypatch):
    monkeypatch.setattr("fashion_jax.evaluation.neighbours._QUERIES_AT_ONCE", 50)
    scores = retrieval_scores(EMBEDDINGS, {"label": LABELS}, GROUPS)["label"]
    assert scores == pytest.approx(slowly(), rel=1e-6)


def test_perfect_and_hopeless_embeddings():
    labels, groups = np.arange(60) // 20, np.arange(60)
    perfect = retrieval_scores(np.eye(3, dtype=np.float32)[labels], {"a": labels}, groups)["a"]
    assert [perfect[name] for name in ("p@1", "p@10", "map@r", "ndcg@10")] == pytest.approx([1, 1, 1, 1])
    alone = retrieval_scores(EMBEDDINGS[:60], {"a": np.arange(60)}, groups)["a"]
    assert alone["queries"] == 0 and alone["p@10_labelled"] == 0


def test_joined_labels_are_equal_where_all_are():
    labels = {"a": np.array([0, 0, 1, -1, 0]), "b": np.array([2, 2, 2, 2, 3])}
    joined = join_labels(labels, ("a", "b"))
    assert joined[0] == joined[1] and joined[3] == -1
    assert len(set(joined.tolist())) == 4


def test_histograms_leave_the_background_out():
    red = np.full((40, 30, 3), 255, np.uint8)
    red[10:30, 8:22] = (200, 20, 30)
    large = np.full((40, 30, 3), (200, 20, 30), np.uint8)
    blue = np.full((40, 30, 3), (20, 20, 200), np.uint8)
    same, other = colour_histogram(red) @ colour_histogram(large), colour_histogram(red) @ colour_histogram(blue)
    assert same == pytest.approx(1, abs=1e-5)
    assert other == pytest.approx(0, abs=1e-5)
    assert np.linalg.norm(colour_histogram(np.full((8, 8, 3), 255, np.uint8))) == pytest.approx(1, abs=1e-5)
