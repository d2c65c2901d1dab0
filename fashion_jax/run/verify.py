"""Checks the digests of what the library has stored: a workdir, records, a model package, an index, a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fashion_jax.data.records import DATA_SET, SPLITS, is_prepared, open_prepared, remedy
from fashion_jax.run.start import check_pretrained
from fashion_jax.run.sweep import check_study
from fashion_jax.run.workdir import CONFIG, TRAINED_ON, has_checkpoints, load_run_config, run_name, trained_on
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
    is_checked: bool = True  # False where another damaged part is needed for the check


def verify(path: str | Path) -> Iterator[Part]:
    """Checks a folder part by part. The packages, records and indexes in a workdir are parts of it.

    Metrics, reports, and tables of results are not checked.

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
        raise UserError(
            f"{folder} holds nothing that can be checked; give a workdir, or a folder with prepared records, a model "
            "package or an index"
        )
    for kind in kinds:
        yield from kind.check(folder)


def _verify_records(folder: Path) -> Iterator[Part]:
    def check() -> str:
        prepared = open_prepared(folder)
        photos = prepared.photo_files(*SPLITS)
        others = {name: known for name, known in prepared.files.items() if name not in photos}
        stored.check_files(folder, others, remedy=remedy(folder))
        for row in range(len(prepared)):  # checks the files of photos, and that each photo belongs to its product
            prepared.read_photo(row)
        return f"prepared records, {len(set(prepared.ids.tolist())):,} products, {len(prepared):,} photos"

    yield _check(folder, "prepared records", check)


def _verify_index(folder: Path) -> Iterator[Part]:
    def check() -> str:
        index = Index.verify(folder)
        return "; ".join(filter(None, [f"index, {len(index):,} products", index.journal_warning]))

    yield _check(folder, "index", check)


def _verify_package(folder: Path) -> Iterator[Part]:
    yield _check(folder, "package", lambda: f"package, {len(load_package(folder).vocabularies)} attributes")


def _verify_workdir(folder: Path) -> Iterator[Part]:
    run = _check(folder / CONFIG, "configuration", partial(load_run_config, folder))
    yield run
    known = not run.problem

    def check_products() -> str:
        products = trained_on(folder)
        return "training products" + ("" if products is None else f", {len(products):,} ids")

    yield _check(folder / TRAINED_ON, "training products", check_products, known=known)
    pretrained = folder / "pretrained"
    if pretrained.exists() or (known and has_checkpoints(folder) and load_run_config(folder).model.pretrained):
        yield _check(pretrained, "pretrained weights", partial(check_pretrained, folder))
    again = "run the same fashion-jax train command again; it goes on from the newest undamaged checkpoint"
    name = run_name(folder) if known else ""
    for step, place in sorted(find_steps(folder / "checkpoints").items()):
        check = partial(check_step, place, name, remedy=again)
        part = _check(place, f"checkpoint of step {step:,}", check, known=known)
        if place.is_dir():  # else the run that goes on has removed an old step meanwhile
            yield part
    for inner in sorted(folder.iterdir()):
        yield from _verify_inner(inner)


def _verify_sweep(folder: Path) -> Iterator[Part]:
    yield _check(folder / "study.json", "space and journal of a sweep", lambda: check_study(folder))
    yield from _verify_inner(folder / "records")
    for trial in sorted((folder / "trials").glob("*")):
        if _WORKDIR.is_found(trial) and "." not in trial.name:  # not what a damaged trial left
            yield from _verify_workdir(trial)


def _verify_inner(folder: Path) -> Iterator[Part]:
    """Checks a folder in a workdir, whatever it holds."""
    for kind in _KINDS:
        if kind not in (_WORKDIR, _SWEEP) and kind.is_found(folder):
            yield from kind.check(folder)


def _check(path: Path, about: str, check: Callable[[], object], *, known: bool = True) -> Part:
    """Returns the part after its check.

    Args:
        check: raises UserError if the part is damaged. A text that it returns replaces `about`.
        known: False where the configuration is damaged, without which the part cannot be checked.
    """
    if not known:
        return Part(path, f"{about}, not checked: {CONFIG} is damaged", "", is_checked=False)
    try:
        found = check()
    except (UserError, OSError) as error:
        return Part(path, about, str(error))
    return Part(path, found if isinstance(found, str) else about, "")


@dataclass(frozen=True, slots=True)
class _Kind:
    is_found: Callable[[Path], bool]  # whether a folder looks like it, damaged or not
    check: Callable[[Path], Iterator[Part]]


def _any(*names: str) -> Callable[[Path], bool]:
    return lambda folder: any((folder / name).exists() for name in names)


_WORKDIR = _Kind(_any("checkpoints", TRAINED_ON), _verify_workdir)
_SWEEP = _Kind(_any("study.json", "study.jsonl"), _verify_sweep)
_KINDS = (
    _Kind(lambda folder: is_prepared(folder) or (folder / DATA_SET).is_dir(), _verify_records),
    _Kind(lambda folder: is_index(folder) or any(folder.glob("generation-*")), _verify_index),
    _Kind(_any("weights.safetensors", "labels.json"), _verify_package),
    _WORKDIR,
    _SWEEP,
)
