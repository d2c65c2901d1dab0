"""Saved indexes: a folder whose manifest names one generation of files, and is replaced in one step. No pickle.

manifest.json           format, counts, settings, measured times, and every file of the generation with its digest
generation-<name>/      vectors.npy ids.npy live.npy columns.npz sample.npz scann/ or hnsw/
generation-<name>.journal    the updates since; it exists from the moment that the manifest names the generation
.lock                   held by the one process that writes
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import platform
import re
import shutil
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from fashion_jax.data.schema import Schema
from fashion_jax.search.approximate import ApproximateSearcher, OperatingPoint
from fashion_jax.search.arrays import load_array, load_arrays, save_array
from fashion_jax.search.attributes import AttributeTable
from fashion_jax.search.build import APPROXIMATE, BACKENDS
from fashion_jax.search.exact import DeviceSearcher, HostCosts, HostSearcher
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.journal import Place, append_update, create_journal, open_to_append, read_updates
from fashion_jax.search.query import check_subspaces
from fashion_jax.search.snapshot import Base, Snapshot, Update, all_fit, find_first_photos
from fashion_jax.search.tuning import Sample, retime
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

FORMAT = 3
_MANIFEST = "manifest.json"
_PREFIX = "generation-"
# A generation, its journal, or what a killed process left of a generation that it was writing.
_OURS = re.compile(r"\.?generation-[0-9a-f]{12}(\.journal)?(\.[a-z0-9_]{8}\.(part|old))?")
_LEAST_JOURNAL = 64 << 20  # bytes below which a journal is never long
_ATTEMPTS = 5  # to read an index that a writer replaces meanwhile


@dataclass(frozen=True, slots=True)
class Generation:
    """One state of a saved index, to which a journal belongs."""

    name: str
    digest: str  # of its manifest


class SavedIndex:
    """A saved index as one process knows it: whether it may write there, and how far it has read the journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._generation = Generation("", "")
        self._journal: BinaryIO | None = None
        self._applied = self._read = Place(0, 0, b"")  # up to where the snapshot has the updates, and this process
        self._long_from = 0  # bytes from which the journal is long
        self.note = self.damage = ""  # about the journal, as `NewUpdates` has them
        self._lock = contextlib.ExitStack()

    @property
    def is_writer(self) -> bool:
        """Whether this process holds the lock and may append."""
        return self._journal is not None

    def lock(self) -> None:
        """Keeps other processes from writing; UserError where another one is writing, or the folder is read-only."""
        busy = f"another process is changing {self.folder}; wait until it ends, or make the change there"
        self._lock.enter_context(files.hold_lock(self.folder / ".lock", what=f"the index {self.folder}", busy=busy))

    def release(self) -> None:
        """Lets other processes write."""
        self._close_journal()
        self._lock.close()

    def is_replaced(self) -> bool:
        """Whether another generation than the one that was read is the current one."""
        return bool(read_manifest(self.folder)["generation"] != self._generation.name)

    def is_at(self, folder: Path) -> bool:
        """Whether a path leads here, and the index is still there."""
        return self.folder.resolve() == folder.resolve() and (self.is_writer or is_index(folder))

    def read(self) -> tuple[Snapshot, dict[str, Any]]:
        """Returns the snapshot and the settings that were saved; `read_new_updates` returns what came after."""
        snapshot, settings, self._generation = read_index(self.folder)
        self._start(snapshot)
        return snapshot, settings

    def read_new_updates(self, snapshot: Snapshot) -> list[Update]:
        """Returns the updates that the snapshot does not have. Call `mark_applied` when it has them.

        Raises:
            UserError: the journal is damaged, or does not belong to the snapshot.
        """
        path = self._journal_path
        where = repr(str(self.folder))
        remedy = (
            "restore the whole folder from a backup. Without one, copy the folder first; then this keeps the products "
            "as they were when the index was last built, rebuilt or saved: "
            f'python -c "from fashion_jax import Index; Index.load({where}, updates=False).save({where})"'
        )
        found = read_updates(path, self._applied, remedy)
        with stored.reading(path, remedy):
            if not all_fit(snapshot, found.updates):
                raise ValueError("it holds a change of another index")
        self._read, self.note, self.damage = found.place, found.note, found.damage
        return found.updates

    def open_journal(self) -> None:
        """Opens the journal to append. The lock is held, and all updates are read."""
        self._journal = open_to_append(self._journal_path, self._applied)
        self.note = self.damage = ""

    def append(self, update: Update) -> None:
        """Returns once an update is on the disk. Call `mark_applied` when the snapshot has it."""
        assert self._journal is not None
        with stored.writing(self._journal_path):
            self._read = append_update(self._journal, update, self._applied)

    def mark_applied(self) -> None:
        """Notes that the snapshot has every update that was read or appended."""
        self._applied = self._read

    @property
    def journal_is_long(self) -> bool:
        """Whether the journal is larger than the saved vectors, so that the index should be saved anew."""
        return self._applied.end > max(_LEAST_JOURNAL, self._long_from)

    def delay_save(self) -> None:
        """Lets the journal grow to twice its size before it is long again."""
        self._long_from = 2 * self._applied.end

    def replace(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        """Writes a new generation with an empty journal and appends there. Call `release` after an error."""
        generation = write_index(self.folder, snapshot, settings)
        self._close_journal()
        self._generation = generation
        self._start(snapshot)
        self.open_journal()
        remove_others(self.folder, generation.name)

    @property
    def _journal_path(self) -> Path:
        return self.folder / f"{self._generation.name}.journal"

    def _start(self, snapshot: Snapshot) -> None:
        self._applied = self._read = Place.first(self._generation.digest)
        self._long_from = snapshot.base.vectors.nbytes + snapshot.added.nbytes

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def write_index(folder: Path, snapshot: Snapshot, settings: dict[str, Any]) -> Generation:
    """Writes a generation with an empty journal and makes it the current one.

    The caller holds the lock, and removes the others.

    Args:
        folder: of the index; made where there is none.
        snapshot: all of it is written, later updates too, so that its journal starts empty.
        settings: JSON values that are kept with it.
    """
    base = snapshot.base
    name = _PREFIX + uuid.uuid4().hex[:12]
    columns, about = snapshot.attributes.without_unused_words().to_arrays()
    with files.replace_directory(folder / name) as aside, stored.writing(folder / name):
        save_array(aside / "vectors.npy", np.concatenate([base.vectors, snapshot.added]))
        save_array(aside / "ids.npy", snapshot.ids)
        save_array(aside / "live.npy", snapshot.live)
        np.savez(aside / "columns.npz", **columns)  # type: ignore[arg-type]
        if base.sample is not None:
            np.savez(aside / "sample.npz", rows=base.sample.rows, scores=base.sample.scores)
        if base.approximate is not None:
            (aside / base.backend).mkdir()
            base.approximate.save(aside / base.backend)
        listing = stored.list_files(aside)
    manifest = {
        "format": FORMAT,
        "generation": name,
        "version": snapshot.version,
        "rows": len(snapshot.ids),
        "products": snapshot.num_products,
        "dim": base.vectors.shape[1],
        "base": {
            "rows": base.count,
            "backend": base.backend,
            "index": {} if base.approximate is None else base.approximate.about(),
            "target_recall": base.target_recall,
            "own_recall": base.own_recall,
            "points": [asdict(point) for point in base.points],
            "host_costs": asdict(base.host.costs),
            "device_costs": base.index.costs if isinstance(base.index, DeviceSearcher) else None,
            "machine": machine_name(),  # where the costs and the points' times were measured
        },
        "columns": about,
        "settings": settings,
        "files": listing,
    }
    generation = Generation(name, stored.document_digest(manifest))
    journal = folder / f"{name}.journal"
    try:
        create_journal(journal, Place.first(generation.digest))
        stored.write_document(folder / _MANIFEST, manifest)
    except BaseException:
        manifest_path = folder / _MANIFEST
        # After the rename the generation is the current one, even where the folder could not be flushed.
        if not manifest_path.is_file() or name.encode() not in manifest_path.read_bytes():
            shutil.rmtree(folder / name, ignore_errors=True)
            journal.unlink(missing_ok=True)
        raise
    return generation


def remove_others(folder: Path, generation: str) -> None:
    """Removes all generations but one, half-written ones too; what cannot be removed stays for a later time."""
    for other in folder.iterdir():
        if _OURS.fullmatch(other.name) and generation not in other.name:
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    other.unlink()
    files.remove_stale(folder / _MANIFEST)


def read_index(folder: Path) -> tuple[Snapshot, dict[str, Any], Generation]:
    """Reads the current generation and checks every byte of it.

    Returns:
        The snapshot as it was saved (later updates are in the journal), the settings, and the generation.

    Raises:
        UserError: there is no index, or it is damaged.
    """
    manifest = read_manifest(folder)
    for _ in range(_ATTEMPTS):
        try:
            return _read(folder, manifest)
        except UserError:
            # A writer may have replaced the generation while it was read.
            again = read_manifest(folder)
            if again["generation"] == manifest["generation"]:
                raise
            manifest = again
    raise UserError(f"{folder} was replaced {_ATTEMPTS} times while it was read; try again")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest, after the checks that need no other file; raises UserError as `read_index` does."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise UserError(f"there is no index in {folder}; make one with: fashion-jax index build --out {folder} ...")
    manifest = stored.read_document(path, remedy=_remedy(folder))
    with stored.reading(path, _remedy(folder)):
        again = "build the index again from the catalogue"
        stored.check_format(folder, manifest["format"], FORMAT, remedy=again)
        for key, kind in (
            ("generation", str), ("rows", int), ("dim", int), ("base", dict), ("columns", list), ("files", dict),
            ("settings", dict),
        ):  # fmt: skip
            if not isinstance(manifest[key], kind):
                raise TypeError(f"{key} is {manifest[key]!r}")
        if not _OURS.fullmatch(manifest["generation"]) or manifest["rows"] < 1 or manifest["dim"] < 1:
            raise ValueError("its name or size is impossible")
    return manifest


def _remedy(folder: Path) -> str:
    """Returns what a user can do about a damaged index, as the end of a sentence."""
    again = "build the index again from the catalogue (later changes are lost)"
    return f"restore the whole folder {folder} from a backup, or {again}"


def check_place(folder: Path) -> None:
    """Raises UserError where an index cannot be saved, so that no files of another program are touched."""
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
    """Returns whether a folder's manifest is an index's; other programs have a manifest.json too."""
    path = folder / _MANIFEST
    try:
        data = files.read_limited(path, stored.MAX_DOCUMENT_BYTES) if path.is_file() else b"{}"
        return bool(_OURS.fullmatch(json.loads(data)["generation"]))
    except Exception:  # the file may hold anything
        return False


def machine_name() -> str:
    """Returns what measured times depend on: the processor, its cores and JAX's device."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {num_cores()} cores, {jax.local_devices()[0].device_kind}"


def _read(folder: Path, manifest: dict[str, Any]) -> tuple[Snapshot, dict[str, Any], Generation]:
    with stored.reading(folder, _remedy(folder)):
        try:
            place = folder / manifest["generation"]
            _check_files(place, manifest["files"])
            rows, dim, version = manifest["rows"], manifest["dim"], int(manifest["version"])
            settings = dict(manifest["settings"])
            _check_settings(settings, dim)
            vectors = load_array(place / "vectors.npy", np.float32, (rows, dim))
            ids = load_array(place / "ids.npy", None, (rows,))
            live = load_array(place / "live.npy", np.bool_, (rows,))
            table = AttributeTable.from_arrays(load_arrays(place / "columns.npz"), manifest["columns"], rows)
            count = int(manifest["base"]["rows"])
            if not 0 < count <= rows:
                raise ValueError(f"{count} of its {rows} rows are indexed")
            base = _read_base(place, manifest, vectors[:count])
            first = find_first_photos(ids, live, count)
            starts = first == np.arange(rows)
            num_live, products = int(live.sum()), int((live & starts).sum())
            several = first if products < num_live else None
            snapshot = Snapshot(version, ids, live, num_live, products, base, vectors[count:], table, several)
            _check_snapshot(snapshot, starts)
            if manifest["products"] != products:
                raise ValueError(f"it has {products} products, not {manifest['products']!r}")
            if manifest["base"]["machine"] != machine_name():
                snapshot = replace(snapshot, base=_measure_again(base))
            return snapshot, settings, Generation(manifest["generation"], stored.document_digest(manifest))
        except UserError as error:
            if str(folder) in str(error):
                raise
            raise ValueError(str(error)) from error


def _read_base(place: Path, manifest: dict[str, Any], vectors: np.ndarray) -> Base:
    about = manifest["base"]
    sample = None
    if "sample.npz" in manifest["files"]:
        arrays = load_arrays(place / "sample.npz")
        sample = Sample(arrays["rows"], arrays["scores"])
    host = HostSearcher(vectors, HostCosts.from_json(about["host_costs"]))
    points = tuple(OperatingPoint.from_json(point) for point in about["points"])
    costs = about["device_costs"]
    if costs is not None:
        costs = float(costs[0]), float(costs[1])
        if not all(0 <= value < math.inf for value in costs):
            raise UserError("its costs are not times")
    target, backend, own_recall = float(about["target_recall"]), about["backend"], about.get("own_recall")
    if own_recall is not None and not 0 <= (own_recall := float(own_recall)) <= 1:
        raise UserError("the recall of its own rows is not in [0, 1]")
    if backend in APPROXIMATE and APPROXIMATE[backend].is_available():
        index = APPROXIMATE[backend].load(place / backend, vectors, about["index"], points)
        return Base(vectors, host, index, sample, target, own_recall)
    if backend != "exact" and backend not in APPROXIMATE:
        raise ValueError(f"there is no backend {backend!r}")
    note = ""
    if backend in APPROXIMATE:
        library = APPROXIMATE[backend].library
        note = (
            f"it was built with {library}, which is not installed here: searches compare all products, and a copy that "
            "is saved here will always do so"
        )
        logging.getLogger(__name__).warning("the index %s: %s", place.parent, note)
    return Base(vectors, host, DeviceSearcher.make_if_useful(vectors, costs), None, target, note=note)


def _measure_again(base: Base) -> Base:
    index = base.index
    if isinstance(index, ApproximateSearcher):
        index = retime(index, base.vectors)
    elif index is not None:
        index = DeviceSearcher(base.vectors)
    return replace(base, host=HostSearcher(base.vectors), index=index)


def _check_files(place: Path, listing: dict[str, Any]) -> None:
    present = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    if strange := sorted(present - listing.keys()):  # a backend may read them
        raise UserError(f"{place} holds {strange[0]}, which is no file of this index; move it away")
    stored.check_files(place, listing, remedy=_remedy(place.parent))


def _check_settings(settings: dict[str, Any], width: int) -> None:
    kinds = {"model": str, "backend": str, "batch": int, "about": dict, "subspaces": dict}
    for name, kind in kinds.items():
        if not isinstance(settings.get(name), kind):
            raise UserError(f"its setting {name!r} is {settings.get(name)!r}")
    if settings["batch"] < 1 or settings["backend"] not in BACKENDS:
        raise UserError("its settings are out of range")
    check_subspaces(settings["subspaces"], width)
    about = settings["about"]
    if not all(isinstance(about.get(name, ""), str) for name in ("model", "source")):
        raise UserError("its model and its source are no texts")
    if "schema" in about:
        Schema.from_dict(about["schema"])
    labels = about.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise UserError("the names of its labels are no texts")


def _check_snapshot(snapshot: Snapshot, starts: np.ndarray) -> None:
    """Raises UserError where parts of a snapshot do not fit each other, or hold what no index holds.

    Args:
        starts: bool (rows,), whether a row is the first of its product.
    """
    base = snapshot.base
    check_unit(base.vectors)
    check_unit(snapshot.added)
    check_ids(snapshot.ids[snapshot.live & starts])
    check_ids(snapshot.ids[: base.count][starts[: base.count]])
    if not 0 < base.target_recall <= 1:
        raise UserError("its recall is not in (0, 1]")
    if base.approximate is not None:
        base.approximate.check_points()
    sample = base.sample
    if sample is not None:
        shapes = sample.rows.ndim == 1 and sample.scores.ndim == 2 and len(sample.rows) == len(sample.scores) > 0
        inside = shapes and sample.rows.dtype.kind == "i" and 0 <= sample.rows.min() <= sample.rows.max() < base.count
        if not inside or sample.scores.dtype != np.float32 or not np.isfinite(sample.scores).all():
            raise UserError("its sample is of other rows")
