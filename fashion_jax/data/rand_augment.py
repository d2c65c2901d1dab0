"""RandAugment (Cubuk et al., NeurIPS 2020) of geometry alone: its operations on colours would change a label.

Every operation that is left is affine, so however many are drawn, they are one map, and a photo is interpolated once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LARGEST_ROTATION = 30.0  # degrees, at magnitude 1
LARGEST_SHEAR = 0.3
LARGEST_SHIFT = 0.45  # of the side
NUM_OPERATIONS = 6  # identity, rotation, shear along rows and columns, shift along rows and columns


def draw_affine(
    key: Key[Array, ""], *, operations: int, magnitude: float, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, " 2"]]:
    """Draws operations, each with equal chance and either sign, and returns them as one map of (y, x) positions.

    Args:
        key: of the photo.
        operations: that are drawn one after another, at least 1.
        magnitude: of each, as a share of the largest, in [0, 1].
        height: of the photo, in pixels.
        width: likewise.

    Returns:
        A matrix and an offset: a position, measured in pixels from the centre, goes to matrix @ position + offset.
    """
    kind_key, sign_key = jax.random.split(key)
    kinds = jax.random.randint(kind_key, (operations,), 0, NUM_OPERATIONS)
    signs = jax.random.rademacher(sign_key, (operations,), jnp.float32)
    matrix, offset = jnp.eye(2), jnp.zeros(2)
    for number in range(operations):
        one, moved = affine_operation(kinds[number], signs[number] * magnitude, height, width)
        matrix, offset = one @ matrix, one @ offset + moved
    return matrix, offset


def affine_operation(
    kind: Array, strength: Array, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, " 2"]]:
    """Returns one operation as a map of (y, x) positions.

    Args:
        kind: an integer in [0, NUM_OPERATIONS): identity, rotation, shears that move columns and rows, shifts that do.
        strength: in [-1, 1], as a share of the largest.
        height: of the photo, in pixels.
        width: likewise.
    """
    angle = jnp.deg2rad(LARGEST_ROTATION) * strength
    shear = LARGEST_SHEAR * strength
    cosine, sine, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros(()), jnp.ones(())
    still = jnp.eye(2)
    matrices = jnp.stack(
        [
            still,
            jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])]),
            jnp.stack([jnp.stack([one, zero]), jnp.stack([shear, one])]),
            jnp.stack([jnp.stack([one, shear]), jnp.stack([zero, one])]),
            still,
            still,
        ]
    )
    shift = LARGEST_SHIFT * strength
    offsets = jnp.zeros((NUM_OPERATIONS, 2)).at[4, 0].set(shift * height).at[5, 1].set(shift * width)
    return matrices[kind], offsets[kind]
