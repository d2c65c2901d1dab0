"""The number of cores, for modules that do not import JAX."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Returns the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))  # a container or taskset may allow fewer than there are
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
