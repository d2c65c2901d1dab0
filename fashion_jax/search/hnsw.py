"""HNSW: search that walks a graph whose links join near rows, with faiss (Linux, macOS and Windows).

The rows of the graph are compared as they are, or by codes of one byte a value (SQ8); then the candidates of the walk
are compared exactly.

faiss reads no file of ours. The graph is stored as arrays, every link is checked when it is loaded, and the index is
put together from the arrays and the vectors. So a damaged or hostile file cannot make faiss read beyond its memory.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable small world
graphs", TPAMI 2020. Douze et al., "The faiss library", 2024.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int32, Int64

from fashion_jax.search.approximate import ApproximateSearcher, OperatingPoint
from fashion_jax.search.arrays import load_array, save_array
from fashion_jax.search.exact import Positions, Queries, Scores, lacks_rows
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores
from fashion_jax.system.threads import thread_pool

_LINKS = 12  # per row; twice as many on the lowest level
_BUILD_EFFORT = 200  # candidates among which a row's links are chosen
_GROWTH = 1.15  # from one effort to the next
_ANCHORS = 64  # rows by which the queries of a batch are sorted
_SHARED_FROM = 32  # queries from which our own threads share them; faiss's threads share fewer sooner
_LEAST_PER_TASK = 16  # queries
_TASKS_PER_CORE = 4  # so that a core that is busy with something else takes fewer of them
_PROCESS = os.getpid()  # which imported this file; a forked process has another number


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    links: Int32[np.ndarray, " m"]  # of each row and level a list of rows, -1 behind its end
    levels: Int32[np.ndarray, " n"]  # number of levels of each row, at least 1
    entry: int  # the row where a walk starts; it has all levels
    per_row: int  # links of a row on a level; twice as many on the lowest one


@dataclass(frozen=True, slots=True, eq=False)
class _Following:
    """What `complete` needs to add the rows that were held back."""

    plain: Any  # faiss's index of the other rows, as they are
    vectors: Float32[np.ndarray, "n dim"]  # of all rows
    others: Int64[np.ndarray, " m"]  # the rows that the graph has, in this order
    held: Int64[np.ndarray, " h"]  # the rows that the graph does not have yet


class HnswSearcher(ApproximateSearcher):
    """A graph whose rows are compared as they are, or by codes of one byte a value."""

    backend: ClassVar[str] = "hnsw"
    library: ClassVar[str] = "HNSW"
    # The links of an indexed row lead to its neighbours, so it is an easy query. With 10 candidates, the recall is
    # 0.981 for rows of the index and 0.950 for new queries (6,000 clustered vectors).
    knows_its_rows: ClassVar[bool] = True

    def __init__(
        self,
        index: Any,
        vectors: Float32[np.ndarray, "n dim"],
        *,
        coded: bool,
        points: tuple[OperatingPoint, ...] = (),
        following: _Following | None = None,
    ) -> None:
        """Takes faiss's index over the vectors or over codes of them, and what `complete` adds."""
        super().__init__(len(vectors), points)
        self._faiss, self._index, self._vectors, self.coded = _import(), index, vectors, coded
        self._following = following
        self._anchors = vectors[np.linspace(0, len(vectors) - 1, _ANCHORS).astype(np.int64)].T.copy()
        self._parameters: dict[int, Any] = {}

    @classmethod
    def require(cls) -> None:
        """Raises UserError where faiss is not installed."""
        _import()

    @classmethod
    def build(
        cls, vectors: Float32[np.ndarray, "n dim"], held: Int64[np.ndarray, " m"]
    ) -> tuple[HnswSearcher, HnswSearcher]:
        """Builds the graph, and returns it with vectors and with codes, as `ApproximateSearcher.build` says.

        Raises:
            UserError: faiss is not installed, or refuses.
        """
        others = np.delete(np.arange(len(vectors)), held)
        first, faiss = vectors[others], _import()
        threads = faiss.omp_get_max_threads()  # of the calling program's faiss
        try:
            faiss.omp_set_num_threads(num_cores())
            plain = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
            plain.hnsw.efConstruction = _BUILD_EFFORT
            plain.add(first)
            coded = _assemble(first, _take_apart(plain), coded=True)
        except (RuntimeError, ValueError) as error:
            count, dim = vectors.shape
            raise UserError(f"faiss cannot index {count:,} vectors of {dim}: {stored.first_line(error)}") from error
        finally:
            faiss.omp_set_num_threads(threads)
        following = _Following(plain, vectors, others, held)
        return (cls(plain, first, coded=False, following=following), cls(coded, first, coded=True, following=following))

    def complete(self) -> HnswSearcher:
        """Returns the index with the rows that `build` held back. The other index that `build` made is then invalid."""
        following = self._following
        if following is None:
            return self
        plain, vectors = following.plain, following.vectors
        plain.add(vectors[following.held])
        # faiss's entries are sorted into the order of the rows: entry i takes the content of entry places[i].
        places = np.argsort(np.concatenate([following.others, following.held]))
        plain.permute_entries(places)
        index = _assemble(vectors, _take_apart(plain), coded=True) if self.coded else plain
        return HnswSearcher(index, vectors, coded=self.coded, points=self.points)

    def search_at(self, queries: Queries, k: int, effort: int, reorder: int = 0) -> tuple[Scores, Positions]:
        """Returns about the k nearest rows of each query, as `ApproximateSearcher.search_at` says."""
        # A forked process has no threads of faiss's: faiss would wait for them for ever.
        if len(queries) == 1 or (len(queries) < _SHARED_FROM and os.getpid() == _PROCESS):
            return self._search_some(queries, k, effort)
        # Neighbouring queries walk through the same rows, which are in the processor's cache then.
        order = np.argsort((queries @ self._anchors).argmax(1))
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def search_part(part: np.ndarray) -> None:
            # faiss itself would share a batch in equal parts, and wait for the core that is busy with something else.
            self._faiss.omp_set_num_threads(1)  # of this thread
            scores[part], rows[part] = self._search_some(queries[part], k, effort)

        parts = max(1, min(len(queries) // _LEAST_PER_TASK, num_cores() * _TASKS_PER_CORE))
        list(thread_pool().map(search_part, np.array_split(order, parts)))
        return scores, rows

    def _search_some(self, queries: Queries, k: int, effort: int) -> tuple[Scores, Positions]:
        scores, rows = self._walk(queries, max(k, min(effort, self.count)) if self.coded else k, effort)
        if self.coded:
            scores, rows = self._compare(queries, rows, k)
        if lacks_rows(rows):
            scores[rows < 0] = -np.inf
        return scores, rows

    def efforts(self, neighbours: int) -> list[int]:
        """Returns the numbers of candidates to try; all rows are the most thorough."""
        least = min(neighbours, self.count)
        steps = math.ceil(math.log(self.count / least, _GROWTH))
        return sorted({*(min(round(least * _GROWTH**step), self.count) for step in range(steps)), self.count})

    def reorders(self, neighbours: int) -> list[int]:
        """Returns 0: all candidates are compared exactly."""
        return [0]

    def about(self) -> dict[str, Any]:
        """Returns what the files do not hold."""
        graph = _take_apart(self._index)
        return {"coded": self.coded, "entry": graph.entry, "links": graph.per_row}

    def save(self, folder: Path) -> None:
        """Writes the graph, without the operating points, into an empty folder. May raise OSError."""
        graph = _take_apart(self._index)
        with stored.writing(folder):
            save_array(folder / "links.npy", graph.links)
            save_array(folder / "levels.npy", graph.levels)

    @classmethod
    def load(
        cls,
        folder: Path,
        vectors: Float32[np.ndarray, "n dim"],
        about: dict[str, Any],
        points: tuple[OperatingPoint, ...],
    ) -> HnswSearcher:
        """Loads what `save` wrote, as `ApproximateSearcher.load` says.

        Raises:
            UserError: faiss is not installed, or the graph leads beyond the rows.
        """
        levels = load_array(folder / "levels.npy", np.int32, (len(vectors),))
        links = load_array(folder / "links.npy", np.int32, (None,))
        coded, entry, per_row = (about[name] for name in ("coded", "entry", "links"))
        if not isinstance(coded, bool) or type(entry) is not int or type(per_row) is not int or per_row != _LINKS:
            raise UserError("the settings of its graph are wrong")
        graph = _Graph(links, levels, entry, per_row)
        _check_graph(graph)
        return cls(_assemble(vectors, graph, coded=coded), vectors, coded=coded, points=points)

    def describe(self, point: OperatingPoint) -> str:
        """Returns what a search at a point does, as the middle of a sentence."""
        if self.coded:
            return f"walks the graph by short codes, keeps {point.effort:,} candidates, compares these exactly"
        return f"walks the graph, keeps {point.effort:,} candidates"

    def _walk(self, queries: Queries, k: int, effort: int) -> tuple[Scores, Positions]:
        queries = np.ascontiguousarray(queries)
        assert queries.dtype == np.float32 and queries.shape[1] == self._vectors.shape[1]  # faiss gets bare addresses
        count, address = len(queries), self._faiss.swig_ptr
        scores, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        asked = self._parameters.get(effort)
        if asked is None:
            asked = self._parameters[effort] = self._faiss.SearchParametersHNSW(efSearch=effort)
        self._index.search_c(count, address(queries), k, address(scores), address(rows), asked)
        return scores, rows

    def _compare(self, queries: Queries, rows: Positions, k: int) -> tuple[Scores, Positions]:
        """Returns the k best of some rows by exact similarity."""
        if len(queries) == 1:
            found = rows[0]
            alone = self._vectors.take(found, axis=0) @ queries[0]
            if found[-1] < 0:
                alone[found < 0] = -np.inf
            best = (-alone).argsort()[:k]
            return alone[best][None], found[best][None]
        known, address = np.maximum(rows, 0), self._faiss.swig_ptr
        scores = np.empty(rows.shape, np.float32)
        self._faiss.fvec_inner_products_by_idx(
            address(scores), address(np.ascontiguousarray(queries)), address(self._vectors), address(known),
            queries.shape[1], *rows.shape,
        )  # fmt: skip
        scores[rows < 0] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


def _assemble(vectors: Float32[np.ndarray, "n dim"], graph: _Graph, *, coded: bool) -> Any:
    """Returns faiss's index of a graph that has been checked."""
    faiss, (count, dim) = _import(), vectors.shape
    if coded:
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexHNSWSQ(dim, kind, graph.per_row, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
    else:
        index = faiss.IndexHNSWFlat(dim, graph.per_row, faiss.METRIC_INNER_PRODUCT)
    faiss.downcast_index(index.storage).add(vectors)
    index.ntotal = count
    hnsw = index.hnsw
    faiss.copy_array_to_vector(graph.levels, hnsw.levels)
    hnsw.prepare_level_tab(count, True)
    assert hnsw.neighbors.size() == len(graph.links)
    faiss.copy_array_to_vector(graph.links, hnsw.neighbors)
    hnsw.entry_point, hnsw.max_level = graph.entry, int(graph.levels[graph.entry]) - 1
    return index


def _take_apart(index: Any) -> _Graph:
    faiss, hnsw = _import(), index.hnsw
    links, levels = faiss.vector_to_array(hnsw.neighbors), faiss.vector_to_array(hnsw.levels)
    return _Graph(links, levels, int(hnsw.entry_point), hnsw.nb_neighbors(1))


def _level_sizes(per_row: int) -> Int64[np.ndarray, " levels"]:
    """Returns how many links a row with 0, 1, ... levels has; faiss makes no more levels than these."""
    faiss = _import()
    index = faiss.IndexHNSWFlat(1, per_row)  # kept in a variable, because it owns the memory that is read
    sizes: np.ndarray = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
    return sizes


def _check_graph(graph: _Graph) -> None:
    """Raises UserError where a walk through the graph would read beyond its memory."""
    sizes = _level_sizes(graph.per_row)
    levels, links, count = graph.levels, graph.links, len(graph.levels)
    if not (levels.min() >= 1 and levels.max() < len(sizes)):
        raise UserError("a row of its graph has an impossible level")
    if not 0 <= graph.entry < count or levels[graph.entry] != levels.max():
        raise UserError("the row where searches of its graph start is wrong")
    starts = np.cumsum(sizes[levels]) - sizes[levels]
    if len(links) != starts[-1] + sizes[levels[-1]]:
        raise UserError("the number of links of its graph does not fit the levels of its rows")
    if not -1 <= links.min() <= links.max() < count:
        raise UserError("its graph has links to rows that do not exist")
    # On an upper level, a link to a row that does not reach this level would read another row's links.
    for level in range(1, int(levels.max())):
        rows = np.flatnonzero(levels > level)
        linked = links[(starts[rows] + sizes[level])[:, None] + np.arange(sizes[level + 1] - sizes[level])]
        if not (levels[linked[linked >= 0]] > level).all():
            raise UserError("its graph has links to rows of a lower level")


def _import() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("the backend 'hnsw' needs faiss (pip install faiss-cpu)") from error
    return faiss
