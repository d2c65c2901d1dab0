"""The folder of a run: its records, its configuration, and the check that a later command continues the same run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fashion_jax.config.fields import Config
from fashion_jax.config.files import config_from_dict
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import load_schema
from fashion_jax.data.splits import SplitOptions
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

# These fields may change while a run goes on: they do not change the trained parameters. What the source of the records
# gives is compared by the records' fingerprint.
_FREE_FIELDS = (
    "runtime.", "decision.", "embedding.", "model.second_heads", "data.storage", "data.source", "data.corrections",
    "train.checkpoint_every",
)  # fmt: skip
CONFIG = "config.json"  # the resolved configuration, with the run's name and its records' fingerprint
TRAINED_ON = "trained_on.json"  # the records' fingerprint, and the ids of the products that the run is trained on
_RUN = "run"  # the key beside the configuration


def prepare_records(config: Config, workdir: Path, *, progress: bool = True) -> None:
    """Makes the records of `config.data.source` where they are not there yet.

    With several processes only the first one calls this; the folder must be on a disk that all of them share.

    Raises:
        UserError: the source cannot be read, or it gives other records than the run in the workdir was started with.
            The run's records stay in place.
    """
    data = config.data
    if is_prepared(Path(data.source)):
        if data.corrections:
            raise UserError(
                f"{data.source} is prepared already, so config.data.corrections={data.corrections!r} cannot be "
                "applied; train on the catalogue itself, or give --corrections to fashion-jax prepare"
            )
        return

    def refuse_other_records(now: Prepared) -> None:
        if now.fingerprint != _load_run(workdir)[1]["fingerprint"]:
            raise UserError(
                f"{data.source} gives other records than the run in {workdir} was started with: its products, labels, "
                f"split or corrections have changed; {_alternatives(workdir)}"
            )

    before_replacing = refuse_other_records if has_checkpoints(workdir) else None
    make_records(config, workdir / "records", progress=progress, before_replacing=before_replacing)


def make_records(
    config: Config, folder: Path, *, progress: bool = True, before_replacing: Callable[[Prepared], None] | None = None
) -> Prepared:
    """Prepares the records of `config.data` in a folder; for `before_replacing` see `data.prepare.prepare`."""
    data = config.data
    options = PrepareOptions(
        load_schema(Path(data.schema)) if data.schema else None,
        data.max_side,
        data.max_bad_fraction,
        SplitOptions(data.split, tuple(data.split_fractions), data.split_seed),
        data.corrections or None,
    )
    return prepare(data.source, folder, options, progress=progress, before_replacing=before_replacing)


def find_records(config: Config, workdir: Path) -> Prepared:
    """Opens the records that `prepare_records` made; their source may be gone."""
    data = config.data
    if is_prepared(Path(data.source)):
        return open_prepared(Path(data.source))
    return open_prepared(workdir / "records")


def check_workdir(workdir: Path, config: Config, prepared: Prepared) -> None:
    """Checks that a run in the workdir, if there is one, has this configuration and these records.

    Args:
        workdir: of the run; without a checkpoint it may hold anything.
        config: as `resolve` returns it.

    Raises:
        UserError: a field that decides what is trained is another, or the records are.
    """
    if not has_checkpoints(workdir):
        return
    known, run = _load_run(workdir)
    old, new = training_fields(known), training_fields(config)
    changed = [f"{name} was {old[name]}, now {new[name]}" for name in new if old[name] != new[name]]
    if changed:
        more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed[:5])}{more}); "
            f"{_alternatives(workdir)}"
        )
    if run["fingerprint"] != prepared.fingerprint:
        raise UserError(
            f"{workdir} holds a run on other records than those in {prepared.folder}; {_alternatives(workdir)}"
        )


def _alternatives(workdir: Path) -> str:
    """Returns what a user can do instead of changing a run that has begun."""
    if (workdir / "package").is_dir():
        return f"use a new --workdir, or begin from this network: --config.model.pretrained={workdir}"
    return "use a new --workdir"


def claim_workdir(workdir: Path, config: Config, prepared: Prepared) -> str:
    """Writes `trained_on.json` and `config.json`: from now on the workdir belongs to this run.

    Returns:
        The run's name. It tells runs of other configurations or records apart.
    """
    name = run_name(workdir) if has_checkpoints(workdir) else ""
    run = {"name": name or files.digest([training_fields(config), prepared.fingerprint])[:32]}
    # Without a column of ids the records number their rows, and other catalogues have the same numbers.
    trained = sorted(map(str, prepared.ids[prepared.indices("train")])) if prepared.schema.id_column else None
    stored.write_document(workdir / TRAINED_ON, {"fingerprint": prepared.fingerprint, "ids": trained})
    run["fingerprint"] = prepared.fingerprint
    stored.write_document(workdir / CONFIG, {**config.to_dict(), _RUN: run})
    return run["name"]


def training_fields(config: Config) -> dict[str, str]:
    """Returns the fields that decide what is trained: dotted name -> value, as Python writes it."""
    return {name: repr(value) for name, value in _flatten(config).items() if not name.startswith(_FREE_FIELDS)}


def has_checkpoints(workdir: Path) -> bool:
    """Returns whether a run has saved a checkpoint there, damaged or not: the workdir belongs to that run."""
    return any(re.fullmatch(r"step_\d+", path.name) for path in (workdir / "checkpoints").glob("step_*"))


def trained_on(workdir: Path) -> set[str] | None:
    """Returns the ids of a run's training products; None where there is no run or its catalogue has no ids.

    Raises:
        UserError: the workdir's files are damaged or missing, so that the products are not known.
    """
    if not has_checkpoints(workdir) and not (workdir / TRAINED_ON).exists():
        return None  # a package has a config.json of its own
    _, run = _load_run(workdir)
    remedy = "run the same fashion-jax train command again; it writes this file again"
    return read_ids(workdir / TRAINED_ON, remedy, fingerprint=run["fingerprint"])


def read_ids(path: Path, remedy: str, *, fingerprint: str | None = None) -> set[str] | None:
    """Returns the product ids in a trained_on.json; None where they are not known.

    Args:
        remedy: what a user can do about a damaged or missing file, as the end of a sentence.
        fingerprint: of the records that have these products; None for any.

    Raises:
        UserError: the file is damaged, missing, or of other records.
    """
    document = stored.read_document(path, remedy=remedy)
    ids = document.get("ids", ())
    if not (ids is None or (isinstance(ids, list) and all(isinstance(name, str) for name in ids))):
        raise UserError(f"{path} is damaged (its ids are no texts); {remedy}")
    if fingerprint is not None and document.get("fingerprint") != fingerprint:
        raise UserError(f"{path} belongs to other records than this run; {remedy}")
    return None if ids is None else set(ids)


def _flatten(part: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        name, value = f"{prefix}{field.name}", getattr(part, field.name)
        flat.update(_flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value})
    return flat


def load_run_config(workdir: Path) -> Config:
    """Returns the resolved configuration of a workdir's run; UserError where there is none, or it was changed."""
    return _load_run(workdir)[0]


def run_name(workdir: Path) -> str:
    """Returns the name that `claim_workdir` gave to a workdir's run; UserError as `load_run_config`."""
    return _load_run(workdir)[1]["name"]


def _load_run(workdir: Path) -> tuple[Config, dict[str, str]]:
    """Returns a run's configuration, and its name and its records' fingerprint."""
    path = workdir / CONFIG
    if not path.is_file() and not has_checkpoints(workdir):
        raise UserError(f"{workdir} is no workdir of a run: it has no {CONFIG}")
    remedy = (
        "restore it from a backup, or train in a new --workdir. To change a setting, give it on the command line, with "
        "a new --workdir"
    )
    document = stored.read_document(path, remedy=remedy)
    run = document.pop(_RUN, None)
    if not isinstance(run, dict) or any(not isinstance(run.get(key), str) for key in ("name", "fingerprint")):
        raise UserError(f"{path} is damaged (it does not name its run); {remedy}")
    with stored.reading(path, remedy):
        return config_from_dict(document), run
