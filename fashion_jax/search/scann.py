"""ScaNN as a searcher, behind checks that keep it from stopping the process.

ScaNN gets nothing but finite float32 vectors of length 1, is never changed, and is never asked for more rows than it
has. Its answers are repaired: when a query of a batch finds too few candidates, ScaNN returns row 0 at a distance of
NaN for the missing ones.

Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.exact import PassingRows, Positions, Queries, Scores
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

_ANISOTROPIC_THRESHOLD = 0.2  # of the quantisation loss, the published value for cosine similarity
_TREE_SAMPLE = 100_000  # rows that train the tree, at most
_CODE_SAMPLE = 20_000  # rows that train the codes; 16 centres of 2 features need no more, and the default is slower
_TREE_FROM = 10_000  # rows below which a tree gains nothing
_MOST_PER_TASK = 512  # queries of one task of a parallel batch
_SPREADS = 3.0  # standard deviations by which more candidates are fetched than are expected to be needed
_MILD = 1.25  # candidates per neighbour up to which the neighbours' own operating point serves
_PICKING = 1e-8  # seconds to see whether a candidate passes
_FILTERING = 2e-5  # seconds that a filter adds to a search
_ASSETS = "scann_assets.pbtxt"  # names the other files


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How ScaNN is asked for up to `neighbours` neighbours, and what was measured there."""

    neighbours: int  # the most neighbours that may be asked for
    leaves: int  # partitions that are searched
    reorder: int  # candidates whose similarity is computed exactly
    recall: float  # mean share of the true nearest `neighbours` that are found, on the sample
    single_seconds: float  # time of one query alone, the median
    batch_seconds: float  # time of one query in a batch of the sample's size

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OperatingPoint:
        """Returns the point that `dataclasses.asdict` turned into JSON values; UserError for other values."""
        try:
            neighbours, leaves, reorder = (int(values[name]) for name in ("neighbours", "leaves", "reorder"))
            recall, single, batch = (float(values[n]) for n in ("recall", "single_seconds", "batch_seconds"))
            return cls(neighbours, leaves, reorder, recall, single, batch)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the operating point {values!r} is damaged") from error


def leaves_for(count: int) -> int:
    """Returns how many partitions a number of rows gets: about sqrt(count); 0, no tree, where it gains nothing."""
    return round(math.sqrt(count)) if count >= _TREE_FROM else 0


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

    def __init__(self, searcher: Any, count: int, leaves: int, points: tuple[OperatingPoint, ...] = ()) -> None:
        """Takes ScaNN's own searcher, and operating points with growing numbers of neighbours."""
        self._searcher, self.count, self.leaves, self.points = searcher, count, leaves, points

    @classmethod
    def build(cls, vectors: Float32[np.ndarray, "n dim"], leaves: int) -> ScannSearcher:
        """Builds an index. It has no operating points yet: `tuning.tune` finds them.

        Args:
            vectors: finite and of length 1; at least 2.
            leaves: partitions; 0 for no tree.

        Raises:
            UserError: ScaNN is not installed, or refuses.
        """
        count = len(vectors)
        builder = _ops().builder(vectors, 10, "dot_product")
        if leaves:
            builder = builder.tree(
                num_leaves=min(leaves, count),
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
            return cls(builder.build(), count, leaves)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"ScaNN cannot index {count:,} vectors of {vectors.shape[1]}: {error}") from error

    def with_points(self, points: tuple[OperatingPoint, ...]) -> ScannSearcher:
        """Returns the same index with other operating points."""
        return ScannSearcher(self._searcher, self.count, self.leaves, points)

    def search(self, queries: Queries, k: int, passing: PassingRows | None = None) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, as `Searcher.search` says; with a filter, maybe fewer.

        A filter needs more candidates, of which the passing ones are kept.
        """
        fetch, point = self._plan(k, passing)
        assert point is not None
        scores, positions = self.search_at(queries, fetch, point.leaves, point.reorder)
        if passing is None:
            return scores, positions
        # Where a place is empty its position is -1, which reads the last row's mask; the score rules it out.
        kept = passing.mask[positions] & (scores > -np.inf)
        ranks = np.cumsum(kept, axis=1)
        query, candidate = np.nonzero(kept & (ranks <= k))
        place = ranks[query, candidate] - 1
        best = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        best[query, place], rows[query, place] = scores[query, candidate], positions[query, candidate]
        return best, rows

    def seconds(self, num_queries: int, k: int, passing: PassingRows | None = None) -> float:
        """Returns how long `search` takes; infinity where no operating point was tuned for that many rows."""
        fetch, point = self._plan(k, passing)
        if point is None:
            return math.inf
        seconds = point.single_seconds if num_queries == 1 else num_queries * point.batch_seconds
        return seconds if passing is None else seconds + _FILTERING + num_queries * fetch * _PICKING

    def search_at(self, queries: Queries, k: int, leaves: int, reorder: int) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, best first.

        Args:
            queries: finite, of length 1, at least one.
            k: in [1, count].
            leaves: partitions to search.
            reorder: candidates whose similarity is computed exactly; at least k.

        Returns:
            Cosine similarities, -inf where too few rows were found, and positions, -1 there.
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
        """Writes the index into an empty folder; the operating points are not written. OSError as the system does."""
        try:
            with stored.writing(folder):
                self._searcher.serialize(str(folder), relative_path=True)
        except RuntimeError as error:
            raise OSError(errno.EIO, f"ScaNN cannot write ({stored.first_line(error)})", str(folder)) from error
        if not (folder / _ASSETS).stat().st_size:  # it comes last, and ScaNN does not notice that nothing was written
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    @classmethod
    def load(cls, folder: Path, count: int, leaves: int, points: tuple[OperatingPoint, ...]) -> ScannSearcher:
        """Loads what `save` wrote; the caller has checked that no byte of it changed.

        Raises:
            UserError: ScaNN is not installed or refuses, or the folder holds a pickle, which ScaNN would load.
        """
        # ScaNN would unpickle ids of its own, and converts folders of old versions in place.
        if not (folder / _ASSETS).is_file() or any(folder.glob("*.pkl")):
            raise UserError(f"{folder} was not written by this package; build the index again")
        ops = _ops()
        with stored.reading(folder, "build the index again"):
            return cls(ops.load_searcher(str(folder)), count, leaves, points)

    def _plan(self, k: int, passing: PassingRows | None) -> tuple[int, OperatingPoint | None]:
        """Returns how many candidates to fetch for k neighbours, and the operating point; None where there is none."""
        if passing is not None and not passing.count:
            return k, None
        fetch = k if passing is None else min(candidates(k, passing.share), self.count)
        neighbours = k if fetch <= _MILD * k else fetch
        if neighbours > self.count:
            return fetch, None
        return fetch, next((point for point in self.points if point.neighbours >= neighbours), None)


def candidates(k: int, share: float) -> int:
    """Returns how many rows to fetch so that k pass, where a share of all rows passes, whatever the query.

    The number that passes is binomial. So many rows are fetched that k lies three standard deviations below its mean.
    """
    spread = _SPREADS * math.sqrt(1 - share)
    return math.ceil((k + spread * math.sqrt(k + spread**2 / 4) + spread**2 / 2) / share)


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
            "elsewhere use backend='exact'"
        ) from error
    return scann_ops_pybind
