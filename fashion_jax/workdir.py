"""A run's folder: its records, and the facts by which a later run knows whether it may go on in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from fashion_jax import files
from fashion_jax.config import Config
from fashion_jax.data.manifest import Prepared, is_prepared, open_prepared
from fashion_jax.data.prepare import prepare
from fashion_jax.data.schema import load_schema
from fashion_jax.errors import UserError

# Fields whose change leaves the trained parameters as they are.
_FREE_FIELDS = ("runtime.", "data.storage", "data.num_workers", "data.prepared", "data.source", "train.log_every")


def prepare_records(config: Config, workdir: Path, *, progress: bool = True) -> Prepared:
    """Opens the records of `config.data.source`, made first where they are not there yet.

    With several processes the first prepares while the others wait, so the folder must be on a disk that all share.

    Raises:
        UserError: the source cannot be read.
    """
    data = config.data
    if is_prepared(Path(data.source)):
        return open_prepared(Path(data.source))
    if jax.process_index() == 0:
        prepare(
            data.source,
            Path(data.prepared) if data.prepared else workdir / "records",
            schema=load_schema(Path(data.schema)) if data.schema else None,
            max_side=data.max_side,
            max_bad_fraction=data.max_bad_fraction,
            split=data.split,
            split_fractions=data.split_fractions,
            split_seed=data.split_seed,
            progress=progress,
        )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("records are prepared")
    return find_records(config, workdir)


def find_records(config: Config, workdir: Path) -> Prepared:
    """Opens the records of an earlier run, whether or not their source is still there; UserError if they are gone."""
    data = config.data
    if is_prepared(Path(data.source)):
        return open_prepared(Path(data.source))
    return open_prepared(Path(data.prepared) if data.prepared else workdir / "records")


def claim_workdir(workdir: Path, config: Config, prepared: Prepared, *, allow_config_change: bool) -> None:
    """Writes `config.json` and `data.json` into the workdir, or checks that those there are the same run's.

    Raises:
        UserError: the workdir holds a run with another configuration or other data.
    """
    facts: dict[str, Any] = {
        "fingerprint": prepared.fingerprint,
        "vocabularies": {name: list(prepared.vocabularies[name]) for name in config.data.attributes},
    }
    config_file, data_file = workdir / "config.json", workdir / "data.json"
    # A workdir whose run saved nothing yet is free: there is nothing to protect.
    if config_file.exists() and (workdir / "checkpoints").exists() and not allow_config_change:
        changed = _differences(read_json(config_file), config.to_dict())
        if changed:
            raise UserError(
                f"{workdir} holds a run with another configuration ({'; '.join(changed[:5])}); "
                "choose another --workdir, or give --allow-config-change to go on from its checkpoint"
            )
    if data_file.exists() and (workdir / "checkpoints").exists():
        before = read_json(data_file)
        for name, classes in facts["vocabularies"].items():
            old = before.get("vocabularies", {}).get(name)
            if old != classes:
                what = (
                    "is new" if old is None else f"had {len(old)} classes and now has {len(classes)}, or another order"
                )
                raise UserError(
                    f"the head {name!r} does not match the checkpoints in {workdir}: it {what}; "
                    "choose another --workdir"
                )
        if before.get("fingerprint") != prepared.fingerprint and not allow_config_change:
            raise UserError(
                f"{workdir} holds a run on other records; choose another --workdir, or give --allow-config-change"
            )
    if jax.process_index() == 0:
        files.write_json(config_file, config.to_dict())
        files.write_json(data_file, facts)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = _flatten(before), _flatten(now)
    keys = [k for k in {**new, **old} if not k.startswith(_FREE_FIELDS)]
    return [f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object; UserError when the file does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it if you want to start anew") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; remove it if you want to start anew")
    return value


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this run; the operating system lets go of it however the run ends.

    Raises:
        UserError: it cannot be written, or another run holds it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written ({error.strerror}); choose another") from error
    with lock:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another run is using {workdir}; wait for it or choose another workdir") from None
        yield
