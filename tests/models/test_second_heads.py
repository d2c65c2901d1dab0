"""Stacked heads in a network: they have a say about their attribute, and about nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax, logsumexp, softmax

from fashion_jax.models.architecture import HISTOGRAM_SIZE
from fashion_jax.models.classifier import abstract_classifier, mean_energy, merge_network, split_network
from fashion_jax.models.heads import pool_logits
from small_models import BASE, images, model_of

CLASSES = {"kind": 3, "colour": 5, "colour of the sole": 4}
COLOURS = ["colour", "colour of the sole"]
PLAIN = {**BASE, "classes": CLASSES, "colour_heads": COLOURS}


@nnx.jit
def outputs_of(model, photos):
    return model(photos, train=False)


def stacked_model(**changes):
    """A network whose second heads are sure of something."""
    model = model_of({**PLAIN, "second_heads": COLOURS, **changes})
    for name in model.second_heads:
        output = model.second[name].head.output
        output.bias[...] = np.arange(len(output.bias[...]), dtype=np.float32)
    return model


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_pooled_probabilities_are_geometric_means_with_the_first_ones_logsumexp(weight):
    random = np.random.default_rng(0)
    first, second = 3 * random.normal(size=(2, 6, 4)).astype(np.float32)
    pooled = np.asarray(pool_logits(first, second, weight))
    means = softmax(first, -1) ** (1 - weight) * softmax(second, -1) ** weight
    np.testing.assert_allclose(softmax(pooled, -1), means / means.sum(-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(logsumexp(pooled, -1), logsumexp(first, -1), rtol=1e-5)


def test_only_their_attribute_hears_them():
    plain, stacked = model_of(PLAIN), stacked_model()
    for ours, theirs in zip(split_network(plain)[1:], split_network(stacked)[1:], strict=True):
        left = dict(theirs)
        assert left.pop("second").keys() == set(COLOURS)
        jax.tree.map(np.testing.assert_array_equal, {k: v for k, v in ours.items() if v}, left)
    before, after = outputs_of(plain, images(4)), outputs_of(stacked, images(4))
    assert before.second_inputs is None
    np.testing.assert_array_equal(before.features, after.features)
    np.testing.assert_array_equal(before.colour, after.colour)
    np.testing.assert_array_equal(before.logits["kind"], after.logits["kind"])
    np.testing.assert_allclose(mean_energy(before.logits), mean_energy(after.logits), rtol=1e-5)
    seen = np.asarray(after.second_inputs)
    np.testing.assert_array_equal(seen[:, -before.colour.shape[1] :], before.colour)
    assert seen.shape[1] == 3 + before.colour.shape[1] + HISTOGRAM_SIZE
    np.testing.assert_allclose(np.square(seen[:, 3 : 3 + HISTOGRAM_SIZE]).sum(1), 1, atol=1e-5)


# Heads that see no colour may have a second head that does.
@pytest.mark.parametrize("second_heads", [COLOURS, ["kind", "colour"]])
def test_second_heads_see_what_is_said_of_other_attributes_and_are_pooled(second_heads):
    plain, stacked = model_of(PLAIN), stacked_model(second_heads=second_heads)
    before, after = outputs_of(plain, images(4)), outputs_of(stacked, images(4))
    answers = log_softmax(before.logits["kind"], -1)
    np.testing.assert_allclose(np.asarray(after.second_inputs)[:, :3], answers, atol=1e-5)
    for name in second_heads:
        second = stacked.second[name](after.second_inputs)
        np.testing.assert_allclose(after.logits[name], pool_logits(before.logits[name], second, 0.5), atol=1e-5)
        assert np.abs(after.logits[name] - before.logits[name]).max() > 0.1


def test_training_does_not_hear_them():
    plain, stacked = (model(images(4), train=True) for model in (model_of(PLAIN), stacked_model()))
    assert stacked.second_inputs is None
    jax.tree.map(np.testing.assert_array_equal, plain.logits, stacked.logits)


def test_colours_alone_are_enough():
    arguments = {**PLAIN, "classes": {"colour": 5}, "colour_heads": ["colour"], "second_heads": ["colour"]}
    graph, *trees = abstract_classifier(arguments)
    outputs = jax.eval_shape(lambda *given: merge_network(graph, *given)(images(2), train=False), *trees)
    assert outputs.second_inputs.shape == (2, HISTOGRAM_SIZE + outputs.colour.shape[1])


def test_an_input_that_training_never_had_does_not_decide_alone():
    model = stacked_model()
    head = model.second["colour"]
    head.norm.var[...] = jnp.zeros_like(head.norm.var[...])
    usual = np.zeros((1, len(head.norm.mean[...])), np.float32)
    found = [np.asarray(head(usual + new)) for new in (0.1, 1.0, 1e6, -1e6)]
    np.testing.assert_array_equal(found[0], found[1])  # beyond ten deviations all are alike
    np.testing.assert_array_equal(found[0], found[2])
    assert np.isfinite(found).all()
