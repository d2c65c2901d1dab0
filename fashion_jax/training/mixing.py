"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019): photos of two products in one, and both labels.

Rows are mixed in pairs of neighbours in the batch. Neighbours are on the same device, so no photo is sent between
devices, and the pairs are the same on any number of devices. With another number of processes the pairs differ, because
each process has its own part of the rows. The row itself has the larger share, so that the accuracy on training batches
keeps its meaning. A colour head is never trained on a mixed photo, because the mean of red and blue is purple.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int, Key

from fashion_jax.config.fields import MixConfig
from fashion_jax.training.losses import MixedTarget, is_labelled

# cells between 0 and 0.5, for the table of the smaller share; shares are interpolated in a cell, and exact to 0.001
_SHARE_CELLS = 500


def mixing_shares(
    keys: Key[Array, " batch"], height: int, width: int, config: MixConfig
) -> tuple[Float[Array, " batch"], Float[Array, "batch height width"]]:
    """Draws how much of each photo is its own.

    Args:
        keys: one per row; the same key draws the same.
        height: of the photos, in pixels.
        width: of the photos, in pixels.
        config: strengths and probability.

    Returns:
        Each row's share, exactly 1 where it is not mixed, else from 0.5 (less a pixel's edge) to 1; and the share of
        every pixel, in [0, 1], whose mean over the photo is the row's share.
    """

    def one(key: Key[Array, ""]) -> tuple[Float[Array, ""], Float[Array, "height width"]]:
        chance_key, kind_key, blend_key, cut_key, place_key = jax.random.split(key, 5)
        blend = _share(blend_key, config.mixup_alpha)
        cut = _kept_pixels(_share(cut_key, config.cutmix_alpha), place_key, height, width)
        chosen = (
            jax.random.bernoulli(kind_key) if config.mixup_alpha and config.cutmix_alpha else config.cutmix_alpha > 0
        )
        pixels = jnp.where(chosen, cut, jnp.full((height, width), blend))
        pixels = jnp.where(jax.random.bernoulli(chance_key, config.probability), pixels, 1.0)
        # A mean of ones is not always 1: XLA multiplies by the rounded inverse of the number of pixels.
        return jnp.where(jnp.all(pixels == 1), 1.0, jnp.mean(pixels)), pixels

    return jax.vmap(one)(keys)


def _share(key: Key[Array, ""], alpha: float) -> Float[Array, ""]:
    """A draw of Beta(alpha, alpha), its larger side."""
    if not alpha:
        return jnp.ones(())
    return 1 - smaller_share(jax.random.uniform(key), alpha)


def smaller_share(chance: Float[Array, ""], alpha: float) -> Float[Array, ""]:
    """Returns the quantile of the smaller side of Beta(alpha, alpha), in [0, 0.5], exact to 0.001.

    `jax.random.beta` draws in a loop until each row has a value, and several devices would wait for each other in every
    turn. Here the quantile is read from a table of 501 shares, with linear interpolation.

    Args:
        chance: in [0, 1].
        alpha: above 0.
    """
    below = 2 * scipy.special.betainc(alpha, alpha, np.linspace(0, 0.5, _SHARE_CELLS + 1))
    start, size = below[:-1].astype(np.float32), np.maximum(np.diff(below), 1e-30).astype(np.float32)
    return jnp.sum(jnp.clip((chance - start) / size, 0.0, 1.0)) * (0.5 / _SHARE_CELLS)


def _kept_pixels(share: Float[Array, ""], key: Key[Array, ""], height: int, width: int) -> Float[Array, "height width"]:
    """1 outside, 0 inside a rectangle of the photo's aspect that covers 1 - share; its centre is anywhere in the photo,
    and what sticks out is lost."""
    half = jnp.sqrt(1 - share) * jnp.array([height, width], jnp.float32) / 2
    centre = jax.random.uniform(key, (2,)) * jnp.array([height, width], jnp.float32)
    inside_y = jnp.abs(jnp.arange(height) + 0.5 - centre[0]) < half[0]
    inside_x = jnp.abs(jnp.arange(width) + 0.5 - centre[1]) < half[1]
    return 1.0 - (inside_y[:, None] & inside_x[None, :])


def mix_photos(
    images: Float[Array, "batch height width 3"], pixels: Float[Array, "batch height width"]
) -> Float[Array, "batch height width 3"]:
    """Returns every pixel's share of the photo and the rest of its partner's."""
    share = pixels[..., None]
    return share * images + (1 - share) * swap_pairs(images)


def swap_pairs(rows: Array, parts: int = 1) -> Array:
    """Exchanges the rows of each pair.

    Args:
        rows: (batch, ...); of an even number per part.
        parts: into which the batch is cut, row i into part i % parts.
    """
    pairs = rows.reshape(rows.shape[0] // (2 * parts), 2, parts, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def label_shares(
    labels: Int[Array, "batch ..."], share: Float[Array, " batch"], *, parts: int, mixable: bool
) -> MixedTarget:
    """Returns the partner's labels, and how much the own and the partner's label count in the loss.

    Args:
        labels: of the whole batch, MISSING where there is none. The loss of a multi-valued attribute is linear in its
            labels, so this mixes them linearly.
        share: of the row itself, 1 where it is not mixed.
        parts: into which the batch is cut (row i into part i % parts); partners are of the same part.
        mixable: False for colours: a mixed row counts nothing.
    """
    partners, known = swap_pairs(labels, parts), is_labelled(labels)
    if not mixable:
        return MixedTarget(partners, ((share == 1) & known).astype(jnp.float32), jnp.zeros_like(share))
    return MixedTarget(partners, share * known, (1 - share) * is_labelled(partners))
