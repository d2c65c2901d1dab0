"""Class probabilities of rows by judges that never saw their labels.

A network that was trained on a catalogue remembers its labels, wrong ones too, so its own probabilities find few of
them. Here the network only describes the photos (its embeddings), and the labels are judged by heads that are fitted
anew on other rows: never on a row itself, nor on its near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32, Int32, Int64

Probabilities = list[Float32[np.ndarray, "n classes"]]

PENALTIES = (1e-4, 1e-3, 1e-2)  # of which each attribute gets the one that the first fold likes best
_ITERATIONS = 60
_MOST_ROWS = 100_000  # that a linear head is fitted on; more do not make it better
_CHUNK = 4096  # rows of a block of similarities
_SMALLEST_SCALE = 1e-6  # of a feature, below which it counts as constant


def group_folds(groups: Int64[np.ndarray, " n"], num_folds: int, seed: int = 0) -> Int64[np.ndarray, " n"]:
    """Returns a fold in [0, num_folds) per row: rows of a group share it, and folds are of about one size.

    Args:
        groups: of near-duplicates.
        num_folds: at least 2; not more than there are groups, or some folds are empty.
        seed: of the order among groups of equal size.
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, fold = np.zeros(num_folds, np.int64), np.zeros(len(sizes), np.int64)
    for group in order:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    result: np.ndarray = fold[number]
    return result


def linear_probabilities(
    embeddings: Float32[np.ndarray, "n features"],
    labels: Int32[np.ndarray, "n attributes"],
    num_classes: Sequence[int],
    folds: Int64[np.ndarray, " n"],
    *,
    done: Callable[[], Any] = lambda: None,
) -> Probabilities:
    """Multinomial logistic regressions on embeddings, fitted on all folds but the row's own.

    Features are standardised; the heads of a fold are fitted at once, by L-BFGS (Liu and Nocedal 1989), with an L2
    penalty that each attribute chooses among `PENALTIES` by the likelihood of the first fold's labels.

    Args:
        embeddings: finite.
        labels: class numbers, negative where missing.
        num_classes: per attribute.
        folds: from `group_folds`.
        done: called after each fit; there are `num_fits(number of folds)` of them.

    Returns:
        Per attribute, float32 (n, classes); each row sums to 1.
    """
    scale = embeddings.std(0)
    features = (embeddings - embeddings.mean(0)) / np.where(scale > _SMALLEST_SCALE, scale, 1)
    ends = np.cumsum(num_classes).tolist()
    numbers = np.unique(folds)
    # All fits have one shape, so that they compile once: rows of no label fill up.
    size = min(_MOST_ROWS, max(int((folds != number).sum()) for number in numbers))
    logits = np.empty((len(labels), ends[-1]), np.float32)
    penalties = np.full(len(num_classes), PENALTIES[0], np.float32)
    for place, number in enumerate(numbers.tolist()):
        mine, others = np.flatnonzero(folds == number), np.flatnonzero(folds != number)
        if len(others) > size:
            others = np.sort(np.random.default_rng(number).choice(others, size, replace=False))
        x = np.zeros((size, features.shape[1]), np.float32)
        y = np.full((size, labels.shape[1]), -1, np.int32)
        x[: len(others)], y[: len(others)] = features[others], labels[others]
        if place == 0:
            tried = []
            for penalty in PENALTIES:
                weights = np.asarray(_fit(x, y, np.full_like(penalties, penalty), tuple(num_classes), _ITERATIONS))
                tried.append(features[mine] @ weights[:-1] + weights[-1])
                done()
            best = np.array([_cross_entropies(t, labels[mine], ends) for t in tried]).argmin(0)
            penalties = np.array(PENALTIES, np.float32)[best]
            # The heads of an attribute do not depend on those of the others, so the best of each is there already.
            parts = [np.split(tried[fit], ends[:-1], axis=1)[i] for i, fit in enumerate(best)]
            logits[mine] = np.concatenate(parts, axis=1)
        else:
            weights = np.asarray(_fit(x, y, penalties, tuple(num_classes), _ITERATIONS))
            logits[mine] = features[mine] @ weights[:-1] + weights[-1]
            done()
    return [_softmax(part) for part in np.split(logits, ends[:-1], axis=1)]


def num_fits(num_folds: int) -> int:
    """Returns how often `linear_probabilities` fits."""
    return num_folds + len(PENALTIES) - 1


def neighbour_probabilities(
    embeddings: Float32[np.ndarray, "n features"],
    labels: Int32[np.ndarray, "n attributes"],
    num_classes: Sequence[int],
    groups: Int64[np.ndarray, " n"],
    *,
    num_neighbours: int = 30,
    done: Callable[[], Any] = lambda: None,
) -> Probabilities:
    """Shares of the classes among the nearest rows of other groups, by cosine; one vote is spread over all classes.

    The work grows as n squared.

    Args:
        embeddings: finite.
        labels: class numbers, negative where missing.
        num_classes: per attribute.
        groups: of near-duplicates; a row's own is left out.
        num_neighbours: that are asked.
        done: called after each block of 4,096 rows.
    """
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(lengths > 0, lengths, 1)
    k = min(num_neighbours, max(len(unit) - 1, 1))
    results = [np.empty((len(unit), count), np.float32) for count in num_classes]
    for start in range(0, len(unit), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(unit)))
        similar = unit[rows] @ unit.T
        similar[groups[rows][:, None] == groups[None]] = -np.inf
        nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        usable = np.isfinite(np.take_along_axis(similar, nearest, 1))
        for i, count in enumerate(num_classes):
            votes = np.full((len(rows), count), 1 / count, np.float32)
            found = np.where(usable, labels[nearest, i], -1)
            here = np.broadcast_to(np.arange(len(rows))[:, None], found.shape)
            np.add.at(votes, (here[found >= 0], found[found >= 0]), 1)
            results[i][rows] = votes / votes.sum(1, keepdims=True)
        done()
    return results


@partial(jax.jit, static_argnums=(3, 4))
def _fit(
    features: jax.Array, labels: jax.Array, penalties: jax.Array, num_classes: tuple[int, ...], iterations: int
) -> jax.Array:
    """Returns weights (features + 1, all classes), the last row the biases."""
    ends = np.cumsum(num_classes)
    columns = np.repeat(np.arange(len(num_classes)), num_classes)
    known = jnp.maximum((labels >= 0).sum(0), 1)

    def loss(weights: jax.Array) -> jax.Array:
        logits = features @ weights[:-1] + weights[-1][None]
        total = 0.5 * (penalties[columns][None] * weights[:-1] ** 2).sum()
        for i, part in enumerate(jnp.split(logits, ends[:-1], axis=1)):
            y = labels[:, i]
            likely = jnp.take_along_axis(jax.nn.log_softmax(part), jnp.maximum(y, 0)[:, None], 1)[:, 0]
            total -= jnp.where(y >= 0, likely, 0).sum() / known[i]
        return total

    optimizer = optax.lbfgs()
    gradient = optax.value_and_grad_from_state(loss)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        value, slope = gradient(weights, state=state)
        change, state = optimizer.update(slope, state, weights, value=value, grad=slope, value_fn=loss)
        return (optax.apply_updates(weights, change), state), None

    start = jnp.zeros((features.shape[1] + 1, int(ends[-1])), jnp.float32)
    (weights, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=iterations)
    return weights


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def _cross_entropies(logits: np.ndarray, labels: np.ndarray, ends: list[int]) -> list[float]:
    """Returns the mean negative log-likelihood per attribute of the labels that are known."""
    result = []
    for i, part in enumerate(np.split(logits, ends[:-1], axis=1)):
        known = np.flatnonzero(labels[:, i] >= 0)
        likely = _softmax(part)[known, labels[known, i]]
        result.append(float(-np.log(np.maximum(likely, 1e-12)).mean()) if len(known) else 0.0)
    return result
