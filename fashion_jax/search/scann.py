"""ScaNN behind a door that lets nothing through which would stop the process.

ScaNN is handed finite float32 vectors of length 1 alone, never mutated, never asked for more than it has, and its
answers are repaired: a batch that finds too few candidates comes back from it as row 0 at a distance of NaN.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

_ANISOTROPIC_THRESHOLD = 0.2  # of the quantisation loss, the published value for cosine similarity
_TREE_SAMPLE = 100_000  # rows that the tree is trained on at most
_CODE_SAMPLE = 20_000  # and the codes: 16 centres of 2 features each need no more, and the default costs a third more
_TREE_FROM = 10_000  # rows below which no tree is worth its overhead
_MOST_PER_TASK = 512  # queries of one task of a parallel batch


@dataclass(frozen=True, slots=True)
class Structure:
    """What an index is made of: `leaves` partitions, 0 for no tree."""

    leaves: int

    @classmethod
    def for_count(cls, count: int) -> Structure:
        """Returns the structure for a number of rows: about sqrt(count) leaves, and none where a tree is no gain."""
        return cls(round(math.sqrt(count)) if count >= _TREE_FROM else 0)


def is_available() -> bool:
    """Returns whether ScaNN is installed (Linux on x86-64 and aarch64)."""
    try:
        require()
    except UserError:
        return False
    return True


def require() -> None:
    """Raises UserError where ScaNN is not installed."""
    _ops()


class ScannSearcher:
    """A built ScaNN index over rows 0 to count - 1. It never changes."""

    def __init__(self, searcher: Any, count: int, structure: Structure) -> None:
        self._searcher, self.count, self.structure = searcher, count, structure

    @classmethod
    def build(cls, vectors: Float32[np.ndarray, "n dim"], structure: Structure) -> ScannSearcher:
        """Builds an index.

        Args:
            vectors: finite and of length 1; at least 2.
            structure: of `Structure.for_count`.

        Raises:
            UserError: ScaNN is not installed, or refuses.
        """
        count = len(vectors)
        builder = _ops().builder(vectors, 10, "dot_product")
        if structure.leaves:
            builder = builder.tree(
                num_leaves=min(structure.leaves, count),
                num_leaves_to_search=structure.leaves,
                training_sample_size=min(count, _TREE_SAMPLE),
                # Centres of length 1: of a million clustered vectors 15 leaves of 1,000 hold what 40 of others do.
                # (The short centre of a loose cluster has small products with all queries.)
                spherical=True,
                quantize_centroids=False,
            )
        builder = builder.score_ah(
            2, anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD, training_sample_size=min(count, _CODE_SAMPLE)
        ).reorder(100)
        try:
            return cls(builder.build(), count, structure)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ScaNN cannot index {count:,} vectors of {vectors.shape[1]}: {error}") from error

    def search(
        self, queries: Float32[np.ndarray, "q dim"], k: int, leaves: int, reorder: int
    ) -> tuple[Float32[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Returns about the k nearest rows of each query, best first.

        Args:
            queries: finite, of length 1, at least one.
            k: in [1, count].
            leaves: partitions to look into.
            reorder: candidates whose similarity is computed exactly; at least k.

        Returns:
            Cosine similarities, -inf where too few were found, and positions, -1 there.
        """
        reorder = min(max(reorder, k), self.count)
        if len(queries) == 1:
            positions, scores = self._searcher.search(queries[0], k, reorder, leaves)
            if len(positions) == k and scores[-1] == scores[-1]:
                return scores[None], positions[None].astype(np.int64)
            return _pad(scores[None], positions[None], k)
        # The largest tasks that give every core its share: of 1,000 queries on 2 cores, two of 500 take 2 % less time
        # than ScaNN's own four of 256.
        cores = num_cores()
        size = math.ceil(len(queries) / (cores * math.ceil(len(queries) / (cores * _MOST_PER_TASK))))
        positions, scores = self._searcher.search_batched_parallel(queries, k, reorder, leaves, size)
        if positions.shape[1] == k and not np.isnan(scores[:, -1]).any():
            return scores, positions.astype(np.int64)
        return _pad(scores, positions, k)

    def save(self, folder: Path) -> None:
        """Writes the index into a folder that exists and is empty."""
        self._searcher.serialize(str(folder), relative_path=True)

    @classmethod
    def load(cls, folder: Path, count: int, structure: Structure) -> ScannSearcher:
        """Loads what `save` wrote; the caller has checked that no byte of it changed.

        Raises:
            UserError: ScaNN is not installed or refuses, or the folder holds a pickle, which ScaNN would load.
        """
        # ScaNN would unpickle ids of its own, and converts folders of old versions in place.
        if not (folder / "scann_assets.pbtxt").is_file() or any(folder.glob("*.pkl")):
            raise UserError(f"{folder} was not written by this package; build the index again")
        try:
            return cls(_ops().load_searcher(str(folder)), count, structure)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"ScaNN cannot load {folder}: {error}") from error


def _pad(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    full_scores = np.full((len(scores), k), -np.inf, np.float32)
    full_positions = np.full((len(scores), k), -1, np.int64)
    known = ~np.isnan(scores)
    full_scores[:, : scores.shape[1]] = np.where(known, scores, -np.inf)
    full_positions[:, : scores.shape[1]] = np.where(known, positions.astype(np.int64), -1)
    return full_scores, full_positions


def _ops() -> Any:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "the backend 'scann' needs ScaNN, which there is for Linux on x86-64 and aarch64 (pip install scann); "
            "elsewhere use backend='exact'"
        ) from error
    return scann_ops_pybind
