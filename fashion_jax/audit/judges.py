"""Class probabilities for each row from linear classifiers that were not fitted on that row's label.

A network remembers the labels that it was trained on, wrong ones too, so its own probabilities find few of them. Here
the network only gives features of the photos. New linear classifiers are fitted on these features, fold by fold: each
row gets its probabilities from a classifier that saw neither the row nor its near-duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float32, Int32, Int64
from scipy.special import softmax

from fashion_jax.system.progress import progress_bar

Probabilities = list[Float32[np.ndarray, "n classes"]]

PENALTIES = (1e-4, 1e-3, 1e-2)  # L2; each attribute takes the one with the best likelihood on the first fold
_ITERATIONS = 60
_MOST_ROWS = 100_000  # A linear classifier does not get better from more rows.
_SMALLEST_SCALE = 1e-6  # A feature with a smaller standard deviation counts as constant.


def group_folds(groups: Int64[np.ndarray, " n"], num_folds: int) -> Int64[np.ndarray, " n"]:
    """Returns a fold number in [0, num_folds) for each row. Rows of one group share a fold; folds have similar sizes.

    Args:
        groups: group number of each row; near-duplicates share one.
        num_folds: at least 2, at most the number of groups.
    """
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled, fold = np.zeros(num_folds, np.int64), np.zeros(len(sizes), np.int64)
    for group in order:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    result: np.ndarray = fold[number]
    return result


def linear_probabilities(
    features: Float32[np.ndarray, "n features"],
    labels: Int32[np.ndarray, "n attributes"],
    num_classes: Sequence[int],
    folds: Int64[np.ndarray, " n"],
    *,
    progress: bool = False,
) -> Probabilities:
    """Fits multinomial logistic regressions on all folds except one and returns their probabilities for that one.

    Features are standardised. The classifiers of all attributes are fitted together by L-BFGS (Liu and Nocedal 1989).
    Each attribute takes the L2 penalty of `PENALTIES` with the best likelihood on the first fold.

    Args:
        features: of the rows' photos; a row with a value that is not finite gets the mean features.
        labels: class numbers, negative where missing.
        num_classes: of each attribute.
        folds: from `group_folds`.

    Returns:
        For each attribute, float32 (n, classes); each row sums to 1.
    """
    finite = np.isfinite(features).all(1)
    features = np.where(finite[:, None], features, features[finite].mean(0) if finite.any() else 0)
    scale = features.std(0)
    features = (features - features.mean(0)) / np.where(scale > _SMALLEST_SCALE, scale, 1)
    ends = np.cumsum(num_classes).tolist()
    numbers = np.unique(folds)
    # All fits have one shape, so that they compile once: rows without labels fill the smaller ones.
    size = min(_MOST_ROWS, max(int((folds != number).sum()) for number in numbers))
    logits = np.empty((len(labels), ends[-1]), np.float32)
    penalties = np.full(len(num_classes), PENALTIES[0], np.float32)
    with progress_bar(len(numbers) + len(PENALTIES) - 1, "fitting classifiers", show=progress, unit="fit") as bar:
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
                    bar.update()
                best = np.array([_cross_entropies(t, labels[mine], ends) for t in tried]).argmin(0)
                penalties = np.array(PENALTIES, np.float32)[best]
                # The classifiers of one attribute do not depend on the others, so the best ones are fitted already.
                parts = [np.split(tried[fit], ends[:-1], axis=1)[i] for i, fit in enumerate(best)]
                logits[mine] = np.concatenate(parts, axis=1)
            else:
                weights = np.asarray(_fit(x, y, penalties, tuple(num_classes), _ITERATIONS))
                logits[mine] = features[mine] @ weights[:-1] + weights[-1]
                bar.update()
    return [softmax(part, axis=1) for part in np.split(logits, ends[:-1], axis=1)]


@partial(jax.jit, static_argnums=(3, 4))
def _fit(
    features: jax.Array, labels: jax.Array, penalties: jax.Array, num_classes: tuple[int, ...], iterations: int
) -> jax.Array:
    """Returns weights (features + 1, all classes); the last row holds the biases."""
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


def _cross_entropies(logits: np.ndarray, labels: np.ndarray, ends: list[int]) -> list[float]:
    """Returns the mean negative log-likelihood of the known labels, for each attribute."""
    result = []
    for i, part in enumerate(np.split(logits, ends[:-1], axis=1)):
        known = np.flatnonzero(labels[:, i] >= 0)
        likely = softmax(part, axis=1)[known, labels[known, i]]
        result.append(float(-np.log(np.maximum(likely, 1e-12)).mean()) if len(known) else 0.0)
    return result
