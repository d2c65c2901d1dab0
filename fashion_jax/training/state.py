"""Everything that training changes from step to step, and how it is born on the mesh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Int

from fashion_jax.config.fields import DataConfig, ModelConfig
from fashion_jax.models.classifier import make_classifier, split_network
from fashion_jax.models.resnet import resolve_stem
from fashion_jax.system.devices import computes_bfloat16_faster
from fashion_jax.training.placement import replicated


@struct.dataclass
class TrainState:
    """A pytree of plain arrays; checkpoints hold exactly this.

    Random numbers and the order of data are functions of the seed and `step`, so neither needs a place here.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    average: Any = None  # moving average of {"params", "batch_stats"}, or None

    @property
    def scored(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and batch statistics that are scored and packaged: the moving averages where there are any."""
        if self.average is None:
            return self.params, self.batch_stats
        return self.average["params"], self.average["batch_stats"]


def model_arguments(
    config: ModelConfig,
    data: DataConfig,
    classes: dict[str, int],
    *,
    second_heads: tuple[str, ...] = (),
    tags: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Resolves what is "auto" and returns the values of an `Architecture`, as JSON has them.

    Args:
        classes: attribute -> number of classes.
        second_heads: attributes with a second head, which is fitted after training.
        tags: multi-valued attribute -> number of classes.
    """
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if computes_bfloat16_faster() else "float32")
    tags = tags or {}
    named = resolve_colour_heads(config.colour_heads, [*classes, *tags])
    arguments = {
        "classes": dict(classes),
        "depth": config.depth,
        "width": config.width,
        "stem": resolve_stem(config.stem, data.height, data.width),
        "drop_path": config.drop_path,
        "pooling": config.pooling,
        "colour_heads": [name for name in (*classes, *tags) if name in named],
        "second_heads": list(second_heads),
        "mean": list(data.mean),
        "std": list(data.std),
        "dtype": dtype,
    }
    return {**arguments, "tags": dict(tags)} if tags else arguments


def resolve_colour_heads(named: tuple[str, ...], attributes: Iterable[str]) -> tuple[str, ...]:
    """Returns the attributes with a colour head; ("auto",) stands for those with "colour" or "color" in the name."""
    if named != ("auto",):
        return named
    return tuple(name for name in attributes if "colour" in name.lower() or "color" in name.lower())


def initial_state(
    arguments: dict[str, Any],
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    averaged: bool = False,
    pretrained: Mapping[str, Any] | None = None,
) -> TrainState:
    """Returns the state before the first step; pure, to be traced by `jit` or `eval_shape`.

    What `pretrained` has ("params/..." and "batch_stats/..." -> array) takes the place of what would be drawn.
    """
    _, params, batch_stats = split_network(make_classifier(arguments, seed))
    if pretrained:
        flat = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats})
        left = dict(pretrained)
        for path, drawn in flat.items():
            flat[path] = left.pop("/".join(map(str, path)), drawn)
            assert flat[path].shape == drawn.shape, path
        assert not left, sorted(left)
        tree = traverse_util.unflatten_dict(flat)
        params, batch_stats = tree["params"], tree["batch_stats"]
    average = {"params": params, "batch_stats": batch_stats} if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), average)


def abstract_state(
    arguments: dict[str, Any], optimizer: optax.GradientTransformation, mesh: Mesh, *, averaged: bool = False
) -> TrainState:
    """Returns the state's shapes, dtypes and shardings without making an array: the target of a restore."""
    shapes = jax.eval_shape(lambda: initial_state(arguments, optimizer, 0, averaged=averaged))
    sharding = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def create_state(
    arguments: dict[str, Any],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    *,
    averaged: bool = False,
    pretrained: Mapping[str, np.ndarray] | None = None,
) -> TrainState:
    """Makes the state on all devices at once; nothing but pretrained weights passes through the host.

    Args:
        arguments: JSON values of an `Architecture`.
        averaged: whether the state keeps a moving average.
        pretrained: "params/..." and "batch_stats/..." -> array, the same on every process; the rest is drawn.
    """
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(arguments, optimizer, mesh, averaged=averaged))

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])

    def born(given: Mapping[str, Any]) -> TrainState:
        return initial_state(arguments, optimizer, seed, averaged=averaged, pretrained=given)

    return jax.jit(born, out_shardings=shardings)({name: place(a) for name, a in (pretrained or {}).items()})
