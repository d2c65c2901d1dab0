"""Whether an index still does what it was built for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fashion_jax.search.planner import nearest, nearest_exactly
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.search.tuning import measure_recall, scores_of_others

_QUERIES = 200
_NEIGHBOURS = 10
_MOST_ADDED = 0.1  # share of the rows that are compared one by one
_MOST_DEAD = 0.3  # share of the indexed rows that count no more
_TOLERANCE = 0.01  # of recall, for the error of a sample


@dataclass(frozen=True, slots=True)
class Health:
    """How an index is.

    Attributes:
        recall: share of the true 10 nearest that the sampled rows find now.
        target_recall: asked for when it was built.
        added: share of the rows that came since it was built and are compared one by one.
        dead: share of the indexed rows that were replaced or deleted.
        reasons: why a rebuild is due; empty where it is not.
    """

    recall: float
    target_recall: float
    added: float
    dead: float
    reasons: tuple[str, ...]

    @property
    def rebuild_due(self) -> bool:
        """Whether there is a reason to."""
        return bool(self.reasons)


def measure_health(snapshot: Snapshot) -> Health:
    """Compares the neighbours of stored rows with what comparing all live rows finds."""
    base = snapshot.base
    added = len(snapshot.delta) / max(1, len(snapshot.ids))
    dead = 1 - float(snapshot.live[: base.count].mean())
    recall = _recall(snapshot)
    reasons = []
    if recall < base.target_recall - _TOLERANCE:
        reasons.append(f"recall is {recall:.3f}, below {base.target_recall:.3f}")
    if added > _MOST_ADDED:
        reasons.append(f"{added:.0%} of the rows came since it was built")
    if dead > _MOST_DEAD:
        reasons.append(f"{dead:.0%} of the indexed rows were replaced or deleted")
    return Health(recall, base.target_recall, added, dead, tuple(reasons))


def _recall(snapshot: Snapshot) -> float:
    base = snapshot.base
    if base.backend == "exact" or base.sample is None or snapshot.num_live < 2:
        return 1.0
    # Rows that are there no more are still what somebody may look for.
    chosen = base.sample.rows[:: max(1, len(base.sample.rows) // _QUERIES)]
    queries = np.ascontiguousarray(base.vectors[chosen])
    k = min(_NEIGHBOURS + 1, snapshot.num_live)
    found = nearest(snapshot, queries, k, None if snapshot.is_plain else snapshot.allowed(None))
    true = nearest_exactly(snapshot, queries, k, snapshot.allowed(None))
    # A row that finds itself proves nothing.
    wanted = scores_of_others(*true, chosen)
    return float(measure_recall(wanted, scores_of_others(*found, chosen)).mean())
