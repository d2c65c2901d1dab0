"""The pretrained weights of a run. They enter the run's first state; a run with a checkpoint does not need them.

WORKDIR/pretrained/
  info.json                 source, digest, architecture, normalisation, and the digests of the other files
  backbone.safetensors      the backbone and the colour features, under our names; every process reads it
  trained_on.json           ids of the products that the weights were ever trained on; null where they are not known
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from fashion_jax.config.fields import Config, ModelConfig
from fashion_jax.config.files import checked_copy, config_from_dict
from fashion_jax.data.records import Prepared
from fashion_jax.models.pretrained import PretrainedInfo, find_local_weights, load_pretrained
from fashion_jax.models.torch_layout import OWN
from fashion_jax.run.workdir import TRAINED_ON, has_checkpoints, load_run_config, read_ids, trained_on
from fashion_jax.serving.package import find_model
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError
from fashion_jax.system.progress import say

FOLDER = "pretrained"
_INFO, _BACKBONE = "info.json", "backbone.safetensors"
_FILES = "files"  # the key of the listing in info.json
_ARCHITECTURE = ("depth", "width", "stem")


def prepare_pretrained(config: Config, workdir: Path, *, progress: bool = True) -> None:
    """Puts the pretrained weights of a new run into its workdir; a run that has begun does not need them any more.

    With several processes only the first one calls this; the folder must be on a disk that all of them share.

    Args:
        config: `model.pretrained` is empty, a source of `models.pretrained.load_pretrained`, or the name of a model
            that ships with the library.
        progress: whether to print what is read on standard error.

    Raises:
        UserError: the source cannot be read, or does not fit the configuration.
    """
    folder = workdir / FOLDER
    files.remove_stale(folder)
    if has_checkpoints(workdir):
        return
    if not config.model.pretrained:
        if _is_ours(folder):  # left by a run that ended before its first checkpoint
            shutil.rmtree(folder, ignore_errors=True)
        return
    if folder.exists() and not _is_ours(folder):
        raise UserError(f"{folder} is in the way: a run keeps its pretrained weights there; choose another --workdir")
    source = str(find_model(config.model.pretrained))
    loaded = load_pretrained(source)
    info = loaded.info
    _adopt(config, info)  # weights that do not fit are refused before anything is written
    products = _products_behind(source) if info.layout == OWN.title else set()
    with files.replace_directory(folder) as aside:
        files.write_bytes(aside / _BACKBONE, safetensors.numpy.save(loaded.weights))
        known = None if products is None else sorted(products)
        stored.write_document(aside / TRAINED_ON, {"ids": known})
        listing = stored.list_files(aside)
        stored.write_document(aside / _INFO, {**dataclasses.asdict(info), _FILES: listing})
    say(
        f"pretrained weights {info.source}: ResNet-{info.depth} in {info.layout}, width {info.width}, "
        f"stem {info.stem!r}, sha256 {info.digest[:12]}",
        show=progress,
    )


def adopt_pretrained(config: Config, workdir: Path) -> Config:
    """Returns a copy with the architecture and normalisation of the pretrained weights in the workdir.

    The configuration itself is returned where the workdir has no pretrained weights, or those of another source.

    Raises:
        UserError: the configuration asks for another architecture than the weights have.
    """
    found = _read_info(workdir) if config.model.pretrained else None
    if found is None or str(find_model(config.model.pretrained)) != found.info.source:
        return config
    return _adopt(config, found.info)


def ever_trained_on(workdir: Path) -> set[str] | None:
    """Returns the ids of all products that a run's network was trained on, in the run or before it.

    None where the ids are not known, for example where the run began with a package that lies outside its workdir.

    Raises:
        UserError: a file that names products is damaged or missing.
    """
    own = trained_on(workdir)
    found = None if own is None else _read_info(workdir)
    if own is None or found is None:
        return own
    before = _read_ids_before(workdir, found)
    return None if before is None else own | before


def warn_of_known_products(prepared: Prepared, workdir: Path) -> None:
    """Warns on standard error where validation or test products were in the training data of the pretrained weights."""
    found = _read_info(workdir) if prepared.schema.id_column else None
    before = None if found is None else _read_ids_before(workdir, found)
    if found is None or not before:
        return
    for split in ("validation", "test"):
        known = np.isin(prepared.ids[prepared.indices(split)].astype(str), sorted(before)).sum()
        if known:
            say(
                f"warning: {known:,} products of the {split} split have the ids of products on which "
                f"{found.info.source} was trained. If they are the same products, the scores are too high; use the "
                "split of that training: --config.data.source=WORKDIR/records"
            )


def read_weights(workdir: Path, arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the pretrained weights in the workdir, without colour features that the network does not have.

    Args:
        arguments: of the run's `Classifier`.

    Raises:
        UserError: the weights are damaged or missing.
    """
    found, folder = _read_info(workdir), workdir / FOLDER
    remedy = "run the same command again. On several machines, the workdir must be on a disk that all of them share"
    if found is None:
        raise UserError(f"{folder / _INFO} is missing; {remedy}")
    _check_file(folder, found, _BACKBONE, remedy)
    with stored.reading(folder / _BACKBONE, remedy):
        weights = safetensors.numpy.load_file(folder / _BACKBONE)
    if arguments["colour_heads"] and found.info.colour:
        return weights
    return {name: array for name, array in weights.items() if name.split("/")[1] != "colour"}


def check_pretrained(workdir: Path) -> None:
    """Checks every byte of a workdir's pretrained weights, if its run began with any.

    Raises:
        UserError: a file is damaged or missing.
    """
    found = _read_info(workdir)
    if found is None:
        return
    for name in (_BACKBONE, TRAINED_ON):
        _check_file(workdir / FOLDER, found, name, "restore the folder from a backup, or train in a new --workdir")
    _read_ids_before(workdir, found)


def _adopt(config: Config, info: PretrainedInfo) -> Config:
    resolved, default = config_from_dict(config.to_dict()), ModelConfig()
    for name in _ARCHITECTURE:
        given, wanted = getattr(config.model, name), getattr(info, name)
        # A field at its default was left open.
        if given not in (getattr(default, name), wanted):
            raise UserError(
                f"config.model.{name}={given!r} does not fit the pretrained weights {info.source}: set "
                f"config.model.{name}={wanted!r}, or leave it out"
            )
        setattr(resolved.model, name, wanted)
    if info.pooling == "gem":  # the weights hold its trained power
        resolved.model.pooling = info.pooling
    resolved.model.pretrained = info.source
    resolved.data.mean, resolved.data.std = config.data.mean or info.mean, config.data.std or info.std
    return checked_copy(resolved)


def _is_ours(folder: Path) -> bool:
    """Returns whether a folder holds only files that this module writes."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {_INFO, _BACKBONE, TRAINED_ON}


def _products_behind(source: str) -> set[str] | None:
    """Returns the ids of the products that a package was ever trained on; only known where it lies in its workdir."""
    found = find_local_weights(source)
    folder = found.weights.parent if found else Path()
    return ever_trained_on(folder.parent) if folder.name == "package" else None


@dataclass(frozen=True, slots=True)
class _Found:
    """What info.json says."""

    info: PretrainedInfo  # of the weights
    listing: stored.Listing  # of the other files


def _read_info(workdir: Path) -> _Found | None:
    """Reads info.json; None where the workdir's run, if there is one, began without pretrained weights."""
    folder = workdir / FOLDER
    remedy = _new_workdir(workdir)
    if not folder.is_dir():
        if has_checkpoints(workdir) and load_run_config(workdir).model.pretrained:
            raise UserError(f"{folder} is missing; {remedy}")
        return None
    document = stored.read_document(folder / _INFO, remedy=remedy)
    with stored.reading(folder / _INFO, remedy):
        listing = document.pop(_FILES)
        return _Found(PretrainedInfo.from_dict(document), listing)


def _read_ids_before(workdir: Path, found: _Found) -> set[str] | None:
    """Returns the ids of the products that the pretrained weights were trained on; None where they are not known."""
    folder = workdir / FOLDER
    remedy = f"it names the products on which the weights were trained. To mend it, {_new_workdir(workdir)}"
    _check_file(folder, found, TRAINED_ON, remedy)
    return read_ids(folder / TRAINED_ON, remedy)


def _new_workdir(workdir: Path) -> str:
    """Returns what a user can do about damaged pretrained weights, as the end of a sentence."""
    return (
        "restore the folder from a backup, or train in a new --workdir. To use the finished network, copy "
        f"{workdir / 'package'} to another place"
    )


def _check_file(folder: Path, found: _Found, name: str, remedy: str) -> None:
    with stored.reading(folder / _INFO, remedy):
        listed = {name: found.listing[name]}
    stored.check_files(folder, listed, remedy=remedy)
