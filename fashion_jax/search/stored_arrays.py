"""Arrays as they are stored, and what must hold of those that are read: files may be damaged, or not ours at all."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.search.build import BACKENDS
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.scann import ScannSearcher, Structure
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.subspaces import check_subspaces
from fashion_jax.system.errors import UserError


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
        found = dict(arrays)
    if strange := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{path.name} holds {strange[0]}, which is no array")
    return found


def check_settings(settings: dict[str, Any], width: int) -> None:
    """Raises UserError where the settings are not those of an index of vectors of a width."""
    kinds = {"model": str, "backend": str, "batch": int, "seed": int, "about": dict}
    for name, kind in kinds.items():
        if not isinstance(settings.get(name), kind):
            raise UserError(f"its setting {name!r} is {settings.get(name)!r}")
    if settings["batch"] < 1 or settings["seed"] < 0 or settings["backend"] not in BACKENDS:
        raise UserError("its settings are out of range")
    check_subspaces(settings.get("subspaces"), width, projected=False)  # indexes of before have none


def check_scann(folder: Path, vectors: np.ndarray, structure: Structure) -> None:
    """Raises UserError where ScaNN's files are of other rows; it would read beyond them.

    What its binary files say to ScaNN is not looked into: an index of somebody that you do not trust is not to be
    loaded, as no program is.
    """
    stored = load_array(folder / "dataset.npy", np.float32, vectors.shape)
    if not np.array_equal(stored, vectors):
        raise UserError("ScaNN's rows are not the index's")
    if structure.leaves:
        leaf = load_array(folder / "datapoint_to_token.npy", np.int32, (len(vectors),))
        if not 0 <= leaf.min() <= leaf.max() < structure.leaves:
            raise UserError("ScaNN's partitions are not the index's")


def check_snapshot(snapshot: Snapshot) -> None:
    """Raises UserError where parts of a snapshot that was read do not fit each other, or hold what no index holds."""
    base = snapshot.base
    check_unit(base.vectors)
    check_unit(snapshot.delta)
    check_ids(snapshot.ids[snapshot.live])
    check_ids(snapshot.ids[: base.count])
    if not 0 < base.target_recall <= 1:
        raise UserError("its recall is no share")
    if not 0 <= base.structure.leaves <= base.count:
        raise UserError("it has more leaves than rows")
    for point in base.points:
        fits = 1 <= point.neighbours <= base.count and 1 <= point.reorder <= base.count
        leaves = 1 <= point.leaves <= max(1, base.structure.leaves)
        times = 0 < point.single_seconds < math.inf and 0 < point.batch_seconds < math.inf
        if not (fits and leaves and times):
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
        if mean.ndim != 1 or components.shape != (len(mean), width):
            raise UserError("its projection is of other vectors")
        if not (np.isfinite(mean).all() and np.isfinite(components).all()):
            raise UserError("its projection is not finite")
