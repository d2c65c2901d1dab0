"""Builds the indexed part of an index: chooses the backend, builds it, and tunes it to the asked recall."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float32

from fashion_jax.search import scann
from fashion_jax.search.exact import DeviceSearcher, HostSearcher
from fashion_jax.search.snapshot import Base
from fashion_jax.search.tuning import draw_sample, tune
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import progress_bar

BACKENDS = ("auto", "exact", "scann")

_SCANN_FROM = 5_000  # rows; exact search over fewer takes less than a millisecond on any host
_DEVICE_SHARE = 0.4  # of an accelerator's memory that rows may take
_DEVICE_BYTES = 8 << 30  # assumed for an accelerator that does not tell how much memory it has
_SINGLE_QUERIES_FROM = 500_000  # rows from which ScaNN on the host answers one query sooner than an accelerator


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
    if backend == "scann":
        scann.require()


def build_base(
    vectors: Float32[np.ndarray, "n dim"], target_recall: float, backend: str, *, batch: int, progress: bool
) -> Base:
    """Indexes rows.

    Args:
        vectors: finite, of length 1.
        target_recall: in (0, 1]; ScaNN is tuned to it.
        backend: one of `BACKENDS`.
        batch: typical number of queries in one search.
    """
    chosen = _choose_backend(backend, len(vectors), vectors.shape[1], batch)
    vectors = np.ascontiguousarray(vectors)
    vectors.flags.writeable = False
    # A single row is its own neighbour, and ScaNN has nothing to learn from it.
    if chosen == "exact" or len(vectors) < 2:
        return Base(vectors, HostSearcher(vectors), DeviceSearcher.make_if_useful(vectors), None, target_recall)
    with progress_bar(8, "building the index", show=progress, unit="step") as bar:

        def done(following: str) -> None:
            bar.update()
            bar.set_description(following)

        built = scann.ScannSearcher.build(vectors, scann.leaves_for(len(vectors)))
        done("finding the true neighbours of a sample")
        sample = draw_sample(vectors)
        done("tuning to the asked recall")
        points = tune(built, vectors, sample, target_recall, lambda point: done("tuning to the asked recall"))
        host = HostSearcher(vectors)
        bar.update(8 - bar.n)
    return Base(vectors, host, built.with_points(points), sample, target_recall)


def _choose_backend(backend: str, count: int, dim: int, batch: int) -> str:
    """Returns "exact" or "scann".

    "auto" takes exact search for few rows, and on an accelerator that holds all rows, unless single queries are asked
    over very many rows. Otherwise it takes ScaNN, where it is installed.
    """
    if backend != "auto":
        return backend
    if count < _SCANN_FROM or not scann.is_available():
        return "exact"
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return "scann"
    limit = (device.memory_stats() or {}).get("bytes_limit", 0) * _DEVICE_SHARE or _DEVICE_BYTES
    fits = count * dim * 4 <= limit
    return "exact" if fits and (batch > 1 or count < _SINGLE_QUERIES_FROM) else "scann"
