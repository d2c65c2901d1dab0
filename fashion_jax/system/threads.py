"""Threads that share the cores, one for each core."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from fashion_jax.system.process import num_cores


def thread_pool() -> ThreadPoolExecutor:
    """Returns a pool with a thread for each core. All parts of the library share it; no task may wait for another.

    Ask for it again before every use: a forked process gets a pool of its own. The threads of its parent do not exist
    there, so a task for the parent's pool would never run.
    """
    return _pool(os.getpid())


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_cores(), "fashion_jax")
