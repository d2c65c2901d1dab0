"""Checks of what users give to an index, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.attributes import is_storable
from fashion_jax.system.errors import UserError
from fashion_jax.system.vectors import unit

MAX_ID_LENGTH = 128  # every id takes the space of the longest one
_ROUNDING = 1e-6  # of a squared length in single precision
_LENGTH_ERROR = 1e-3  # of a squared length


def check_vectors(vectors: Any, dim: int | None, what: str, *, copy: bool = True) -> Float32[np.ndarray, "n dim"]:
    """Returns finite vectors scaled to length 1; one vector becomes a row.

    Args:
        vectors: anything that numpy reads as real numbers, (n, dim) or (dim,).
        dim: the width that they must have; None for any.
        what: their name in errors.
        copy: whether the result is the caller's own; otherwise vectors of length 1 are returned as they are.

    Raises:
        UserError: another shape, not numbers, not finite, or all zeros, which point nowhere.
    """
    try:
        given = np.asarray(vectors)
        if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
            raise ValueError(f"numbers of type {given.dtype}")
        array = np.ascontiguousarray(given, np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} must be real numbers in rows of one width ({error})") from error
    if given.ndim == 1:
        array = array[None]
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim) or not array.shape[1]:
        wanted = f"(n, {dim})" if dim is not None else "(n, width)"
        raise UserError(f"{what} must have the shape {wanted}, not {given.shape}")
    if len(array) == 1:
        # The same as below, without what many vectors need.
        square = float(array[0].dot(array[0]))
        if not copy and abs(square - 1) < _ROUNDING:
            return array
        if 1e-30 < square < 1e30:
            return array * (1 / math.sqrt(square))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.matmul(array[:, None, :], array[:, :, None])[:, 0, 0]
        if not copy and (np.abs(squares - 1) < _ROUNDING).all():
            return array
        if ((squares > 1e-30) & (squares < 1e30)).all():
            return array * (1 / np.sqrt(squares))[:, None]
    # Rare: very small and very large numbers, which double precision holds, or errors.
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise UserError(f"{what}: {len(bad):,} of {len(array):,} rows hold NaN or infinity, such as row {bad[0]}")
    wide = array.astype(np.float64)
    zeros = np.flatnonzero(~wide.any(1))
    if len(zeros):
        raise UserError(f"{what}: row {zeros[0]} is all zeros and has no direction")
    return unit(wide).astype(np.float32)


def check_unit(vectors: Float32[np.ndarray, "n dim"]) -> None:
    """Raises UserError where a stored vector is not finite, or not of length 1."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    # A comparison with NaN is false.
    strange = np.flatnonzero(~(np.abs(squares - 1) < _LENGTH_ERROR))
    if len(strange):
        raise UserError(f"row {strange[0]} of the vectors is not of length 1")


def check_ids(ids: Any, count: int | None = None, kind: str | None = None, *, repeats: bool = False) -> np.ndarray:
    """Returns product ids as int64, or as texts.

    Args:
        ids: integers from 0 on, or texts that are not empty; all of one kind.
        count: how many there must be; None for any.
        kind: of the ids that the index has, "i" or "U"; None for either.
        repeats: whether an id may come several times.

    Raises:
        UserError: another number of ids, mixed kinds, an id twice without `repeats`, negative or empty, or of the
            other kind.
    """
    ids = np.asarray(ids) if hasattr(ids, "__array__") else as_list(ids)
    try:
        array = np.asarray(ids)
    except ValueError:
        _no_list(ids)
    if not array.size:
        array = np.zeros(0, np.int64 if kind != "U" else "<U1")
    if array.dtype.kind == "O":
        array = _from_objects(array.tolist())
    if isinstance(ids, list):
        # numpy reads [1, "2"] as texts and [True, 2] as integers.
        if any(isinstance(i, (bool, np.bool_)) for i in ids):
            raise UserError("ids must be integers or texts, not true and false")
        if bad := next((i for i in ids if isinstance(i, str) and "\0" in i), ""):
            raise UserError(f"the id {bad!r} holds a NUL character")  # numpy would cut it short
        if array.dtype.kind == "U" and not all(isinstance(i, str) for i in ids):
            raise UserError("ids must be all integers or all texts, not both")
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise UserError(f"ids must be a list of integers or of texts, not {array.dtype} {array.shape}")
    if count is not None and len(array) != count:
        raise UserError(f"there are {len(array):,} ids for {count:,} vectors")
    ours = "U" if array.dtype.kind == "U" else "i"
    if kind is not None and ours != kind and len(array):
        names = {"i": "integers", "U": "texts"}
        raise UserError(
            f"the index has {names[kind]} as ids, and these are {names[ours]}, such as {array[0].item()!r}; "
            "build the index again with ids of one kind"
        )
    if ours == "U":
        lengths = np.char.str_len(array)
        if len(array) and (lengths.min() == 0 or lengths.max() > MAX_ID_LENGTH):
            raise UserError(f"an id must have 1 to {MAX_ID_LENGTH} characters")
        if bad := next((name for name in array.tolist() if not is_storable(name)), ""):
            raise UserError(f"the id {bad!r} is not valid Unicode")
    else:
        if len(array) and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
            raise UserError("ids must be integers from 0 to 2**63 - 1; -1 stands for no product")
        array = array.astype(np.int64)
    if repeats:
        return array
    values, counts = np.unique(array, return_counts=True)
    if len(values) < len(array):
        raise UserError(f"the id {values[counts > 1][0]} is given {counts.max()} times; give each id once")
    return array


def as_list(ids: Any) -> list[Any]:
    """Returns one id or several as a list of Python values; UserError for anything else."""
    if hasattr(ids, "__array__"):
        array = np.asarray(ids)
        return array.reshape(-1).tolist() if array.ndim <= 1 else _no_list(ids)
    if isinstance(ids, (str, bytes, int, np.integer)):
        return [ids]
    return list(ids) if isinstance(ids, Iterable) else _no_list(ids)


def check_k(k: Any, name: str = "k") -> int:
    """Returns k as an int; UserError, which names it, unless it is an integer of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise UserError(f"{name} must be an integer of at least 1, not {k!r}")
    return int(k)


def check_neighbours(k: Any, available: int) -> int:
    """Returns the number of neighbours; UserError unless it is an integer in [1, available]."""
    k = check_k(k)
    if not available:
        raise UserError("the index is empty: every product was deleted")
    if k > available:
        raise UserError(f"k is {k:,} and the index has {available:,} products; ask for that many at most")
    return k


def _no_list(ids: Any) -> list[Any]:
    raise UserError(f"ids must be a list of integers or of texts, not {type(ids).__name__}")


def _from_objects(values: list[Any]) -> np.ndarray:
    if all(isinstance(value, str) for value in values):
        return np.array(values, dtype=str)
    if all(isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values):
        try:
            return np.array(values, np.int64)
        except OverflowError:
            raise UserError("ids must be integers from 0 to 2**63 - 1; -1 stands for no product") from None
    raise UserError("ids must be all integers or all texts, not both")
