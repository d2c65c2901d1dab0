"""Schedules and optimisers: ends, peaks, what decays, what is clipped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fashion_jax.config.fields import OptimizerConfig
from fashion_jax.training.optimizer import make_optimizer, make_schedule


def schedule(total: int = 100, **changes):
    config = OptimizerConfig(**{"learning_rate": 0.5, "warmup": "10 percent", **changes})
    return make_schedule(config, total_steps=total, num_examples=1000, batch_size=10)


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.0), ("linear", 0.0), ("constant", 0.5)])
def test_warm_up_peak_and_end(kind, end):
    rate = schedule(schedule=kind)
    found = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert found == pytest.approx([0, 0.25, 0.5, (0.5 + end) / 2, end], abs=0.01)
    assert found[0] == 0 and found[4] == pytest.approx(end, abs=1e-6)


@pytest.mark.parametrize(("warmup", "steps"), [("0 steps", 0), ("7 steps", 7), ("0.2 epochs", 20), ("50 examples", 5)])
def test_units_of_the_warm_up(warmup, steps):
    rate = schedule(warmup=warmup)
    assert float(rate(steps)) == pytest.approx(0.5)
    assert steps == 0 or float(rate(steps - 1)) < 0.5
    assert np.isfinite(float(schedule(total=3, warmup="50 steps")(2)))  # longer than the run


PARAMS = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3), "scale": jnp.ones(3)}


def update(config: OptimizerConfig, gradient: float):
    optimizer = make_optimizer(config, lambda step: 0.1)
    gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return updates


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_decay_is_on_kernels_alone(name):
    updates = update(OptimizerConfig(name=name, weight_decay=0.1), 0.0)
    assert (np.asarray(updates["kernel"]) < 0).all()
    assert not np.asarray(updates["bias"]).any()
    assert not np.asarray(updates["scale"]).any()
    assert not any(np.asarray(u).any() for u in update(OptimizerConfig(name=name, weight_decay=0.0), 0.0).values())


def test_first_steps_are_the_formulas():
    updates = update(OptimizerConfig(weight_decay=0.01), 2.0)
    # Of AdamW: the first bias-corrected ratio of moments is the gradient's sign; decay adds 0.01 of the parameter.
    assert np.allclose(updates["kernel"], -0.1 * (1 + 0.01), rtol=1e-5)
    assert np.allclose(updates["bias"], -0.1, rtol=1e-5)
    nesterov = update(OptimizerConfig(name="sgd", weight_decay=0.0), 2.0)
    assert np.allclose(nesterov["bias"], -0.1 * (2.0 + 0.9 * 2.0), rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    config = OptimizerConfig(name="sgd", weight_decay=0.0, clip_norm=1.0)
    norm = np.sqrt(sum(float(jnp.sum(u**2)) for u in update(config, 100.0).values()))
    assert norm == pytest.approx(0.1 * 1.9, rel=1e-5)  # the gradient of norm 1, with Nesterov momentum of 0.9
    assert np.allclose(update(config, 1e-3)["bias"], -1.9e-4)
