"""What can be asked of an index without searching it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fashion_jax.search.projection import Projection
from fashion_jax.search.snapshot import Snapshot


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
