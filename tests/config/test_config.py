"""Configuration: typed, checked, and without a dead field."""

from __future__ import annotations

import ast
import dataclasses
import functools
import operator
import re
from pathlib import Path
from typing import Any

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
    assert find_config(path.stem).samefile(path)


# All settings. A new one needs a shipped configuration that sets it, or a documented use.
SETTINGS = {
    "data": "attributes corrections height max_bad_fraction max_side mean schema source split split_fractions "
    "split_seed std storage test_time_flip width",
    "data.augment": "erase_probability flip_probability max_rotation max_shift min_crop_area rand_magnitude "
    "rand_operations",
    "decision": "label_set_coverage precision",
    "embedding": "appearance attributes size",
    "loss": "head_label_smoothing head_weights imbalance label_smoothing rare_label_smoothing",
    "model": "colour_heads depth drop_path dtype norm_group pooling pretrained second_heads stem width",
    "optimizer": "clip_norm freeze freeze_batch_norm layer_decay learning_rate multipliers name schedule unfreeze "
    "warmup weight_decay",
    "runtime": "cpu_devices tensorboard",
    "train": "accumulation_steps average_decay batch_size best_metric checkpoint_every duration "
    "early_stopping_patience evaluate_every progressive_scale progressive_until seed",
    "train.mix": "cutmix_alpha mixup_alpha probability until",
}


# What users of training libraries expect, although no shipped configuration and no guide sets it. No name may be added.
ONLY_IN_THE_REFERENCE = """
    data.augment.flip_probability data.augment.max_shift data.augment.rand_magnitude data.augment.rand_operations
    data.corrections data.max_bad_fraction data.max_side data.mean data.split_seed data.std data.storage
    embedding.size loss.head_label_smoothing loss.head_weights model.stem optimizer.clip_norm optimizer.name
    optimizer.schedule optimizer.warmup optimizer.weight_decay runtime.tensorboard train.accumulation_steps
    train.early_stopping_patience train.mix.probability train.seed
"""


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        values |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return values


def test_settings_are_these_and_each_is_set_by_a_shipped_configuration_or_documented():
    default = flatten(Config())
    assert sorted(default) == sorted(f"{group}.{name}" for group, names in SETTINGS.items() for name in names.split())
    assert len(default) <= 70
    used = set()
    for path in CONFIGS:
        used |= {name for name, value in flatten(load_config(path)).items() if value != default[name]}
    guides = [path for path in (ROOT / "docs").glob("*.md") if path.name != "configuration.md"]
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *guides])
    unused = [
        name
        for name in default
        if name not in used and name not in text and not re.search(rf"\b{name.split('.')[-1]}=", text)
    ]
    assert sorted(unused) == sorted(ONLY_IN_THE_REFERENCE.split())


def test_the_guide_says_what_the_comments_say():
    rows = re.findall(r"^\| `([\w.]+)` \| .*? \| (.*) \|$", (ROOT / "docs/configuration.md").read_text(), re.M)
    source = re.sub(r"\n\s*# ", " ", (ROOT / "fashion_jax/config/fields.py").read_text())
    assert sorted(name for name, _ in rows) == sorted(flatten(Config()))
    assert not [name for name, meaning in rows if f"# {meaning}" not in source and f" {meaning}" not in source]


@functools.cache
def reads() -> set[tuple[str, str]]:
    """Returns (section, field) of all that the package reads as `x.section.field`, or of a parameter of that type."""
    sections = {type(getattr(Config(), f.name)).__name__: f.name for f in dataclasses.fields(Config)}
    sections["AugmentConfig"], sections["MixConfig"] = "augment", "mix"
    found = set()
    for path in (ROOT / "fashion_jax").rglob("*.py"):
        if path.parent.name == "config":
            continue
        for function in (n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef)):
            known = {name: name for name in sections.values()}  # a variable called `data` holds config.data
            for argument in (*function.args.args, *function.args.kwonlyargs):
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                known[argument.arg] = sections.get(kind, known.get(argument.arg, ""))
            for node in ast.walk(function):  # `wanted = session.config.decision`
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute):
                    known |= {target.id: node.value.attr for target in node.targets if isinstance(target, ast.Name)}
            for node in (n for n in ast.walk(function) if isinstance(n, ast.Attribute)):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                found.add((known.get(name, name), node.attr))
    return found


@pytest.mark.parametrize("name", flatten(Config()))
def test_every_field_is_read_outside_the_configuration(name):
    section, _, field = name.rpartition(".")
    assert (section.rpartition(".")[2], field) in reads()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.seed", "3", 3), ("train.batch_size", "64.0", 64), ("data.source", "12", "12"),
        ("optimizer.learning_rate", "1e-3", 1e-3), ("optimizer.learning_rate", "1", 1.0),
        ("data.mean", "0.1,.2,.3", (0.1, 0.2, 0.3)), ("data.mean", "[0.1, 0.2, 0.3]", (0.1, 0.2, 0.3)),
        ("data.attributes", "a, b", ("a", "b")), ("data.attributes", "", ()), ("runtime.tensorboard", "true", True),
        ("loss.head_weights", "a:2,b:0.5", {"a": 2.0, "b": 0.5}), ("loss.head_weights", '{"a": 2}', {"a": 2.0}),
        ("runtime.tensorboard", "False", False), ("data.augment.max_rotation", "3", 3.0),
        ("train.batch_size", "16 per device", "16 per device"),
    ],
)  # fmt: skip
def test_overrides(key, text, value):
    config = Config()
    set_value(config, key, text)
    found = operator.attrgetter(key)(config)
    assert found == value and type(found) is type(value)
    config.validate()


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.sed", "3", "did you mean 'seed'"), ("trian.seed", "3", "did you mean 'train'"),
        ("train.seed.x", "3", "no fields"), ("train", "3", "is a group"), ("data.mean", "1,2", "three numbers"),
        ("train.seed", "x", "expected int, got str"), ("train.seed", "1.5", "expected int, got float"),
        ("train.seed", "true", "expected int, got bool"), ("optimizer.learning_rate", "nan", "wrong type"),
        ("optimizer.learning_rate", "-1", "out of range"), ("loss.head_weights", "a", "wrong type"),
        ("runtime.tensorboard", "maybe", "expected bool"), ("model.stem", "smal", "did you mean 'small'"),
        ("train.duration", "10", "is no duration"), ("train.duration", "-1 epochs", "is no duration"),
        ("train.duration", "50 percent", "expected steps, epochs"), ("train.evaluate_every", "0 steps", "above 0"),
        ("data.split", "groups", "'group', 'random'"), ("data.split_seed", "-1", "out of range"),
        ("data.height", "512", "at least the photos' size, 512"), ("train.accumulation_steps", "3", "divisible by"),
        ("train.batch_size", "16 a device", "such as '128"), ("train.batch_size", "0 per device", "at least 1"),
        ("train.batch_size", f"{'9' * 5000} per device", "such as '128"),
        ("data.augment.rand_operations", "14", "at most 4 together with rand_magnitude=0.3"),
        ("data.split_fractions", "0.5,0.5,0.5", "sum to 1"), ("model.depth", "19", "is not one of 10, 18, 34"),
    ],
)  # fmt: skip
def test_bad_values_get_a_sentence(key, text, message):
    config = Config()
    with pytest.raises(UserError, match=message):
        set_value(config, key, text)
        config.validate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "does not define get_config"), ("def get_config(): return 3", "returned int"),
        ("def get_config(:", "cannot be run"), ("import absent_module", "absent_module"),
        ("def get_config(): return {}['x']", "cannot be run: KeyError"),
    ],
)  # fmt: skip
def test_files_that_are_no_configuration(tmp_path, text, message):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.py")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("train.sede = 1", "sede"), ("train.duration = 10", "train.duration=10 has the wrong type"),
        ("optimizer.learning_rate = '1e-3'", "wrong type"), ("train.seed = 1.5", "train.seed=1.5 has the wrong type"),
        ("data.attributes = 'colour'", "wrong type"), ("data.source = Path('x')", "no number, text, list"),
    ],
)  # fmt: skip
def test_files_that_assign_what_does_not_fit(tmp_path, statement, message):
    imports = "from pathlib import Path\nfrom fashion_jax.config.fields import Config\n"
    (tmp_path / "c.py").write_text(f"{imports}def get_config():\n c = Config()\n c.{statement}\n return c")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.py")


def test_saved_values_are_checked():
    for values, message in (({"trane": {}}, "did you mean 'train'"), ({"train": 3}, "must be a JSON object")):
        with pytest.raises(UserError, match=message):
            config_from_dict(values)


def test_durations():
    assert parse_duration("1 epoch") == (1.0, "epochs")
    sizes = {"num_examples": 1000, "batch_size": 30}
    assert resolve_steps("2 epochs", **sizes) == 67
    assert resolve_steps("90 examples", **sizes) == 3
    assert resolve_steps("1 examples", **sizes) == 1
    assert resolve_steps("0 steps", **sizes) == 0
    assert resolve_steps("10 percent", **sizes, total_steps=500) == 50
