"""Fits a second head: a second head that sees what a trained network says of its training photos."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float32, Int

from fashion_jax.data.schema import MISSING
from fashion_jax.models.classifier import merge_network, split_network
from fashion_jax.models.heads import SecondHead
from fashion_jax.system.progress import progress_bar
from fashion_jax.training.losses import HeadLoss, head_cross_entropy

# Found on Kaggle's small photos: experiments/2026-11-28-colour-features.
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 15, 256, 2e-3, 0.05
_ROWS_AT_ONCE = 4096  # whose deviations are held in double precision

Tree = dict[str, Any]


def fit_second_head(
    seen: Float32[np.ndarray, "rows views size"],
    labels: Int[np.ndarray, " rows"],
    classes: int,
    loss: HeadLoss,
    *,
    seed: int,
    label: str = "fitting a second head",
    progress: bool = True,
) -> tuple[Tree, Tree]:
    """Fits a head to labelled rows, of which each step sees one view, on one device.

    AdamW, a learning rate that falls in a line to 0, dropout of inputs and of hidden values.

    Args:
        seen: what the head sees of each row in each view of it, such as a photo and its mirror image.
        labels: in [0, classes), or MISSING; at least one is there.
        classes: of the attribute.
        loss: how it is computed.
        seed: of the order, the first weights and the dropout.
        label: of the progress bar.
        progress: whether to show it.

    Returns:
        Parameters and batch statistics of a `SecondHead`, nested dictionaries of arrays on the host.
    """
    _, views, size = seen.shape
    rows = np.flatnonzero(labels != MISSING)
    batch = min(BATCH, len(rows))
    per_epoch = len(rows) // batch
    steps = EPOCHS * per_epoch
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(rows)[: per_epoch * batch] for _ in range(EPOCHS)])
    graph, _, _ = split_network(nnx.eval_shape(lambda: SecondHead(size, classes, rngs=nnx.Rngs(seed))))
    batch_stats = {"norm": _statistics(seen)}
    optimizer = optax.adamw(
        optax.linear_schedule(LEARNING_RATE, 0.0, steps),
        weight_decay=WEIGHT_DECAY,
        mask=lambda params: jax.tree.map(lambda array: array.ndim > 1, params),
    )

    def begin() -> Tree:
        params = split_network(SecondHead(size, classes, rngs=nnx.Rngs(seed)))[1]
        return {"params": params, "optimizer": optimizer.init(params["head"]), "step": jnp.zeros((), jnp.int32)}

    def step(state: Tree, batch_stats: Tree, seen: jax.Array, labels: jax.Array, order: jax.Array) -> Tree:
        chosen = order[state["step"]]
        view_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state["step"]))
        inputs = seen[chosen, jax.random.randint(view_key, chosen.shape, 0, views)]
        keys = jax.random.split(dropout_key, batch)

        def loss_of(head: Tree) -> jax.Array:
            model = merge_network(graph, {**state["params"], "head": head}, batch_stats)
            logits = model.head(model.normalize(inputs), train=True, dropout_keys=keys)
            return head_cross_entropy(logits, labels[chosen], loss).mean()

        head = state["params"]["head"]
        updates, moved = optimizer.update(jax.grad(loss_of)(head), state["optimizer"], head)
        params = {**state["params"], "head": optax.apply_updates(head, updates)}
        return {"params": params, "optimizer": moved, "step": state["step"] + 1}

    state, run = jax.jit(begin)(), jax.jit(step, donate_argnums=0)
    given = jax.device_put((batch_stats, seen, labels.astype(np.int32), order.astype(np.int32).reshape(steps, batch)))
    with progress_bar(steps, label, show=progress, unit="step") as bar:
        for _ in range(EPOCHS):
            for _ in range(per_epoch):
                state = run(state, *given)
            jax.block_until_ready(state["step"])
            bar.update(per_epoch)
    return jax.device_get(state["params"]), batch_stats


def empty_second_head(size: int, classes: int) -> tuple[Tree, Tree]:
    """Returns what `fit_second_head` returns, of zeros."""
    _, *trees = split_network(nnx.eval_shape(lambda: SecondHead(size, classes, rngs=nnx.Rngs(0))))
    params, batch_stats = (jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree) for tree in trees)
    return params, batch_stats


def _statistics(seen: Float32[np.ndarray, "rows views size"]) -> dict[str, np.ndarray]:
    mean = seen.mean((0, 1), dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(seen), _ROWS_AT_ONCE):
        squares += np.square(seen[start : start + _ROWS_AT_ONCE] - mean).sum((0, 1))
    variance = squares / (seen.shape[0] * seen.shape[1])
    return {"mean": mean.astype(np.float32), "var": variance.astype(np.float32)}
