"""Resolves a configuration against the records: fills in what it leaves open, and refuses what cannot be trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax

from fashion_jax.config.fields import Config
from fashion_jax.config.files import checked_copy
from fashion_jax.config.values import resolve_steps
from fashion_jax.data.records import Prepared, is_prepared
from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.tags import TAG_SCORES
from fashion_jax.run.start import adopt_pretrained
from fashion_jax.run.workdir import has_checkpoints, load_run_config
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.training.state import model_arguments, resolve_colour_heads

_HALF = (0.5, 0.5, 0.5)


def resolve(
    config: Config, prepared: Prepared, workdir: Path | None = None, *, num_devices: int | None = None
) -> Config:
    """Returns a copy in which everything is decided. What would stop the run later is refused here.

    Args:
        config: as the user gave it. "auto" and empty values are filled in: attributes, heads, stem, dtype,
            normalisation.
        workdir: of the run. Its pretrained weights decide the architecture, and a run that has begun there keeps its
            dtype. None for a run without either.
        num_devices: over which a batch is divided; None for all devices.

    Raises:
        UserError: a value has the wrong type or is out of range, does not fit the records, the pretrained weights or
            the devices, or has no effect.
    """
    devices = jax.device_count() if num_devices is None else num_devices
    resolved = fill_in(config, prepared, workdir, num_devices=devices)
    _check_attributes(resolved, prepared)
    _check_settings_have_an_effect(resolved)
    _check_batches(resolved, devices)
    _check_durations(resolved, prepared)
    _check_embedding(resolved, prepared)
    _check_records(resolved, prepared)
    return resolved


def colours(config: Config) -> tuple[str, ...]:
    """Returns the attributes that are colours: those with a colour head, and those with a colour's name."""
    named = resolve_colour_heads(("auto",), config.data.attributes)
    return tuple(dict.fromkeys((*config.model.colour_heads, *named)))


def run_steps(config: Config, prepared: Prepared, duration: str | None = None) -> int:
    """Returns a duration in optimiser steps; None for the whole run."""
    sizes = {"num_examples": len(prepared.indices("train")), "batch_size": config.train.photos}
    total = resolve_steps(config.train.duration, **sizes)
    return total if duration is None else resolve_steps(duration, **sizes, total_steps=total)


def fill_in(
    config: Config, prepared: Prepared, workdir: Path | None = None, *, num_devices: int | None = None
) -> Config:
    """The first half of `resolve`: returns a copy in which everything is decided, without the checks."""
    config = checked_copy(config)
    begun = None
    if workdir is not None:
        config = adopt_pretrained(config, workdir)
        begun = load_run_config(workdir) if has_checkpoints(workdir) else None
        if config.model.dtype == "auto" and begun:
            config.model.dtype = begun.model.dtype
    if isinstance(config.train.batch_size, str):
        _count_photos(config, begun, jax.device_count() if num_devices is None else num_devices)
    data, model, loss = config.data, config.model, config.loss
    if is_prepared(Path(data.source)):  # a later command may start in another folder
        data.source = str(Path(data.source).resolve())
    every = (*prepared.attributes, *prepared.tags)
    named = (
        *data.attributes,
        *(name for heads in (model.colour_heads, model.second_heads) for name in heads if name != "auto"),
        *loss.head_weights,
        *loss.head_label_smoothing,
    )
    for name in named:
        if name not in every:
            raise UserError(f"the catalogue has no attribute {name!r}{nearest(name, every)}; it has {', '.join(every)}")
    data.attributes = data.attributes or every
    single = tuple(name for name in data.attributes if name in prepared.attributes)
    if not single:
        raise UserError(
            f"config.data.attributes={','.join(data.attributes)} has several values each; a network also needs an "
            f"attribute of one value, such as {prepared.attributes[0]}"
        )
    if model.second_heads and not model.colour_heads:
        raise UserError(
            "config.model.second_heads needs config.model.colour_heads, which is empty; add "
            "--config.model.colour_heads=auto, or leave second_heads out"
        )
    model.colour_heads = resolve_colour_heads(model.colour_heads, data.attributes)
    if not model.colour_heads:
        model.second_heads = ()  # the catalogue has no colour
    if model.second_heads == ("auto",):
        model.second_heads = single
    arguments = model_arguments(model, data, {})
    model.stem, model.dtype = arguments["stem"], arguments["dtype"]
    data.mean, data.std = data.mean or _HALF, data.std or _HALF
    return config


def _count_photos(config: Config, begun: Config | None, devices: int) -> None:
    """Sets the batch size and the learning rate of "128 per device"; a run that has begun keeps its devices' number.

    The learning rate in the configuration is that of one device. It grows with the devices for SGD (Goyal et al. 2017)
    and with their square root for AdamW and LAMB (Malladi et al., NeurIPS 2022).
    """
    train, optimizer = config.train, config.optimizer
    given, rate = train.batch_size, optimizer.learning_rate
    if begun:
        devices = max(1, begun.train.photos // train.photos)
    train.batch_size = train.photos * devices
    optimizer.learning_rate *= devices if optimizer.name == "sgd" else devices**0.5
    if begun and (train.batch_size, optimizer.learning_rate) != (begun.train.photos, begun.optimizer.learning_rate):
        raise UserError(
            f"config.train.batch_size={given!r} with config.optimizer.learning_rate={rate} does not fit the run that "
            f"has begun in the workdir; continue it with --config.train.batch_size={begun.train.photos} "
            f"--config.optimizer.learning_rate={begun.optimizer.learning_rate}, or use a new --workdir"
        )


def _check_attributes(config: Config, prepared: Prepared) -> None:
    by_attribute: dict[str, Iterable[str]] = {
        "model.colour_heads": config.model.colour_heads,
        "loss.head_weights": config.loss.head_weights,
        "model.second_heads": config.model.second_heads,
        "loss.head_label_smoothing": config.loss.head_label_smoothing,
        "embedding.attributes": () if config.embedding.attributes == ("auto",) else config.embedding.attributes,
    }
    trained = config.data.attributes
    for field in ("model.second_heads", "loss.head_label_smoothing", "embedding.attributes"):
        for name in by_attribute[field]:
            if name in prepared.tags:
                raise UserError(f"config.{field} names {name!r}, which has several values; leave it out there")
    for field, names in by_attribute.items():
        for name in names:
            if name not in trained:
                raise UserError(
                    f"config.{field} names {name!r}, which is not trained{nearest(name, trained)}: "
                    f"config.data.attributes has {', '.join(trained)}"
                )


def _check_settings_have_an_effect(config: Config) -> None:
    if config.optimizer.freeze_batch_norm and not config.model.pretrained:
        raise UserError(
            "config.optimizer.freeze_batch_norm=true needs config.model.pretrained: the frozen values would be random; "
            "leave freeze_batch_norm out"
        )


def _check_batches(config: Config, devices: int) -> None:
    train = config.train
    parts, part = train.accumulation_steps, train.photos // train.accumulation_steps
    multiple = devices * parts * (2 if train.mix.active else 1)
    if part % devices or (train.mix.active and part % (2 * devices)):
        lower, upper = train.photos // multiple * multiple, (train.photos // multiple + 1) * multiple
        choices = " or ".join(str(size) for size in (lower, upper) if size)
        by = f" in {parts} parts" if parts > 1 else ""
        pairs = " in pairs, which config.train.mix needs" if train.mix.active else ""
        raise UserError(
            f"config.train.batch_size={train.photos}{by} (photos on all devices) does not divide over {devices} devices"
            f"{pairs}; use {choices}"
        )


def _check_durations(config: Config, prepared: Prepared) -> None:
    """Refuses durations that end with the run or after it, so that the last part would never be trained."""
    train, total = config.train, run_steps(config, prepared)
    ends = {f"optimizer.unfreeze[{pattern}]": duration for pattern, duration in config.optimizer.unfreeze.items()}
    if train.progressive_scale < 1:
        ends["train.progressive_until"] = train.progressive_until
    if train.mix.active and train.mix.probability == 1 and colours(config):
        # Mixed photos do not teach colours.
        ends["train.mix.until"] = train.mix.until
    for field, duration in ends.items():
        if run_steps(config, prepared, duration) >= total:
            hint = ", or set config.train.mix.probability below 1" if field == "train.mix.until" else ""
            raise UserError(
                f"config.{field}={duration!r} ends with the run ({total:,} steps) or after it, so "
                f"{_NEVER_TRAINED[field.partition('[')[0]]}; choose a shorter time{hint}"
            )


_NEVER_TRAINED = {
    "optimizer.unfreeze": "these parameters would never be trained (config.optimizer.freeze does that)",
    "train.progressive_until": "no photo of full size would be trained on",
    "train.mix.until": "colours would never be trained",
}


def _check_embedding(config: Config, prepared: Prepared) -> None:
    embedding = config.embedding
    if embedding.attributes == ("auto",):
        return
    taken = sum(len(prepared.vocabularies[name]) for name in embedding.attributes)
    if taken > embedding.size or len(set(embedding.attributes)) < len(embedding.attributes):
        raise UserError(
            f"config.embedding.attributes={','.join(embedding.attributes)} has {taken} classes in total; name each "
            f"attribute once, with at most config.embedding.size={embedding.size} classes in total"
        )


def _check_records(config: Config, prepared: Prepared) -> None:
    data = config.data
    side = max(data.height, data.width)
    if side > prepared.max_side:
        raise UserError(
            f"config.data.height={data.height} and width={data.width} are larger than the records' photos, which were "
            f"scaled down to {prepared.max_side} pixels; prepare them again with --max-side={side}"
        )
    labels = prepared.labels[prepared.indices("validation")]
    if not len(labels):
        return
    single = [name for name in data.attributes if name in prepared.attributes]
    labelled = [name for name in single if (labels[:, prepared.attributes.index(name)] != MISSING).any()]
    measured = ["loss", "mean/accuracy", "mean/macro_f1"]
    measured += [f"{name}/{key}" for name in labelled for key in ("accuracy", "macro_f1", "loss")]
    for name in set(data.attributes) - set(single):
        vectors = prepared.tags[name][prepared.indices("validation")]
        if (vectors != MISSING).any():
            measured += [f"{name}/{key}" for key in TAG_SCORES]
    if config.train.best_metric not in measured:
        raise UserError(
            f"config.train.best_metric={config.train.best_metric!r} does not exist; the validation split has: "
            f"{', '.join(sorted(measured))}{nearest(config.train.best_metric, measured)}"
        )
