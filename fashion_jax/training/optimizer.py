"""Optimisers from optax, under a warm-up and a decaying schedule."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fashion_jax.config import OptimizerConfig, resolve_steps


def make_schedule(config: OptimizerConfig, *, total_steps: int, num_examples: int, batch_size: int) -> optax.Schedule:
    """Returns step -> learning rate: a linear rise from 0, then cosine, linear, or constant to the end.

    Args:
        config: `warmup`, `schedule`, `learning_rate` (the peak), `final_fraction`.
        total_steps: optimiser steps of the run.
        num_examples: rows of the training split, for durations in epochs.
        batch_size: rows per step.
    """
    warmup = resolve_steps(config.warmup, num_examples=num_examples, batch_size=batch_size, total_steps=total_steps)
    warmup = min(warmup, total_steps - 1)
    peak, end, rest = config.learning_rate, config.learning_rate * config.final_fraction, total_steps - warmup
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }
    decay = decays[config.schedule]()
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def decay_mask(params: Any) -> Any:
    """True for the arrays that weight decay shrinks: kernels; False for biases and batch norm (Goyal et al. 2017)."""
    return jax.tree.map(lambda array: array.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns AdamW, SGD with Nesterov momentum, or LAMB, with decay on kernels alone and optional clipping."""
    if config.name == "adamw":
        core = optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    elif config.name == "lamb":
        core = optax.lamb(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    else:
        # Decay enters the momentum, as in torch.optim.SGD and the ResNet recipes.
        core = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
            optax.sgd(schedule, momentum=config.momentum, nesterov=True),
        )
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), core)
    return core
