"""How many cores there are, for those who do without JAX."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Returns the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))  # what a container or taskset leaves to this process
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
