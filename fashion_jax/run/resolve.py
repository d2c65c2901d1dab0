"""Fills in what a configuration leaves open, once the records are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fashion_jax.config.fields import Config, ModelConfig
from fashion_jax.config.files import config_from_dict
from fashion_jax.data.records import Prepared, is_prepared
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.training.state import model_arguments, resolve_colour_heads

_HALF = (0.5, 0.5, 0.5)


def resolve(config: Config, prepared: Prepared) -> Config:
    """Returns a copy in which what was left open ("auto", no attributes named) is filled in.

    Raises:
        UserError: an attribute that the records lack, in `data.attributes`, a loss setting, or the colour, metric or
            second heads, or one of these heads of an attribute that is not trained.
    """
    resolved = config_from_dict(config.to_dict())
    resolved.data.attributes = config.data.attributes or prepared.attributes
    # A later command may start elsewhere.
    for name in ("source",):
        folder = getattr(config.data, name)
        if folder and is_prepared(Path(folder)):
            setattr(resolved.data, name, str(Path(folder).resolve()))
    loss, model = config.loss, config.model
    by_attribute: dict[str, Iterable[str]] = {
        "model.colour_heads": model.colour_heads,
        "model.second_heads": model.second_heads,
    }
    _refuse_untrained(
        {field: [name for name in names if name in prepared.attributes] for field, names in by_attribute.items()},
        resolved.data.attributes,
    )
    resolved.model.colour_heads = resolve_colour_heads(config.model.colour_heads, resolved.data.attributes)
    if not resolved.model.colour_heads:
        _leave_out_colour(config, resolved)
    if resolved.model.second_heads == ("auto",):
        resolved.model.second_heads = resolved.data.attributes
    named = (
        *resolved.data.attributes,
        *resolved.model.colour_heads,
        *resolved.model.second_heads,
        *loss.head_weights,
        *loss.head_label_smoothing,
    )
    for name in named:
        if name not in prepared.attributes:
            raise UserError(
                f"the catalogue has no attribute {name!r}{nearest(name, prepared.attributes)}; "
                f"it has {', '.join(prepared.attributes)}"
            )
    arguments = model_arguments(config.model, config.data, {})
    resolved.model.stem, resolved.model.dtype = arguments["stem"], arguments["dtype"]
    resolved.data.mean, resolved.data.std = config.data.mean or _HALF, config.data.std or _HALF
    return resolved


def refuse_without_effect(config: Config) -> None:
    """Refuses settings that nothing would follow from; for runs that begin, as one that has begun goes on as it was.

    Args:
        config: as `resolve` returns it.

    Raises:
        UserError: losses by attribute of one that is not trained, soft colours without a colour, a metric loss without
            metric heads, or attributes of embeddings that are not made of labels.
    """
    loss, embedding, attributes = config.loss, config.embedding, config.data.attributes
    by_attribute: dict[str, Iterable[str]] = {
        "loss.head_weights": loss.head_weights,
        "loss.head_label_smoothing": loss.head_label_smoothing,
    }
    _refuse_untrained(by_attribute, attributes)
    if embedding.kind != "labels" and embedding.attributes != ("auto",):
        raise UserError(
            f"config.embedding.attributes is for embedding.kind=labels, and embedding.kind is {embedding.kind}; "
            "set --config.embedding.attributes=auto"
        )


def _refuse_untrained(by_attribute: Mapping[str, Iterable[str]], trained: tuple[str, ...]) -> None:
    for field, names in by_attribute.items():
        for name in names:
            if name != "auto" and name not in trained:
                raise UserError(
                    f"config.{field} names {name!r}, which is not trained: config.data.attributes has "
                    f"{', '.join(trained)}"
                )


def _leave_out_colour(config: Config, resolved: Config) -> None:
    """Takes out what needs a colour head; refuses it where no catalogue could give it one."""
    default = ModelConfig()
    for name in ("second_heads",):
        if getattr(config.model, name) == getattr(default, name):
            continue
        if not config.model.colour_heads:
            raise UserError(
                f"config.model.{name} is of colour heads or what sees their features, and there are none; add "
                "--config.model.colour_heads=auto, or leave it out"
            )
        setattr(resolved.model, name, getattr(default, name))  # the catalogue has no colour
