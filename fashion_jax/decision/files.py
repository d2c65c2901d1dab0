"""The stored form of decisions and embedding plans, as JSON and safetensors. Reading checks every value."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fashion_jax.decision.decisions import (
    MAX_TABLE,
    OPERATING_POINTS,
    POOLINGS,
    Applicability,
    Decision,
    HeadDecision,
    JointHeads,
    Link,
    OutOfCatalogue,
)
from fashion_jax.decision.embedding import EmbeddingPlan, Subspace
from fashion_jax.decision.tags import TagDecision
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

FORMAT = 1
_REMEDY = "restore the folder of the package from a backup, or run the same fashion-jax train command again"
_MAX_ROWS = 2**53
_BIG = 1e30
_SUBSPACE_KEYS = ("name", "attribute", "size", "share", "temperature")
_PRODUCT = "product_temperature"  # absent where it is 1
_COMPONENTS = "components"
_SHARE_ERROR = 1e-3  # largest distance of the sum of shares from 1


def decision_to_json(decision: Decision) -> dict[str, Any]:
    """Returns JSON values, from which `decision_from_json` makes the same decision."""
    score = decision.out_of_catalogue
    tags = {
        name: {"scale": one.scale, "shift": one.shift, "thresholds": one.thresholds.tolist()}
        for name, one in decision.tags.items()
    }
    where_it_applies = {
        name: {"class": found.number, "finer": found.finer, "never": np.flatnonzero(found.never).tolist()}
        for name, found in decision.applicability.items()
    }
    return {
        **({"tags": tags} if tags else {}),
        **({"applicability": where_it_applies} if where_it_applies else {}),
        "format": FORMAT,
        "precision": decision.precision,
        "coverage": decision.coverage,
        "heads": {name: _head_to_json(head) for name, head in decision.heads.items()},
        "joint": [
            {"heads": list(group.names), "combinations": group.combinations.tolist()} for group in decision.joint
        ],
        "out_of_catalogue": None
        if score is None
        else {
            "mean": score.mean.tolist(),
            "directions": score.directions.tolist(),
            "variances": score.variances.tolist(),
            "rest": score.rest,
            "centres": list(score.centres),
            "spreads": list(score.spreads),
            "threshold": score.threshold,
        },
    }


def _head_to_json(head: HeadDecision) -> dict[str, Any]:
    link = head.link
    return {
        "temperature": head.temperature,
        "class_rows": head.class_rows.tolist(),
        "strengths": dict(head.strengths),
        # JSON has no infinity, so null stands for a threshold that accepts nothing.
        "thresholds": {point: value if math.isfinite(value) else None for point, value in head.thresholds.items()},
        "label_set": head.label_set,
        **({} if head.product_temperature == 1 else {_PRODUCT: head.product_temperature}),
        "link": None
        if link is None
        else {
            "finer": link.finer,
            # Most combinations have no rows; [finer, class, rows] of the others.
            "counts": [[i, j, int(link.counts[i, j])] for i, j in np.argwhere(link.counts).tolist()],
            "pooling": link.pooling,
            "weight": link.weight,
            "temperature": link.temperature,
        },
    }


def decision_from_json(
    where: Path,
    value: Mapping[str, Any],
    classes: Mapping[str, int],
    features: int,
    tags: Mapping[str, int] | None = None,
) -> Decision:
    """Checks everything and returns the decision.

    Args:
        value: a JSON object, possibly forged.
        classes: attribute -> number of classes of the model's head.
        features: size of the model's pooled features.
        tags: multi-valued attribute -> number of classes of the model's head.

    Raises:
        UserError: a key, a type, a size or a range is not what the model needs.
    """
    with _naming(where) as check:
        check(value["format"] == FORMAT, f"has the format {value['format']!r}; this version reads {FORMAT}")
        tags, whole = tags or {}, {"tags": {}, "applicability": {}, **value}  # two keys that most models lack
        names = ("format", "precision", "coverage", "heads", "joint", "out_of_catalogue", "tags", "applicability")
        _keys(check, whole, names, "it")
        fitted, applies = whole["tags"], whole["applicability"]
        check(isinstance(applies, dict) and applies.keys() <= classes.keys(), "its applicability is not the model's")
        check(isinstance(fitted, dict) and fitted.keys() == tags.keys(), "its multi-valued heads are not the model's")
        heads = value["heads"]
        check(isinstance(heads, dict) and heads.keys() == classes.keys(), "its heads are not the model's")
        decision = Decision(
            {name: _head(check, name, heads[name], classes) for name in classes},
            tuple(_joint(check, group, classes) for group in _list(check, value["joint"], "joint")),
            _outside(check, value["out_of_catalogue"], features),
            check.number(value["precision"], 0, 1, "precision"),
            check.number(value["coverage"], 0, 1, "coverage"),
            {name: _tags(check, name, fitted[name], count) for name, count in tags.items()},
            {name: _applicability(check, name, applies[name], classes) for name in classes if name in applies},
        )
        named = [name for group in decision.joint for name in group.names]
        check(len(set(named)) == len(named), "a head is in two groups")
    return decision


@contextlib.contextmanager
def _naming(where: Path) -> Iterator[_Check]:
    """Yields the checks of a file; whatever is wrong in the block becomes a UserError that names the file."""
    with stored.reading(where, _REMEDY):
        yield _Check(where)


class _Check:
    """Raises UserError that names the file."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def __call__(self, holds: bool, what: str) -> None:
        if not holds:
            raise UserError(f"{self._where}: {what}")

    def number(self, value: Any, low: float, high: float, what: str) -> float:
        # Comparisons hold for integers of any size and fail for NaN.
        sound = type(value) in (int, float) and low <= value <= high
        self(sound, f"{what} is not a number from {low:g} to {high:g}")
        return float(value)

    def numbers(self, value: Any, count: int, low: float, high: float, what: str) -> np.ndarray:
        self(isinstance(value, list) and len(value) == count, f"{what} are not {count} numbers")
        return np.array([self.number(v, low, high, what) for v in value], np.float64)

    def integer(self, value: Any, high: int, what: str) -> int:
        self(type(value) is int and 0 <= value <= high, f"{what} is not a whole number from 0 to {high}")
        return int(value)


def _keys(check: _Check, value: Any, names: tuple[str, ...], what: str) -> None:
    check(isinstance(value, dict) and value.keys() == set(names), f"{what} does not hold {', '.join(names)} alone")


def _list(check: _Check, value: Any, what: str) -> list[Any]:
    check(isinstance(value, list), f"{what} is no list")
    return list(value)


def _points(check: _Check, value: Any, low: float, high: float, what: str) -> dict[str, float]:
    _keys(check, value, OPERATING_POINTS, what)
    return {point: check.number(value[point], low, high, what) for point in OPERATING_POINTS}


def _head(check: _Check, name: str, value: Any, classes: Mapping[str, int]) -> HeadDecision:
    what = f"{name!r}"
    names = ("temperature", "class_rows", "strengths", "thresholds", "label_set", "link")
    _keys(check, value, (*names, *([_PRODUCT] if _PRODUCT in value else [])), what)
    thresholds = {k: 2.0 if v is None else v for k, v in value["thresholds"].items()}
    thresholds = _points(check, thresholds, 0, 2, f"thresholds of {what}")
    rows = _list(check, value["class_rows"], f"class_rows of {what}")
    check(len(rows) == classes[name], f"class_rows of {what} are not {classes[name]} numbers")
    sets = value["label_set"]
    return HeadDecision(
        check.number(value["temperature"], 1e-3, 1e3, f"the temperature of {what}"),
        np.array([check.integer(n, _MAX_ROWS, f"class_rows of {what}") for n in rows], np.int64),
        _points(check, value["strengths"], -100, 100, f"strengths of {what}"),
        {point: math.inf if t > 1 else t for point, t in thresholds.items()},
        None if sets is None else check.number(sets, 0, 1, f"label_set of {what}"),
        _link(check, name, value["link"], classes),
        check.number(value.get(_PRODUCT, 1), 1e-3, 1e3, f"{_PRODUCT} of {what}"),
    )


def _tags(check: _Check, name: str, value: Any, classes: int) -> TagDecision:
    _keys(check, value, ("scale", "shift", "thresholds"), f"{name!r}")
    return TagDecision(
        check.number(value["scale"], 1e-3, 1e3, f"the scale of {name!r}"),
        check.number(value["shift"], -1e3, 1e3, f"the shift of {name!r}"),
        check.numbers(value["thresholds"], classes, 0, 1, f"thresholds of {name!r}"),
    )


def _applicability(check: _Check, name: str, value: Any, classes: Mapping[str, int]) -> Applicability:
    what = f"the applicability of {name!r}"
    _keys(check, value, ("class", "finer", "never"), what)
    finer = value["finer"]
    check(isinstance(finer, str) and finer in classes and finer != name, f"{what} names no other head")
    check(classes[name] > 1, f"{what} leaves no class")
    never = np.zeros(classes[finer], bool)
    for number in _list(check, value["never"], f"never of {what}"):
        never[check.integer(number, classes[finer] - 1, f"a class of {what}")] = True
    return Applicability(check.integer(value["class"], classes[name] - 1, f"class of {what}"), finer, never)


def _link(check: _Check, name: str, value: Any, classes: Mapping[str, int]) -> Link | None:
    if value is None:
        return None
    what = f"the hierarchy of {name!r}"
    _keys(check, value, ("finer", "counts", "pooling", "weight", "temperature"), what)
    finer = value["finer"]
    check(isinstance(finer, str) and finer in classes and finer != name, f"{what} names no other head")
    shape = classes[finer], classes[name]
    check(shape[0] * shape[1] <= MAX_TABLE, f"{what} has too many classes")
    check(value["pooling"] in POOLINGS, f"{what} has no known pooling")
    counts = np.zeros(shape, np.int64)
    for cell in _list(check, value["counts"], f"counts of {what}"):
        check(isinstance(cell, list) and len(cell) == 3, f"counts of {what} are not [finer, class, rows]")
        i, j = (check.integer(c, n - 1, f"a class of {what}") for c, n in zip(cell[:2], shape, strict=True))
        counts[i, j] = check.integer(cell[2], 2**40, f"rows of {what}")
    return Link(
        finer,
        counts,
        value["pooling"],
        check.number(value["weight"], 0, 1, f"the weight of {what}"),
        check.number(value["temperature"], 1e-3, 1e3, f"the temperature of {what}"),
    )


def _joint(check: _Check, value: Any, classes: Mapping[str, int]) -> JointHeads:
    _keys(check, value, ("heads", "combinations"), "a group of heads")
    names = _list(check, value["heads"], "a group of heads")
    known = all(isinstance(n, str) and n in classes for n in names)
    check(known and 2 <= len(names) == len(set(names)), "a group of heads does not name two or more heads of the model")
    rows = _list(check, value["combinations"], "combinations")
    check(0 < len(rows) <= MAX_TABLE, "a group of heads has no combinations, or too many")
    sound = all(isinstance(r, list) and len(r) == len(names) for r in rows)
    check(sound, "a combination does not have a class per head")
    found = [[check.integer(c, classes[n] - 1, "a class") for c, n in zip(r, names, strict=True)] for r in rows]
    return JointHeads(tuple(names), np.array(found, np.int64))


def _outside(check: _Check, value: Any, features: int) -> OutOfCatalogue | None:
    if value is None:
        return None
    what = "out_of_catalogue"
    _keys(check, value, ("mean", "directions", "variances", "rest", "centres", "spreads", "threshold"), what)
    directions = _list(check, value["directions"], f"directions of {what}")
    check(0 < len(directions) <= features, f"{what} has no directions, or too many")
    centres = check.numbers(value["centres"], 2, -_BIG, _BIG, f"centres of {what}")
    spreads = check.numbers(value["spreads"], 2, 1e-9, _BIG, f"spreads of {what}")
    return OutOfCatalogue(
        check.numbers(value["mean"], features, -_BIG, _BIG, f"mean of {what}"),
        np.stack([check.numbers(row, features, -1.001, 1.001, f"directions of {what}") for row in directions]),
        check.numbers(value["variances"], len(directions), 1e-15, _BIG, f"variances of {what}"),
        check.number(value["rest"], 1e-15, _BIG, f"rest of {what}"),
        (float(centres[0]), float(centres[1])),
        (float(spreads[0]), float(spreads[1])),
        check.number(value["threshold"], -_BIG, _BIG, f"threshold of {what}"),
    )


def plan_to_json(plan: EmbeddingPlan) -> dict[str, Any]:
    """Returns JSON values, from which `plan_from_json` makes the same plan, with the bytes of `components_to_bytes`."""
    return {
        "format": FORMAT,
        "subspaces": [{name: getattr(subspace, name) for name in _SUBSPACE_KEYS} for subspace in plan.subspaces],
    }


def components_to_bytes(plan: EmbeddingPlan) -> bytes:
    """Returns a safetensors file with the components of the pooled features, if there are any."""
    arrays = {} if plan.components is None else {_COMPONENTS: np.ascontiguousarray(plan.components)}
    return bytes(safetensors.numpy.save(arrays))


def plan_from_json(
    where: Path, value: Mapping[str, Any], data: bytes, classes: Mapping[str, int], features: int
) -> EmbeddingPlan:
    """Checks everything and returns the plan.

    Args:
        value: a JSON object, possibly forged.
        data: a safetensors file from `components_to_bytes`, possibly forged.
        classes: attribute -> number of classes of the model's head.
        features: size of the model's pooled features.

    Raises:
        UserError: a key, a type, a size or a range is not what the model needs.
    """
    with stored.reading(where.with_suffix(".safetensors"), _REMEDY):
        arrays = safetensors.numpy.load(data)
    with _naming(where) as check:
        check(value["format"] == FORMAT, f"has the format {value['format']!r}; this version reads {FORMAT}")
        given = value["subspaces"]
        check(isinstance(given, list) and 0 < len(given) <= len(classes) + 1, "its subspaces are no list")
        components = arrays.get(_COMPONENTS)
        subspaces = tuple(_subspace(check, one, classes, components) for one in given)
    check(len({s.name for s in subspaces}) == len(subspaces), "it names a subspace twice")
    check(abs(sum(s.share for s in subspaces) - 1) < _SHARE_ERROR, "its shares do not sum to 1")
    pooled = [s for s in subspaces if s.attribute is None]
    check(len(pooled) == (components is not None) == len(arrays), "its arrays do not fit its subspaces")
    if components is not None:
        fits = components.dtype == np.float32 and components.shape == (features, pooled[0].size)
        check(fits and bool(np.isfinite(components).all()), "its components do not fit the model's features")
    return EmbeddingPlan(subspaces, components)


def _subspace(check: _Check, value: Any, classes: Mapping[str, int], components: np.ndarray | None) -> Subspace:
    _keys(check, value, _SUBSPACE_KEYS, "a subspace")
    name, attribute, size = value["name"], value["attribute"], value["size"]
    check(isinstance(name, str) and files.is_line(name), "the name of a subspace is no line of text")
    if attribute is None:
        wanted = components.shape[1] if components is not None and components.ndim == 2 else 0
    else:
        known = isinstance(attribute, str) and attribute in classes
        check(known, f"the subspace {name!r} names an attribute that the model does not have")
        wanted = classes[attribute]
    check(type(size) is int and size == wanted > 0, f"the size of {name!r} is not {wanted}")
    share = check.number(value["share"], 1e-9, 1, f"the share of {name!r}")
    return Subspace(
        name, attribute, size, share, check.number(value["temperature"], 1e-3, 1e3, f"the temperature of {name!r}")
    )
