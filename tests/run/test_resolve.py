"""What a configuration leaves open is filled in, and what cannot be trained is refused by its key."""

from __future__ import annotations

import dataclasses

import pytest

from fashion_jax.config.fields import MixConfig
from fashion_jax.run.resolve import resolve
from fashion_jax.run.workdir import claim_workdir
from fashion_jax.system.errors import UserError

MIX = MixConfig(mixup_alpha=0.4)
ALWAYS = MixConfig(mixup_alpha=0.4, probability=1.0)
COLOUR_ALONE = {"data__attributes": ("colour",), "model__colour_heads": ("auto",)}


def test_what_is_left_open_is_filled_in(tiny_config, prepared):
    config = tiny_config(model__colour_heads=("auto",), model__second_heads=("auto",))
    resolved = resolve(config, prepared)
    assert resolved.data.attributes == resolved.model.second_heads == prepared.attributes
    assert resolved.model.colour_heads == ("colour",)
    assert (resolved.model.stem, resolved.model.dtype, resolved.data.mean) == ("small", "float32", (0.5, 0.5, 0.5))
    assert resolve(resolved, prepared) == resolved
    assert config.data.attributes == ()  # the given configuration stays as it was
    config.data.attributes = ("kind",)
    assert resolve(config, prepared).model.second_heads == ()  # without a colour, what needs one is left out


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("no attribute 'color'; did you mean 'colour'", {"data__attributes": ("color",)}),
        ("size=4 .* use 8$", {"train__batch_size": 4}), ("needs .*colour_heads", {"model__second_heads": ("auto",)}),
        ("no attribute 'knid'", {"loss__head_weights": {"knid": 2.0}}),
        ("optimizer.freeze_batch_norm", {"optimizer__freeze_batch_norm": True}),
        ("model.second_heads", {**COLOUR_ALONE, "model__second_heads": ("kind",)}),
        ("loss.head_weights", {"loss__head_weights": {"kind": 5.0}, "data__attributes": ("colour",)}),
        ("embedding.attributes", {"embedding__attributes": ("kind",), "data__attributes": ("colour",)}),
        ("embedding.size", {"embedding__attributes": ("kind", "colour"), "embedding__size": 6}),
        (r"train.batch_size=12 \(.*\) does not divide over 8 devices; use 8 or 16", {"train__batch_size": 12}),
        ("train.batch_size=64 in 16 parts .* use 128$", {"train__batch_size": 64, "train__accumulation_steps": 16}),
        ("train.batch_size=24 .*train.mix needs; use 16 or 32", {"train__batch_size": 24, "train__mix": MIX}),
        ("train.mix.until", {"train__mix": ALWAYS}), ("data.height='32' has the wrong type", {"data__height": "32"}),
        ("train.progressive_until", {"train__progressive_scale": 0.5, "train__progressive_until": "12 steps"}),
        (r"optimizer.unfreeze\[backbone\]", {"optimizer__unfreeze": {"backbone": "100 percent"}}),
        ("data.height=300", {"data__height": 300, "data__max_side": 400}),
        ("train.best_metric='accuracy' .*mean/accuracy", {"train__best_metric": "accuracy"}),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_its_key(tiny_config, prepared, key, changes):
    config = tiny_config()
    for name, value in changes.items():
        part, _, field = name.partition("__")
        setattr(getattr(config, part), field, value)
    with pytest.raises(UserError, match=key):
        resolve(config, prepared)


def test_neighbours_of_what_is_refused_are_not(tiny_config, prepared):
    for changes in (
        {"train__batch_size": 48, "train__accumulation_steps": 3, "train__mix": MIX},
        {"train__mix": dataclasses.replace(ALWAYS, until="50 percent")},  # colours learn afterwards
        {"train__mix": ALWAYS, "data__attributes": ("kind",)},
        {"train__best_metric": "kind/macro_f1"},
        {"embedding__attributes": ("kind", "colour"), "embedding__size": 7},
    ):
        resolve(tiny_config(**changes), prepared)
    resolve(tiny_config(train__batch_size=24, train__mix=MIX), prepared, num_devices=4)


def test_a_run_keeps_its_dtype_on_another_machine(tiny_config, prepared, tmp_path):
    config = tiny_config()
    began = resolve(tiny_config(model__dtype="bfloat16"), prepared)
    claim_workdir(tmp_path, began, prepared)
    assert resolve(config, prepared, tmp_path).model.dtype == "float32"  # nothing was saved yet
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    assert resolve(config, prepared, tmp_path).model.dtype == "bfloat16"
    config.model.dtype = "float32"  # an explicit value counts
    assert resolve(config, prepared, tmp_path).model.dtype == "float32"


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 4.0), ("adamw", 2.0), ("lamb", 2.0)])
def test_a_batch_of_each_device_scales_the_learning_rate(tiny_config, prepared, tmp_path, optimizer, factor):
    def resolved(devices: int, **changes):
        config = tiny_config(optimizer__name=optimizer, train__batch_size="4 per device", **changes)
        config = resolve(config, prepared, tmp_path, num_devices=devices)
        return config.train.batch_size, config.optimizer.learning_rate

    rate = tiny_config().optimizer.learning_rate
    assert resolved(4) == (16, rate * factor) and resolved(1) == (4, rate)
    config = tiny_config(optimizer__name=optimizer, train__batch_size="4 per device")
    claim_workdir(tmp_path, resolve(config, prepared, num_devices=4), prepared)
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    assert resolved(1) == resolved(8) == (16, rate * factor)  # what has begun on four devices goes on as it was
    with pytest.raises(UserError, match=f"batch_size=16 --.*learning_rate={rate * factor}, or"):
        resolved(1, optimizer__learning_rate=2 * rate)


@pytest.mark.parametrize("given", ["4 per device", "5 per device", "32 per device"])
def test_a_run_that_began_with_a_number_asks_for_this_number(tiny_config, prepared, tmp_path, given):
    rate = tiny_config().optimizer.learning_rate
    claim_workdir(tmp_path, resolve(tiny_config(train__batch_size=16), prepared), prepared)
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    with pytest.raises(UserError, match=f"batch_size='{given}' .*batch_size=16 --.*learning_rate={rate}, or"):
        resolve(tiny_config(train__batch_size=given), prepared, tmp_path, num_devices=2)
