"""Second heads: small networks that are fitted after training, beside the network's own heads.

They see the network's own logits and features, and the colours of the photo. A second head is kept where it lowers the
loss on validation rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util
from jax.experimental import multihost_utils
from jaxtyping import Float, Float32, Int, Int64

from fashion_jax.data.augment import normalize
from fashion_jax.data.loader import spread_rows
from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import fit_temperature
from fashion_jax.decision.decisions import scale
from fashion_jax.decision.fit import mean_loss
from fashion_jax.evaluation.evaluate import Evaluation
from fashion_jax.models.classifier import abstract_classifier, merge_network, split_network
from fashion_jax.models.heads import SecondHead
from fashion_jax.run.session import DeviceBatch, Session
from fashion_jax.serving.package import load_package
from fashion_jax.system.devices import first_process_does
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import progress_bar, say
from fashion_jax.training.losses import HeadLoss, head_cross_entropy
from fashion_jax.training.placement import batch_sharding, put_batch, put_everywhere, replicated, to_host
from fashion_jax.training.state import TrainState

TRIED = "second_heads_tried"  # a package's note: all second heads that were tried, also those that did not help
_MOST_BYTES = 2**30  # of the second heads' inputs, on the host and on a device; more training rows are thinned out
_LEAST_GAIN = 0.01  # share of the loss; every second head takes time in prediction
_WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))  # of a second head in the pool with the first
_VIEWS = 2  # a photo and its mirror image
# Found on Kaggle's small photos: experiments/2026-11-28-colour-features.
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 15, 256, 2e-3, 0.05
_ROWS_AT_ONCE = 4096  # whose deviations are held in double precision

Tree = dict[str, Any]


def fit_second_heads(session: Session, state: TrainState) -> tuple[Session, TrainState]:
    """Fits second heads to the network's outputs for training photos.

    Each second head is pooled with the first one. The weight in the pool is the one with the lowest loss on validation
    rows at the best temperature. A second head that lowers the loss by less than 1 % is left out. Without validation
    rows every weight is 0.5.

    Every process takes part, the first one fits, and all get the same. The network's own weights, and with them its
    features and its other heads, do not change.

    Returns:
        A session and a state to score with. They are the given ones where the configuration asks for no second heads,
        where no head sees colour features, or where no training row has such a label.
    """
    names = session.config.model.second_heads
    rows = _labelled_rows(session, names)
    labels = {name: session.prepared.labels[rows, session.column(name)] for name in names}
    labels = {name: given for name, given in labels.items() if (given != MISSING).any()}
    if not labels:
        return session, state
    complete = session.with_second_heads(tuple(labels))
    fitted = _fit(complete, state, rows, labels)
    weights = _choose_weights(session, state, complete, fitted)
    complete = session.with_second_heads(tuple(name for name in fitted if weights[name]))
    return complete, _with_heads(complete, state, fitted, weights)


def restore_second_heads(session: Session, state: TrainState) -> tuple[Session, TrainState] | None:
    """Takes the second heads from the workdir's package, because fitting them takes a while.

    Returns:
        As `fit_second_heads`. None where there is no package of exactly this network and these records, or where other
        second heads were tried for it.
    """
    folder, wanted = session.workdir / "package", session.config.model.second_heads
    if not wanted or not folder.is_dir():
        return None
    try:
        package = load_package(folder)
    except (UserError, OSError) as error:
        say(f"note: the saved model cannot be read, so second heads are fitted again: {error}", show=session.progress)
        return None
    if (package.extra.get(TRIED), package.extra.get("fingerprint")) != (list(wanted), session.prepared.fingerprint):
        return None
    names = tuple(package.model["second_heads"])
    complete = session.with_second_heads(names)
    trees = package.trees()
    own, packaged = (
        traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
        for params, batch_stats in (to_host(state.scored), trees)
    )
    if package.model != complete.arguments or not all(np.array_equal(packaged[path], own[path]) for path in own):
        return None
    fitted = {name: (trees[0]["second"][name], trees[1]["second"][name]) for name in names}
    return complete, _with_heads(complete, state, fitted)


def _fit(
    complete: Session, state: TrainState, rows: Int64[np.ndarray, " n"], labels: Mapping[str, Int[np.ndarray, " n"]]
) -> dict[str, tuple[Any, Any]]:
    """Returns attribute -> parameters and batch statistics of its second head, the same on every process."""
    seen = _observe(complete, state, rows)
    fitted = {name: empty_second_head(seen.shape[-1], len(complete.vocabularies[name])) for name in labels}

    def fit() -> None:
        for name, given in labels.items():
            fitted[name] = fit_second_head(
                seen,
                given,
                len(complete.vocabularies[name]),
                complete.head_losses[name],
                seed=complete.config.train.seed,
                label=f"fitting the second head of {name}",
                progress=complete.progress,
            )

    first_process_does("fitting second heads", fit)
    return dict(multihost_utils.broadcast_one_to_all(fitted))


def _labelled_rows(session: Session, names: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """Returns the training rows with one of these labels; evenly spread ones where they are too many for the memory."""
    rows = session.prepared.indices("train")
    if not names:
        return rows[:0]
    columns = np.array([session.column(name) for name in names], np.int64)
    labelled = rows[(session.prepared.labels[np.ix_(rows, columns)] != MISSING).any(1)]
    size = _size(session.with_second_heads(names))
    return spread_rows(labelled, max(1, _MOST_BYTES // (_VIEWS * size * 4)))


def _size(complete: Session) -> int:
    """Returns how many values a second head sees."""
    _, _, batch_stats = abstract_classifier(complete.arguments)
    return int(jax.tree.leaves(batch_stats["second"])[0].shape[0])


def _with_heads(
    complete: Session,
    state: TrainState,
    fitted: Mapping[str, tuple[Any, Any]],
    weights: Mapping[str, float] | None = None,
) -> TrainState:
    """Returns the scored weights with the session's second heads; `weights` None leaves the weights in the pool."""
    trees = [dict(tree) for tree in state.scored]
    for place, tree in enumerate(trees):
        heads = {name: fitted[name][place] for name in complete.second_heads}
        if place == 0 and weights is not None:
            heads = {name: {**head, "weight": np.full(1, weights[name], np.float32)} for name, head in heads.items()}
        if heads:
            tree["second"] = jax.tree.map(lambda array: put_everywhere(np.asarray(array), complete.mesh), heads)
    return TrainState(state.step, trees[0], trees[1], None)


def _choose_weights(
    session: Session, state: TrainState, complete: Session, fitted: Mapping[str, tuple[Any, Any]]
) -> dict[str, float]:
    """Returns attribute -> the weight of its second head with the lowest loss on validation rows."""
    if not len(session.prepared.indices("validation")):
        return dict.fromkeys(fitted, 0.5)
    without = session.evaluator("validation", keep_outputs=True)(state)
    alone = _with_heads(complete, state, fitted, dict.fromkeys(fitted, 1.0))
    only = complete.evaluator("validation", keep_outputs=True)(alone)
    chosen = {}
    for name in fitted:
        labels = session.prepared.labels[without.rows, session.column(name)]
        known = labels != MISSING
        first, second = (_log_probs(found, name)[known] for found in (without, only))
        if not known.any():
            chosen[name] = 0.0
            continue
        chosen[name], losses = choose_weight(first, second, labels[known])
        best = min(losses, key=lambda weight: losses[weight])
        say(
            f"second head of {name}: validation loss {losses[0.0]:.4f} without it, {losses[best]:.4f} with it (weight "
            f"{best:g}); it is {'kept' if chosen[name] else 'left out'}",
            show=session.progress,
        )
    return chosen


def choose_weight(
    first: Float[np.ndarray, "n classes"], second: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> tuple[float, dict[float, float]]:
    """Returns the weight of a second head, and the mean cross-entropy (nats) of each weight at its best temperature.

    Args:
        first: log probabilities.
        second: log probabilities.
        labels: in [0, classes).
    """
    losses = {w: _calibrated_loss((1 - w) * first + w * second, labels) for w in _WEIGHTS}
    best = min(_WEIGHTS, key=lambda w: (losses[w], w))
    return (best if losses[best] <= (1 - _LEAST_GAIN) * losses[0.0] else 0.0), losses


def _log_probs(found: Evaluation, name: str) -> Float[np.ndarray, "n classes"]:
    assert found.outputs is not None
    return scale(found.outputs.own_logits[name], 1.0)


def _calibrated_loss(log_probs: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    return mean_loss(scale(log_probs, fit_temperature(log_probs, labels)), labels)


def _observe(
    complete: Session, state: TrainState, rows: Int64[np.ndarray, " n"]
) -> Float32[np.ndarray, "n views size"]:
    """Returns the inputs of second heads for photos and their mirror images; on processes but the first, zeros."""
    graph, *shapes = abstract_classifier(complete.arguments)
    data, mesh, dtype = complete.config.data, complete.mesh, jnp.dtype(complete.arguments["dtype"])

    def observe(params: Any, batch_stats: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        # The inputs do not depend on the second heads, which are not fitted yet.
        absent = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree["second"]) for tree in shapes]
        parts = ({**tree, "second": none} for tree, none in zip((params, batch_stats), absent, strict=True))
        model = merge_network(graph, *parts)
        images = normalize(batch["image"], data.mean, data.std, dtype)
        seen = []
        for view in (images, images[:, :, ::-1]):
            inputs = model(view, train=False).second_inputs
            assert inputs is not None
            seen.append(inputs)
        return {"valid": batch["valid"], "seen": jnp.stack(seen, 1)}

    everywhere = replicated(mesh)
    run = jax.jit(
        observe, in_shardings=(everywhere, everywhere, batch_sharding(mesh)), out_shardings=everywhere
    )  # fmt: skip
    every = len(rows) == len(complete.prepared.indices("train"))
    batches, add_photos = complete.batches.split("train", None if every else rows)()
    seen, done = np.zeros((len(rows), _VIEWS, _size(complete)), np.float32), 0
    with progress_bar(
        len(rows), "reading the network's outputs for training photos", show=complete.progress, unit="photo"
    ) as bar:
        for batch in batches:
            outputs = run(*state.scored, add_photos(put_batch(dict(batch), mesh)))
            if jax.process_index() == 0:
                outputs = jax.device_get(outputs)
                part = outputs["seen"][outputs["valid"]]  # in the order of the rows
                seen[done : done + len(part)] = part
                done += len(part)
                bar.update(len(part))
    assert jax.process_index() or done == len(rows)
    return seen


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
        seed: of the order, the first weights and the dropout.

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
