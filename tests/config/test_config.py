"""Configuration: typed, checked, and without a dead field."""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path

import pytest

from fashion_jax.config.fields import Config
from fashion_jax.config.files import config_from_dict, find_config, load_config, set_value
from fashion_jax.config.values import parse_duration, resolve_steps
from fashion_jax.system.errors import UserError
from parsing import parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_loads_and_survives_json(path):
    config = load_config(path)
    assert config_from_dict(config.to_dict()) == config
    docstring = ast.get_docstring(parse(path))
    assert docstring is not None
    assert "Command:" in docstring
    assert find_config(path.stem).samefile(path)


def fields(kind: type = Config, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        nested = dataclasses.is_dataclass(value)
        found += fields(type(value), f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return found


@functools.cache
def reads() -> set[tuple[str, str]]:
    """Returns (section, field) of all that the package reads as `x.section.field`, or of a parameter of that type."""
    sections = {type(getattr(Config(), f.name)).__name__: f.name for f in dataclasses.fields(Config)}
    sections["AugmentConfig"], sections["MixConfig"] = "augment", "mix"
    found = set()
    for path in (ROOT / "fashion_jax").rglob("*.py"):
        if path.name in ("config.py", "config_files.py"):
            continue
        for function in (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef)):
            known = {name: name for name in sections.values()}  # a variable called `data` holds config.data
            for argument in (*function.args.args, *function.args.kwonlyargs):
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                known[argument.arg] = sections.get(kind, known.get(argument.arg, ""))
            for node in (n for n in ast.walk(function) if isinstance(n, ast.Attribute)):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((known.get(name, name), node.attr))
    return found


@pytest.mark.parametrize("name", fields())
def test_every_field_is_read_outside_the_configuration(name):
    section, _, field = name.rpartition(".")
    assert (section.rpartition(".")[2], field) in reads()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.seed", "3", 3),
        ("train.batch_size", "64.0", 64),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("data.mean", "0.1,.2,.3", (0.1, 0.2, 0.3)),
        ("data.mean", "[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
        ("data.attributes", "a, b", ("a", "b")),
        ("data.attributes", "", ()),
        ("loss.head_weights", "a:2,b:0.5", {"a": 2.0, "b": 0.5}),
        ("loss.head_weights", '{"a": 2}', {"a": 2.0}),
        ("runtime.tensorboard", "true", True),
        ("runtime.tensorboard", "False", False),
        ("data.source", "12", "12"),
        ("data.augment.max_rotation", "3", 3.0),
    ],
)
def test_overrides(key, text, value):
    config = Config()
    set_value(config, key, text)
    target = config
    for part in key.split("."):
        target = getattr(target, part)
    assert target == value
    assert type(target) is type(value)
    config.validate()


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.sed", "3", "did you mean 'seed'"),
        ("trian.seed", "3", "did you mean 'train'"),
        ("train.seed.x", "3", "no fields"),
        ("train", "3", "is a group"),
        ("train.seed", "x", "expected int, got str"),
        ("train.seed", "1.5", "expected int, got float"),
        ("train.seed", "true", "expected int, got bool"),
        ("optimizer.learning_rate", "nan", "wrong type"),
        ("optimizer.learning_rate", "-1", "out of range"),
        ("data.mean", "1,2", "3 in"),
        ("loss.head_weights", "a", "wrong type"),
        ("runtime.tensorboard", "maybe", "expected bool"),
        ("model.stem", "smal", "did you mean 'small'"),
        ("train.duration", "10", "is no duration"),
        ("train.duration", "-1 epochs", "is no duration"),
        ("train.duration", "50 percent", "not in percent"),
        ("train.evaluate_every", "0 steps", "above 0"),
        ("data.split", "groups", "'group', 'random'"),
        ("data.split_seed", "-1", "out of range"),
        ("data.height", "512", "at least the photos' size, 512"),
        ("data.split_fractions", "0.5,0.5,0.5", "sum to 1"),
        ("train.accumulation_steps", "3", "divisible by"),
    ],
)
def test_bad_values_get_a_sentence(key, text, message):
    config = Config()
    with pytest.raises(UserError, match=message):
        set_value(config, key, text)
        config.validate()


def assigning(statement: str) -> str:
    lines = [
        "from fashion_jax.config.fields import Config",
        "def get_config():",
        " c = Config()",
        f" c.{statement}",
        " return c",
    ]
    return "\n".join(lines)


def test_files_that_are_no_configuration(tmp_path):
    for text, message in (
        ("x = 1", "does not define get_config"),
        ("def get_config(): return 3", "returned int"),
        ("def get_config(:", "cannot be run"),
        (
            "from fashion_jax.config.fields import Config\ndef get_config():\n    c = Config()\n    c.train.sede = 1",
            "sede",
        ),
        ("import absent_module", "absent_module"),
        ("def get_config(): raise ValueError('of its own')", "of its own"),
        ("def get_config(): return {}['x']", "cannot be run: KeyError"),
        (assigning("train.batch_size = 'many'"), "train.batch_size='many' has the wrong type"),
        (assigning("train.duration = 10"), "train.duration=10 has the wrong type"),
        (assigning("optimizer.learning_rate = '1e-3'"), "optimizer.learning_rate='1e-3' has the wrong type"),
        (assigning("train.seed = 1.5"), "train.seed=1.5 has the wrong type"),
        (assigning("data.attributes = 'colour'"), "data.attributes='colour' has the wrong type"),
        (assigning("data.source = __import__('pathlib').Path('x')"), "a value that JSON does not know"),
    ):
        (tmp_path / "c.py").write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(tmp_path / "c.py")


def test_saved_values_are_checked():
    with pytest.raises(UserError, match="did you mean 'train'"):
        config_from_dict({"trane": {}})
    with pytest.raises(UserError, match="must be an object"):
        config_from_dict({"train": 3})


def test_durations():
    assert parse_duration("1 epoch") == (1.0, "epochs")
    sizes = {"num_examples": 1000, "batch_size": 30}
    assert resolve_steps("2 epochs", **sizes) == 67
    assert resolve_steps("90 examples", **sizes) == 3
    assert resolve_steps("1 examples", **sizes) == 1
    assert resolve_steps("0 steps", **sizes) == 0
    assert resolve_steps("10 percent", **sizes, total_steps=500) == 50
