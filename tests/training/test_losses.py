"""The loss: optax's where every label is there, and a missing label is as if the row were not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from fashion_jax.config.fields import LossConfig
from fashion_jax.data.schema import MISSING
from fashion_jax.training import losses
from fashion_jax.training.losses import HeadLoss, balanced_weights, head_cross_entropy, make_head_loss
from fashion_jax.training.mixing import label_shares


def problem(seed: int = 0, rows: int = 32, classes: int = 7, missing: bool = True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    if missing:
        labels[::5] = MISSING
    return jnp.asarray(rng.normal(0, 3, (rows, classes)), jnp.float32), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_optax(smoothing):
    logits, labels = problem(missing=False)
    wanted = optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 7), smoothing))
    assert np.allclose(head_cross_entropy(logits, labels, HeadLoss(smoothing)), wanted, atol=1e-5)


WEIGHTS = np.linspace(0.5, 2, 7, dtype=np.float32)
OWN_SMOOTHING = np.linspace(0, 0.3, 7, dtype=np.float32)
EVERY_WAY = [
    HeadLoss(0.1), HeadLoss(class_weights=WEIGHTS), HeadLoss(focal_gamma=2.0), HeadLoss(OWN_SMOOTHING),
    HeadLoss(0.1, 1.0, WEIGHTS, focal_gamma=2.0), HeadLoss(0.1, spread=WEIGHTS / WEIGHTS.sum()),
]  # fmt: skip


def count(labels):
    return jnp.sum(labels != MISSING).astype(jnp.float32)


def loss(logits, labels, counts=None, how=EVERY_WAY[0]):
    counts = count(labels) if counts is None else counts
    return losses.multi_head_loss({"a": logits}, {"a": labels}, {"a": counts}, {"a": how})[0]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_masked_is_subset(how):
    logits, labels = problem()
    known = np.asarray(labels) != MISSING
    assert np.allclose(loss(logits, labels, how=how), loss(logits[known], labels[known], how=how), rtol=1e-6)
    masked = jax.grad(loss)(logits, labels, how=how)
    assert np.allclose(masked[known], jax.grad(loss)(logits[known], labels[known], how=how), rtol=1e-5)
    assert not np.asarray(masked)[~known].any()


def test_each_way_is_its_formula():
    logits, labels = problem(missing=False)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    weighted = head_cross_entropy(logits, labels, HeadLoss(class_weights=WEIGHTS))
    assert np.allclose(weighted, plain * WEIGHTS[labels], rtol=1e-5)
    focal = head_cross_entropy(logits, labels, HeadLoss(focal_gamma=1.5))
    assert np.allclose(focal, (1 - np.exp(-plain)) ** 1.5 * plain, rtol=1e-4, atol=1e-6)
    found = head_cross_entropy(logits, labels, HeadLoss(OWN_SMOOTHING))
    for row, own in enumerate(OWN_SMOOTHING[labels]):
        alone = head_cross_entropy(logits[row : row + 1], labels[row : row + 1], HeadLoss(float(own)))
        assert float(found[row]) == pytest.approx(float(alone[0]), rel=1e-5)


def test_the_focal_loss_has_a_gradient_where_a_row_is_certain():
    logits, labels = jnp.array([[100.0, 0.0], [-100.0, 0.0]]), jnp.array([0, 0])
    gradient = jax.grad(lambda x: head_cross_entropy(x, labels, HeadLoss(focal_gamma=0.5)).sum())(logits)
    assert np.isfinite(gradient).all()
    assert float(gradient[1, 0]) == pytest.approx(-1, abs=1e-3)


def test_no_label_at_all_is_zero_and_parts_add_up_to_the_whole():
    logits, labels = problem()
    none = jnp.full_like(labels, MISSING)
    assert float(loss(logits, none)) == 0
    assert not np.asarray(jax.grad(loss)(logits, none)).any()
    parts = [loss(logits[i::4], labels[i::4], count(labels)) for i in range(4)]
    assert np.allclose(sum(parts), loss(logits, labels), rtol=1e-6)


def test_weights_and_heads_add_up():
    (logits, labels), (others, marks) = problem(0), problem(1, classes=3)
    total, per_head = losses.multi_head_loss(
        {"a": logits, "b": others}, {"a": labels, "b": marks}, {"a": count(labels), "b": count(marks)},
        {"a": HeadLoss(0.1, weight=2.0), "b": HeadLoss(weight=0.5)},
    )  # fmt: skip
    assert np.allclose(total, 2 * per_head["a"] + 0.5 * per_head["b"], rtol=1e-6)
    assert np.allclose(per_head["a"], loss(logits, labels), rtol=1e-6)


def test_the_loss_of_tags_is_the_focal_loss():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, 4)).astype(np.float32), rng.integers(0, 2, (50, 4)).astype(np.int8)
    labels[::5] = MISSING
    p = scipy.special.expit(logits.astype(np.float64))
    p = np.where(labels == 1, p, 1 - p)
    rows = -4 * ((1 - p) ** 2 * np.log(p)).sum(1)
    found = losses.tag_losses(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, np.where(labels[:, 0] < 0, 0, rows), rtol=1e-4, atol=1e-6)
    extreme = jnp.array([[200.0, -200.0, 200.0, -200.0]])
    marks = jnp.array([[1, 1, 0, 0]], jnp.int8)
    assert np.isfinite(jax.grad(lambda x: losses.tag_losses(x, marks).sum())(extreme)).all()
    even = losses.tag_losses(jnp.zeros((1, 3)), jnp.array([[1, 0, 1]], jnp.int8))
    assert float(even[0]) == pytest.approx(3 * np.log(2), rel=1e-6)  # that of cross-entropy
    np.testing.assert_allclose(losses.log_odds(np.array([0, 5, 10]), 10), np.log([0.5 / 10.5, 1, 21]), rtol=1e-6)


def test_parts_of_tags_add_up_and_mixed_labels_are_mixed_linearly():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    labels = rng.integers(0, 2, (8, 3)).astype(np.int8)
    labels[2] = MISSING
    share = np.array([1, 0.9, 0.8, 0.7, 0.6, 0.5, 1, 0.75], np.float32)
    target = label_shares(jnp.asarray(labels), jnp.asarray(share), parts=1, mixable=True)
    counts = {"t": jnp.sum(target.own) + jnp.sum(target.other)}
    how = {"t": HeadLoss()}
    mixed, _ = losses.multi_head_loss({"t": logits}, {"t": jnp.asarray(labels)}, counts, how, {"t": target})
    total = weight = 0.0
    for row in range(8):
        for other, part in ((row, share[row]), (row ^ 1, 1 - share[row])):
            if labels[other, 0] >= 0:
                given = jnp.asarray(labels[other : other + 1])
                total += part * float(losses.tag_losses(logits[row : row + 1], given)[0])
                weight += part
    assert float(mixed) == pytest.approx(total / weight, rel=1e-5)
    colours = label_shares(jnp.asarray(labels), jnp.asarray(share), parts=1, mixable=False)
    assert colours.own.tolist() == [1, 0, 0, 0, 0, 0, 1, 0]


COUNTS = np.array([900, 90, 10, 0])


def test_every_method_makes_its_loss():
    def of(method):
        return make_head_loss("a", COUNTS, LossConfig(imbalance=method, label_smoothing=0.1))

    assert of("none").class_weights is None and of("none").smoothing == 0.1
    assert of("focal").focal_gamma == 2
    weights = of("balanced").class_weights
    assert np.allclose(weights[:3] * COUNTS[:3], weights[0] * COUNTS[0]) and weights[3] == 0
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)  # the scale of the loss is kept
    assert np.allclose(of("prior").first_bias, losses.log_frequencies(COUNTS))
    shares = np.exp(losses.log_frequencies(COUNTS))
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    assert shares[0] / shares[1] == pytest.approx(10, rel=1e-4)


def test_common_classes_are_smoothed_more():
    smoothing = losses.label_aware_smoothing(np.array([1, 51, 101]), 0.3, 0.1)
    assert smoothing == pytest.approx([0.1, 0.1 + 0.2 * np.sin(np.pi / 4), 0.3])
    assert losses.label_aware_smoothing(np.array([5, 5]), 0.3, 0.1) == pytest.approx([0.1, 0.1])
    loss = make_head_loss("a", COUNTS, LossConfig(label_smoothing=0.2, rare_label_smoothing=0.0))
    assert loss.smoothing[0] == pytest.approx(0.2) and loss.smoothing[3] == 0
    own = LossConfig(label_smoothing=0.2, head_label_smoothing={"a": 0.4}, rare_label_smoothing=0.0)
    assert make_head_loss("a", COUNTS, own).smoothing[0] == pytest.approx(0.4)


def test_prior_smooths_towards_the_frequencies():
    """A network that fits its smoothed targets gives every wrong class its frequency, so no rare class is lifted."""
    how = make_head_loss("a", np.array([30_000, 3_000, 20, 1, 0]), LossConfig(imbalance="prior", label_smoothing=0.1))
    labels = jnp.arange(5)
    bias = jnp.asarray(how.first_bias)[None]
    gradient = jax.grad(lambda logits: head_cross_entropy(logits, labels, how).sum())(jnp.repeat(bias, 5, 0))
    targets = np.asarray(jax.nn.softmax(bias) - gradient)
    assert targets.sum(1) == pytest.approx(1, abs=1e-5)
    fitted = np.log(np.maximum(targets, 1e-12)) - how.first_bias
    assert fitted.argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_a_run_counts_the_classes_of_its_training_rows(session_of, prepared):
    found = session_of(1, loss__imbalance="balanced").head_losses["kind"]
    labels = prepared.labels[prepared.indices("train"), prepared.attributes.index("kind")]
    assert np.allclose(found.class_weights, balanced_weights(np.bincount(labels[labels >= 0], minlength=3)))
