"""Builds the indexed part of an index: chooses the backend, builds it, and tunes it to the asked recall."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float32

from fashion_jax.search import scann
from fashion_jax.search.exact import ExactSearcher
from fashion_jax.search.inputs import check_k, check_share
from fashion_jax.search.planner import measure_costs
from fashion_jax.search.snapshot import Base
from fashion_jax.search.tuning import OperatingPoint, draw_sample, tune
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import progress_bar

BACKENDS = ("auto", "exact", "scann")

_SCANN_FROM = 5_000  # rows; below it comparing with all takes less than a millisecond on any host
_DEVICE_SHARE = 0.4  # of an accelerator's memory that rows may take
_DEVICE_BYTES = 8 << 30  # of an accelerator that does not say how much it has
_SINGLE_QUERIES_FROM = 500_000  # rows from which ScaNN on the host answers one query sooner than an accelerator


def check_options(
    *,
    target_recall: float = 0.95,
    backend: str = "auto",
    batch: int = 1,
    pca: int | None = None,
    whiten: bool = False,
    seed: int = 0,
    width: int | None = None,
) -> None:
    """Checks what can be checked before there is a single vector, which may take hours to compute.

    Args:
        target_recall: as `Index.build` takes it, and so are `backend`, `batch`, `pca` and `whiten`.
        backend: see there.
        batch: see there.
        pca: see there.
        whiten: see there.
        seed: see there.
        width: of the embeddings, where it is known.

    Raises:
        UserError: one is out of range, or ScaNN is asked for and not installed.
    """
    check_share(target_recall, "target_recall")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UserError(f"seed must be an integer of at least 0, not {seed!r}")
    choose_backend(backend, 1, 1, check_k(batch, "batch"))
    if pca is None:
        if whiten:
            raise UserError("whitening scales principal components: say with pca how many to keep")
    elif check_k(pca, "pca") > (width or pca):
        raise UserError(f"pca must be in [1, {width}] for embeddings of {width} features, not {pca}")


def choose_backend(backend: str, count: int, dim: int, batch: int) -> str:
    """Returns "exact" or "scann".

    "auto" takes exact search where there are few rows, or an accelerator that holds them, unless single queries are
    asked over very many; else ScaNN where it is installed.

    Args:
        backend: one of `BACKENDS`.
        count: rows.
        dim: their width.
        batch: queries per search that are typical.

    Raises:
        UserError: there is no such backend, or it is not installed.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise UserError(
            f"there is no backend {backend!r}{nearest(str(backend), BACKENDS)}; there are {', '.join(BACKENDS)}"
        )
    if backend == "scann":
        scann.require()
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


def build_base(
    vectors: Float32[np.ndarray, "n dim"], backend: str, target_recall: float, *, batch: int, seed: int, progress: bool
) -> Base:
    """Indexes rows.

    Args:
        vectors: finite, of length 1.
        backend: one of `BACKENDS`.
        target_recall: in (0, 1]; "scann" is tuned to it.
        batch: queries per search that are typical.
        seed: of the sample on which recall is measured.
        progress: whether to show a bar.
    """
    chosen = choose_backend(backend, len(vectors), vectors.shape[1], batch)
    vectors = np.ascontiguousarray(vectors)
    vectors.flags.writeable = False
    # A single row is its own neighbour, and ScaNN has nothing to learn from it.
    if chosen == "exact" or len(vectors) < 2:
        searcher = ExactSearcher(vectors)
        costs = measure_costs(vectors, searcher)
        return Base(vectors, "exact", scann.Structure(0), searcher, (), None, costs, target_recall)
    structure = scann.Structure.for_count(len(vectors))
    with progress_bar(8, "building the index", show=progress, unit="step") as bar:
        built = scann.ScannSearcher.build(vectors, structure)
        bar.update()
        bar.set_description("comparing a sample with all")
        sample = draw_sample(vectors, seed)
        bar.update()
        bar.set_description("tuning to the recall")

        def on_point(point: OperatingPoint) -> None:
            bar.update()

        points = tune(built, vectors, sample, target_recall, on_point)
        costs = measure_costs(vectors, built)
        bar.update(8 - bar.n)
    return Base(vectors, "scann", structure, built, points, sample, costs, target_recall)
