"""The list of all settings. A new one needs a shipped configuration that sets it, or a documented use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data.attributes",
    "data.augment.erase_probability",
    "data.augment.flip_probability",
    "data.augment.max_rotation",
    "data.augment.max_shift",
    "data.augment.min_crop_area",
    "data.augment.rand_magnitude",
    "data.augment.rand_operations",
    "data.corrections",
    "data.height",
    "data.max_bad_fraction",
    "data.max_side",
    "data.mean",
    "data.schema",
    "data.source",
    "data.split",
    "data.split_fractions",
    "data.split_seed",
    "data.std",
    "data.storage",
    "data.test_time_flip",
    "data.width",
    "decision.label_set_coverage",
    "decision.precision",
    "embedding.appearance",
    "embedding.attributes",
    "embedding.size",
    "loss.head_label_smoothing",
    "loss.head_weights",
    "loss.imbalance",
    "loss.label_smoothing",
    "loss.rare_label_smoothing",
    "model.colour_heads",
    "model.depth",
    "model.drop_path",
    "model.dtype",
    "model.pooling",
    "model.pretrained",
    "model.second_heads",
    "model.stem",
    "model.width",
    "optimizer.clip_norm",
    "optimizer.freeze",
    "optimizer.freeze_batch_norm",
    "optimizer.layer_decay",
    "optimizer.learning_rate",
    "optimizer.multipliers",
    "optimizer.name",
    "optimizer.schedule",
    "optimizer.unfreeze",
    "optimizer.warmup",
    "optimizer.weight_decay",
    "runtime.cpu_devices",
    "runtime.tensorboard",
    "train.accumulation_steps",
    "train.average_decay",
    "train.batch_size",
    "train.best_metric",
    "train.checkpoint_every",
    "train.duration",
    "train.early_stopping_patience",
    "train.evaluate_every",
    "train.mix.cutmix_alpha",
    "train.mix.mixup_alpha",
    "train.mix.probability",
    "train.mix.until",
    "train.progressive_scale",
    "train.progressive_until",
    "train.seed",
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        values |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return values


def test_settings_are_these_and_no_more():
    assert sorted(flatten(Config())) == sorted(SETTINGS)
    assert len(SETTINGS) <= 70


def test_every_setting_is_set_by_a_shipped_configuration_or_documented():
    default = flatten(Config())
    used = set()
    for path in (ROOT / "configs").glob("*.py"):
        used |= {name for name, value in flatten(load_config(path)).items() if value != default[name]}
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    undocumented = [name for name in SETTINGS if name not in used and name not in text]
    assert not undocumented
