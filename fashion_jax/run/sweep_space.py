"""What a sweep searches: fields of a configuration, with the values or the ranges that are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fashion_jax.config.files import load_config
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

_RANGE_KEYS = {"low", "high", "log", "step"}
# Fields of "data" that records are made by; all trials share one folder of them.
_RECORD_FIELDS = (
    "source", "prepared", "schema", "corrections", "max_side", "max_bad_fraction", "split", "split_fractions",
    "split_seed",
)  # fmt: skip
_MEASURES = ("train.best_metric", "data.attributes")
_AFTERWARDS = ("trust.", "embedding.", "model.stacked_heads")


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; integers where these and `step` are.

    Attributes:
        low: smallest.
        high: largest.
        log: whether their logarithms are drawn evenly.
        step: between neighbours; None for any number (1 for integers).
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def of_integers(self) -> bool:
        """Whether integers alone are drawn."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


Space = dict[str, Range | tuple[str, ...]]


def read_space(path: str | Path) -> Space:
    """Reads what is to be searched.

    Args:
        path: a JSON object: field of the configuration -> a list of values, or {"low": ..., "high": ..., "log": true,
            "step": ...}, such as {"optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": true}}.

    Raises:
        UserError: the file cannot be read, or an entry is neither.
    """
    given, space = files.read_json_object(Path(path)), Space()
    if not given:
        raise UserError(f"{path} names no field to search")
    for name, entry in given.items():
        if isinstance(entry, list) and entry and all(isinstance(value, (str, int, float)) for value in entry):
            space[name] = tuple(_text(value) for value in entry)
            continue
        if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys() <= _RANGE_KEYS:
            raise UserError(f'{path}: {name!r} needs a list of values, or {{"low": ..., "high": ...}}, not {entry!r}')
        numbers = [entry[key] for key in ("low", "high", "step") if key in entry]
        if any(type(value) not in (int, float) for value in numbers) or not isinstance(entry.get("log", False), bool):
            raise UserError(f"{path}: {name!r} has a low, high or step that is no number, or a log that is not true")
        found = Range(**entry)
        if not found.low < found.high or (found.step is not None and (found.step <= 0 or found.log)):
            raise UserError(f"{path}: {name!r} needs low < high, and a step above 0 without log: {entry!r}")
        if found.log and found.low <= 0:
            raise UserError(f"{path}: {name!r} needs a low above 0 for log, not {found.low!r}")
        space[name] = found
    return space


def check_space(config: str | Path, overrides: Mapping[str, str], space: Space) -> None:
    """Tries every listed value, and the ends of every range: most of what no trial could use is found at once.

    Args:
        config: a configuration file.
        overrides: dotted key -> text, of every trial.
        space: of `read_space`.

    Raises:
        UserError: the configuration refuses a value, a field changes the records or scores by which trials are
            compared, has its say after training only, or cannot change between trials.
    """
    for name, entry in space.items():
        if name.removeprefix("data.") in _RECORD_FIELDS and name.startswith("data."):
            raise UserError(f"{name!r} cannot be searched: trials are compared on the same records, which it changes")
        if name in _MEASURES:
            raise UserError(f"{name!r} cannot be searched: it changes what the score of a trial is of")
        if name.startswith(_AFTERWARDS):
            raise UserError(
                f"{name!r} cannot be searched: it has its say after training, and trials are compared by the scores "
                "of validation rows during training"
            )
        if name.startswith("runtime."):
            raise UserError(f"{name!r} cannot be searched: it is set before the first trial begins, for all of them")
        for value in entry if isinstance(entry, tuple) else (_text(entry.low), _text(entry.high)):
            load_config(config, {**overrides, name: value})


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
