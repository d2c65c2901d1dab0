"""The loss: optax's where every label is there, and a missing label is as if the row were not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fashion_jax.data.schema import MISSING
from fashion_jax.training.losses import HeadLoss, head_cross_entropy, multi_head_loss


def problem(seed: int = 0, rows: int = 32, classes: int = 7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    labels[::5] = MISSING
    return jnp.asarray(rng.normal(0, 3, (rows, classes)), jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_optax(smoothing):
    logits, labels = problem()
    labels = jnp.maximum(labels, 0)
    wanted = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 7), smoothing))
    assert np.allclose(head_cross_entropy(logits, labels, HeadLoss(smoothing)), wanted, atol=1e-5)


def test_each_class_may_have_its_own_smoothing():
    logits, labels = problem()
    labels = jnp.maximum(labels, 0)
    own = np.linspace(0, 0.3, 7, dtype=np.float32)
    found = head_cross_entropy(logits, labels, HeadLoss(own))
    for row in range(len(labels)):
        alone = head_cross_entropy(logits[row : row + 1], labels[row : row + 1], HeadLoss(float(own[labels[row]])))
        assert float(found[row]) == pytest.approx(float(alone[0]), rel=1e-5)


SMOOTHED = HeadLoss(0.1)


def count(labels):
    return jnp.sum(labels != MISSING).astype(jnp.float32)


def loss(logits, labels, counts=None, how=SMOOTHED):
    counts = count(labels) if counts is None else counts
    return multi_head_loss({"a": logits}, {"a": labels}, {"a": counts}, {"a": how})[0]


WEIGHTS, OFFSETS = np.linspace(0.5, 2, 7, dtype=np.float32), np.linspace(-3, 0, 7, dtype=np.float32)
EVERY_WAY = [
    HeadLoss(0.1),
    HeadLoss(class_weights=WEIGHTS),
    HeadLoss(0.1, logit_offsets=OFFSETS),
    HeadLoss(focal_gamma=2.0),
    HeadLoss(np.linspace(0, 0.3, 7, dtype=np.float32)),
    HeadLoss(0.1, similar=np.roll(np.eye(7, dtype=np.float32), 1, 1), softness=0.2),
    HeadLoss(0.1, 1.0, WEIGHTS, OFFSETS, focal_gamma=2.0),
    HeadLoss(0.1, logit_offsets=OFFSETS, spread=WEIGHTS / WEIGHTS.sum()),
]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_masked_is_subset(how):
    logits, labels = problem()
    known = np.asarray(labels) != MISSING
    assert np.allclose(loss(logits, labels, how=how), loss(logits[known], labels[known], how=how), rtol=1e-6)
    masked = jax.grad(loss)(logits, labels, how=how)
    assert np.allclose(masked[known], jax.grad(loss)(logits[known], labels[known], how=how), rtol=1e-5)
    assert not np.asarray(masked)[~known].any()


def test_each_way_is_its_formula():
    logits, labels = problem()
    labels = jnp.maximum(labels, 0)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    weighted = head_cross_entropy(logits, labels, HeadLoss(class_weights=WEIGHTS))
    assert np.allclose(weighted, plain * WEIGHTS[labels], rtol=1e-5)
    adjusted = head_cross_entropy(logits, labels, HeadLoss(logit_offsets=OFFSETS))
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits + OFFSETS[None], labels)
    assert np.allclose(adjusted, wanted, rtol=1e-5)
    focal = head_cross_entropy(logits, labels, HeadLoss(focal_gamma=1.5))
    assert np.allclose(focal, (1 - np.exp(-plain)) ** 1.5 * plain, rtol=1e-4, atol=1e-6)


def test_the_focal_loss_has_a_gradient_where_a_row_is_certain():
    logits, labels = jnp.array([[100.0, 0.0], [-100.0, 0.0]]), jnp.array([0, 0])
    gradient = jax.grad(lambda x: head_cross_entropy(x, labels, HeadLoss(focal_gamma=0.5)).sum())(logits)
    assert np.isfinite(gradient).all()
    assert float(gradient[1, 0]) == pytest.approx(-1, abs=1e-3)


def test_no_label_at_all_is_zero_and_finite():
    logits, labels = problem()
    none = jnp.full_like(labels, MISSING)
    assert float(loss(logits, none)) == 0
    assert not np.asarray(jax.grad(loss)(logits, none)).any()


def test_parts_add_up_to_the_whole():
    logits, labels = problem()
    parts = [loss(logits[i::4], labels[i::4], count(labels)) for i in range(4)]
    assert np.allclose(sum(parts), loss(logits, labels), rtol=1e-6)


def test_weights_and_heads_add_up():
    logits, labels = problem(0)
    others, marks = problem(1, classes=3)
    total, per_head = multi_head_loss(
        {"a": logits, "b": others},
        {"a": labels, "b": marks},
        {"a": count(labels), "b": count(marks)},
        {"a": HeadLoss(0.1, weight=2.0), "b": HeadLoss(weight=0.5)},
    )
    assert np.allclose(total, 2 * per_head["a"] + 0.5 * per_head["b"], rtol=1e-6)
    assert np.allclose(per_head["a"], loss(logits, labels), rtol=1e-6)


def test_soft_colours_are_a_mixture_of_targets():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 1, 2, MISSING, 1])
    similar = np.array([[0, 0.9, 0.1], [0.5, 0, 0.5], [0, 0, 1]], np.float32)
    how = HeadLoss(smoothing=0.1, similar=similar, softness=0.3)
    ours = np.asarray(head_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), how))
    target = 0.7 * np.eye(3)[labels] + 0.3 * similar[labels]
    target = 0.9 * target + 0.1 / 3
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = np.where(labels == MISSING, 0, -(target * log_probabilities).sum(1))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    plain = head_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), HeadLoss(similar=similar, softness=0.0))
    np.testing.assert_allclose(plain, head_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), HeadLoss()))
