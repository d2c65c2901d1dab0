"""Vectors of length 1."""

from __future__ import annotations

from typing import Any

import numpy as np


def unit(vectors: Any, xp: Any = np) -> Any:
    """Returns floating-point rows scaled to length 1; zeros stay zeros. `xp` is numpy or jax.numpy."""
    lengths = xp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / xp.where(lengths > 0, lengths, 1)
