"""Arguments of small networks, and photos for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fashion_jax.models.classifier import abstract_classifier, make_classifier, merge_network, split_network

BASE = {
    "classes": {"kind": 3, "colour": 5}, "depth": 10, "width": 4, "stem": "small",
    "dtype": "float32",
}  # fmt: skip


def images(count: int = 4, height: int = 20, width: int = 16) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, height, width, 3)), jnp.float32)


def model_of(arguments):
    """Makes a model in one compilation, where one per array would take a minute."""
    graph, _, _ = abstract_classifier(arguments)
    params, batch_stats = jax.jit(lambda: split_network(make_classifier(arguments, 0))[1:])()
    return merge_network(graph, params, batch_stats)
