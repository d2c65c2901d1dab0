"""Metric losses are their papers' formulas, see labelled rows alone, and are the same on any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fashion_jax.config.fields import METRIC_LOSSES
from fashion_jax.data.schema import MISSING
from fashion_jax.system.errors import UserError
from fashion_jax.training.metric_losses import metric_loss
from stepping import mesh_of, run, session_on

TEMPERATURE = 0.2


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def drawn(rows: int = 12, classes: int = 4):
    rng = np.random.default_rng(2)
    return unit(rng.normal(size=(rows, 6))), rng.normal(size=(classes, 6)), rng.integers(0, classes - 1, rows)


def loss(kind, vectors, proxies, labels, **options):
    arrays = jnp.asarray(vectors, jnp.float32), jnp.asarray(proxies, jnp.float32), jnp.asarray(labels)
    return metric_loss(kind, *arrays, temperature=TEMPERATURE, **options)


def as_written(kind, vectors, proxies, labels) -> float:
    """The formulas of the papers, term by term."""
    proxies, rows = unit(proxies), range(len(labels))
    if kind == "normalised_softmax":
        shares = np.exp(vectors @ proxies.T / TEMPERATURE)
        return float(np.mean([-np.log(shares[i, labels[i]] / shares[i].sum()) for i in rows]))
    if kind == "supervised_contrastive":
        each = []
        for i in rows:
            others = [a for a in rows if a != i]
            partners = [p for p in others if labels[p] == labels[i]]
            whole = sum(np.exp(vectors[i] @ vectors[a] / TEMPERATURE) for a in others)
            terms = [-np.log(np.exp(vectors[i] @ vectors[p] / TEMPERATURE) / whole) for p in partners]
            if partners:
                each.append(np.mean(terms))
        return float(np.mean(each))
    cosines, there = vectors @ proxies.T, sorted(set(labels))
    pull = [np.log1p(sum(np.exp(-32 * (cosines[i, c] - 0.1)) for i in rows if labels[i] == c)) for c in there]
    push = [
        np.log1p(sum(np.exp(32 * (cosines[i, c] + 0.1)) for i in rows if labels[i] != c)) for c in range(len(proxies))
    ]
    return float(sum(pull) / len(there) + sum(push) / len(proxies))


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_formulas_are_the_papers(kind):
    vectors, proxies, labels = drawn()
    assert float(loss(kind, vectors, proxies, labels)) == pytest.approx(
        as_written(kind, vectors, proxies, labels), 1e-4
    )


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_rows_that_do_not_count_are_as_if_they_were_not(kind):
    vectors, proxies, labels = drawn()
    kept = np.arange(len(labels)) % 3 > 0
    subset = loss(kind, vectors[kept], proxies, labels[kept])
    masked = loss(kind, vectors, proxies, np.where(kept, labels, MISSING))
    uncounted = loss(kind, vectors, proxies, labels, counted=jnp.asarray(kept))
    assert float(masked) == pytest.approx(float(subset), rel=1e-5) == float(uncounted)


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_no_row_costs_nothing_and_gradients_are_finite(kind):
    vectors, proxies, labels = drawn()
    nothing = np.full_like(labels, MISSING)
    for given in (nothing, labels, np.arange(len(labels)) % 4, np.where(np.arange(len(labels)) < 1, labels, MISSING)):
        value, gradients = jax.value_and_grad(
            lambda v, p, given=given: metric_loss(kind, v, p, jnp.asarray(given), temperature=TEMPERATURE), (0, 1)
        )(jnp.asarray(vectors, jnp.float32), jnp.asarray(proxies, jnp.float32))
        assert all(bool(jnp.isfinite(g).all()) for g in (value, *gradients))
    assert float(loss(kind, vectors, proxies, nothing)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_a_batch_on_eight_devices_has_the_same_loss_and_gradient(kind):
    vectors, proxies, labels = drawn(rows=16)
    mesh = mesh_of(8)
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays = [jnp.asarray(vectors, jnp.float32), jnp.asarray(proxies, jnp.float32), jnp.asarray(labels)]
    run = jax.jit(jax.value_and_grad(lambda v, p, y: metric_loss(kind, v, p, y, temperature=TEMPERATURE), (0, 1)))
    shared = run(*(jax.device_put(a, where) for a, where in zip(arrays, (rows, everywhere, rows), strict=True)))
    for a, b in zip(jax.tree.leaves(run(*arrays)), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_one_device_and_eight_learn_the_same(tiny_config, prepared, tmp_path):
    # Rows of all devices are compared with each other in this one.
    config = tiny_config(model__metric_heads={"kind": 8, "colour": 4}, loss__metric="supervised_contrastive")
    one, eight = (run(session_on(config, prepared, tmp_path, devices), 3)[1] for devices in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert a["metric_loss/kind"] > 0
        for name in ("loss", "metric_loss/kind", "metric_loss/colour", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4 if name == "gradient_norm" else 1e-5)


def test_the_loss_is_the_weighted_sum(tiny_config, prepared, tmp_path):
    config = tiny_config(model__metric_heads={"kind": 8}, loss__metric_weight=0.25)
    _, (first,), _ = run(session_on(config, prepared, tmp_path, 1), 1)
    heads = sum(value for name, value in first.items() if name.startswith("loss/"))
    assert first["loss"] == pytest.approx(heads + 0.25 * first["metric_loss/kind"], rel=1e-5)


def test_mixed_photos_are_not_placed(tiny_config, prepared, tmp_path):
    def first_loss(**mix) -> float:
        # Without the gradient of the backbone, which takes long to compile, the loss is the same.
        config = tiny_config(model__metric_heads={"kind": 8}, optimizer__freeze=("backbone",))
        for name, value in mix.items():
            setattr(config.train.mix, name, value)
        _, (first,), _ = run(session_on(config, prepared, tmp_path, 1), 1)
        return first["metric_loss/kind"]

    assert first_loss(mixup_alpha=0.4, probability=1.0) == 0
    some, every = first_loss(mixup_alpha=0.4, probability=0.5), first_loss()
    assert 0 < some != every
    assert first_loss(mixup_alpha=0.4, probability=1e-9) == pytest.approx(every, rel=1e-6)


def test_only_what_is_trained_is_placed(tiny_config, prepared, tmp_path):
    config = tiny_config(model__metric_heads={"kind": 8}, data__attributes=("colour",))
    with pytest.raises(UserError, match="metric_heads names 'kind', which is not trained"):
        session_on(config, prepared, tmp_path, 1)
