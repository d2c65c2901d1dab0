"""Checks every byte of what the library has stored: a workdir, prepared records, a model package, an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fashion_jax.data.records import DATA_SET, is_prepared, open_prepared, remedy
from fashion_jax.run.start import check_pretrained
from fashion_jax.run.workdir import CONFIG, TRAINED_ON, run_name, trained_on
from fashion_jax.search.index import Index
from fashion_jax.search.storage import is_index
from fashion_jax.serving.package import load_package
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError
from fashion_jax.training.checkpoint import check_step, find_steps


@dataclass(frozen=True, slots=True)
class Part:
    """A part of what was checked."""

    path: Path  # of the file or folder
    about: str  # what it is, and how much it holds
    problem: str  # what is damaged and what to do; empty where nothing is


def verify(path: str | Path) -> Iterator[Part]:
    """Checks a folder part by part. The packages, records and indexes in a workdir are parts of it.

    Yields:
        Each part after its check.

    Raises:
        UserError: the folder is none that the library writes.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; check the path")
    kinds = [kind for kind in _KINDS if kind.is_found(folder)]
    if not kinds:
        raise UserError(f"{folder} is no workdir, and holds no prepared records, no model package and no index")
    for kind in kinds:
        yield from kind.check(folder)


def _verify_records(folder: Path) -> Iterator[Part]:
    def check() -> str:
        prepared = open_prepared(folder)
        stored.check_files(folder, prepared.files, remedy=remedy(folder))
        prepared.check_features()
        return f"prepared records, {len(prepared):,} photos"

    yield _check(folder, "prepared records", check)


def _verify_index(folder: Path) -> Iterator[Part]:
    def check() -> str:
        index = Index.verify(folder)
        return "; ".join(filter(None, [f"index, {len(index):,} products", index.journal_warning]))

    yield _check(folder, "index", check)


def _verify_package(folder: Path) -> Iterator[Part]:
    yield _check(folder, "package", lambda: f"package, {len(load_package(folder).vocabularies)} attributes")


def _verify_workdir(folder: Path) -> Iterator[Part]:
    def check_run() -> str:
        products = trained_on(folder)
        return "configuration" + ("" if products is None else f", trained on {len(products):,} products")

    yield _check(folder / CONFIG, "configuration", check_run)
    if (folder / "pretrained").exists():
        yield _check(folder / "pretrained", "pretrained weights", lambda: check_pretrained(folder) and "")
    again = "start the run again, which goes on from the newest whole checkpoint"
    for step, place in sorted(find_steps(folder / "checkpoints").items()):
        check = partial(lambda path: check_step(path, run_name(folder), remedy=again), place)
        yield _check(place, f"checkpoint of step {step:,}", check)
    for inner in sorted(folder.iterdir()):
        for kind in _KINDS:
            if kind is not _WORKDIR and kind.is_found(inner):
                yield from kind.check(inner)


def _check(path: Path, about: str, check: Callable[[], object]) -> Part:
    try:
        found = check()
    except UserError as error:
        return Part(path, about, str(error))
    return Part(path, found if isinstance(found, str) and found else about, "")


@dataclass(frozen=True, slots=True)
class _Kind:
    is_found: Callable[[Path], bool]  # whether a folder looks like it, damaged or not
    check: Callable[[Path], Iterator[Part]]


def _any(*names: str) -> Callable[[Path], bool]:
    return lambda folder: any((folder / name).exists() for name in names)


_WORKDIR = _Kind(_any("checkpoints", TRAINED_ON), _verify_workdir)
_KINDS = (
    _Kind(lambda folder: is_prepared(folder) or (folder / DATA_SET).is_dir(), _verify_records),
    _Kind(lambda folder: is_index(folder) or any(folder.glob("generation-*")), _verify_index),
    _Kind(_any("weights.safetensors", "labels.json"), _verify_package),
    _WORKDIR,
)
