"""Builds the indexed part of an index: chooses the backend, builds it, and tunes it to the asked recall."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Float32

from fashion_jax.search.approximate import ApproximateSearcher
from fashion_jax.search.exact import DeviceSearcher, HostSearcher
from fashion_jax.search.hnsw import HnswSearcher
from fashion_jax.search.scann import ScannSearcher
from fashion_jax.search.snapshot import Base
from fashion_jax.search.tuning import MOST_POINTS, draw_sample, tune
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import progress_bar

APPROXIMATE: dict[str, type[ApproximateSearcher]] = {"scann": ScannSearcher, "hnsw": HnswSearcher}  # in this order
BACKENDS = ("auto", "exact", *APPROXIMATE)

_APPROXIMATE_FROM = 5_000  # rows; exact search over fewer takes less than a millisecond on any host
_COMPARED_UP_TO = 50_000  # rows up to which "auto" builds all backends; beyond, HNSW takes much longer to build
_DEVICE_SHARE = 0.4  # of an accelerator's memory that rows may take
_DEVICE_BYTES = 8 << 30  # assumed for an accelerator that does not tell how much memory it has
_SINGLE_QUERIES_FROM = 500_000  # rows from which the host answers one query sooner than an accelerator


def check_target(target_recall: object, backend: object) -> None:
    """Raises UserError for a recall outside of (0, 1], and for a backend that does not exist or is not installed."""
    try:
        number = float(target_recall)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 < number <= 1:
        raise UserError(f"target_recall must be above 0, at most 1, not {target_recall!r}")
    if not isinstance(backend, str) or backend not in BACKENDS:
        hint = nearest(str(backend), BACKENDS)
        raise UserError(f"there is no backend {backend!r}{hint}; there are {', '.join(BACKENDS)}")
    if backend in APPROXIMATE:
        APPROXIMATE[backend].require()


def build_base(
    vectors: Float32[np.ndarray, "n dim"], target_recall: float, backend: str, *, batch: int, progress: bool
) -> Base:
    """Indexes rows.

    Args:
        vectors: finite, of length 1.
        target_recall: in (0, 1]; an approximate index is tuned to it.
        backend: one of `BACKENDS`.
        batch: typical number of queries in one search.
    """
    chosen = _choose_backends(backend, len(vectors), vectors.shape[1], batch)
    vectors = np.ascontiguousarray(vectors)
    vectors.flags.writeable = False
    # An approximate index cannot be tuned with a single row, which has no neighbours.
    if not chosen or len(vectors) < 2:
        return Base(vectors, HostSearcher(vectors), DeviceSearcher.make_if_useful(vectors), None, target_recall)
    steps = len(chosen) + 1  # and the operating points, once it is known how many forms were built
    with progress_bar(steps, "building the index", show=progress, unit="step") as bar:

        def begin(what: str) -> None:
            bar.set_description(what)
            bar.update()

        begin("finding the true neighbours of a sample")
        sample = draw_sample(vectors)
        # A graph is tuned with queries that are not in it yet.
        held = draw_sample(vectors, held=True) if any(kind.knows_its_rows for kind in chosen) else sample
        built: list[ApproximateSearcher] = []
        for kind in chosen:
            begin(f"building the index ({kind.library})")
            built += kind.build(vectors, held.rows)
        bar.total = steps + len(built) + MOST_POINTS - 1

        def tuned(searcher: ApproximateSearcher, most: int) -> ApproximateSearcher:
            tell = partial(begin, f"tuning to the asked recall ({searcher.library})")
            asked = held if searcher.knows_its_rows else sample
            return searcher.with_points(tune(searcher, vectors, asked, target_recall, tell, most=most))

        # Only one operating point of each index is tuned before they are compared.
        index = fastest([tuned(searcher, 1) for searcher in built], target_recall, batch)
        index = tuned(index, MOST_POINTS).complete()
        host = HostSearcher(vectors)
        bar.update(bar.total - bar.n)
    return Base(vectors, host, index, sample, target_recall)


def fastest(searchers: Sequence[ApproximateSearcher], target_recall: float, batch: int) -> ApproximateSearcher:
    """Returns the fastest searcher for 10 neighbours; if none reaches the target, the one with the highest recall.

    Args:
        searchers: tuned; at least one.
        batch: typical number of queries in one search.
    """

    def cost(searcher: ApproximateSearcher) -> tuple[float, float]:
        point = searcher.points[0]
        return max(0.0, target_recall - point.recall), point.single_seconds if batch == 1 else point.batch_seconds

    return min(searchers, key=cost)


def _choose_backends(backend: str, count: int, dim: int, batch: int) -> list[type[ApproximateSearcher]]:
    """Returns the approximate backends to build, of which the fastest one is taken; none for exact search.

    "auto" takes exact search for few rows, and on an accelerator that can hold all rows (except for single queries over
    very many rows). Otherwise it compares the backends that are installed, or takes ScaNN where building all of them
    would take long.
    """
    if backend != "auto":
        return [APPROXIMATE[backend]] if backend in APPROXIMATE else []
    there = [kind for kind in APPROXIMATE.values() if kind.is_available()]
    if count < _APPROXIMATE_FROM or not there:
        return []
    there = there if count <= _COMPARED_UP_TO else there[:1]
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return there
    limit = (device.memory_stats() or {}).get("bytes_limit", 0) * _DEVICE_SHARE or _DEVICE_BYTES
    fits = count * dim * 4 <= limit
    return [] if fits and (batch > 1 or count < _SINGLE_QUERIES_FROM) else there
