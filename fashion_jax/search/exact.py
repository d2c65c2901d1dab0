"""Exact nearest neighbours by cosine: in JAX over all rows in tiles, and on the host over few of them."""

from __future__ import annotations

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32, Int64

from fashion_jax.system.errors import UserError

_TILE_ROWS = 16_384
_TILE_QUERIES = 1_024
_HOST_TILE_SCORES = 1 << 24  # scores held at once on the host, 64 MiB

Scores = Float32[np.ndarray, "queries k"]
Positions = Int64[np.ndarray, "queries k"]


class ExactSearcher:
    """All rows on a device. Memory beyond the rows themselves is one tile of scores, however many queries come."""

    def __init__(self, vectors: Float32[np.ndarray, "n dim"], device: jax.Device | None = None) -> None:
        """Copies the rows to a device; on the host's own processor not before they are first searched there.

        Args:
            vectors: of length 1.
            device: None takes JAX's first local one.

        Raises:
            UserError: they do not fit into its memory.
        """
        self.count, self._dim = vectors.shape
        self._vectors, self._device = vectors, device or jax.local_devices()[0]
        # Sizes are rounded up, so that an index that grows is compiled for few of them.
        self._tile = min(_TILE_ROWS, 1 << max(0, self.count - 1).bit_length())
        self._lock = threading.Lock()
        self._placed: tuple[Array, Array] | None = None
        if not self.on_host:
            self._rows_and_mask()  # what does not fit is said now

    @property
    def on_host(self) -> bool:
        """Whether the device is the host's own processor, which needs no copy of the rows."""
        return bool(self._device.platform == "cpu")

    def search(
        self, queries: Float32[np.ndarray, "q dim"], k: int, allowed: Bool[np.ndarray, " n"] | None = None
    ) -> tuple[Scores, Positions]:
        """Returns the k nearest rows of each query, best first.

        Args:
            queries: of length 1.
            k: at least 1.
            allowed: rows that may be returned; None for all.

        Returns:
            Cosine similarities, -inf where there are fewer rows, and positions, -1 there.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        if not self.count or not len(queries):
            return scores, positions
        rows, every = self._rows_and_mask()
        mask = every if allowed is None else self._place(allowed)
        # Few widths of k and few numbers of queries are ever compiled.
        found = min(1 << (k - 1).bit_length(), self.count)
        for start in range(0, len(queries), _TILE_QUERIES):
            part = queries[start : start + _TILE_QUERIES]
            size = min(1 << (len(part) - 1).bit_length(), _TILE_QUERIES)
            padded = np.zeros((size, self._dim), np.float32)
            padded[: len(part)] = part
            best, place = jax.device_get(_top(rows, mask, jax.device_put(padded, self._device), found))
            width = min(k, found)
            scores[start : start + len(part), :width] = best[: len(part), :width]
            positions[start : start + len(part), :width] = place[: len(part), :width]
        positions[np.isneginf(scores)] = -1
        return scores, positions

    def _rows_and_mask(self) -> tuple[Array, Array]:
        with self._lock:
            if self._placed is None:
                tiles = -(-self.count // self._tile)
                padded = np.zeros((tiles * self._tile, self._dim), np.float32)
                padded[: self.count] = self._vectors
                try:
                    rows = jax.device_put(padded.reshape(tiles, self._tile, self._dim), self._device)
                    rows.block_until_ready()
                except jax.errors.JaxRuntimeError as error:
                    what = f"{self.count:,} vectors of {self._dim}"
                    raise UserError(f"{what} do not fit on {self._device}: {error}") from error
                self._placed = rows, self._place(np.ones(self.count, bool))
            return self._placed

    def _place(self, allowed: Bool[np.ndarray, " n"]) -> Array:
        mask = np.zeros((-(-self.count // self._tile), self._tile), bool)
        mask.reshape(-1)[: self.count] = allowed
        return jax.device_put(mask, self._device)


@partial(jax.jit, static_argnums=3)
def _top(
    rows: Float32[Array, "tiles tile dim"], mask: Bool[Array, "tiles tile"], queries: Float32[Array, "q dim"], k: int
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
    tile = rows.shape[1]

    def step(best, item):  # type: ignore[no-untyped-def]
        (scores, positions), (number, vectors, allowed) = best, item
        # Tensor cores' short mantissas would reorder neighbours.
        found = jnp.matmul(queries, vectors.T, precision=lax.Precision.HIGHEST)
        found, place = lax.top_k(jnp.where(allowed[None, :], found, -jnp.inf), min(k, tile))
        scores = jnp.concatenate([scores, found], axis=1)
        positions = jnp.concatenate([positions, place + number * tile], axis=1)
        scores, chosen = lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(positions, chosen, axis=1)), None

    start = (jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32))
    numbers = jnp.arange(len(rows), dtype=jnp.int32)
    best, _ = lax.scan(step, start, (numbers, rows, mask))
    return best


def search_rows(
    vectors: Float32[np.ndarray, "m dim"],
    queries: Float32[np.ndarray, "q dim"],
    k: int,
    allowed: Bool[np.ndarray, " m"] | None = None,
) -> tuple[Scores, Positions]:
    """Returns the k nearest of few rows on the host, best first, as `ExactSearcher.search` does.

    Args:
        vectors: of length 1; any number of them, also none.
        queries: of length 1.
        k: at least 1.
        allowed: rows that may be returned; None for all.

    Returns:
        Cosine similarities, -inf where there are fewer rows, and positions into `vectors`, -1 there.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    width = min(k, len(vectors))
    if not width:
        return scores, positions
    if len(queries) == 1:
        # The same, without what many queries need: for few rows that takes longer than comparing them.
        alone = vectors @ queries[0]
        if allowed is not None:
            alone[~allowed] = -np.inf
        best = np.argpartition(alone, len(alone) - width)[-width:] if width < len(alone) else np.arange(width)
        best = best[np.argsort(-alone[best], kind="stable")]
        scores[0, :width], positions[0, :width] = alone[best], best
        if allowed is not None:
            positions[np.isneginf(scores)] = -1
        return scores, positions
    step = queries_per_tile(len(vectors))
    denied = None if allowed is None else np.flatnonzero(~allowed)
    for start in range(0, len(queries), step):
        found = queries[start : start + step] @ vectors.T
        if denied is not None:
            found[:, denied] = -np.inf
        part = slice(start, start + len(found))
        if width < found.shape[1]:
            chosen = np.argpartition(found, found.shape[1] - width, axis=1)[:, -width:]
            values = np.take_along_axis(found, chosen, axis=1)
        else:
            chosen, values = np.broadcast_to(np.arange(width), found.shape), found
        order = np.argsort(-values, axis=1, kind="stable")
        scores[part, :width] = np.take_along_axis(values, order, axis=1)
        positions[part, :width] = np.take_along_axis(chosen, order, axis=1)
    if allowed is not None:
        positions[np.isneginf(scores)] = -1
    return scores, positions


def queries_per_tile(count: int) -> int:
    """Returns how many queries are compared with `count` rows at once on the host."""
    return max(1, _HOST_TILE_SCORES // max(1, count))


def merge_top(first: tuple[Scores, Positions], second: tuple[Scores, Positions], k: int) -> tuple[Scores, Positions]:
    """Returns the k best of two lists of neighbours of the same queries."""
    scores = np.concatenate([first[0], second[0]], axis=1)
    positions = np.concatenate([first[1], second[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
