"""Checks of single values of a configuration, and durations such as "10 epochs"."""

from __future__ import annotations

import math

from fashion_jax.system.errors import UserError, nearest

DURATION_UNITS = ("steps", "epochs", "examples", "percent")


def parse_duration(text: str, key: str = "duration") -> tuple[float, str]:
    """Splits "10 epochs" into (10.0, "epochs"); UserError names `key` when the text is no duration."""
    parts = text.split()
    unit = parts[1] if len(parts) == 2 else ""
    unit = unit if unit.endswith("s") or unit == "percent" else unit + "s"
    try:
        amount = float(parts[0])
    except (ValueError, IndexError):
        amount = -1.0
    if unit not in DURATION_UNITS or not 0 <= amount < float("inf"):
        raise UserError(f"config.{key}={text!r} is no duration; write for instance '10 epochs' or '500 steps'")
    return amount, unit


def share_of(duration: str, whole: str) -> float | None:
    """Returns which part of the whole a duration is, 1 for all of it, before it is rounded to steps.

    Args:
        duration: such as "2 epochs" or "5 percent".

    Returns:
        None where the two have other units, so that the rows must tell.

    Raises:
        UserError: one of them is no duration.
    """
    (amount, unit), (total, whole_unit) = parse_duration(duration), parse_duration(whole)
    if unit == "percent":
        return amount / 100
    return amount / total if unit == whole_unit else None


def resolve_steps(text: str, *, num_examples: int, batch_size: int, total_steps: int | None = None) -> int:
    """Turns a duration into optimiser steps, at least 1 unless the amount is 0.

    Args:
        total_steps: steps of the whole run, needed for "percent".
    """
    amount, unit = parse_duration(text)
    per_unit = {"steps": 1.0, "epochs": num_examples / batch_size, "examples": 1 / batch_size}
    per_unit["percent"] = (total_steps or 0) / 100
    return max(round(amount * per_unit[unit]), 1 if amount > 0 else 0)


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raises UserError for a value of a field that is out of range."""
    if not holds:
        raise UserError(f"config.{key}={value!r} is out of range: expected {expected}")


def within(part: object, key: str, low: float, high: float = math.inf, *, without: str = "", unit: str = "") -> None:
    """Raises UserError where a field lies outside of a range.

    Args:
        part: the dataclass; its field has the last name of `key`.
        key: dotted name of the field.
        low: smallest value.
        high: largest value.
        without: "low", "high" or "both", where these ends do not belong to the range.
        unit: of the numbers, for the error.
    """
    value = getattr(part, key.rpartition(".")[2])
    open_low, open_high = without in ("low", "both"), without in ("high", "both")
    expected = f"{'above' if open_low else 'at least'} {low}"
    if high < math.inf:
        ends = f"{expected}, {'below' if open_high else 'at most'} {high}"
        expected = ends if without else f"from {low} to {high}"
    inside = (value > low if open_low else value >= low) and (value < high if open_high else value <= high)
    require(inside, key, value, f"{expected} {unit}".strip())


def choice(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises UserError, with the nearest spelling, for a value of a field that is not among the allowed ones."""
    if value not in allowed:
        hint = nearest(value, [a for a in allowed if isinstance(a, str)]) if isinstance(value, str) else ""
        raise UserError(f"config.{key}={value!r} is not one of {', '.join(map(repr, allowed))}{hint}")
