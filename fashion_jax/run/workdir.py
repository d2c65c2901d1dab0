"""The folder of a run: its records, its configuration, and the check that a later command continues the same run."""

from __future__ import annotations

import dataclasses
import json
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
TRAINED_ON = "trained_on.json"  # the records' fingerprint, and the ids of the products that the run is trained on


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
        if now.fingerprint != _fingerprint_of_run(workdir):
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
    old, new = training_fields(load_run_config(workdir)), training_fields(config)
    changed = [f"{name} was {old[name]}, now {new[name]}" for name in new if old[name] != new[name]]
    if changed:
        more = f"; {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed[:5])}{more}); "
            f"{_alternatives(workdir)}"
        )
    if _fingerprint_of_run(workdir) != prepared.fingerprint:
        raise UserError(
            f"{workdir} holds a run on other records than those in {prepared.folder}; {_alternatives(workdir)}"
        )


def _fingerprint_of_run(workdir: Path) -> Any:
    """Returns the fingerprint of the records that a run is trained on."""
    with stored.reading(workdir / TRAINED_ON, _alternatives(workdir)):
        return files.read_json_object(workdir / TRAINED_ON)["fingerprint"]


def _alternatives(workdir: Path) -> str:
    """Returns what a user can do instead of changing a run that has begun."""
    if (workdir / "package").is_dir():
        return f"use a new --workdir, or begin from this network: --config.model.pretrained={workdir}"
    return "use a new --workdir"


def claim_workdir(workdir: Path, config: Config, prepared: Prepared) -> None:
    """Writes `trained_on.json` and `config.json`: from now on the workdir belongs to this run."""
    # Without a column of ids the records number their rows, and other catalogues have the same numbers.
    trained = sorted(map(str, prepared.ids[prepared.indices("train")])) if prepared.schema.id_column else None
    files.write_text(workdir / TRAINED_ON, json.dumps({"fingerprint": prepared.fingerprint, "ids": trained}))
    files.write_json(workdir / "config.json", config.to_dict())


def training_fields(config: Config) -> dict[str, str]:
    """Returns the fields that decide what is trained: dotted name -> value, as Python writes it."""
    return {name: repr(value) for name, value in _flatten(config).items() if not name.startswith(_FREE_FIELDS)}


def has_checkpoints(workdir: Path) -> bool:
    """Returns whether a run has saved a whole checkpoint there."""
    return any(re.fullmatch(r"step_\d+", path.name) for path in (workdir / "checkpoints").glob("step_*"))


def trained_on(workdir: Path) -> set[str] | None:
    """Returns the ids of a run's training products; None where there is no run or its catalogue has no ids."""
    path = workdir / TRAINED_ON
    return read_ids(path) if path.exists() else None


def read_ids(path: Path) -> set[str] | None:
    """Returns the product ids in a trained_on.json; None where they are not known."""
    ids = files.read_json_object(path).get("ids")
    return None if ids is None else set(map(str, ids))


def _flatten(part: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        name, value = f"{prefix}{field.name}", getattr(part, field.name)
        flat.update(_flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value})
    return flat


def load_run_config(workdir: Path) -> Config:
    """Returns the resolved configuration of a workdir's run; UserError where there is none."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no workdir of a run: it has no config.json")
    return config_from_dict(files.read_json_object(workdir / "config.json"))
