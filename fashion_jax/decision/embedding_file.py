"""What a package's embeddings are made of, as JSON and one array: written plainly, believed only when it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fashion_jax.decision.embedding import EmbeddingPlan, Subspace
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

FORMAT = 1
_KEYS = ("name", "attribute", "size", "share", "temperature")
_COMPONENTS = "components"
_SHARE_ERROR = 1e-3  # of the sum of shares


def plan_to_json(plan: EmbeddingPlan) -> dict[str, Any]:
    """Returns JSON values; `plan_from_json` makes the same plan of them and of `components_to_bytes`."""
    return {
        "format": FORMAT,
        "subspaces": [{name: getattr(subspace, name) for name in _KEYS} for subspace in plan.subspaces],
    }


def components_to_bytes(plan: EmbeddingPlan) -> bytes:
    """Returns a safetensors file with the directions of the pooled features, if there are any."""
    arrays = {} if plan.components is None else {_COMPONENTS: np.ascontiguousarray(plan.components)}
    return bytes(safetensors.numpy.save(arrays))


def plan_from_json(
    where: Path, value: Mapping[str, Any], data: bytes, model: Mapping[str, Any], features: int
) -> EmbeddingPlan:
    """Checks everything and returns the plan.

    Args:
        where: the JSON file, for errors.
        value: a JSON object from anywhere.
        data: what `components_to_bytes` wrote.
        model: arguments of `Classifier`.
        features: pooled, of the model.

    Raises:
        UserError: a key, a type, a size or a range is not what the model needs.
    """
    try:
        if value["format"] != FORMAT:
            raise UserError(f"{where} has the format {value['format']!r}; this version reads {FORMAT}")
        arrays = safetensors.numpy.load(data)
        given = value["subspaces"]
        _require(
            where, isinstance(given, list) and 0 < len(given) <= len(model["classes"]) + 1, "its subspaces are no list"
        )
        components = arrays.get(_COMPONENTS)
        subspaces = tuple(_subspace(where, one, model, components) for one in given)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} does not say what embeddings are made of: {error!r}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the arrays of {where} cannot be read: {error}") from error
    _require(where, len({s.name for s in subspaces}) == len(subspaces), "it names a subspace twice")
    _require(where, abs(sum(s.share for s in subspaces) - 1) < _SHARE_ERROR, "its shares do not sum to 1")
    pooled = [s for s in subspaces if s.attribute is None]
    _require(where, len(pooled) == (components is not None) == len(arrays), "its arrays are not its subspaces'")
    if components is not None:
        fits = components.dtype == np.float32 and components.shape == (features, pooled[0].size)
        _require(where, fits and bool(np.isfinite(components).all()), "its components do not fit the model's features")
    return EmbeddingPlan(subspaces, components)


def _require(where: Path, holds: bool, what: str) -> None:
    if not holds:
        raise UserError(f"{where}: {what}")


def _subspace(where: Path, value: Any, model: Mapping[str, Any], components: np.ndarray | None) -> Subspace:
    sound = isinstance(value, dict) and value.keys() == set(_KEYS)
    _require(where, sound, f"a subspace does not hold {', '.join(_KEYS)} alone")
    name, attribute, size = value["name"], value["attribute"], value["size"]
    _require(where, isinstance(name, str) and files.is_line(name), "the name of a subspace is no line of text")
    if attribute is None:
        wanted = components.shape[1] if components is not None and components.ndim == 2 else 0
    else:
        known = isinstance(attribute, str) and attribute in model["classes"]
        _require(where, known, f"the subspace {name!r} names an attribute that the model does not have")
        wanted = model["classes"][attribute]
    _require(where, type(size) is int and size == wanted > 0, f"the size of {name!r} is not {wanted}")
    for key, low, high in (("share", 0.0, 1.0), ("temperature", 1e-3, 1e3)):
        number = value[key]
        sound = type(number) in (int, float) and low < number <= high
        _require(where, sound, f"the {key} of {name!r} is not a number above {low:g}, {high:g} at most")
    return Subspace(name, attribute, size, float(value["share"]), float(value["temperature"]))
