"""Configurations from files, from saved JSON, and from command-line overrides.

A configuration file is Python and defines `get_config() -> Config`; a delta starts from another file:

    from pathlib import Path
    from fashion_jax.config.files import load_config

    def get_config():
        config = load_config(Path(__file__).with_name("base.py"))
        config.train.duration = "20 epochs"
        return config
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
import types
import typing
from pathlib import Path
from typing import Any

from fashion_jax.config.fields import Config
from fashion_jax.system.errors import UserError, nearest


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Runs a configuration file and applies overrides.

    Args:
        path: a `.py` file, or the bare name of one that ships with the package (`small_cpu`).
        overrides: dotted key -> text, as given by `--config.train.seed=1`.

    Raises:
        UserError: no such file, no `get_config`, an unknown key (the nearest is named), a bad type or value.
    """
    file = find_config(path)
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise UserError(f"{file} does not define get_config(); see configs/base.py for an example")
        made = get_config()
    except UserError:
        raise
    except Exception as error:
        # It is a program, and fails in any way; slots make a misspelt assignment an AttributeError.
        raise UserError(f"the configuration {file} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(made, Config):
        raise UserError(
            f"get_config() of {file} returned {type(made).__name__}, not a fashion_jax.config.fields.Config"
        )
    made = checked_copy(made)
    for key, text in (overrides or {}).items():
        set_value(made, key, text)
    made.validate()
    return made


def find_config(path: str | Path) -> Path:
    """Finds a configuration file by path, or by bare name among those that ship with the package."""
    path = Path(path)
    package = Path(__file__).resolve().parent.parent
    shipped = [package / "configs", package.parent / "configs"]
    names = [path] + [
        folder / f"{path.name.removesuffix('.py')}.py" for folder in shipped if path.parent.name in ("", "configs")
    ]
    for candidate in names:
        if candidate.is_file():
            return candidate
    known = sorted(file.stem for folder in shipped if folder.is_dir() for file in folder.glob("*.py"))
    raise UserError(
        f"there is no configuration at {path}{nearest(path.stem, known)}; the library has: {', '.join(known)}"
    )


def set_value(config: Config, key: str, text: str) -> None:
    """Sets the field with a dotted name from text.

    Sequences are comma-separated or a JSON list; mappings are `name:value,...` or a JSON object.

    Raises:
        UserError: an unknown key or a text that is not of the field's type.
    """
    *parents, name = key.split(".")
    target: Any = config
    for depth, part in enumerate(parents):
        target = getattr(target, _known(target, part, ".".join(parents[: depth + 1])))
        if not dataclasses.is_dataclass(target):
            raise UserError(f"config.{key} does not exist: {'.'.join(parents[: depth + 1])} has no fields")
    kind = typing.get_type_hints(type(target))[_known(target, name, key)]
    if dataclasses.is_dataclass(kind):
        raise UserError(f"config.{key} is a group; set one of its fields: {', '.join(_field_names(kind))}")
    setattr(target, name, _convert(_parse(text, kind), kind, key))


def checked_copy(config: Config) -> Config:
    """Returns a copy; UserError for values of wrong types, which Python lets anybody assign, or out of range."""
    try:
        values = config.to_dict()
    except TypeError as error:
        raise UserError(
            f"the configuration holds a value that is no number, text, list or dictionary: {error}"
        ) from error
    return config_from_dict(values)


def config_from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `Config.to_dict`; UserError for unknown keys, wrong types and values out of range."""
    config = Config()
    _update(config, values, "")
    config.validate()
    return config


def _field_names(kind: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _known(target: Any, name: str, key: str) -> str:
    names = _field_names(target)
    if name not in names:
        raise UserError(f"config.{key} does not exist{nearest(name, names)}; known there: {', '.join(names)}")
    return name


def _update(target: Any, values: dict[str, Any], prefix: str) -> None:
    hints = typing.get_type_hints(type(target))
    for name, value in values.items():
        key = f"{prefix}{name}"
        _known(target, name, key)
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise UserError(f"config.{key} must be a JSON object, not {type(value).__name__}")
            _update(getattr(target, name), value, key + ".")
        else:
            setattr(target, name, _convert(value, hints[name], key))


def _parse(text: str, kind: Any) -> Any:
    """Reads command-line text as the JSON-like value that `_convert` checks."""
    origin = typing.get_origin(kind) or kind
    if origin is str:
        return text
    if origin is tuple and not text.startswith("["):
        item = typing.get_args(kind)[0]
        return [_parse(part.strip(), item) for part in text.split(",") if part.strip()]
    if origin is dict and not text.startswith("{"):
        return {
            k.strip(): _parse(v.strip(), float) for k, _, v in (part.partition(":") for part in text.split(",") if part)
        }
    try:
        return float(text) if origin is float else json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text  # of no known type: refused by _convert with the key in the sentence


def _convert(value: Any, kind: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is types.UnionType:
        return _convert(value, str if isinstance(value, str) else arguments[0], key)
    if origin is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if origin is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, arguments[0], key) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(v, arguments[1], f"{key}[{k}]") for k, v in value.items()}
    if origin in (str, bool, int) and type(value) is origin:
        return value
    expected = kind.__name__ if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) else str(kind)
    got = "no finite number" if origin is float and type(value) in (int, float) else type(value).__name__
    raise UserError(f"config.{key}={value!r} has the wrong type: expected {expected}, got {got}")
