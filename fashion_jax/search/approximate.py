"""The base class of the approximate backends: an index that never changes, with operating points that were measured.

A backend is one file with one subclass of `ApproximateSearcher`, which builds, searches, saves and loads. Filters,
costs and the choice of an operating point are here, and `tuning.tune` finds the points.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.search.exact import PassingRows, Positions, Queries, Scores
from fashion_jax.system.errors import UserError

_SPREADS = 3.0  # standard deviations by which more candidates are fetched than are expected to be needed
_MILD = 1.25  # with a filter, k neighbours use the operating point of k if at most this times k candidates are fetched
_PICKING = 1e-8  # seconds to check one candidate against the filter
_FILTERING = 2e-5  # seconds that a filter adds to a search


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How a backend is asked for up to `neighbours` neighbours, and what was measured there."""

    neighbours: int  # the most neighbours that may be asked for
    effort: int  # ScaNN: clusters that are searched. HNSW: candidates that the walk keeps (efSearch)
    reorder: int  # candidates whose similarity is computed exactly; 0 where the backend compares all of them exactly
    recall: float  # mean share of the true nearest `neighbours` that are found, on the sample
    single_seconds: float  # time of one query alone, the median
    batch_seconds: float  # time of one query in a batch of the sample's size

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> OperatingPoint:
        """Returns the point that `dataclasses.asdict` turned into JSON values; UserError for other values."""
        try:
            neighbours, effort, reorder = (int(values[name]) for name in ("neighbours", "effort", "reorder"))
            recall, single, batch = (float(values[n]) for n in ("recall", "single_seconds", "batch_seconds"))
            return cls(neighbours, effort, reorder, recall, single, batch)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the operating point {values!r} is damaged") from error


class ApproximateSearcher(ABC):
    """A built index over rows 0 to count - 1. It never changes."""

    backend: ClassVar[str]  # its name in `Index.build`
    library: ClassVar[str]  # its name for people
    # Whether rows of the index are easier queries than new vectors. Then tuning needs rows that are not in it yet.
    knows_its_rows: ClassVar[bool] = False

    def __init__(self, count: int, points: tuple[OperatingPoint, ...] = ()) -> None:
        """Takes operating points with growing numbers of neighbours."""
        self.count, self.points = count, points

    @classmethod
    @abstractmethod
    def require(cls) -> None:
        """Raises UserError where the library is not installed."""

    @classmethod
    def is_available(cls) -> bool:
        """Returns whether the library is installed."""
        try:
            cls.require()
        except UserError:
            return False
        return True

    @classmethod
    @abstractmethod
    def build(
        cls, vectors: Float32[np.ndarray, "n dim"], held: Int64[np.ndarray, " m"]
    ) -> Sequence[ApproximateSearcher]:
        """Builds an index in one form, or in several to choose from. It has no operating points yet.

        Args:
            vectors: finite and of length 1; at least 2.
            held: rows that a backend with `knows_its_rows` leaves out until `complete` is called. Until then, positions
                number the other rows only.

        Raises:
            UserError: the library is not installed, or refuses.
        """

    def complete(self) -> Self:
        """Returns the index with all rows."""
        return self

    @abstractmethod
    def search_at(self, queries: Queries, k: int, effort: int, reorder: int) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, best first.

        Args:
            queries: finite, of length 1, at least one.
            k: in [1, count].
            effort: as an operating point has it.
            reorder: as an operating point has it.

        Returns:
            Cosine similarities, -inf where too few rows were found, and positions, -1 there.
        """

    @abstractmethod
    def efforts(self, neighbours: int) -> list[int]:
        """Returns the efforts to try, growing; the last one is the most thorough, and recall grows with them."""

    @abstractmethod
    def reorders(self, neighbours: int) -> list[int]:
        """Returns the numbers of candidates to try, growing."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Returns JSON values that `load` needs."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the index, without the operating points, into an empty folder. May raise OSError."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: Path,
        vectors: Float32[np.ndarray, "n dim"],
        about: dict[str, Any],
        points: tuple[OperatingPoint, ...],
    ) -> Self:
        """Loads what `save` wrote; the caller has checked that no byte of it changed.

        Args:
            vectors: that it was built from.
            about: what `about` returned.

        Raises:
            UserError: the library is not installed or refuses, or the files are of other rows.
        """

    @abstractmethod
    def describe(self, point: OperatingPoint) -> str:
        """Returns what a search at a point does, as the middle of a sentence."""

    def with_points(self, points: tuple[OperatingPoint, ...]) -> Self:
        """Returns the same index with other operating points."""
        found = copy.copy(self)
        found.points = points
        return found

    def search(self, queries: Queries, k: int, passing: PassingRows | None = None) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, as `Searcher.search`; with a filter, maybe fewer than k.

        A filter needs more candidates, of which the passing ones are kept.
        """
        fetch, point = self._plan(k, passing)
        assert point is not None
        scores, positions = self.search_at(queries, fetch, point.effort, point.reorder)
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

    def least_seconds(self, num_queries: int) -> float:
        """Returns how long a search for few neighbours takes; infinity where there is no operating point."""
        if not self.points:
            return math.inf
        point = self.points[0]
        return point.single_seconds if num_queries == 1 else num_queries * point.batch_seconds

    def check_points(self) -> None:
        """Raises UserError where an operating point is out of range."""
        for point in self.points:
            fits = 1 <= point.neighbours <= self.count and 0 <= point.reorder <= self.count
            effort = 1 <= point.effort <= self.efforts(point.neighbours)[-1] if fits else False
            times = 0 < point.single_seconds < math.inf and 0 < point.batch_seconds < math.inf
            if not (fits and effort and times):
                raise UserError("an operating point is out of range")

    def _plan(self, k: int, passing: PassingRows | None) -> tuple[int, OperatingPoint | None]:
        """Returns how many candidates to fetch for k neighbours, and the operating point; None where there is none."""
        if passing is None:
            fetch = neighbours = k
        elif not passing.count:
            return k, None
        else:
            fetch = min(candidates(k, passing.share), self.count)
            neighbours = k if fetch <= _MILD * k else fetch
        if neighbours > self.count:
            return fetch, None
        for point in self.points:
            if point.neighbours >= neighbours:
                return fetch, point
        return fetch, None


def candidates(k: int, share: float) -> int:
    """Returns how many rows to fetch so that k of them pass a filter, if `share` of all rows passes it.

    The number of passing rows is binomial. The mean of this number is three standard deviations above k.
    """
    spread = _SPREADS * math.sqrt(1 - share)
    return math.ceil((k + spread * math.sqrt(k + spread**2 / 4) + spread**2 / 2) / share)
