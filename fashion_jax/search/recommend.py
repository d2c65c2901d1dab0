"""Recommendation: similar products, the same product with a change, products by description; and the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.attributes import CONFIDENCE, KINDS, MISSING, PHOTO, Scalar, TextColumn
from fashion_jax.search.index import Index
from fashion_jax.search.inputs import check_k, check_vectors
from fashion_jax.search.query import Hits, first_of_groups
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.where import parse_where
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.vectors import unit

_CONFIDENCE_WEIGHT = 0.5  # of the heads' probabilities; the rest is the weight of the similarity to the prototype
_SHIFT = 1.0  # how far a query moves from the prototype of its own value to that of the wanted value


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A recommended product."""

    id: int | str  # of the product
    score: float  # the rank follows it; higher is better
    agrees: tuple[str, ...]  # columns in which the product has the wanted value
    differs: dict[str, Scalar]  # column -> the product's value, where another value was wanted
    attributes: dict[str, Scalar]  # all columns of the photo that matched, as they were when it was found
    photo: str | None  # the name of the photo that matched; None where the index has no names of photos


def similar(
    index: Index, queries: Any, labels: Mapping[str, Scalar], k: int = 10, **options: Any
) -> list[Recommendation]:
    """Finds products that look like one product, given by one or several photos.

    Args:
        queries: an embedding per photo of the product.
        labels: the product's known labels, with which hits are compared; may be empty.
        k: number of products, at most.
        options: options of `Index.search`.
    """
    return explain(index.search(one_query(queries), k, **options), labels)


def keep_and_change(
    index: Index,
    queries: Any,
    labels: Mapping[str, Scalar],
    keep: Sequence[str],
    change: Mapping[str, str],
    k: int = 10,
    **options: Any,
) -> list[Recommendation]:
    """Finds the same product with a change: for instance the same articleType, but Red.

    Kept and changed values become a filter. For each change, the query moves from the mean vector of products with its
    own value to that of products with the wanted value. So the best hits look like the product in everything else.

    Args:
        queries: an embedding per photo of the product.
        labels: the product's labels; every column of `keep` must be there.
        keep: columns in which a hit must have the product's value.
        change: column -> the value that a hit must have instead.
        k: number of products, at most.
        options: options of `Index.search`; `where` is joined to the filter.

    Raises:
        UserError: an unknown column, or the product's value in a column of `keep` is not known.
    """
    snapshot = index.snapshot
    wanted: dict[str, Scalar] = {}
    for name in keep:
        snapshot.attributes.column(name)
        if labels.get(name) is None:
            raise UserError(f"the product's {name} is not known, so it cannot be kept")
        wanted[name] = labels[name]
    moved = one_query(queries)[0].astype(np.float64)
    for name, value in change.items():
        _check_value(snapshot, name, value)
        wanted[name] = value
        here = _prototype(snapshot, {name: labels[name]}) if labels.get(name) is not None else None
        there = _prototype(snapshot, {name: value})
        if here is not None and there is not None:
            moved += _SHIFT * (there - here)
    hits = index.search(moved[None], k, **{**options, "where": _filter(wanted, options.get("where"))})
    return explain(hits, {**labels, **wanted})


def by_attributes(
    index: Index, wanted: Mapping[str, str], k: int = 10, where: str | None = None, group_by: str | None = None
) -> list[Recommendation]:
    """Finds products by description alone, such as {"baseColour": "Red", "articleType": "Kurtas"}.

    Products with all wanted values are ranked by the mean of two numbers: the geometric mean of the probabilities that
    the model gives to these labels (1 for a column that is no head's, and for a label that the head does not know), and
    the similarity to the mean vector of all photos of these products. A product is ranked by its best photo.

    Args:
        wanted: column -> value; at least one.
        k: number of products, at most.
        where: one more filter.
        group_by: a column; of products with equal values only the best is returned.

    Raises:
        UserError: an unknown column, or a value that no product has.
    """
    k, snapshot = check_k(k), index.snapshot
    if not wanted:
        raise UserError("no attribute is given; give attributes such as baseColour=Red")
    for name, value in wanted.items():
        _check_value(snapshot, name, value)
    rows = np.flatnonzero(snapshot.select(_filter(wanted, where)).mask)
    prototype = _prototype(snapshot, wanted)
    if not len(rows) or prototype is None:
        return []
    logs = np.zeros(len(rows))
    for name in wanted:
        if name + CONFIDENCE in snapshot.attributes.names:
            column = snapshot.attributes.take(rows).column(name + CONFIDENCE)
            assert not isinstance(column, TextColumn)
            logs += np.log(np.maximum(np.nan_to_num(column.values, nan=1.0), 1e-6))
    likeness = snapshot.vectors(rows) @ unit(prototype[None])[0]
    scores = _CONFIDENCE_WEIGHT * np.exp(logs / len(wanted)) + (1 - _CONFIDENCE_WEIGHT) * likeness
    order = np.argsort(-scores, kind="stable")
    groups = [] if snapshot.first is None else [snapshot.first]
    if group_by is not None:
        groups.append(snapshot.attributes.groups(group_by))
    best, chosen, _ = first_of_groups(scores[order][None].astype(np.float32), rows[order][None], groups, k)
    chosen = chosen[:, : np.count_nonzero(chosen >= 0)]
    hits = Hits(snapshot.ids[chosen], best[:, : chosen.shape[1]], snapshot.attributes, chosen, snapshot.first)
    return explain(hits, wanted)


def explain(hits: Hits, wanted: Mapping[str, Scalar]) -> list[Recommendation]:
    """Returns the hits of the first query, with the columns in which they agree with wanted values.

    Args:
        hits: from a search.
        wanted: column -> value; values of None and columns that the index lacks are ignored.
    """
    there = ~np.isneginf(hits.scores[0])
    names = hits.ids[0][there].tolist()
    found = []
    for name, score, row in zip(names, hits.scores[0][there].tolist(), hits.attributes(), strict=True):
        asked = {column: value for column, value in wanted.items() if value is not None and column in row}
        agrees = tuple(column for column, value in asked.items() if row[column] == value)
        differs = {column: row[column] for column, value in asked.items() if row[column] != value}
        photo = row.get(PHOTO)
        found.append(
            Recommendation(name, float(score), agrees, differs, row, photo if isinstance(photo, str) else None)
        )
    return found


def one_query(queries: Any) -> Float32[np.ndarray, "1 dim"]:
    """Returns the mean vector of a product's photos."""
    vectors = check_vectors(queries, None, "queries")
    if not len(vectors):
        raise UserError("there is no query: give at least one photo")
    return vectors.mean(0, keepdims=True)


def _prototype(snapshot: Snapshot, wanted: Mapping[str, Scalar]) -> Float32[np.ndarray, " dim"] | None:
    """Returns the mean vector of the photos of the products that have all of these values; None without products."""
    rows = np.flatnonzero(snapshot.select(_filter(wanted, None)).mask)
    return snapshot.vectors(rows).mean(0) if len(rows) else None


def _check_value(snapshot: Snapshot, name: str, value: str) -> None:
    column = snapshot.attributes.column(name)
    if not isinstance(column, TextColumn):
        how = {"date": "> '2026-01-31'", "boolean": "== true"}.get(column.kind, "< 3")
        what = KINDS[column.kind]
        raise UserError(f'the column {name!r} holds {what}; ask for it with a filter, such as --where "{name} {how}"')
    live = column.codes[snapshot.live]
    known = [column.vocabulary[code] for code in np.unique(live) if code != MISSING]
    if value not in known:
        raise UserError(f"no product has the {name} {value!r}{nearest(value, known)}")


def _filter(wanted: Mapping[str, Scalar], where: str | None) -> str | None:
    """Returns a filter for all wanted values and for the user's own filter; None for neither."""
    parts = [_condition(name, value) for name, value in wanted.items()]
    if where is not None:
        parse_where(where)  # parsed alone, so that its parentheses cannot close ours
        parts.append(f"({where})")
    return " and ".join(parts) or None


def _condition(name: str, value: Scalar) -> str:
    quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if isinstance(value, str) else repr(value)
    return f"`{name}` == {quoted}"
