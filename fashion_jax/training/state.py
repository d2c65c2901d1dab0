"""Everything that training changes from step to step, and how it is born on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from fashion_jax.config import ModelConfig
from fashion_jax.models.classifier import Classifier
from fashion_jax.models.resnet import resolve_stem
from fashion_jax.runtime import on_accelerator
from fashion_jax.training.sharding import replicated


@struct.dataclass
class TrainState:
    """A pytree of plain arrays; checkpoints hold exactly this.

    Random numbers and the order of data are functions of the seed and `step`, so neither needs a place here.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any


def model_arguments(config: ModelConfig, classes: dict[str, int], height: int, width: int) -> dict[str, Any]:
    """Resolves what is "auto" and returns the arguments of `Classifier`, as JSON values."""
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if on_accelerator() else "float32")
    return {
        "classes": dict(classes),
        "depth": config.depth,
        "width": config.width,
        "stem": resolve_stem(config.stem, height, width),
        "deep_shortcut": config.deep_shortcut,
        "head": config.head,
        "head_hidden": list(config.head_hidden),
        "dropout": config.dropout,
        "dtype": dtype,
    }


def make_model(arguments: dict[str, Any], seed: int) -> Classifier:
    """Builds the module from `model_arguments`; the same seed gives the same parameters on any devices."""
    rest = {**arguments, "head_hidden": tuple(arguments["head_hidden"]), "dtype": jnp.dtype(arguments["dtype"])}
    return Classifier(**rest, rngs=nnx.Rngs(seed))


def graph_of(arguments: dict[str, Any]) -> nnx.GraphDef[Classifier]:
    """Returns the module's static part, without making an array."""
    model = nnx.eval_shape(lambda: make_model(arguments, 0))
    graph, _, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph


def initial_state(arguments: dict[str, Any], optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Returns the state before the first step; pure, to be traced by `jit` or `eval_shape`."""
    _, params, batch_stats = nnx.split(make_model(arguments, seed), nnx.Param, nnx.BatchStat)
    pure = nnx.to_pure_dict(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=pure,
        batch_stats=nnx.to_pure_dict(batch_stats),
        opt_state=optimizer.init(pure),
    )


def abstract_state(arguments: dict[str, Any], optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state's shapes, dtypes and shardings without making an array: the target of a restore."""
    shapes = jax.eval_shape(lambda: initial_state(arguments, optimizer, 0))
    sharding = replicated(mesh)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def create_state(
    arguments: dict[str, Any], optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> TrainState:
    """Makes the state on all devices at once; nothing passes through the host or one device's memory."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(arguments, optimizer, mesh))
    return jax.jit(lambda: initial_state(arguments, optimizer, seed), out_shardings=shardings)()


def merge_model(graph: nnx.GraphDef[Classifier], params: dict[str, Any], batch_stats: dict[str, Any]) -> Classifier:
    """Joins the static part with arrays; cheap, and meant to run inside `jit`."""
    return nnx.merge(graph, nnx.State(params), nnx.State(batch_stats))
