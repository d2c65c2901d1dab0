"""What a run begins with: its pretrained weights enter its state at birth, and never again.

WORKDIR/pretrained/
  facts.json                what they are: source, digest, architecture, normalisation
  backbone.safetensors      the backbone, and what colour heads see, under our names; every process reads it
  trained_on.json           ids of the products that they were ever trained on; null where these cannot be known

A run that has a checkpoint needs neither the source nor backbone.safetensors any more.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fashion_jax.config.fields import Config, ModelConfig
from fashion_jax.config.files import config_from_dict
from fashion_jax.data.records import Prepared
from fashion_jax.models.pretrained import PretrainedFacts, load_pretrained
from fashion_jax.models.weight_files import find_local_weights
from fashion_jax.models.weight_layouts import OWN
from fashion_jax.run.session import Session
from fashion_jax.run.workdir import TRAINED_ON, has_checkpoints, read_ids, trained_on
from fashion_jax.serving.zoo import find_model
from fashion_jax.system import files
from fashion_jax.system.errors import UserError
from fashion_jax.training.state import TrainState, create_state

FOLDER = "pretrained"
_FACTS, _BACKBONE = "facts.json", "backbone.safetensors"
_ARCHITECTURE = ("depth", "width", "stem")


def prepare_pretrained(config: Config, workdir: Path, *, progress: bool = True) -> None:
    """Puts a new run's pretrained weights into its workdir, or checks that a started run had the same.

    With several processes only the first one calls this; the folder must be on a disk that all of them share.

    Args:
        config: as given; `model.pretrained` is empty, a source of `models.pretrained.load_pretrained`, or the name of
            a model that comes with the library.
        workdir: of the run.
        progress: whether to print what is read on standard error.

    Raises:
        UserError: the source cannot be read, its digest is not the expected one, or a started run had other weights.
    """
    folder = workdir / FOLDER
    files.remove_stale(folder)
    if has_checkpoints(workdir):
        if config.model.pretrained:
            _check_resumed(config, workdir)
        return
    if not config.model.pretrained:
        if _is_ours(folder):  # of a run that ended before its first checkpoint
            shutil.rmtree(folder, ignore_errors=True)
        return
    if progress:
        print(f"reading the pretrained weights {config.model.pretrained}", file=sys.stderr, flush=True)
    if folder.exists() and not _is_ours(folder):
        raise UserError(f"{folder} is in the way, and is not of a run; choose another --workdir")
    source = str(find_model(config.model.pretrained))
    loaded = load_pretrained(source)
    facts = loaded.facts
    _adopt(config, facts)  # what does not fit is found before anything is written
    products = _products_behind(source) if facts.layout == OWN.title else set()
    with files.replace_directory(folder) as aside:
        files.write_bytes(aside / _BACKBONE, safetensors.numpy.save(loaded.weights))
        files.write_json(aside / _FACTS, facts.to_dict())
        known = None if products is None else sorted(products)
        files.write_text(aside / TRAINED_ON, json.dumps({"ids": known}))
    if progress:
        print(
            f"{facts.source}: ResNet-{facts.depth} in {facts.layout}, width {facts.width}, stem {facts.stem!r}, "
            f"{'colour features, ' if facts.colour else ''}mean {facts.mean}, std {facts.std}, sha256 {facts.digest}",
            file=sys.stderr,
            flush=True,
        )


def adopt_pretrained(config: Config, workdir: Path) -> Config:
    """Returns a copy with the architecture, normalisation and digest of the pretrained weights in the workdir.

    Raises:
        UserError: the configuration asks for another architecture than they have.
    """
    if not config.model.pretrained:
        return config
    facts = _read_facts(workdir)
    assert facts is not None, workdir
    return _adopt(config, facts)


def ever_trained_on(workdir: Path) -> set[str] | None:
    """Returns the ids of the products that a run's network was ever trained on, by the run or before; None where these
    cannot be known, as of a run that began with a package.
    """
    own, facts = trained_on(workdir), _read_facts(workdir)
    if facts is None or own is None:
        return own
    before = read_ids(workdir / FOLDER / TRAINED_ON)
    return None if before is None else own | before


def warn_of_known_products(prepared: Prepared, workdir: Path) -> None:
    """Says on standard error which splits hold products that a run's network was trained on before the run, by ids."""
    path, facts = workdir / FOLDER / TRAINED_ON, _read_facts(workdir)
    before = read_ids(path) if path.exists() and prepared.schema.id_column else None
    if facts is None or not before:
        return
    for split in ("validation", "test"):
        known = np.isin(prepared.ids[prepared.indices(split)].astype(str), sorted(before)).sum()
        if known:
            print(
                f"{known:,} products of the {split} split have ids of training products of {facts.source}: if they are "
                "the same products, their scores are too good; keep that run's split "
                "(--config.data.source=ITS_WORKDIR/records)",
                file=sys.stderr,
                flush=True,
            )


def first_state(session: Session) -> TrainState:
    """Returns a new run's state, on all devices: pretrained weights where the run has them, biases that the classes'
    frequencies give where the losses ask for them, the rest drawn.
    """
    given = _read_weights(session) if session.config.model.pretrained else {}
    drawn = sorted(path for path in session.fine_tuning.frozen if f"params/{path}" not in given)
    if drawn and session.progress:
        print(
            f"note: {len(drawn)} frozen parameters did not come with pretrained weights and stay as they are drawn, "
            f"such as {drawn[0]}; narrow config.optimizer.freeze if they are to be learnt",
            file=sys.stderr,
            flush=True,
        )
    for name, loss in session.head_losses.items():
        if loss.first_bias is not None:
            given[f"params/heads/{name}/output/bias"] = loss.first_bias
    return create_state(
        session.arguments,
        session.optimizer,
        session.config.train.seed,
        session.mesh,
        averaged=session.averaged,
        pretrained=given,
    )


def _check_resumed(config: Config, workdir: Path) -> None:
    source, facts = config.model.pretrained, _read_facts(workdir)
    if facts is None:
        raise UserError(
            f"the run in {workdir} began without pretrained weights, and config.model.pretrained={source!r} cannot be "
            "added now; use a new --workdir"
        )
    try:
        local = find_local_weights(str(find_model(source)))
    except UserError:
        local = None  # the source is gone; a run that has begun does not need it
    if local is None and source == facts.source:
        return
    digest = local.digest() if local else "unknown"
    if digest != facts.digest:
        raise UserError(
            f"the run in {workdir} began with the pretrained weights {facts.source} (sha256 {facts.digest}), and "
            f"config.model.pretrained={source!r} has others (sha256 {digest}); use a new --workdir"
        )


def _adopt(config: Config, facts: PretrainedFacts) -> Config:
    resolved, default = config_from_dict(config.to_dict()), ModelConfig()
    for name in _ARCHITECTURE:
        given, wanted = getattr(config.model, name), getattr(facts, name)
        # What was left at its default was left open; another value of it could not be used anyway.
        if given not in (getattr(default, name), wanted):
            raise UserError(
                f"config.model.{name}={given!r} does not fit the pretrained weights {facts.source}: set "
                f"config.model.{name}={wanted!r}, or leave it out"
            )
        setattr(resolved.model, name, wanted)
    if facts.pooling == "gem":  # its power was trained with the rest
        resolved.model.pooling = facts.pooling
    resolved.model.pretrained = facts.source
    resolved.data.mean, resolved.data.std = config.data.mean or facts.mean, config.data.std or facts.std
    resolved.validate()
    return resolved


def _is_ours(folder: Path) -> bool:
    """True for a folder that holds what we write there and nothing else."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {_FACTS, _BACKBONE, TRAINED_ON}


def _products_behind(source: str) -> set[str] | None:
    """Returns the ids of the products that a package was ever trained on; None but for one that lies in its workdir."""
    found = find_local_weights(source)
    folder = found.weights.parent if found else Path()
    return ever_trained_on(folder.parent) if folder.name == "package" else None


def _read_facts(workdir: Path) -> PretrainedFacts | None:
    path = workdir / FOLDER / _FACTS
    if not path.is_file():
        return None
    try:
        return PretrainedFacts.from_dict(files.read_json_object(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another --workdir") from error


def _read_weights(session: Session) -> dict[str, np.ndarray]:
    """Returns the run's pretrained weights, without colour features where the run has no colour head."""
    path, facts = session.workdir / FOLDER / _BACKBONE, _read_facts(session.workdir)
    try:
        weights = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); all processes must share the workdir's disk") from error
    if session.arguments["colour_heads"] and facts is not None and facts.colour:
        return weights
    return {name: array for name, array in weights.items() if name.split("/")[1] != "colour"}
