"""The network's shapes, state and randomness."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from fashion_jax.models.architecture import DEPTHS, num_features
from fashion_jax.models.classifier import abstract_classifier, make_classifier, merge_network, split_network
from fashion_jax.models.heads import _drop
from fashion_jax.models.resnet import BatchNorm, GeneralizedMean, resolve_stem
from small_models import BASE, images, model_of


def shapes(arguments, height: int, width: int):
    return nnx.eval_shape(lambda: make_classifier(arguments, 0)(jnp.zeros((2, height, width, 3)), train=False))


# Parameters of the published networks without their classifier (torchvision).
@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(10, 4_905_792), (18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_sizes_are_the_published_ones(depth, parameters):
    arguments = {**BASE, "depth": depth, "width": 64, "stem": "imagenet"}
    _, params, _ = abstract_classifier(arguments)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["backbone"])) == parameters
    outputs = shapes(arguments, 224, 224)
    assert outputs.features.shape == (2, num_features(depth, 64)) == (2, 2048 if depth >= 50 else 512)
    assert {n: v.shape for n, v in outputs.logits.items()} == {"kind": (2, 3), "colour": (2, 5)}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("stem", ["small", "imagenet", "deep"])
def test_all_variants_take_odd_sizes(depth, stem):
    arguments = {**BASE, "depth": depth, "stem": stem}
    assert shapes(arguments, 77, 61).features.shape == (2, num_features(depth, 4))


@pytest.mark.parametrize(("size", "stem"), [((80, 60), "small"), ((96, 96), "small"), ((97, 20), "imagenet")])
def test_the_stem_follows_the_photo(size, stem):
    assert resolve_stem("auto", *size) == stem
    assert resolve_stem("deep", *size) == "deep"


def test_state_is_in_float32():
    _, *trees = abstract_classifier({**BASE, "dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {np.dtype("float32")}


def test_weights_start_as_pytorchs_do():
    _, params, _ = split_network(model_of({**BASE, "depth": 18, "width": 16}))
    flat = traverse_util.flatten_dict(params["backbone"])
    kernels = [np.asarray(v) for path, v in flat.items() if path[-2:] == ("conv", "kernel")]
    assert len(kernels) == 20
    for kernel in kernels:  # uniform within 1 / sqrt(fan in)
        bound = np.prod(kernel.shape[:3]) ** -0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert all((np.asarray(v) == 1).all() for path, v in flat.items() if path[-1] == "scale")


def test_training_moves_the_statistics_and_evaluation_does_not():
    model = model_of(BASE)
    before = jax.device_get(split_network(model)[2])
    whole, alone = (model(photos, train=False).logits["kind"] for photos in (images(), images()[:1]))
    np.testing.assert_allclose(whole[:1], alone, atol=1e-5)  # a row does not depend on the others
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(split_network(model)[2]))
    model(images(), train=True)
    after = split_network(model)[2]["backbone"]["stem"][0]["norm"]
    convolved = np.asarray(model.backbone.stem[0].conv(images()))
    np.testing.assert_allclose(after["mean"], 0.1 * convolved.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-4)


def test_stochastic_depth_is_a_function_of_the_rows_key():
    model = model_of({**BASE, "drop_path": 0.5})
    keys, order = jax.random.split(jax.random.key(0), 4), jnp.array([2, 0, 3, 1])

    def logits(rows, row_keys):
        return model(rows, train=True, dropout_keys=row_keys).logits["kind"]

    first = logits(images(), keys)
    np.testing.assert_allclose(first[order], logits(images()[order], keys[order]), atol=1e-5)
    assert not np.allclose(first, logits(images(), keys[::-1]))


def test_dropout_keeps_the_expectation():
    kept = _drop(jnp.ones((500, 40)), jax.random.split(jax.random.key(0), 500), 0.25)
    assert np.allclose(np.unique(np.asarray(kept)), [0, 4 / 3])
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


def test_bfloat16_is_close_to_float32():
    full, half = (model_of({**BASE, "dtype": dtype})(images(), train=False) for dtype in ("float32", "bfloat16"))
    assert half.features.dtype == half.logits["kind"].dtype == jnp.float32
    assert float(jnp.abs(full.features - half.features).max()) < 0.03 * float(jnp.abs(full.features).max())


@pytest.mark.parametrize("graph", ["true", "false"])
def test_both_ways_of_nnx(graph):
    # Shapes are enough: the two ways differ in how modules are taken apart, which tracing does.
    code = f"""
import jax, jax.numpy as jnp
from fashion_jax.models.classifier import *
graph, *trees = abstract_classifier({BASE!r})
keys = jax.random.split(jax.random.key(0), 2)
f = lambda p, s: merge_network(graph, p, s)(jnp.ones((2, 16, 12, 3)), train=True, dropout_keys=keys)
assert jax.eval_shape(f, *trees).logits["kind"].shape == (2, 3)
"""
    env = {**os.environ, "NNX_GRAPH_MODE": graph, "NNX_GRAPH_UPDATES": graph}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_attributes_may_be_called_as_methods_are():
    names = {name: 2 for name in ("items", "keys", "get", "train", "eval", "update", "__len__")}
    arguments = {**BASE, "classes": names}
    assert shapes(arguments, 20, 16).logits.keys() == names.keys()
    graph, params, batch_stats = abstract_classifier(arguments)
    assert params["heads"].keys() == names.keys()
    assert nnx.eval_shape(lambda: merge_network(graph, params, batch_stats)).attributes == tuple(names)


def test_the_generalised_mean_lies_between_average_and_maximum():
    gem, x = GeneralizedMean(), jnp.asarray(np.random.default_rng(0).uniform(0, 3, (2, 5, 4, 6)), jnp.float32)
    x = x.at[1, ..., 0].set(0.0)
    by_hand = np.mean(np.maximum(np.asarray(x, np.float64), 1e-6) ** 3, (1, 2)) ** (1 / 3)
    np.testing.assert_allclose(gem(x), by_hand, rtol=1e-5)
    gem.power[...] = jnp.ones((1,))
    np.testing.assert_allclose(gem(x), x.mean((1, 2)), rtol=1e-5, atol=1e-5)
    gem.power[...] = jnp.full((1,), 10.0)
    assert (np.asarray(gem(x)) > np.asarray(x.mean((1, 2)))).all()
    gradient = jax.grad(lambda x: jnp.sum(gem(x)))(x.at[0].set(1e4))
    assert np.isfinite(gradient).all()


def test_skipped_blocks_leave_the_mean_and_inference_alone():
    model, plain = (model_of({**BASE, "depth": 18, "drop_path": share}) for share in (0.5, 0.0))
    inferred = model(images(), train=False, dropout_keys=jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(inferred.features, plain(images(), train=False).features)
    with pytest.raises(ValueError, match="needs drop_keys"):
        model(images(), train=True)
    keys = jax.random.split(jax.random.key(0), 20_000)
    assert model.backbone._branch_scale(0, keys) is None
    for block in (3, 7):
        scale = np.asarray(model.backbone._branch_scale(block, keys))
        assert np.mean(scale == 0) == pytest.approx(0.5 * block / 7, abs=0.02)
        assert np.mean(scale) == pytest.approx(1, abs=0.03)


def test_each_group_of_batch_norm_is_a_batch():
    x = jax.random.normal(jax.random.key(0), (12, 5, 4, 3)) * 2 + jnp.arange(12.0)[:, None, None, None]

    def outputs(photos, groups: int):
        norm = BatchNorm(3)
        norm.groups = groups
        y = norm(photos, train=True)
        return np.asarray(y), np.asarray(norm.mean[...]), np.asarray(norm.var[...])

    y, mean, var = outputs(x, 3)
    alone = [outputs(x[start : start + 4], 1) for start in (0, 4, 8)]
    np.testing.assert_allclose(y, np.concatenate([one[0] for one in alone]), atol=1e-5)
    np.testing.assert_allclose(mean, np.mean([one[1] for one in alone], 0), atol=1e-5)
    np.testing.assert_allclose(var, np.mean([one[2] for one in alone], 0), atol=1e-5)
    assert not np.allclose(y, outputs(x, 1)[0], atol=0.1)
