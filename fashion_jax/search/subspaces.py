"""Queries that weigh the parts of an embedding otherwise than the model does: colour above all, for example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.inputs import check_vectors
from fashion_jax.system.errors import UserError, nearest

_LARGEST = 1e6  # factor


def check_subspaces(subspaces: Any, width: int, *, projected: bool) -> dict[str, int]:
    """Returns the names of an embedding's parts with their features, in order; empty for none.

    Args:
        subspaces: a mapping from names to numbers of features, or None.
        width: of the embeddings.
        projected: whether principal components are indexed instead, which mix the parts; there are none then.

    Raises:
        UserError: it is no such mapping, or the features do not add up to the width.
    """
    if not subspaces:
        return {}
    sound = isinstance(subspaces, Mapping) and all(
        isinstance(name, str) and name and type(size) is int and size > 0 for name, size in subspaces.items()
    )
    if not sound:
        raise UserError(f"subspaces must map names to numbers of features above 0, not {subspaces!r}")
    if sum(subspaces.values()) != width:
        raise UserError(f"the subspaces have {sum(subspaces.values())} features together, and the embeddings {width}")
    return {} if projected else dict(subspaces)


def weigh(
    vectors: Float32[np.ndarray, "n dim"], subspaces: Mapping[str, int], weights: Mapping[str, float]
) -> Float32[np.ndarray, "n dim"]:
    """Returns queries of length 1 that find what is near in some parts of the embedding rather than in others.

    The scores that they get are cosines to the weighted query, in the same order as the weighted sum of the parts'
    own similarities.

    Args:
        vectors: of length 1.
        subspaces: name -> features, in order.
        weights: name -> factor of that part's share in the similarity, at least 0; 1 for parts that are not named.

    Raises:
        UserError: an unknown name, a factor out of range, no part left, or embeddings without parts.
    """
    if not isinstance(weights, Mapping):
        raise UserError(f"weights must map subspaces to factors, not {weights!r}")
    if weights and not subspaces:
        raise UserError(
            "the index knows no subspaces to weigh: its embeddings are of one piece, or were projected by pca; build "
            "it without pca, with a model whose package has an embedding.json"
        )
    factors = []
    for name, size in subspaces.items():
        factor = weights.get(name, 1.0)
        number = isinstance(factor, (int, float, np.integer, np.floating)) and not isinstance(factor, bool)
        if not number or not 0 <= factor <= _LARGEST:
            raise UserError(f"the weight of {name!r} must be a number in [0, {_LARGEST:g}], not {factor!r}")
        factors.append(np.full(size, factor, np.float32))
    unknown = [name for name in weights if name not in subspaces]
    if unknown:
        hint = nearest(str(unknown[0]), subspaces)
        raise UserError(f"there is no subspace {unknown[0]!r}{hint}; there are {', '.join(subspaces)}")
    if not factors:
        return vectors
    weighted = vectors * np.concatenate(factors)
    if not weighted.any(1).all():
        raise UserError("the weights leave nothing of a query; give some subspace a weight above 0")
    return check_vectors(weighted, None, "weighted queries")
