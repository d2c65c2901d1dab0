"""Losses that place photos by their likeness: near those of the same label, away from the others.

Each works on one attribute's vectors of length 1, over the rows of a batch that hold its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fashion_jax.data.schema import MISSING
from fashion_jax.models.heads import unit

_SHARPNESS, _MARGIN = 32.0, 0.1  # of the proxy anchor loss, as its authors chose them
_FAR = -1e9


@dataclass(frozen=True, slots=True)
class MetricLoss:
    """Which loss metric heads have.

    Attributes:
        kind: as `metric_loss` takes it.
        temperature: likewise.
        weight: of each head's loss in the sum.
        attributes: that have a metric head, in the model's order.
    """

    kind: str
    temperature: float
    weight: float
    attributes: tuple[str, ...]

    def __call__(
        self,
        vectors: Float[Array, "batch size"],
        proxies: Float[Array, "classes size"],
        labels: Int[Array, " batch"],
        *,
        counted: Bool[Array, " batch"] | None,
    ) -> Float[Array, ""]:
        """Returns the loss of one head, as `metric_loss` does."""
        return metric_loss(self.kind, vectors, proxies, labels, temperature=self.temperature, counted=counted)


def metric_loss(
    kind: str,
    vectors: Float[Array, "batch size"],
    proxies: Float[Array, "classes size"],
    labels: Int[Array, " batch"],
    *,
    temperature: float,
    counted: Bool[Array, " batch"] | None = None,
) -> Float[Array, ""]:
    """Returns a loss in nats, float32; 0 where no row counts.

    Args:
        kind: "normalised_softmax" (Zhai and Wu, BMVC 2019): cross-entropy of the cosines to one proxy per class;
            "supervised_contrastive" (Khosla et al., NeurIPS 2020): of the cosines to the batch's other rows, those of
            the same class being right; or "proxy_anchor" (Kim et al., CVPR 2020): every proxy pulls its class's rows
            and pushes the others, the hardest most.
        vectors: of length 1.
        proxies: of any length; "supervised_contrastive" has no use for them.
        labels: in [0, classes), or MISSING.
        temperature: by which cosines are divided, above 0; "proxy_anchor" has its own.
        counted: which rows count; None where all do.
    """
    known = (labels != MISSING if counted is None else (labels != MISSING) & counted).astype(jnp.float32)
    safe = jnp.where(labels == MISSING, 0, labels)
    if kind == "normalised_softmax":
        return _normalised_softmax(vectors, proxies, safe, known, temperature)
    if kind == "supervised_contrastive":
        return _supervised_contrastive(vectors, safe, known, temperature)
    assert kind == "proxy_anchor", kind
    return _proxy_anchor(vectors, proxies, safe, known)


def _normalised_softmax(
    vectors: jax.Array, proxies: jax.Array, labels: jax.Array, known: jax.Array, temperature: float
) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(vectors @ unit(proxies).T / temperature)
    right = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return -jnp.sum(right * known) / jnp.maximum(jnp.sum(known), 1.0)


def _supervised_contrastive(vectors: jax.Array, labels: jax.Array, known: jax.Array, temperature: float) -> jax.Array:
    others = known[None, :] * (1 - jnp.eye(len(labels)))
    alike = others * (labels[:, None] == labels[None, :])
    scores = vectors @ vectors.T / temperature
    # Rows that hold no label are nobody's neighbours.
    log_probabilities = jax.nn.log_softmax(jnp.where(others > 0, scores, _FAR), axis=1)
    partners = jnp.sum(alike, axis=1)
    anchors = known * (partners > 0)
    each = -jnp.sum(alike * log_probabilities, axis=1) / jnp.maximum(partners, 1.0)
    return jnp.sum(each * anchors) / jnp.maximum(jnp.sum(anchors), 1.0)


def _proxy_anchor(vectors: jax.Array, proxies: jax.Array, labels: jax.Array, known: jax.Array) -> jax.Array:
    cosines = vectors @ unit(proxies).T
    own = jax.nn.one_hot(labels, len(proxies)) * known[:, None]
    foreign = (1 - jax.nn.one_hot(labels, len(proxies))) * known[:, None]
    # log(1 + sum of exponentials) over the rows, a row that does not count being as far as can be.
    pull = jnp.where(own > 0, -_SHARPNESS * (cosines - _MARGIN), _FAR)
    push = jnp.where(foreign > 0, _SHARPNESS * (cosines + _MARGIN), _FAR)
    here = jnp.sum(own, axis=0) > 0
    pulled = jnp.sum(jnp.where(here, jax.nn.softplus(jax.nn.logsumexp(pull, axis=0)), 0.0))
    pushed = jnp.sum(jax.nn.softplus(jax.nn.logsumexp(push, axis=0)))
    return pulled / jnp.maximum(jnp.sum(here), 1) + pushed / len(proxies)
