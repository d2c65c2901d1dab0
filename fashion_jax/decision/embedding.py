"""What a package's embeddings are made of: subspaces side by side, each of which compares one thing.

A network that is trained to label products holds what makes them alike twice: in its pooled features, mixed with much
that shoppers do not ask for, and in what its heads say. The square roots of a head's probabilities have length 1, and
their cosine is the Bhattacharyya coefficient of two label distributions (Bhattacharyya, Bulletin of the Calcutta
Mathematical Society, 1943): 1 where both photos are surely of one class, and in between where the head is not sure. A
subspace of pooled features keeps what no label names, such as a pattern. Every subspace has a share of the whole
cosine, and a search may weigh them otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

APPEARANCE = "appearance"

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Subspace:
    """One thing that embeddings compare.

    Attributes:
        name: by which a search weighs it.
        attribute: whose predicted labels are compared; None for the pooled features.
        size: features of the embedding that it takes.
        share: of the cosine, in (0, 1].
        temperature: by which the head's logits are divided; 1 for others.
    """

    name: str
    attribute: str | None
    size: int
    share: float
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """How embeddings follow from what a network says.

    Attributes:
        subspaces: in the order of their features; their shares sum to 1.
        components: float32 (pooled features, size of the subspace of pooled features), orthonormal columns; None where
            no subspace is of pooled features.
    """

    subspaces: tuple[Subspace, ...]
    components: Float32[np.ndarray, "features size"] | None = None

    @property
    def size(self) -> int:
        """Features of an embedding."""
        return sum(subspace.size for subspace in self.subspaces)

    @property
    def sizes(self) -> dict[str, int]:
        """Subspace -> its features, in their order."""
        return {subspace.name: subspace.size for subspace in self.subspaces}

    def embed(
        self,
        logits: Mapping[str, Float[Array, "batch classes"]],
        features: Float[Array, "batch features"],
    ) -> Float[Array, "batch size"]:
        """Returns float32 embeddings of length 1.

        Args:
            logits: attribute -> the network's.
            features: pooled, of the same photos.
        """
        parts = []
        for subspace in self.subspaces:
            if subspace.attribute is None:
                assert self.components is not None
                part = unit(unit(features) @ jnp.asarray(self.components))
            else:
                scaled = logits[subspace.attribute].astype(jnp.float32) / subspace.temperature
                part = jnp.exp(jax.nn.log_softmax(scaled) / 2)
            parts.append(part * float(np.sqrt(subspace.share)))
        # A photo whose pooled features lie outside of the components has only the rest.
        return unit(jnp.concatenate(parts, -1))


def unit(vectors: Float[Array, "batch size"]) -> Float[Array, "batch size"]:
    """Returns vectors of length 1, float32; zeros stay zeros."""
    wide = vectors.astype(jnp.float32)
    return wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), _TINY)
