"""Builds the indexed part of an index: chooses the backend, builds it, and tunes it to the asked recall."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Float32

from fashion_jax.search.approximate import ApproximateSearcher
from fashion_jax.search.exact import DeviceSearcher, HostSearcher
from fashion_jax.search.hnsw import HnswSearcher
from fashion_jax.search.planner import measure_own_recall, plan
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


def backend_here(backend: str) -> str:
    """Returns a backend, or "auto" where its library is not installed."""
    return "auto" if backend in APPROXIMATE and not APPROXIMATE[backend].is_available() else backend


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
    host = HostSearcher(vectors)

    def exact() -> Base:
        return Base(vectors, host, DeviceSearcher.make_if_useful(vectors), None, target_recall)

    # An approximate index cannot be tuned with a single row, which has no neighbours.
    if not chosen or len(vectors) < 2:
        return exact()
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
            try:
                built += kind.build(vectors, held.rows)
            except UserError as error:
                if backend != "auto":
                    raise
                logging.getLogger(__name__).warning("%s; the index is built without %s", error, kind.library)
        bar.total = steps + len(built) + MOST_POINTS - 1

        def tuned(searcher: ApproximateSearcher, most: int) -> ApproximateSearcher:
            tell = partial(begin, f"tuning to the asked recall ({searcher.library})")
            asked = held if searcher.knows_its_rows else sample
            points = tune(searcher, vectors, asked, target_recall, tell, limit=host.seconds(1, 10), most=most)
            return searcher.with_points(points)

        # Only one operating point of each index is tuned before they are compared.
        index = fastest([tuned(searcher, 1) for searcher in built], batch)
        base = Base(vectors, host, index, sample, target_recall)
        few = base.points[0].neighbours if base.points else 1
        if index is None or (backend == "auto" and plan(base, batch, few, None) is host):
            base = exact()
        else:
            base = replace(base, index=(tuned(index, MOST_POINTS) if base.points else index).complete())
            base = replace(base, own_recall=measure_own_recall(base))
        bar.update(bar.total - bar.n)
    return base


def fastest(searchers: Sequence[ApproximateSearcher], batch: int) -> ApproximateSearcher | None:
    """Returns the searcher that is fastest for 10 neighbours.

    Args:
        searchers: tuned; those without an operating point miss the asked recall, and come last.
        batch: typical number of queries in one search.
    """
    return min(searchers, key=lambda searcher: searcher.least_seconds(1 if batch == 1 else 2), default=None)


def _choose_backends(backend: str, count: int, dim: int, batch: int) -> list[type[ApproximateSearcher]]:
    """Returns the approximate backends to build and to compare with exact search; none for exact search.

    "auto" builds none for few rows, and on an accelerator that can hold all rows (except for single queries over very
    many rows). Otherwise it builds the backends that are installed, or ScaNN alone where all of them would take long.
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
