"""What can be asked of an index without searching it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.attributes import Scalar
from fashion_jax.search.health import Health, measure_health
from fashion_jax.search.inputs import as_list
from fashion_jax.search.projection import Projection
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.subspaces import weigh


class IndexView:
    """A snapshot with what belongs to it."""

    def __init__(self, snapshot: Snapshot, settings: dict[str, Any]) -> None:
        self._snapshot, self._settings = snapshot, settings

    @property
    def snapshot(self) -> Snapshot:
        """The current version."""
        return self._snapshot

    @property
    def num_features(self) -> int:
        """Width of the embeddings that are searched for and added."""
        return self._snapshot.num_features

    @property
    def projection(self) -> Projection | None:
        """What is applied to embeddings before they are compared."""
        return self._snapshot.projection

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the embeddings; empty where it is not known."""
        return str(self._settings["model"])

    @property
    def subspaces(self) -> dict[str, int]:
        """Parts of the embeddings that a search may weigh -> their features, in order; empty where there are none."""
        return dict(self._settings.get("subspaces", {}))

    @property
    def about(self) -> dict[str, Any]:
        """JSON values that are saved with the index, for its users."""
        about: dict[str, Any] = self._settings["about"]
        return about

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes."""
        return self._snapshot.attributes.names

    @property
    def ids(self) -> np.ndarray:
        """The products' ids, in the order in which they were added."""
        snapshot = self._snapshot
        return snapshot.ids[snapshot.live]

    def __len__(self) -> int:
        return self._snapshot.num_live

    def project(self, embeddings: Any, what: str = "queries") -> Float32[np.ndarray, "n dim"]:
        """Returns embeddings as the index compares them: of length 1, its projection applied.

        Args:
            embeddings: (n, features), or one (features,).
            what: their name in errors.

        Raises:
            UserError: another width, or not finite numbers.
        """
        return self._snapshot.project(embeddings, what)

    def _weigh(
        self, vectors: Float32[np.ndarray, "n dim"], weights: Mapping[str, float] | None
    ) -> tuple[Float32[np.ndarray, "n dim"], bool]:
        """Returns weighted queries, and whether they are unlike those that the index was tuned on."""
        if weights is None:
            return vectors, False
        weighed = weigh(vectors, self.subspaces, weights)
        return weighed, len({weights.get(name, 1.0) for name in self.subspaces}) > 1

    def health(self) -> Health:
        """Measures recall on the stored sample as the index is now, and says whether a rebuild is due, and why."""
        return measure_health(self._snapshot)

    def vectors(self, ids: Any) -> Float32[np.ndarray, "n dim"]:
        """Returns the stored vectors of products, of length 1; KeyError where one is not there."""
        snapshot = self._snapshot
        return snapshot.vectors(snapshot.find(as_list(ids)))

    def attributes(self, ids: Any) -> list[dict[str, Scalar]]:
        """Returns the attributes of products, None where one is missing; KeyError where a product is not there."""
        snapshot = self._snapshot
        return [snapshot.attributes.row(row) for row in snapshot.find(as_list(ids)).tolist()]

    def __contains__(self, name: object) -> bool:
        try:
            return bool(len(self._snapshot.find([name])))
        except KeyError:
            return False
