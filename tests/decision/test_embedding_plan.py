"""What embeddings are made of is chosen on validation rows."""

from __future__ import annotations

import numpy as np
import pytest

from fashion_jax.data.schema import MISSING
from fashion_jax.decision.embedding_plan import (
    compared_attributes,
    fit_embedding,
    principal_directions,
)
from fashion_jax.decision.hierarchy import Pair

PAIRS = [Pair("type", "kind", np.ones((30, 5), np.int64), 1.0)]


def test_finest_attributes_are_compared_as_far_as_they_fit():
    classes = {"kind": 5, "type": 30, "colour": 12, "season": 4, "alone": 1}
    assert compared_attributes(("auto",), classes, PAIRS, 256) == ("type", "colour", "season")
    assert compared_attributes(("auto",), classes, PAIRS, 20) == ("colour", "season")
    assert compared_attributes(("auto",), classes, [], 10) == ("kind", "season")
    assert compared_attributes(("auto",), {"type": 30}, [], 10) == ()
    assert compared_attributes(("kind", "colour"), classes, PAIRS, 256) == ("kind", "colour")


def drawn(count: int = 600):
    """Rows whose kind is told well and whose colour is guessed."""
    rng = np.random.default_rng(0)
    labels = {"kind": rng.integers(0, 6, count), "colour": rng.integers(0, 5, count)}
    logits = {
        "kind": 2.0 * np.eye(6)[labels["kind"]] + rng.normal(size=(count, 6)),
        "colour": rng.normal(size=(count, 5)) * 4,
    }
    labels["kind"][:20] = MISSING
    return logits, rng.random((count, 16)), labels


def fit(logits, features, labels, **changes):
    wanted = {
        "attributes": ("kind", "colour"), "temperatures": {"kind": 1.0, "colour": 1.0}, "size": 20, "appearance": 0.2,
    }  # fmt: skip
    groups = np.arange(len(features))
    return fit_embedding(logits, labels, groups, features[:100], **{**wanted, **changes})


def test_what_is_only_guessed_gets_the_smaller_share():
    logits, features, labels = drawn()
    plan = fit(logits, features, labels)
    kind, colour, appearance = plan.subspaces
    assert (kind.size, colour.size, appearance.size) == (6, 5, 9) and plan.size == 20
    assert appearance.share == pytest.approx(0.2) and appearance.name == "appearance"
    assert kind.share + colour.share == pytest.approx(0.8)
    assert kind.share > 2 * colour.share
    assert plan.components.shape == (16, 9) and plan.components.dtype == np.float32
    np.testing.assert_allclose(plan.components.T @ plan.components, np.eye(9), atol=1e-5)


def test_appearance_takes_what_is_left_and_may_be_left_out():
    logits, features, labels = drawn()
    assert [s.size for s in fit(logits, features, labels, size=256).subspaces] == [6, 5, 16]
    for changes in ({"appearance": 0.0}, {"size": 11}):
        plan = fit(logits, features, labels, **changes)
        assert plan.components is None and [s.name for s in plan.subspaces] == ["kind", "colour"]
        assert sum(s.share for s in plan.subspaces) == pytest.approx(1)
    (alone,) = fit(logits, features, labels, attributes=(), size=3).subspaces
    assert (alone.attribute, alone.size, alone.share) == (None, 3, 1.0)
    assert fit(logits, features, labels, attributes=(), size=features.shape[1]) is None


def test_few_rows_leave_shares_even():
    logits, features, labels = ({n: v[:8] for n, v in part.items()} if isinstance(part, dict) else part[:8]
                                for part in drawn())  # fmt: skip
    plan = fit(logits, features, labels, appearance=0.0)
    assert [s.share for s in plan.subspaces] == [0.5, 0.5]


def test_an_attribute_may_be_called_appearance():
    logits, features, labels = drawn()
    renamed = [{"appearance": part["kind"]} for part in (logits, labels)]
    plan = fit(renamed[0], features, renamed[1], attributes=("appearance",), temperatures={"appearance": 1.0})
    assert len({s.name for s in plan.subspaces}) == 2


def test_shadows_on_all_directions_keep_every_cosine():
    rng = np.random.default_rng(1)
    features = rng.random((50, 8)) * rng.random((50, 1)) * 9
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    directions = principal_directions(features, 8)
    np.testing.assert_allclose((unit @ directions) @ (unit @ directions).T, unit @ unit.T, atol=1e-6)
    # The first direction has the longest shadows of all.
    assert np.square(unit @ directions[:, 0]).sum() == pytest.approx(np.linalg.eigvalsh(unit.T @ unit)[-1])
