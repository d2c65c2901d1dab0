"""Which parameters are trained, from which step on, and at which share of the learning rate.

Freezing, and gradual unfreezing and discriminative rates: Howard and Ruder, "Universal language model fine-tuning for
text classification", ACL 2018 (as in fastai). Layer-wise decay of rates by block: Clark et al., "ELECTRA", ICLR 2020,
with timm's groups for a ResNet: the stem, each block, and the heads. Multipliers by pattern as in big_vision.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from fashion_jax.config.fields import OptimizerConfig
from fashion_jax.system.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class FineTuning:
    """A plan; what it does not name is trained from the first step at the whole rate."""

    frozen: frozenset[str] = frozenset()  # paths of parameters that are never trained
    starts: Mapping[str, int] = field(default_factory=dict)  # path -> step from which it is trained, above 0
    factors: Mapping[str, float] = field(default_factory=dict)  # path -> factor of the learning rate, other than 1

    def stop_gradients(self, params: dict[str, Any], step: jax.Array) -> dict[str, Any]:
        """Returns the parameters, with no gradient to those that are frozen at a step.

        What is frozen for good is left out of the backward pass when it is compiled; what is trained later is not.
        """

        def stopped(path: str, array: jax.Array) -> jax.Array:
            if path in self.frozen:
                return jax.lax.stop_gradient(array)
            if path in self.starts:
                return jnp.where(step >= self.starts[path], array, jax.lax.stop_gradient(array))
            return array

        return map_paths(stopped, params)


def map_paths(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps (path, leaf) -> leaf over nested dictionaries; a path is like "backbone/stem/0/conv/kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function("/".join(str(entry.key) for entry in path), leaf), params
    )


def parameter_paths(params: Any) -> tuple[str, ...]:
    """Returns the paths of all parameters."""
    paths: list[str] = []
    map_paths(lambda path, leaf: paths.append(path), params)
    return tuple(paths)


def plan_fine_tuning(
    config: OptimizerConfig, paths: tuple[str, ...], *, norms: Iterable[str], resolve: Callable[[str], int]
) -> FineTuning:
    """Resolves patterns and durations.

    Args:
        config: `multipliers`, `layer_decay`, `freeze`, `unfreeze`, `freeze_batch_norm`.
        paths: of all parameters.
        norms: paths of the batch norms that `freeze_batch_norm` freezes.
        resolve: duration -> steps.

    Raises:
        UserError: a pattern that matches no parameter or only such as an earlier one has taken, a parameter under both
            `freeze` and `unfreeze`, or nothing left to train.
    """
    frozen = set(_match("freeze", dict.fromkeys(config.freeze), paths))
    starts = {path: resolve(duration) for path, duration in _match("unfreeze", config.unfreeze, paths).items()}
    if both := sorted(frozen & starts.keys()):
        raise UserError(
            f"config.optimizer.freeze and config.optimizer.unfreeze both match {both[0]}; remove it from one of them"
        )
    if config.freeze_batch_norm:
        below = tuple(f"{norm}/" for norm in norms)
        frozen |= {path for path in paths if path.startswith(below)}
    if frozen == set(paths):
        raise UserError("config.optimizer.freeze matches every parameter: nothing is left to train")
    factors = {path: config.layer_decay**power for path, power in _layers_above(paths).items()}
    for path, multiplier in _match("multipliers", config.multipliers, paths).items():
        factors[path] *= multiplier
    return FineTuning(
        frozenset(frozen),
        {path: step for path, step in starts.items() if step > 0 and path not in frozen},
        {path: factor for path, factor in factors.items() if factor != 1 and path not in frozen},
    )


def _match(name: str, patterns: Mapping[str, Any], paths: tuple[str, ...]) -> dict[str, Any]:
    """Returns path -> value of the first pattern that matches it."""
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        # A module's path stands for all in it.
        matched = [p for p in paths if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, f"{pattern}/*")]
        new = [path for path in matched if path not in found]
        if not new:
            modules = sorted({path.rsplit("/", n)[0] for path in paths for n in (1, 2, 3) if path.count("/") >= n})
            why = f"no parameter{nearest(pattern, modules)}; there are for instance {', '.join(_shown(paths))}"
            if matched:
                why = f"only what an earlier pattern matches, such as {matched[0]}; the first one counts"
            raise UserError(f"config.optimizer.{name}: the pattern {pattern!r} matches {why}")
        found.update(dict.fromkeys(new, value))
    return found


def _shown(paths: tuple[str, ...]) -> list[str]:
    """The first and last parameters of each part."""
    parts: dict[str, list[str]] = {}
    for path in paths:
        parts.setdefault(path.split("/")[0], []).append(path)
    return [path for group in parts.values() for path in dict.fromkeys((group[0], group[-1]))]


def _layers_above(paths: tuple[str, ...]) -> dict[str, int]:
    """Returns path -> the number of layers between it and the end: stem, each block, and all else as the last."""
    blocks = sorted({tuple(map(int, p.split("/")[2:4])) for p in paths if p.startswith("backbone/stages/")})
    places = {block: number for number, block in enumerate(blocks, 1)}

    def place(path: str) -> int:
        parts = path.split("/")
        if parts[:2] == ["backbone", "stem"]:
            return 0
        if parts[:2] == ["backbone", "stages"]:
            return places[int(parts[2]), int(parts[3])]
        return len(blocks) + 1

    return {path: len(blocks) + 1 - place(path) for path in paths}
