"""Fits a stacked head: a second head that sees what a trained network says of its training photos."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from fashion_jax.models.heads import StackedHead
from fashion_jax.progress import progress_bar
from fashion_jax.training.sharding import put_everywhere, replicated, to_host

# Found on Kaggle's small photos: experiments/2026-11-28-colour-features.
EPOCHS, BATCH, LEARNING_RATE = 15, 256, 2e-3
WEIGHT_DECAY, LABEL_SMOOTHING = 0.05, 0.1

Tree = dict[str, Any]


def fit_stacked_head(
    seen: Float32[np.ndarray, "rows views size"],
    labels: Int32[np.ndarray, " rows"],
    classes: int,
    *,
    seed: int,
    mesh: Mesh,
    label: str = "fitting a stacked head",
    progress: bool = True,
) -> tuple[Tree, Tree]:
    """Fits a head to labelled rows, of which each step sees one view.

    Cross-entropy with smoothed labels, AdamW, a learning rate that falls in a line to 0, dropout of inputs and of
    hidden values. Every device computes all of it, so that any number of devices find the same.

    Args:
        seen: what the head sees of each row in each view of it, such as a photo and its mirror image; at least one row.
        labels: in [0, classes).
        classes: of the attribute.
        seed: of the order, the first weights and the dropout.
        mesh: all devices.
        label: of the progress bar.
        progress: whether to show it.

    Returns:
        Parameters and batch statistics of a `StackedHead`, nested dictionaries of arrays on the host.
    """
    rows, views, size = seen.shape
    batch = min(BATCH, rows)
    per_epoch = rows // batch
    steps = EPOCHS * per_epoch
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(rows)[: per_epoch * batch] for _ in range(EPOCHS)])
    everywhere = replicated(mesh)
    graph, _, batch_stats = _split(nnx.eval_shape(lambda: StackedHead(size, classes, rngs=nnx.Rngs(seed))))
    batch_stats = {
        "norm": {
            "mean": seen.mean((0, 1), dtype=np.float64).astype(np.float32),
            "var": seen.var((0, 1), dtype=np.float64).astype(np.float32),
        }
    }
    optimizer = optax.adamw(
        optax.linear_schedule(LEARNING_RATE, 0.0, steps),
        weight_decay=WEIGHT_DECAY,
        mask=lambda params: jax.tree.map(lambda array: array.ndim > 1, params),
    )

    def begin() -> Tree:
        params = _split(StackedHead(size, classes, rngs=nnx.Rngs(seed)))[1]
        return {"params": params, "optimizer": optimizer.init(params["head"]), "step": jnp.zeros((), jnp.int32)}

    def step(state: Tree, batch_stats: Tree, seen: jax.Array, labels: jax.Array, order: jax.Array) -> Tree:
        chosen = order[state["step"]]
        view_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state["step"]))
        inputs = seen[chosen, jax.random.randint(view_key, chosen.shape, 0, views)]
        keys = jax.random.split(dropout_key, batch)

        def loss_of(head: Tree) -> jax.Array:
            model = nnx.merge(graph, nnx.State({**state["params"], "head": head}), nnx.State(batch_stats))
            logits = model.head(model.normalize(inputs), train=True, dropout_keys=keys)
            targets = optax.smooth_labels(jax.nn.one_hot(labels[chosen], classes), LABEL_SMOOTHING)
            return optax.softmax_cross_entropy(logits, targets).mean()

        head = state["params"]["head"]
        updates, moved = optimizer.update(jax.grad(loss_of)(head), state["optimizer"], head)
        params = {**state["params"], "head": optax.apply_updates(head, updates)}
        return {"params": params, "optimizer": moved, "step": state["step"] + 1}

    state = jax.jit(begin, out_shardings=everywhere)()
    run = jax.jit(step, in_shardings=everywhere, out_shardings=everywhere, donate_argnums=0)
    given = (
        jax.tree.map(lambda array: put_everywhere(array, mesh), batch_stats),
        *(put_everywhere(a, mesh) for a in (seen, labels, order.astype(np.int32).reshape(steps, batch))),
    )
    with progress_bar(steps, label, show=progress, unit="step") as bar:
        for _ in range(EPOCHS):
            for _ in range(per_epoch):
                state = run(state, *given)
            jax.block_until_ready(state["step"])
            bar.update(per_epoch)
    return to_host(state["params"]), batch_stats


def _split(head: StackedHead) -> tuple[nnx.GraphDef[StackedHead], Tree, Tree]:
    graph, params, batch_stats = nnx.split(head, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
