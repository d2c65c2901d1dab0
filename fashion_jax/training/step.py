"""The training step: pure, jitted over the mesh, its state donated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from fashion_jax.config.fields import AugmentConfig, MixConfig
from fashion_jax.data.augment import augment, example_keys, normalize
from fashion_jax.data.loader import TAGS
from fashion_jax.data.schema import MISSING
from fashion_jax.models.classifier import Classifier, merge_network
from fashion_jax.system.devices import DATA_AXIS
from fashion_jax.training.losses import HeadLoss, is_labelled, multi_head_loss
from fashion_jax.training.mixing import label_shares, mix_photos, mixing_shares
from fashion_jax.training.placement import batch_sharding, replicated, sum_over
from fashion_jax.training.state import TrainState

Batch = Mapping[str, Any]  # arrays, and pytrees of them, whose first axis is the batch; and the step
Scalars = dict[str, jax.Array]


@struct.dataclass
class Metrics:
    """Scalars of a step as one vector, so that all of them are read from the device at once."""

    values: Float[Array, " n"]  # float32
    names: tuple[str, ...] = struct.field(pytree_node=False)

    @classmethod
    def of(cls, scalars: Scalars) -> Metrics:
        """Returns the scalars in the order of their names."""
        names = tuple(sorted(scalars))
        return cls(jnp.stack([scalars[name].astype(jnp.float32) for name in names]), names)

    def read(self) -> dict[str, float]:
        """Returns name -> value. It waits for the step."""
        return dict(zip(self.names, map(float, jax.device_get(self.values)), strict=True))


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network, its heads, and the photos that it takes; training and evaluation use the same."""

    graph: nnx.GraphDef[Classifier]  # the model's static part
    attributes: tuple[str, ...]  # the heads
    columns: tuple[int, ...]  # where each head's label stands in `batch["label"]`
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]  # of RGB in [0, 1]
    dtype: str  # of the images that enter the network
    tags: tuple[str, ...] = ()  # the heads of multi-valued attributes

    def normalize(self, images: jax.Array) -> Float[Array, "batch height width 3"]:
        """Returns photos in [0, 255] as the network takes them."""
        return normalize(images, self.mean, self.std, jnp.dtype(self.dtype))

    def labels(self, batch: Batch) -> dict[str, Int[Array, " batch"]]:
        """Returns attribute -> labels of a batch, MISSING where there is none."""
        return {name: batch["label"][:, column] for name, column in zip(self.attributes, self.columns, strict=True)}

    def tag_labels(self, batch: Batch) -> dict[str, Int[Array, "batch classes"]]:
        """Returns multi-valued attribute -> labels of a batch, MISSING in all classes where there is none."""
        return {name: batch[f"{TAGS}{name}"] for name in self.tags}


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step trains."""

    losses: Mapping[str, HeadLoss]  # how each head's loss is computed
    augmentation: AugmentConfig  # random changes of the photos
    mix: MixConfig  # mixup and CutMix
    never_mixed: tuple[str, ...]  # attributes that mixed photos do not train
    # of the photos' sides, at most 1: small photos train faster, early in a run (progressive resizing; Howard 2018; Tan
    # and Le, ICML 2021). Each scale is a step of its own, because XLA's CPU backend computes what is in a branch twelve
    # times slower.
    scale: float
    # parts into which the batch is cut to save memory. Gradients add up to those of the whole batch; batch norm sees
    # one part at a time.
    accumulation_steps: int
    # whether each group of batch norm is on one device. Then every device computes its own rows, and gradients,
    # statistics and metrics are summed over the devices once, at the end.
    alone: bool
    average_decay: float  # of the moving average of parameters and batch statistics; 0 for none
    seed: int  # of augmentation and dropout
    # parameters, step -> the same values, through which no gradient flows to what is frozen at that step
    stop_gradients: Callable[[dict[str, Any], jax.Array], dict[str, Any]]


class Counts(NamedTuple):
    """What sums over the rows of a whole batch are divided by, per head."""

    of_loss: Mapping[str, jax.Array]  # labelled rows, or what their labels count together where photos are mixed
    labelled: Mapping[str, jax.Array]  # rows that hold the label


def make_train_step(
    network: NetworkSpec, optimizer: optax.GradientTransformation, mesh: Mesh, options: StepOptions
) -> TrainStep:
    """Returns (state, batch) -> (state, metrics).

    The metrics are `loss`, `loss/<attribute>`, `accuracy/<attribute>` (over labelled rows; for a
    multi-valued attribute, the share of rows whose classes are all right at the threshold 0.5), `gradient_norm`, and
    `finite`, which is 1 unless the loss, the gradient or the new state is not a number.

    Args:
        mesh: batches come sharded over it; state and metrics are copies on every device.
    """
    mix, scale, parts = options.mix, options.scale, options.accumulation_steps

    def loss_of(
        params: dict[str, Any], batch_stats: dict[str, Any], part: Batch, counts: Counts, key: Any
    ) -> tuple[jax.Array, tuple[dict[str, Any], Scalars]]:
        model = merge_network(network.graph, options.stop_gradients(params, part["step"]), batch_stats)
        augment_key, dropout_key = jax.random.split(key)
        keys = example_keys(augment_key, part["step"], part["row"])
        # Photos are shrunk before they are interpolated and mixed: after it, shrinking took a third of the step on
        # CPUs.
        photos = _scale(part["image"].astype(jnp.float32), *_shrunk(part["image"])) if scale < 1 else part["image"]
        photos = augment(photos, keys, options.augmentation)
        if mix.active:
            photos = mix_photos(photos, _mixing_shares(part, key)[1])
        images = network.normalize(photos)
        outputs = model(images, train=True, dropout_keys=example_keys(dropout_key, part["step"], part["row"]))
        labels, logits = {**network.labels(part), **network.tag_labels(part)}, {**outputs.logits, **outputs.tags}
        targets = {name: part[f"target/{name}"] for name in labels} if mix.active else None
        total, per_head = multi_head_loss(logits, labels, counts.of_loss, options.losses, targets)
        metrics = {"loss": total}
        for name, loss in per_head.items():
            if name in network.tags:
                hits = jnp.all((logits[name] > 0) == (labels[name] == 1), -1) & is_labelled(labels[name])
            else:
                hits = (jnp.argmax(logits[name], -1) == labels[name]) & (labels[name] != MISSING)
            metrics[f"loss/{name}"] = loss
            metrics[f"accuracy/{name}"] = jnp.sum(hits, dtype=jnp.float32) / jnp.maximum(counts.labelled[name], 1.0)
        return total, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), metrics)

    def _mixing_shares(part: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
        keys = example_keys(jax.random.fold_in(key, 2), part["step"], part["row"])  # 0 and 1 are loss_of's
        return mixing_shares(keys, *_shrunk(part["image"]), mix)

    def _shrunk(images: jax.Array) -> tuple[int, int]:
        return round(images.shape[1] * scale), round(images.shape[2] * scale)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def gradients_of(
        params: dict[str, Any], batch_stats: dict[str, Any], batch: Batch, step: jax.Array, axis: str | None
    ) -> tuple[dict[str, Any], dict[str, Any], Scalars]:
        """Returns gradients, new batch statistics and metrics of all rows.

        Args:
            axis: of the mesh, over which every device has its own rows; None where the rows are those of all devices.
        """
        key: Key[Array, ""] = jax.random.key(options.seed)
        before, batch = batch_stats, {**batch, "step": step}
        labels = {**network.labels(batch), **network.tag_labels(batch)}
        labelled = {name: jnp.sum(is_labelled(given), dtype=jnp.float32) for name, given in labels.items()}
        sums = labelled
        if mix.active:
            share, _ = _mixing_shares(batch, key)
            targets = {
                name: label_shares(given, share, parts=parts, mixable=name not in options.never_mixed)
                for name, given in labels.items()
            }
            sums = {name: jnp.sum(target.own) + jnp.sum(target.other) for name, target in targets.items()}
            batch = {**batch, **{f"target/{name}": target for name, target in targets.items()}}
        counts = Counts(sums, labelled)
        if axis:
            flat, restore = ravel_pytree(counts)
            counts = restore(jax.lax.psum(flat, axis))

        def one_part(carry: tuple[Any, Any, Any], part: Batch) -> tuple[tuple[Any, Any, Any], None]:
            gradients, batch_stats, metrics = carry
            (_, (batch_stats, now)), added = gradient(params, batch_stats, {**part, "step": step}, counts, key)
            return (jax.tree.map(jnp.add, gradients, added), batch_stats, jax.tree.map(jnp.add, metrics, now)), None

        if parts == 1:
            (_, (batch_stats, metrics)), gradients = gradient(params, batch_stats, batch, counts, key)
        else:
            rows = {name: array for name, array in batch.items() if name != "step"}
            cut = jax.tree.map(lambda array: _cut(array, parts, None if axis else mesh), rows)
            empty = jax.tree.map(jnp.zeros_like, params)
            names = ["loss", *(f"{kind}/{name}" for kind in ("loss", "accuracy") for name in labels)]
            zero = {name: jnp.zeros((), jnp.float32) for name in names}
            (gradients, batch_stats, metrics), _ = jax.lax.scan(one_part, (empty, batch_stats, zero), cut)
        if axis:
            moved = jax.tree.map(jnp.subtract, batch_stats, before)
            gradients, metrics, moved = sum_over((gradients, metrics, moved), axis)
            # Only changes are summed, so that frozen statistics stay the same to the bit.
            batch_stats = jax.tree.map(lambda old, total: old + total / mesh.size, before, moved)
        return gradients, batch_stats, metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if options.alone:
            everywhere, rows = PartitionSpec(), batch_sharding(mesh).spec
            compute = jax.shard_map(
                partial(gradients_of, axis=DATA_AXIS),
                mesh=mesh,
                in_specs=(everywhere, everywhere, rows, everywhere),
                out_specs=everywhere,
                check_vma=False,  # otherwise JAX sums each gradient over the devices in bfloat16, one by one
            )
        else:
            compute = partial(gradients_of, axis=None)
        gradients, batch_stats, metrics = compute(state.params, state.batch_stats, dict(batch), state.step)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        norm = optax.tree.norm(gradients)
        metrics["gradient_norm"] = norm
        params = optax.apply_updates(state.params, updates)
        # What the step leaves behind counts too: a checkpoint of it must not be ruined.
        sizes = [metrics["loss"], norm, optax.tree.norm(params), optax.tree.norm(batch_stats)]
        metrics["finite"] = jnp.all(jnp.isfinite(jnp.stack(sizes))).astype(jnp.float32)
        average, decay = state.average, options.average_decay
        if decay:
            average = _move_average(average, {"params": params, "batch_stats": batch_stats}, state.step, decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average), Metrics.of(metrics)

    everywhere = replicated(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(everywhere, batch_sharding(mesh)), out_shardings=(everywhere, everywhere)
    )


def _move_average(average: Any, now: Any, step: jax.Array, decay: float) -> Any:
    """Moves the exponential average of the weights (after Polyak and Juditsky, SIAM J. Control Optim. 1992).

    Early ones forget faster, or they would remember the first weights (as TensorFlow's do).
    """
    done = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + done) / (10 + done))
    # In this form what does not move stays as it is, to the bit.
    return jax.tree.map(lambda old, new: old + (1 - kept) * (new - old), average, now)


def _scale(
    images: Float[Array, "batch height width 3"], rows: int, columns: int
) -> Float[Array, "batch rows columns 3"]:
    """Shrinks photos, smoothed as Pillow does."""
    return jax.image.resize(images, (len(images), rows, columns, images.shape[3]), "linear", antialias=True)


def _cut(array: jax.Array, parts: int, mesh: Mesh | None) -> jax.Array:
    """(batch, ...) -> (parts, batch / parts, ...), every part spread over all devices of a mesh."""
    # Row i goes to part i % parts: each device cuts the rows that it has, and nothing is sent.
    split = array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
    if mesh is None:
        return split
    spec = PartitionSpec(None, *batch_sharding(mesh).spec)
    return jax.lax.with_sharding_constraint(split, jax.sharding.NamedSharding(mesh, spec))
