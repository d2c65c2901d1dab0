"""Optimisers from optax, under a warm-up and a decaying schedule."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import optax

from fashion_jax.config.fields import OptimizerConfig
from fashion_jax.config.values import resolve_steps
from fashion_jax.training.fine_tuning import FineTuning, map_paths


def make_schedule(config: OptimizerConfig, *, total_steps: int, num_examples: int, batch_size: int) -> optax.Schedule:
    """Returns step -> learning rate: a linear rise from 0, then cosine or linear to 0, or constant.

    Args:
        config: `warmup`, `schedule`, `learning_rate` (the peak).
        num_examples: rows of the training split, for durations in epochs.
    """
    warmup = resolve_steps(config.warmup, num_examples=num_examples, batch_size=batch_size, total_steps=total_steps)
    warmup = min(warmup, total_steps - 1)
    peak, rest = config.learning_rate, total_steps - warmup
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    decay = decays[config.schedule]()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def decay_mask(params: Any) -> Any:
    """True for the arrays that weight decay shrinks: kernels; False for biases and batch norm (Goyal et al. 2017)."""
    return jax.tree.map(lambda array: array.ndim > 1, params)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, plan: FineTuning | None = None
) -> optax.GradientTransformation:
    """Returns AdamW, SGD with Nesterov momentum, or LAMB, arrays of two and more axes decaying, with optional clipping.

    Args:
        schedule: step -> learning rate.
        plan: what is frozen, trained later, or trained at a share of the rate. What is frozen has no state in the
            optimiser. What is trained later begins then as at a first step (zero moments), at the schedule's rate of
            that step. Gradients are expected to be zero until then, as `FineTuning.stop_gradients` makes them.
    """
    plan = plan or FineTuning()
    parts = _direction(config)
    if plan.starts:
        groups = {0: optax.chain(*parts)}
        for step in sorted(set(plan.starts.values())):
            groups[step] = optax.conditionally_mask(optax.chain(*parts), partial(operator.le, step))
        parts = [
            optax.partition(
                {f"from step {step}": group for step, group in groups.items()},
                partial(map_paths, lambda path, leaf: f"from step {plan.starts.get(path, 0)}"),
            )
        ]
    core = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    if plan.factors:
        core = optax.chain(core, optax.stateless(lambda updates, params: _scale(updates, plan.factors)))
    if config.clip_norm:
        core = optax.chain(optax.clip_by_global_norm(config.clip_norm), core)
    if plan.frozen:
        core = optax.partition(
            {"trained": core, "frozen": optax.set_to_zero()},
            partial(map_paths, lambda path, leaf: "frozen" if path in plan.frozen else "trained"),
        )
    return core


def _direction(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Returns what comes before the learning rate."""
    decay = optax.add_decayed_weights(config.weight_decay, mask=decay_mask)
    if config.name == "sgd":
        # Decay enters the momentum, as in torch.optim.SGD and the ResNet recipes.
        return [decay, optax.trace(0.9, nesterov=True)]
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    return [adam, decay, *([optax.scale_by_trust_ratio()] if config.name == "lamb" else [])]


def _scale(updates: Any, factors: Mapping[str, float]) -> Any:
    return map_paths(lambda path, update: update * factors[path] if path in factors else update, updates)
