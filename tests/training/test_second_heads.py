"""Fitting a second head: it learns what can be learnt, from labelled rows alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from fashion_jax.data.schema import MISSING
from fashion_jax.models.classifier import merge_network
from fashion_jax.models.heads import SecondHead
from fashion_jax.run.second_heads import empty_second_head, fit_second_head
from fashion_jax.training.losses import HeadLoss

CLASSES = 3
LOSS = HeadLoss(smoothing=0.1)


def drawn(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows in two views whose class shows in one of the inputs, of any scale; the last input says nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, rows).astype(np.int32)
    seen = random.normal(size=(rows, 2, 6)).astype(np.float32)
    seen[:, :, 0] += 4 * labels[:, None]
    seen[:, :, 1] = 1000 + 50 * seen[:, :, 1]
    seen[:, :, 5] = 7.0
    return seen, labels


def predict(fitted, seen: np.ndarray) -> np.ndarray:
    graph = nnx.graphdef(nnx.eval_shape(lambda: SecondHead(seen.shape[-1], CLASSES, rngs=nnx.Rngs(0))))
    return np.asarray(merge_network(graph, *fitted)(seen))


def test_it_learns_what_its_inputs_say_of_other_rows():
    fitted = fit_second_head(*drawn(600), CLASSES, LOSS, seed=0, progress=False)
    seen, labels = drawn(300, seed=1)
    for view in (0, 1):
        logits = predict(fitted, seen[:, view])
        assert logits.shape == (300, CLASSES) and logits.dtype == np.float32
        assert (logits.argmax(1) == labels).mean() > 0.9


def test_inputs_are_normalised_by_their_own_statistics():
    seen, labels = drawn(100)
    params, batch_stats = fit_second_head(seen, labels, CLASSES, LOSS, seed=0, progress=False)
    np.testing.assert_allclose(batch_stats["norm"]["mean"], seen.reshape(-1, 6).mean(0), rtol=1e-4)
    np.testing.assert_allclose(batch_stats["norm"]["var"], seen.reshape(-1, 6).var(0), rtol=1e-3, atol=1e-6)
    assert (params["norm"]["scale"] == 1).all() and (params["norm"]["bias"] == 0).all()
    assert np.isfinite(predict((params, batch_stats), seen[:, 0] + 1)).all()  # an input that never changed, changed


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_rows_without_a_label_teach_nothing(rows):
    seen, labels = drawn(rows)
    alone = fit_second_head(seen, labels, CLASSES, LOSS, seed=0, progress=False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(alone))
    more = np.concatenate([seen, seen])
    mixed = fit_second_head(more, np.append(labels, [MISSING] * rows), CLASSES, LOSS, seed=0, progress=False)
    for one, other in zip(*map(jax.tree.leaves, (alone, mixed)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)  # the statistics are of all rows, in another order


def test_the_attributes_own_loss_is_used():
    seen, labels = drawn(300)
    for number in range(CLASSES):
        weights = np.full(CLASSES, 0.01, np.float32)
        weights[number] = 100.0
        fitted = fit_second_head(seen, labels, CLASSES, HeadLoss(class_weights=weights), seed=0, progress=False)
        said = predict(fitted, seen[:, 0]).argmax(1)
        assert (said == number).mean() > (labels == number).mean() + 0.1


def test_as_many_zeros_are_the_shape_of_a_fit():
    fitted = fit_second_head(*drawn(5), CLASSES, LOSS, seed=0, progress=False)
    empty = empty_second_head(6, CLASSES)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), fitted) == jax.tree.map(lambda a: (a.shape, a.dtype), empty)


def test_the_seed_decides_and_every_view_counts():
    seen, labels = drawn(300)
    first, again, other = (
        fit_second_head(seen, labels, CLASSES, LOSS, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))
    # Where only one of the views shows the class, half of what is seen is of no use, and both are asked.
    seen[:, 1, 0] = seen[::-1, 1, 0]
    halved = fit_second_head(seen, labels, CLASSES, LOSS, seed=0, progress=False)
    right = [(predict(halved, seen[:, view]).argmax(1) == labels).mean() for view in (0, 1)]
    assert right[0] > right[1] + 0.2
    spread = [np.ptp(predict(f, seen[:, 0]), axis=1).mean() for f in (first, halved)]
    assert spread[1] < spread[0]
