"""Arrays as they are stored, and what must hold of those that are read: files may be damaged, or not ours at all."""

from __future__ import annotations

import math
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fashion_jax.errors import UserError
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.scann import ScannSearcher
from fashion_jax.search.snapshot import Snapshot


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array without pickle."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path, dtype: type | None, shape: tuple[int, ...]) -> np.ndarray:
    """Reads what `save_array` wrote.

    Args:
        path: of the file.
        dtype: that it must have; None for integers or texts.
        shape: that it must have.

    Raises:
        ValueError: it is another, or the file is shorter than it says.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        said, _, kind = read(file)
        start = file.tell()
    wanted = kind.kind in "iU" if dtype is None else kind == dtype
    # Looked at before memory is asked for.
    if said != shape or not wanted or start + math.prod(shape) * kind.itemsize != path.stat().st_size:
        raise ValueError(f"{path.name} holds {kind} {said}")
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz that is not compressed, as ours are; ValueError or BadZipFile for any other."""
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError(f"{path.name} is compressed")
        if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
            raise ValueError(f"{path.name} says that it holds more than it does")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def check_snapshot(snapshot: Snapshot) -> None:
    """Raises UserError where parts of a snapshot that was read do not fit each other, or hold what no index holds."""
    base = snapshot.base
    check_unit(base.vectors)
    check_unit(snapshot.delta)
    check_ids(snapshot.ids[snapshot.live])
    if not 0 < base.target_recall <= 1:
        raise UserError("its recall is no share")
    costs = base.costs
    if not all(0 <= seconds < math.inf for seconds in asdict(costs).values()):
        raise UserError("its costs are no times")
    for point in base.points:
        fits = 1 <= point.neighbours <= base.count and 1 <= point.reorder <= base.count
        leaves = 1 <= point.leaves <= max(1, base.structure.leaves)
        if not (fits and leaves and point.single_seconds >= 0 and point.batch_seconds >= 0):
            raise UserError("an operating point is out of range")
    if isinstance(base.searcher, ScannSearcher) and not base.points:
        raise UserError("it has no operating points")
    sample = base.sample
    if sample is not None:
        shapes = sample.rows.ndim == 1 and sample.scores.ndim == 2 and len(sample.rows) == len(sample.scores) > 0
        inside = shapes and sample.rows.dtype.kind == "i" and 0 <= sample.rows.min() <= sample.rows.max() < base.count
        if not inside or sample.scores.dtype != np.float32 or not np.isfinite(sample.scores).all():
            raise UserError("its sample is of other rows")
    projection, width = snapshot.projection, base.vectors.shape[1]
    if projection is not None:
        mean, components = projection.mean, projection.components
        if mean.ndim != 1 or components.shape not in ((len(mean), width), (width, len(mean))):
            raise UserError("its projection is of other vectors")
        if not (np.isfinite(mean).all() and np.isfinite(components).all()):
            raise UserError("its projection is not finite")
