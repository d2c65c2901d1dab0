"""ScaNN as a searcher, behind checks that keep it from stopping the process.

ScaNN gets nothing but finite float32 vectors of length 1, is never changed, and is never asked for more rows than it
has. Its answers are repaired: when a query of a batch finds too few candidates, ScaNN returns row 0 at a distance of
NaN for the missing ones.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020.
"""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.approximate import ApproximateSearcher, OperatingPoint
from fashion_jax.search.arrays import load_array
from fashion_jax.search.exact import Positions, Queries, Scores
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

_ANISOTROPIC_THRESHOLD = 0.2  # of the quantisation loss, the published value for cosine similarity
_TREE_SAMPLE = 100_000  # rows that train the tree, at most
_CODE_SAMPLE = 20_000  # rows that train the codes; 16 centres of 2 features need no more, and the default is slower
_TREE_FROM = 10_000  # rows below which a tree gains nothing
_MOST_PER_TASK = 512  # queries of one task of a parallel batch
_REORDER = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 14.0, 25.0, 40.0)  # candidates per neighbour
_GROWTH = 1.25  # from one number of clusters to the next
_ASSETS = "scann_assets.pbtxt"  # names the other files


class ScannSearcher(ApproximateSearcher):
    """Clusters of rows. Rows are compared by short codes first, and the best of them exactly."""

    backend: ClassVar[str] = "scann"
    library: ClassVar[str] = "ScaNN"

    def __init__(self, searcher: Any, count: int, leaves: int, points: tuple[OperatingPoint, ...] = ()) -> None:
        """Takes ScaNN's own searcher, and its number of clusters (ScaNN's leaves); 0 for no tree."""
        super().__init__(count, points)
        self._searcher, self.leaves = searcher, leaves

    @classmethod
    def require(cls) -> None:
        """Raises UserError where ScaNN is not installed (Linux on x86-64 and aarch64 have it)."""
        _ops()

    @classmethod
    def build(cls, vectors: Float32[np.ndarray, "n dim"], held: Int64[np.ndarray, " m"]) -> tuple[ScannSearcher]:
        """Builds an index, as `ApproximateSearcher.build` says: about sqrt(n) clusters, none where they gain nothing.

        Raises:
            UserError: ScaNN is not installed, or refuses.
        """
        count = len(vectors)
        leaves = round(math.sqrt(count)) if count >= _TREE_FROM else 0
        builder = _ops().builder(vectors, 10, "dot_product")
        if leaves:
            builder = builder.tree(
                num_leaves=leaves,
                num_leaves_to_search=leaves,
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
            return (cls(builder.build(), count, leaves),)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ScaNN cannot index {count:,} vectors of {vectors.shape[1]}: {error}") from error

    def search_at(self, queries: Queries, k: int, effort: int, reorder: int) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, as `ApproximateSearcher.search_at` says."""
        reorder = min(max(reorder, k), self.count)
        if len(queries) == 1:
            positions, scores = self._searcher.search(queries[0], k, reorder, effort)
            if len(positions) == k and scores[-1] == scores[-1]:
                return scores[None], positions[None].astype(np.int64)
            return _pad(scores[None], positions[None], k)
        # The largest tasks that give every core its share: of 1,000 queries on 2 cores, two of 500 take 2 % less time
        # than ScaNN's own four of 256.
        cores = num_cores()
        size = math.ceil(len(queries) / (cores * math.ceil(len(queries) / (cores * _MOST_PER_TASK))))
        positions, scores = self._searcher.search_batched_parallel(queries, k, reorder, effort, size)
        if positions.shape[1] == k and not np.isnan(scores[:, -1]).any():
            return scores, positions.astype(np.int64)
        return _pad(scores, positions, k)

    def efforts(self, neighbours: int) -> list[int]:
        """Returns the numbers of clusters to try; all of them are the most thorough."""
        leaves = max(1, self.leaves)
        steps = math.ceil(math.log(leaves, _GROWTH)) if leaves > 1 else 0
        return sorted({*(min(round(_GROWTH**step), leaves) for step in range(steps)), leaves})

    def reorders(self, neighbours: int) -> list[int]:
        """Returns the numbers of candidates to try, growing."""
        # One more than asked for: a sampled row finds itself.
        return sorted({min(self.count, max(neighbours + 1, round(neighbours * factor))) for factor in _REORDER})

    def about(self) -> dict[str, Any]:
        """Returns the number of clusters."""
        return {"leaves": self.leaves}

    def save(self, folder: Path) -> None:
        """Writes the index, without the operating points, into an empty folder. May raise OSError."""
        try:
            with stored.writing(folder):
                self._searcher.serialize(str(folder), relative_path=True)
        except RuntimeError as error:
            raise OSError(errno.EIO, f"ScaNN cannot write ({stored.first_line(error)})", str(folder)) from error
        if not (folder / _ASSETS).stat().st_size:  # it comes last, and ScaNN does not notice that nothing was written
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    @classmethod
    def load(
        cls,
        folder: Path,
        vectors: Float32[np.ndarray, "n dim"],
        about: dict[str, Any],
        points: tuple[OperatingPoint, ...],
    ) -> ScannSearcher:
        """Loads what `save` wrote, as `ApproximateSearcher.load` says.

        ScaNN's binary files are not checked beyond this. Do not load an index of somebody whom you do not trust, as you
        would not run their program.

        Raises:
            UserError: ScaNN is not installed or refuses, its files are of other rows (ScaNN would read beyond them), or
                the folder holds a pickle, which ScaNN would load.
        """
        # ScaNN would unpickle ids of its own, and converts folders of old versions in place.
        if not (folder / _ASSETS).is_file() or any(folder.glob("*.pkl")):
            raise UserError(f"{folder} was not written by this package; build the index again")
        leaves = int(about["leaves"])
        if not 0 <= leaves <= len(vectors):
            raise UserError("it has more clusters than photos")
        if not np.array_equal(load_array(folder / "dataset.npy", np.float32, vectors.shape), vectors):
            raise UserError("ScaNN's files hold other vectors than the index")
        if leaves:
            leaf = load_array(folder / "datapoint_to_token.npy", np.int32, (len(vectors),))
            if not 0 <= leaf.min() <= leaf.max() < leaves:
                raise UserError("ScaNN's clusters are not those of the index")
        ops = _ops()
        with stored.reading(folder, "build the index again"):
            return cls(ops.load_searcher(str(folder)), len(vectors), leaves, points)

    def describe(self, point: OperatingPoint) -> str:
        """Returns what a search at a point does, as the middle of a sentence."""
        return f"reads {point.effort} of {max(1, self.leaves)} clusters, compares {point.reorder:,} products exactly"


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
            "the backend 'scann' needs ScaNN, which exists for Linux on x86-64 and aarch64 (pip install scann); "
            "elsewhere use the backend 'hnsw'"
        ) from error
    return scann_ops_pybind
