"""A run's folder: its records, and the facts by which a later run knows whether it may go on in it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_jax.config.fields import Config
from fashion_jax.config.files import config_from_dict
from fashion_jax.data.prepare import prepare
from fashion_jax.data.records import Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import load_schema
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

# Fields whose change leaves the trained parameters as they are.
_FREE_FIELDS = (
    "runtime.", "trust.", "embedding.", "model.stacked_heads", "data.storage", "data.num_workers", "data.prepared",
    "data.source", "data.corrections", "train.log_every",
)  # fmt: skip
TRAINED_ON = "trained_on.json"  # ids of all products that the checkpoints were ever trained on


@dataclass(frozen=True, slots=True)
class Changes:
    """How often something was changed under the workdir's checkpoints, and allowed to be.

    Attributes:
        configuration: times that a field that matters became another.
        records: times that products, labels or splits became others; scores from before do not compare with later ones.
    """

    configuration: int = 0
    records: int = 0


def prepare_records(config: Config, workdir: Path, *, allow_config_change: bool = False, progress: bool = True) -> None:
    """Makes the records of `config.data.source` where they are not there yet.

    With several processes the first does it, so the folder must be on a disk that all share.

    Raises:
        UserError: the source cannot be read, or gives other records than those of a run in the workdir, which are left
            there unless a change is allowed and they fit the run.
    """
    data = config.data
    if is_prepared(Path(data.source)):
        if data.corrections:
            raise UserError(
                f"{data.source} is prepared already, so config.data.corrections={data.corrections!r} cannot be "
                "applied; train on the catalogue itself, or give --corrections to fashion-jax prepare"
            )
        return

    def keep(before: Prepared, now: Prepared) -> None:
        if now.fingerprint in (before.fingerprint, _data_facts(workdir).get("fingerprint")):
            return
        if not allow_config_change:
            raise UserError(
                f"{workdir} holds a run on other records than {data.source} gives now (it, its split, sizes or "
                "corrections changed since), and they were left as they are; choose another --workdir, or give "
                "--allow-config-change to replace them and go on from the run's checkpoint"
            )
        if not (workdir / TRAINED_ON).exists() and before.fingerprint == _data_facts(workdir).get("fingerprint"):
            _note_trained_on(workdir, before)  # of a run of an earlier version, which did not
        _check_records(workdir, data.attributes or now.attributes, now)

    prepare(
        data.source,
        Path(data.prepared) if data.prepared else workdir / "records",
        schema=load_schema(Path(data.schema)) if data.schema else None,
        max_side=data.max_side,
        max_bad_fraction=data.max_bad_fraction,
        split=data.split,
        split_fractions=data.split_fractions,
        split_seed=data.split_seed,
        corrections=data.corrections or None,
        progress=progress,
        before_replacing=keep if has_checkpoints(workdir) else None,
    )


def find_records(config: Config, workdir: Path) -> Prepared:
    """Opens the records that `prepare_records` made, whether or not their source is still there."""
    data = config.data
    if is_prepared(Path(data.source)):
        return open_prepared(Path(data.source))
    return open_prepared(Path(data.prepared) if data.prepared else workdir / "records")


def check_workdir(workdir: Path, config: Config, prepared: Prepared, *, allow_config_change: bool) -> Changes:
    """Checks that checkpoints in the workdir are of this run.

    Returns:
        What has changed since the first of the checkpoints that are there, all of which was allowed.

    Raises:
        UserError: the workdir holds a run with another configuration or other data, or, whatever is allowed, one whose
            heads have other classes or whose training products are now for validation or test.
    """
    # A run that saved nothing yet leaves nothing to protect.
    if not has_checkpoints(workdir):
        return Changes()
    differences = _changed_fields(workdir, config)
    if differences and not allow_config_change:
        raise UserError(
            f"{workdir} holds a run with another configuration ({'; '.join(differences[:5])}); "
            "choose another --workdir, or give --allow-config-change to go on from its checkpoint"
        )
    changes = count_changes(workdir, config, prepared)
    others = changes.records > _data_facts(workdir).get("record_changes", 0)
    _check_records(workdir, config.data.attributes, prepared, splits=others)
    if others and not allow_config_change:
        raise UserError(
            f"{workdir} holds a run on other records; choose another --workdir, or give --allow-config-change"
        )
    return changes


def _check_records(workdir: Path, attributes: Iterable[str], prepared: Prepared, *, splits: bool = True) -> None:
    """Refuses records that no checkpoint of the workdir can go on with."""
    if not (workdir / "data.json").exists():
        return
    vocabularies, attributes = _data_facts(workdir).get("vocabularies", {}), tuple(attributes)
    if gone := sorted(vocabularies.keys() - set(attributes)):
        raise UserError(
            f"the checkpoints in {workdir} have a head {gone[0]!r}, and there is no such attribute any more; "
            "choose another --workdir"
        )
    for name in attributes:
        old, classes = vocabularies.get(name), list(prepared.vocabularies.get(name, ()))
        if old != classes:
            what = "is new" if old is None else f"had {len(old)} classes and now has {len(classes)}, or another order"
            raise UserError(
                f"the head {name!r} does not match the checkpoints in {workdir}: it {what}; choose another --workdir"
            )
    if not splits:
        return
    trained = trained_on(workdir)
    if trained is None or not prepared.schema.id_column:
        raise UserError(
            f"the records have changed, and which products the checkpoints in {workdir} were trained on cannot be told "
            "(the catalogue has no column of ids, or the run is of an earlier version); choose another --workdir"
        )
    own_split = workdir / "records" / "splits.csv"
    hint = f"keep the run's split (--config.data.split=file:{own_split}; new products need a line there), or "
    for split in ("validation", "test"):
        again = sorted(trained.intersection(map(str, prepared.ids[prepared.indices(split)])))
        if again:
            raise UserError(
                f"the checkpoints in {workdir} were trained on {len(again)} products that are now in the {split} split "
                f"({', '.join(again[:3])}, ...), whose scores would mean nothing; "
                f"{hint if own_split.exists() else ''}choose another --workdir"
            )


def keep_dtype(config: Config, workdir: Path) -> Config:
    """Returns a copy in which model.dtype "auto" is what a run of the workdir began with, on whatever machine."""
    if config.model.dtype != "auto" or not has_checkpoints(workdir) or not (workdir / "config.json").is_file():
        return config
    kept = config_from_dict(config.to_dict())
    kept.model.dtype = load_run_config(workdir).model.dtype
    return kept


def claim_workdir(workdir: Path, config: Config, prepared: Prepared) -> None:
    """Writes `config.json`, `data.json` and `trained_on.json`: from now on the workdir is this run's."""
    changes = count_changes(workdir, config, prepared)
    facts = {
        "fingerprint": prepared.fingerprint,
        "vocabularies": {name: list(prepared.vocabularies[name]) for name in config.data.attributes},
        "configuration_changes": changes.configuration,
        "record_changes": changes.records,
    }
    _note_trained_on(workdir, prepared)
    # Written one after the other; whatever ends this between two of them, the change is seen, and allowed, once more.
    files.write_json(workdir / "data.json", facts)
    files.write_json(workdir / "config.json", config.to_dict())


def count_changes(workdir: Path, config: Config, prepared: Prepared) -> Changes:
    """Returns how often configuration and records changed under the workdir's checkpoints, now among these times."""
    if not has_checkpoints(workdir):
        return Changes()
    before = _data_facts(workdir)
    return Changes(
        before.get("configuration_changes", 0) + bool(_changed_fields(workdir, config)),
        before.get("record_changes", 0) + (before.get("fingerprint") not in (None, prepared.fingerprint)),
    )


def name_of_score(config: Config, workdir: Path, prepared: Prepared) -> str:
    """Returns the name by which checkpoints keep the best metric; before a change of the records it had another."""
    metric, changes = config.train.best_metric, count_changes(workdir, config, prepared).records
    return f"{metric} after {changes} changes of the records" if changes else metric


def _note_trained_on(workdir: Path, prepared: Prepared) -> None:
    # Without a column of ids those of the records are the rows' numbers, which others have, too.
    trained = set(map(str, prepared.ids[prepared.indices("train")])) if prepared.schema.id_column else None
    if has_checkpoints(workdir) and (workdir / TRAINED_ON).exists():
        before = trained_on(workdir)
        trained = None if trained is None or before is None else trained | before
    files.write_text(workdir / TRAINED_ON, json.dumps({"ids": None if trained is None else sorted(trained)}))


def training_fields(config: Config) -> dict[str, Any]:
    """Returns the fields that decide what is trained, by dotted name; not the records that it is trained on."""
    return {name: value for name, value in _flatten(config.to_dict()).items() if not name.startswith(_FREE_FIELDS)}


def has_checkpoints(workdir: Path) -> bool:
    """True when a run has saved a whole checkpoint there."""
    return any(re.fullmatch(r"step_\d+", path.name) for path in (workdir / "checkpoints").glob("step_*"))


def _data_facts(workdir: Path) -> dict[str, Any]:
    """Returns what `claim_workdir` noted of the records; nothing where it did not."""
    path = workdir / "data.json"
    return read_json(path) if path.exists() else {}


def trained_on(workdir: Path) -> set[str] | None:
    """Returns the ids of a run's training products; None where these are not known: there is no run, it is one of an
    earlier version, or its catalogue has no column of ids.
    """
    path = workdir / TRAINED_ON
    return read_ids(path) if path.exists() else None


def read_ids(path: Path) -> set[str] | None:
    """Returns the products' ids that a trained_on.json names; None where it says that they are not known."""
    ids = read_json(path).get("ids")
    return None if ids is None else set(map(str, ids))


def _changed_fields(workdir: Path, config: Config) -> list[str]:
    path = workdir / "config.json"
    if not path.exists():
        return []
    # What an earlier version did not know of it did as the default does.
    old, new = {**_flatten(Config().to_dict()), **_flatten(read_json(path))}, _flatten(config.to_dict())
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


def load_run_config(workdir: Path) -> Config:
    """Returns the configuration of a workdir's run, as resolved; UserError when there is none."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no workdir of a run: it has no config.json")
    config = config_from_dict(read_json(workdir / "config.json"))
    if not config.model.colour_heads:  # earlier versions noted second heads that were not fitted for want of one
        config.model.stacked_heads = ()
    return config


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this run; the operating system lets go of it however the run ends.

    Raises:
        UserError: it cannot be written, or another run holds it.
    """
    busy = f"another run is using {workdir}; wait for it or choose another workdir"
    with files.hold_lock(workdir / ".lock", what=f"the workdir {workdir}", busy=busy):
        yield
