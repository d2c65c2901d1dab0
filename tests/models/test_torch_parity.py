"""Ours computes what PyTorch computes, with the same weights: see tests/golden."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import golden_weights

from drawn_weights import from_torch_layout, to_torch_layout
from fashion_jax.models.classifier import abstract_classifier, merge_network, split_network

GOLDEN = Path(__file__).parent.parent / "golden"


def drawn_state(arguments: dict) -> dict[str, np.ndarray]:
    """Draws the weights by the names and shapes of torch's layout."""
    _, params, batch_stats = abstract_classifier(arguments)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), (params, batch_stats))
    return {n: golden_weights.draw_weight(n, a.shape) for n, a in to_torch_layout(*zeros, arguments).items()}


@pytest.mark.parametrize("case", golden_weights.CASES)
def test_forward_and_gradients_are_torchs(case):
    arguments, height, width = golden_weights.CASES[case]
    golden = np.load(GOLDEN / f"{case}.npz")
    graph, _, _ = abstract_classifier(arguments)
    params, batch_stats = from_torch_layout(drawn_state(arguments), arguments)
    images = jnp.asarray(golden_weights.draw_input(height, width))

    outputs = jax.jit(lambda p, s: merge_network(graph, p, s)(images, train=False))(params, batch_stats)
    for name, wanted in (("embedding", outputs.features), *outputs.logits.items()):
        expected = golden[f"evaluation/{name}"]
        # Sums of hundreds of terms that end near 0 keep their terms' rounding, which differs between processors.
        np.testing.assert_allclose(wanted, expected, rtol=1e-4, atol=1e-4 + 2e-6 * np.abs(expected).max())

    def loss_of(p):
        model = merge_network(graph, p, batch_stats)
        out = model(images, train=True)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        losses = [entropy(v, jnp.arange(len(v)) % v.shape[1]).mean() for v in out.logits.values()]
        return sum(losses), (out, split_network(model)[2])

    (loss, (out, moved)), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    # Batch norm in training sees 6 rows of few pixels at the end of the network, which magnifies rounding.
    for name, got in (("embedding", out.features), *out.logits.items()):
        np.testing.assert_allclose(got, golden[f"train/{name}"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(loss, golden["train/loss"], rtol=1e-4)
    named = to_torch_layout(jax.device_get(gradients), jax.device_get(moved), arguments)
    for key in golden.files:
        if key.startswith("gradient_norm/"):
            np.testing.assert_allclose(np.linalg.norm(named[key.split("/")[1]]), golden[key], rtol=5e-3)
    np.testing.assert_allclose(named["bn1.running_mean"], golden["running_mean/bn1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["small", "imagenet", "deep", "resnet_d"])
def test_names_are_one_to_one_and_conversion_goes_both_ways(stem):
    arguments = {**golden_weights.CASES["resnet50_small"][0], "stem": stem}
    state = drawn_state(arguments)
    trees = from_torch_layout(state, arguments)
    assert len(state) == len(jax.tree.leaves(trees))
    jax.tree.map(np.testing.assert_array_equal, to_torch_layout(*trees, arguments), state)
