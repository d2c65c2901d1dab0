"""Embeddings of subspaces: their cosine is the sum of what each compares, by its share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import scipy.special

from fashion_jax.decision.embedding import EmbeddingPlan, Subspace


def drawn(count: int = 7):
    rng = np.random.default_rng(3)
    logits = {"kind": rng.normal(size=(count, 4)) * 3, "colour": rng.normal(size=(count, 6)) * 3}
    features = rng.random((count, 10))
    components = np.linalg.qr(rng.normal(size=(10, 5)))[0]
    return logits, features, components.astype(np.float32)


def plan(components, shares=(0.5, 0.3, 0.2)) -> EmbeddingPlan:
    kind, colour, rest = shares
    return EmbeddingPlan(
        (
            Subspace("kind", "kind", 4, kind, 0.5),
            Subspace("colour", "colour", 6, colour, 2.0),
            Subspace("appearance", None, 5, rest),
        ),
        components,
    )


def embed(made: EmbeddingPlan, logits, features) -> np.ndarray:
    on_device = {n: jnp.asarray(v, jnp.float32) for n, v in logits.items()}
    return np.asarray(made.embed(on_device, jnp.asarray(features)))


def test_the_cosine_is_the_shared_sum_of_overlaps():
    logits, features, components = drawn()
    vectors = embed(plan(components), logits, features)
    assert vectors.shape == (7, 15) and vectors.dtype == np.float32
    shadows = features @ components
    shadows /= np.linalg.norm(shadows, axis=1, keepdims=True)
    wanted = 0.2 * shadows @ shadows.T
    for name, temperature, share in (("kind", 0.5, 0.5), ("colour", 2.0, 0.3)):
        probabilities = scipy.special.softmax(logits[name] / temperature, axis=1)
        overlap = np.sqrt(probabilities[:, None] * probabilities[None]).sum(-1)  # Bhattacharyya's coefficient
        wanted = wanted + share * overlap
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=2e-6)


def test_features_of_any_length_and_sure_heads_are_embedded():
    logits, features, components = drawn()
    made = plan(components)
    np.testing.assert_allclose(embed(made, logits, features * 1e4), embed(made, logits, features), atol=1e-6)
    sure = {name: values * 1e5 for name, values in logits.items()}
    vectors = embed(made, sure, np.zeros_like(features))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_sizes_are_told_in_order():
    made = plan(drawn()[2])
    assert made.size == 15
    assert list(made.sizes.items()) == [("kind", 4), ("colour", 6), ("appearance", 5)]
