"""Convolutions as matrix products are convolutions: values and both gradients, at every shape that networks have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from fashion_jax.models import resnet
from fashion_jax.models.classifier import merge_network, split_network
from fashion_jax.models.convolution import convolve, multiply
from small_models import BASE, images, model_of
from stepping import mesh_of

SHAPES = [
    (8, 6, 3, 1), (7, 5, 3, 1), (8, 6, 3, 2), (7, 5, 3, 2), (7, 6, 1, 2), (8, 5, 1, 1), (11, 9, 7, 2), (11, 9, 7, 1),
    (1, 1, 3, 1), (1, 1, 3, 2), (2, 1, 3, 2),
]  # fmt: skip


def drawn(height: int, width: int, side: int, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, height, width, 5)), rng.normal(size=(side, side, 5, 3))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def reference(x, kernel, stride: int):
    layout, pad = ("NHWC", "HWIO", "NHWC"), kernel.shape[0] // 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout)


@pytest.mark.parametrize(("height", "width", "side", "stride"), SHAPES)
def test_values_and_gradients_are_a_convolutions(height, width, side, stride):
    x, kernel = drawn(height, width, side)

    @jax.jit
    def both(x, kernel):
        wanted, wanted_gradients = jax.vjp(lambda x, k: reference(x, k, stride), x, kernel)
        found, gradients = jax.vjp(lambda x, k: multiply(x, k, stride), x, kernel)
        weights = jnp.cos(jnp.arange(wanted.size, dtype=jnp.float32)).reshape(wanted.shape)
        return (wanted, *wanted_gradients(weights)), (found, *gradients(weights))

    for wanted, found in zip(*both(x, kernel), strict=True):
        assert wanted.shape == found.shape
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-5)


def test_bfloat16_is_rounded_once():
    x, kernel = drawn(9, 8, 3, jnp.bfloat16)
    found = jax.jit(lambda x, k: multiply(x, k, 1))(x, kernel)
    assert found.dtype == jnp.bfloat16
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_nothing_is_sent_between_devices_that_share_a_batch():
    rows, everywhere = (NamedSharding(mesh_of(4), PartitionSpec(*axes)) for axes in (("data",), ()))
    x, kernel = drawn(8, 6, 3, jnp.bfloat16)
    run = jax.jit(lambda x, k: multiply(multiply(x, k, 2)[..., [0, 1, 2, 0, 1]], k, 1),
                  in_shardings=(rows, everywhere), out_shardings=rows)  # fmt: skip
    text = run.lower(jax.device_put(x, rows), jax.device_put(kernel, everywhere)).compile().as_text()
    assert not any(word in text for word in ("all-gather", "collective-permute", "all-to-all", "all-reduce"))


# In training, batch norm of the deep network's last few pixels makes gradients of tens of thousands of rounding errors.
@pytest.mark.parametrize(("depth", "train"), [(18, True), (50, False)])
def test_a_network_of_products_is_the_network(depth, train, monkeypatch):
    graph, params, batch_stats = split_network(model_of({**BASE, "depth": depth, "stem": "resnet_d"}))

    def gradients():
        def loss(params):
            outputs = merge_network(graph, params, batch_stats)(images(), train=train)
            return sum(jnp.sum(jnp.sin(v)) for v in outputs.logits.values()) + jnp.sum(outputs.features)

        return jax.jit(jax.value_and_grad(loss))(params)

    plain = gradients()
    monkeypatch.setattr(resnet, "convolve", multiply)
    for wanted, found in zip(jax.tree.leaves(plain), jax.tree.leaves(gradients()), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * float(jnp.abs(wanted).max()) + 1e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "multiplied"),
    [("cpu", jnp.bfloat16, True), ("cpu", jnp.float32, False), ("tpu", jnp.bfloat16, False)],
)
def test_only_bfloat16_on_cpus_is_multiplied(platform, dtype, multiplied):
    step = jax.jit(jax.grad(lambda x, k: convolve(x, k, 1).astype(jnp.float32).sum(), (0, 1)))
    text = step.trace(*drawn(9, 8, 3, dtype)).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.dot_general" in text) == multiplied
    assert ("stablehlo.convolution" in text) != multiplied
