"""Embeddings of subspaces: their cosine is the sum of the compared parts; shares are chosen on validation rows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special

from fashion_jax.data.schema import MISSING
from fashion_jax.decision import calibration, embedding
from fashion_jax.decision.embedding import EmbeddingPlan, Subspace, compared_attributes, fit_embedding
from fashion_jax.decision.hierarchy import Pair

PAIRS = [Pair("type", "kind", np.ones((30, 5), np.int64), 1.0)]


def drawn(count: int = 7):
    """Logits, features and a plan for them."""
    rng = np.random.default_rng(3)
    logits = {"kind": rng.normal(size=(count, 4)) * 3, "colour": rng.normal(size=(count, 6)) * 3}
    features = rng.random((count, 10))
    components = np.linalg.qr(rng.normal(size=(10, 5)))[0].astype(np.float32)
    parts = Subspace("kind", "kind", 4, 0.5, 0.5), Subspace("colour", "colour", 6, 0.3, 2.0)
    return logits, features, EmbeddingPlan((*parts, Subspace("appearance", None, 5, 0.2)), components)


def test_the_cosine_is_the_shared_sum_of_overlaps():
    logits, features, plan = drawn()
    vectors = np.asarray(plan.embed(logits, features))
    assert vectors.shape == (7, 15) and vectors.dtype == np.float32
    assert list(plan.sizes.items()) == [("kind", 4), ("colour", 6), ("appearance", 5)]
    shadows = features @ plan.components
    shadows /= np.linalg.norm(shadows, axis=1, keepdims=True)
    wanted = 0.2 * shadows @ shadows.T
    for name, temperature, share in (("kind", 0.5, 0.5), ("colour", 2.0, 0.3)):
        probabilities = scipy.special.softmax(logits[name] / temperature, axis=1)
        overlap = np.sqrt(probabilities[:, None] * probabilities[None]).sum(-1)  # Bhattacharyya's coefficient
        wanted = wanted + share * overlap
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=2e-6)


def test_features_of_any_length_and_sure_heads_are_embedded():
    logits, features, plan = drawn()
    np.testing.assert_allclose(plan.embed(logits, features * 1e4), plan.embed(logits, features), atol=1e-6)
    sure = {name: values * 1e5 for name, values in logits.items()}
    vectors = plan.embed(sure, np.zeros_like(features))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_finest_attributes_are_compared_as_far_as_they_fit():
    classes = {"kind": 5, "type": 30, "colour": 12, "season": 4, "alone": 1}
    assert compared_attributes(("auto",), classes, PAIRS, 256) == ("type", "colour", "season")
    assert compared_attributes(("auto",), classes, PAIRS, 20) == ("colour", "season")
    assert compared_attributes(("auto",), classes, [], 10) == ("kind", "season")
    assert compared_attributes(("auto",), {"type": 30}, [], 10) == ()
    assert compared_attributes(("kind", "colour"), classes, PAIRS, 256) == ("kind", "colour")


def drawn_rows(count: int = 600):
    """Rows whose kind is told well and whose colour is guessed."""
    rng = np.random.default_rng(0)
    labels = {"kind": rng.integers(0, 6, count), "colour": rng.integers(0, 5, count)}
    kind = 2.0 * np.eye(6)[labels["kind"]] + rng.normal(size=(count, 6))
    logits = {"kind": kind, "colour": rng.normal(size=(count, 5)) * 4}
    labels["kind"][: count // 30] = MISSING
    return logits, rng.random((count, 16)), labels


def fit(logits, features, labels, **changes):
    options = {"attributes": ("kind", "colour"), "size": 20, "appearance": 0.2, **changes}
    return fit_embedding(logits, labels, np.arange(len(features)), features[:100], **options)


def test_what_is_only_guessed_gets_the_smaller_share(monkeypatch):
    monkeypatch.setattr(calibration, "fit_temperature", lambda *_: 1.0)  # The guesses stay overconfident.
    logits, features, labels = drawn_rows()
    plan = fit(logits, features, labels)
    kind, colour, appearance = plan.subspaces
    assert (kind.size, colour.size, appearance.size) == (6, 5, 9) and plan.size == 20
    assert appearance.share == pytest.approx(0.2) and appearance.name == "appearance"
    assert kind.share + colour.share == pytest.approx(0.8)
    assert kind.share > 2 * colour.share
    assert plan.components.shape == (16, 9) and plan.components.dtype == np.float32
    np.testing.assert_allclose(plan.components.T @ plan.components, np.eye(9), atol=1e-5)


def test_appearance_takes_what_is_left_and_may_be_left_out():
    logits, features, labels = drawn_rows()
    assert [s.size for s in fit(logits, features, labels, size=256).subspaces] == [6, 5, 16]
    for changes in ({"appearance": 0.0}, {"size": 11}):
        plan = fit(logits, features, labels, **changes)
        assert plan.components is None and [s.name for s in plan.subspaces] == ["kind", "colour"]
        assert sum(s.share for s in plan.subspaces) == pytest.approx(1)
    (alone,) = fit(logits, features, labels, attributes=(), size=3).subspaces
    assert (alone.attribute, alone.size, alone.share) == (None, 3, 1.0)
    assert fit(logits, features, labels, attributes=(), size=features.shape[1]) is None


def test_few_rows_leave_shares_even_and_an_attribute_may_be_called_appearance():
    logits, features, labels = drawn_rows(8)
    plan = fit(logits, features, labels, appearance=0.0)
    assert [s.share for s in plan.subspaces] == [0.5, 0.5]
    logits, features, labels = drawn_rows()
    plan = fit({"appearance": logits["kind"]}, features, {"appearance": labels["kind"]}, attributes=("appearance",))
    assert len({s.name for s in plan.subspaces}) == 2


def test_shadows_on_all_directions_keep_every_cosine():
    rng = np.random.default_rng(1)
    features = rng.random((50, 8)) * rng.random((50, 1)) * 9
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    directions = embedding.principal_directions(features, 8)
    np.testing.assert_allclose((unit @ directions) @ (unit @ directions).T, unit @ unit.T, atol=1e-6)
    # The first direction has the longest shadows of all.
    assert np.square(unit @ directions[:, 0]).sum() == pytest.approx(np.linalg.eigvalsh(unit.T @ unit)[-1])
