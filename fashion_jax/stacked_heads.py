"""What is added to a trained network before it is judged and packaged: stacked heads beside its colour heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float32, Int64

from fashion_jax.data.augment import normalize
from fashion_jax.data.loader import spread_rows
from fashion_jax.data.schema import MISSING
from fashion_jax.errors import UserError
from fashion_jax.models.classifier import abstract_classifier, merge_classifier
from fashion_jax.progress import progress_bar
from fashion_jax.serving.package import load_package
from fashion_jax.session import DeviceBatch, Session
from fashion_jax.training.sharding import batch_sharding, put_batch, put_everywhere, replicated, to_host
from fashion_jax.training.stacking import fit_stacked_head
from fashion_jax.training.state import TrainState

_MOST_BYTES = 2**30  # of what is seen of training photos, on the host and on each device; more are thinned out
_VIEWS = 2  # a photo and its mirror image


def fit_stacked_heads(session: Session, state: TrainState) -> tuple[Session, TrainState]:
    """Fits a second head to what the network says of training photos, beside each colour head.

    Every process takes part, and all find the same. The network itself, its embedding and its other heads stay as they
    are.

    Args:
        session: of training.
        state: whose judged weights are finished.

    Returns:
        A session to score with, and the finished network's state; what was given where the configuration asks for no
        stacking.
    """
    if not session.config.model.colour_stacking:
        return session, state
    finished = dataclasses.replace(session, finished=True)
    params, batch_stats = (dict(tree) for tree in state.judged)
    rows, seen = _observe(finished, params, batch_stats)
    params["stacked"], batch_stats["stacked"] = {}, {}
    for name in finished.arguments["stacked_heads"]:
        labels = session.prepared.labels[rows, session.columns[session.attributes.index(name)]]
        known = labels != MISSING
        fitted = fit_stacked_head(
            seen[known],
            labels[known],
            len(session.vocabularies[name]),
            seed=session.config.train.seed,
            mesh=session.mesh,
            label=f"fitting the second head of {name}",
            progress=session.progress,
        )
        for tree, found in zip((params, batch_stats), fitted, strict=True):
            tree["stacked"][name] = jax.tree.map(lambda array: put_everywhere(array, session.mesh), found)
    return finished, TrainState(state.step, params, batch_stats, None)


def restore_stacked_heads(session: Session, state: TrainState) -> tuple[Session, TrainState] | None:
    """Takes the stacked heads of the workdir's package, where it is of this very network: fitting takes a while.

    Returns:
        As `fit_stacked_heads`; None where there is no such package.
    """
    if not session.config.model.colour_stacking:
        return session, state
    try:
        package = load_package(session.workdir / "package")
    except UserError:
        return None
    finished = dataclasses.replace(session, finished=True)
    held = {"params": package.params, "batch_stats": package.batch_stats}
    own = traverse_util.flatten_dict(dict(zip(held, map(to_host, state.judged), strict=True)))
    packaged = traverse_util.flatten_dict(held)
    same = package.model == finished.arguments and all(np.array_equal(packaged[p], own[p]) for p in own)
    if not same:
        return None
    placed = jax.tree.map(lambda array: put_everywhere(array, session.mesh), held)
    return finished, TrainState(state.step, placed["params"], placed["batch_stats"], None)


def _observe(
    finished: Session, params: dict[str, Any], batch_stats: dict[str, Any]
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n views size"]]:
    """Returns training rows, and what stacked heads see of their photos and of the mirror images."""
    graph, *shapes = abstract_classifier(finished.arguments)
    size = jax.tree.leaves(shapes[1]["stacked"])[0].shape[0]
    data, mesh, dtype = finished.config.data, finished.mesh, jnp.dtype(finished.arguments["dtype"])

    def observe(params: Any, batch_stats: Any, batch: DeviceBatch) -> dict[str, jax.Array]:
        # Nothing of what is seen depends on the stacked heads, which are not there yet.
        absent = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree["stacked"]) for tree in shapes]
        parts = ({**tree, "stacked": none} for tree, none in zip((params, batch_stats), absent, strict=True))
        model = merge_classifier(graph, *parts)
        images = normalize(batch["image"], data.mean, data.std, dtype)
        seen = []
        for view in (images, images[:, :, ::-1]):
            stacking = model(view, train=False).stacking
            assert stacking is not None
            seen.append(stacking)
        return {"row": batch["row"], "valid": batch["valid"], "seen": jnp.stack(seen, 1)}

    everywhere = replicated(mesh)
    run = jax.jit(
        observe, in_shardings=(everywhere, everywhere, batch_sharding(mesh)), out_shardings=everywhere
    )  # fmt: skip
    rows = finished.prepared.indices("train")
    some = spread_rows(rows, max(1, _MOST_BYTES // (_VIEWS * size * 4)))
    batches, complete = finished.split_batches("train", None if len(some) == len(rows) else some)()
    seen, found, done = np.empty((len(some), _VIEWS, size), np.float32), np.empty(len(some), np.int64), 0
    with progress_bar(len(some), "asking the network of training photos", show=finished.progress, unit="photo") as bar:
        for batch in batches:
            said = jax.device_get(run(params, batch_stats, complete(put_batch(dict(batch), mesh))))
            valid = said["valid"]
            place = slice(done, done + int(valid.sum()))
            seen[place], found[place], done = said["seen"][valid], said["row"][valid], place.stop
            bar.update(place.stop - place.start)
    return found, seen
