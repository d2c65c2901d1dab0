"""Saved indexes: a folder whose manifest names one generation of files and is replaced in one step. No pickle.

manifest.json           format, counts, settings, operating points, and every file of the generation with its digest
generation-<name>/      vectors.npy ids.npy live.npy columns.npz sample.npz projection.npz scann/
generation-<name>.journal    the updates since
.lock                   held by the one process that writes
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.search.attributes import AttributeTable
from fashion_jax.search.exact import ExactSearcher
from fashion_jax.search.planner import machine_name, measure_costs
from fashion_jax.search.projection import Projection
from fashion_jax.search.scann import ScannSearcher, Structure
from fashion_jax.search.snapshot import Base, Costs, Snapshot
from fashion_jax.search.stored_arrays import (
    check_scann,
    check_settings,
    check_snapshot,
    load_array,
    load_arrays,
    save_array,
)
from fashion_jax.search.tuning import OperatingPoint, Sample, retime
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

FORMAT = 2
_MANIFEST = "manifest.json"
_PREFIX = "generation-"
# A generation, its journal, or what a kill left of one that was being written.
_OURS = re.compile(r"\.?generation-[0-9a-f]{12}(\.journal|\.[a-z0-9_]{8}\.(part|old))?")


def write_index(folder: Path, snapshot: Snapshot, settings: dict[str, Any]) -> str:
    """Writes a generation and makes it the current one; the caller holds the lock, and removes the others.

    Args:
        folder: of the index; made where there is none.
        snapshot: what is written, later updates included, so that its journal starts empty.
        settings: JSON values kept with it.

    Returns:
        The generation's name.
    """
    base, projection = snapshot.base, snapshot.projection
    attributes = snapshot.attributes.without_unused_words()
    name = _PREFIX + uuid.uuid4().hex[:12]
    columns, about = attributes.to_arrays()
    with files.replace_directory(folder / name) as aside:
        save_array(aside / "vectors.npy", np.concatenate([base.vectors, snapshot.delta]))
        save_array(aside / "ids.npy", snapshot.ids)
        save_array(aside / "live.npy", snapshot.live)
        np.savez(aside / "columns.npz", **columns)  # type: ignore[arg-type]
        if base.sample is not None:
            np.savez(aside / "sample.npz", rows=base.sample.rows, scores=base.sample.scores)
        if projection is not None:
            np.savez(aside / "projection.npz", mean=projection.mean, components=projection.components)
        if isinstance(base.searcher, ScannSearcher):
            (aside / "scann").mkdir()
            base.searcher.save(aside / "scann")
        digests = {
            path.relative_to(aside).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
    manifest = {
        "format": FORMAT,
        "generation": name,
        "version": snapshot.version,
        "rows": len(snapshot.ids),
        "products": snapshot.num_live,
        "dim": base.vectors.shape[1],
        "base": {
            "rows": base.count,
            "backend": base.backend,
            "leaves": base.structure.leaves,
            "target_recall": base.target_recall,
            "points": [point.to_json() for point in base.points],
            "costs": asdict(base.costs),
            "machine": machine_name(base.backend),  # where the costs and the points' times are measured
        },
        "columns": about,
        "projection": None if projection is None else {"explained": projection.explained},
        "settings": settings,
        "files": digests,
    }
    files.write_json(folder / _MANIFEST, {**manifest, "sha256": _manifest_digest(manifest)})
    return name


def remove_others(folder: Path, generation: str) -> None:
    """Removes all generations but one, also those that a kill left half-written; what cannot go stays until later."""
    for other in folder.iterdir():
        if _OURS.fullmatch(other.name) and generation not in other.name:
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    other.unlink()


def read_index(folder: Path) -> tuple[Snapshot, dict[str, Any], str]:
    """Reads the current generation, every byte checked.

    Returns:
        The snapshot as saved (updates since then are in the journal), the settings, and the generation's name.

    Raises:
        UserError: there is no index, it is damaged, or of another format.
    """
    manifest = read_manifest(folder)
    for _ in range(5):
        try:
            return _read(folder, manifest)
        except (FileNotFoundError, UserError) as error:
            # A writer may have replaced the generation while it was read.
            again = read_manifest(folder)
            if again["generation"] == manifest["generation"]:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{folder} is damaged: {error.filename} is missing") from error
            manifest = again
    raise UserError(f"{folder} is being replaced over and over; try again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest, checked as far as it can be by itself; UserError as `read_index` raises it."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise UserError(f"there is no index in {folder}; make one with: fashion-jax index build --out {folder} ...")
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"]
        if known != FORMAT:
            raise UserError(f"{folder} is of the format {known!r} and this version reads {FORMAT}; build it again")
        if manifest.pop("sha256") != _manifest_digest(manifest):
            raise TypeError("its digest is another")
        for key, kind in (
            ("generation", str), ("rows", int), ("dim", int), ("base", dict), ("columns", list), ("files", dict),
            ("settings", dict),
        ):  # fmt: skip
            if not isinstance(manifest[key], kind):
                raise TypeError(key)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # it may hold anything
        raise UserError(f"{path} is damaged ({error!r}); restore it or build the index again") from error
    if not _OURS.fullmatch(manifest["generation"]) or manifest["rows"] < 1 or manifest["dim"] < 1:
        raise UserError(
            f"{path} is damaged: it names {manifest['generation']!r}, {manifest['rows']} x {manifest['dim']}"
        )
    return manifest


def journal_path(folder: Path, generation: str) -> Path:
    """Returns where the updates since a generation are."""
    return folder / f"{generation}.journal"


def check_place(folder: Path) -> None:
    """Raises UserError where an index cannot be saved, so that nothing of another program is touched."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; an index is a folder")
    if not folder.is_dir() or is_index(folder):
        return
    foreign = [
        path.name
        for path in folder.iterdir()
        if not (_OURS.fullmatch(path.name) or path.name.startswith((".", "products.")))
    ]
    if foreign:
        raise UserError(f"{folder} holds other files, such as {foreign[0]}; give a new or an empty folder")


def is_index(folder: Path) -> bool:
    """Whether the manifest is an index's, of whatever format; other programs have a manifest.json too."""
    try:
        return bool(_OURS.fullmatch(json.loads((folder / _MANIFEST).read_bytes())["generation"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def lock_index(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Holds an index for writing; UserError where it cannot be written, or another process holds it."""
    busy = f"another process is changing {folder}; wait for it, or load the index there"
    return files.hold_lock(folder / ".lock", what=f"the index {folder}", busy=busy)


def _read(folder: Path, manifest: dict[str, Any]) -> tuple[Snapshot, dict[str, Any], str]:
    try:
        place = folder / manifest["generation"]
        _check_files(place, manifest["files"])
        rows, dim, about = manifest["rows"], manifest["dim"], manifest["base"]
        vectors = load_array(place / "vectors.npy", np.float32, (rows, dim))
        ids = load_array(place / "ids.npy", None, (rows,))
        live = load_array(place / "live.npy", np.bool_, (rows,))
        table = AttributeTable.from_arrays(load_arrays(place / "columns.npz"), manifest["columns"], rows)
        sample = projection = None
        if "sample.npz" in manifest["files"]:
            arrays = load_arrays(place / "sample.npz")
            sample = Sample(arrays["rows"], arrays["scores"])
        if "projection.npz" in manifest["files"]:
            arrays = load_arrays(place / "projection.npz")
            explained = float(manifest["projection"]["explained"])
            projection = Projection(arrays["mean"], arrays["components"], explained)
        count, backend = int(about["rows"]), str(about["backend"])
        structure = Structure(int(about["leaves"]))
        points = tuple(OperatingPoint.from_json(point) for point in about["points"])
        costs = Costs.from_json(about["costs"])
        target = float(about["target_recall"])
        settings, version, machine = dict(manifest["settings"]), int(manifest["version"]), str(about["machine"])
        check_settings(settings, dim)
        if backend not in ("exact", "scann"):
            raise ValueError(f"there is no backend {backend!r}")
        if not 0 < count <= rows:
            raise ValueError(f"{count} of its {rows} rows are indexed")
        base_vectors = vectors[:count]
        searcher: ScannSearcher | ExactSearcher
        if backend == "scann":
            check_scann(place / "scann", base_vectors, structure)
            searcher = ScannSearcher.load(place / "scann", count, structure)
        else:
            searcher = ExactSearcher(base_vectors)
        base = Base(base_vectors, backend, structure, searcher, points, sample, costs, target)
        snapshot = Snapshot(version, ids, live, int(live.sum()), base, vectors[count:], table, projection)
        check_snapshot(snapshot)
        if machine != machine_name(backend):
            costs, points = measure_costs(base_vectors, searcher), retime(points, searcher, base_vectors)
            snapshot = replace(snapshot, base=replace(base, costs=costs, points=points))
        return snapshot, settings, manifest["generation"]
    except (FileNotFoundError, UserError) as error:
        if isinstance(error, FileNotFoundError) or str(folder) in str(error):
            raise
        raise UserError(f"{folder} is damaged: {error}") from error
    except Exception as error:  # it may hold anything
        raise UserError(f"{folder} is damaged: {error or type(error).__name__}") from error


def _check_files(place: Path, digests: dict[str, Any]) -> None:
    present = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    if strange := sorted(present - digests.keys()):
        raise UserError(f"{place} holds {strange[0]}, which the manifest does not name; it was not written by us")
    for name, known in digests.items():
        path = place / name
        if name not in present:
            raise FileNotFoundError(2, "missing", str(path))
        same = isinstance(known, dict) and path.stat().st_size == known.get("bytes")
        if not same or _digest(path) != known.get("sha256"):
            raise UserError(f"{path} is damaged: its bytes are not those that were saved; build the index again")


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
