"""Recommendation: similar products, the same with something changed, products by description, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.attributes import MISSING, Scalar, TextColumn
from fashion_jax.search.gallery import CONFIDENCE
from fashion_jax.search.index import Index
from fashion_jax.search.inputs import check_k, check_vectors
from fashion_jax.search.query import Hits
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.where import parse_where
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.vectors import unit

_CONFIDENCE_WEIGHT = 0.5  # of the heads' probabilities beside the similarity to the prototype
_SHIFT = 1.0  # how far a query moves from the prototype that it has to the one that is asked for


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One product that is recommended.

    Attributes:
        id: of the product.
        score: by which it is ranked; higher is better.
        agrees: columns in which it has the value that was looked for.
        differs: column -> its own value, where another one was looked for.
        attributes: all its columns, as they were when it was found.
    """

    id: int | str
    score: float
    agrees: tuple[str, ...]
    differs: dict[str, Scalar]
    attributes: dict[str, Scalar]


def similar(
    index: Index, queries: Any, labels: Mapping[str, Scalar], k: int = 10, **options: Any
) -> list[Recommendation]:
    """Finds products that look like one product, of which one or several photos are given.

    Args:
        index: to search.
        queries: a vector per photo of the product, of `index.project` or `index.vectors`.
        labels: what is known of the product, by which hits are explained; may be empty.
        k: products at most.
        options: of `Index.search`.
    """
    return explain(index.search_projected(one_query(queries), k, **options), labels)


def keep_and_change(
    index: Index,
    queries: Any,
    labels: Mapping[str, Scalar],
    keep: Sequence[str],
    change: Mapping[str, str],
    k: int = 10,
    **options: Any,
) -> list[Recommendation]:
    """Finds the same product with something changed: the same articleType, say, but Red.

    What is kept and changed is a filter. The query moves from the mean of products with its own value towards that of
    products with the wanted one, so that among these the ones come first that look like it in all else.

    Args:
        index: to search.
        queries: a vector per photo of the product, of `index.project` or `index.vectors`.
        labels: of the product; every column of `keep` must be there.
        keep: columns in which a hit must be as the product is.
        change: column -> the value that a hit must have instead.
        k: products at most.
        options: of `Index.search`; a `where` is joined to the filter.

    Raises:
        UserError: a column that is not there, or whose value is not known of the product.
    """
    snapshot = index.snapshot
    wanted: dict[str, Scalar] = {}
    for name in keep:
        snapshot.attributes.column(name)
        if labels.get(name) is None:
            raise UserError(f"the {name} of the product is not known, so it cannot be kept")
        wanted[name] = labels[name]
    moved = one_query(queries)[0].astype(np.float64)
    for name, value in change.items():
        _check_value(snapshot, name, value)
        wanted[name] = value
        here = _prototype(snapshot, {name: labels[name]}) if labels.get(name) is not None else None
        there = _prototype(snapshot, {name: value})
        if here is not None and there is not None:
            moved += _SHIFT * (there - here)
    hits = index.search_projected(moved[None], k, **{**options, "where": _filter(wanted, options.get("where"))})
    return explain(hits, {**labels, **wanted})


def by_attributes(
    index: Index, wanted: Mapping[str, str], k: int = 10, where: str | None = None, group_by: str | None = None
) -> list[Recommendation]:
    """Finds products by description alone, such as {"baseColour": "Red", "articleType": "Kurtas"}.

    Those that have all of it are ranked by the mean of two things: the geometric mean of the probabilities that the
    model gives to these labels (1 for columns that are not a head's, and for labels that the head does not know), and
    the similarity to the mean of them all.

    Args:
        index: to search.
        wanted: column -> value; at least one.
        k: products at most.
        where: a filter beside it.
        group_by: a column; of products with equal values the best alone is returned.

    Raises:
        UserError: a column or a value that is not there.
    """
    k, snapshot = check_k(k), index.snapshot
    if not wanted:
        raise UserError("nothing is asked for; give attributes such as baseColour=Red")
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
    if group_by is not None:
        _, first = np.unique(snapshot.attributes.groups(group_by)[rows[order]], return_index=True)
        order = order[np.sort(first)]
    order = order[:k]
    chosen = rows[order]
    hits = Hits(snapshot.ids[chosen][None], scores[order][None].astype(np.float32), snapshot.attributes, chosen[None])
    return explain(hits, wanted)


def explain(hits: Hits, wanted: Mapping[str, Scalar]) -> list[Recommendation]:
    """Says of each hit of the first query in which columns it is what was looked for.

    Args:
        hits: of one query.
        wanted: column -> value; None and columns that the index lacks are passed over.
    """
    there = ~np.isneginf(hits.scores[0])
    names = hits.ids[0][there].tolist()
    found = []
    for name, score, row in zip(names, hits.scores[0][there].tolist(), hits.attributes(), strict=True):
        asked = {column: value for column, value in wanted.items() if value is not None and column in row}
        agrees = tuple(column for column, value in asked.items() if row[column] == value)
        differs = {column: row[column] for column, value in asked.items() if row[column] != value}
        found.append(Recommendation(name, float(score), agrees, differs, row))
    return found


def one_query(queries: Any) -> Float32[np.ndarray, "1 dim"]:
    """Returns the mean direction of a product's photos."""
    vectors = check_vectors(queries, None, "queries")
    if not len(vectors):
        raise UserError("there is no query: give at least one photo")
    return vectors.mean(0, keepdims=True)


def _prototype(snapshot: Snapshot, wanted: Mapping[str, Scalar]) -> Float32[np.ndarray, " dim"] | None:
    """Returns the mean vector of the live products that have all of these values; None where there are none."""
    rows = np.flatnonzero(snapshot.select(_filter(wanted, None)).mask)
    return snapshot.vectors(rows).mean(0) if len(rows) else None


def _check_value(snapshot: Snapshot, name: str, value: str) -> None:
    column = snapshot.attributes.column(name)
    if not isinstance(column, TextColumn):
        raise UserError(f'the column {name!r} holds numbers; ask for it with a filter, such as --where "{name} < 3"')
    live = column.codes[snapshot.live]
    known = [column.vocabulary[code] for code in np.unique(live) if code != MISSING]
    if value not in known:
        raise UserError(f"no product has the {name} {value!r}{nearest(value, known)}")


def _filter(wanted: Mapping[str, Scalar], where: str | None) -> str | None:
    """Returns a filter that asks for all of it, and for what the user's own filter asks for; None for neither."""
    parts = [_condition(name, value) for name, value in wanted.items()]
    if where is not None:
        parse_where(where)  # by itself, so that its parentheses close what they open
        parts.append(f"({where})")
    return " and ".join(parts) or None


def _condition(name: str, value: Scalar) -> str:
    quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if isinstance(value, str) else repr(value)
    return f"`{name}` == {quoted}"
