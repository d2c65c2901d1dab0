"""The threads of NumPy's matrix products."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import threadpoolctl

_lock = threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits NumPy's matrix products to one thread. Use it for small products between two runs of a network.

    After a matrix product, BLAS's threads wait actively for about 25 ms and take cores from the network. On two cores
    this cost a third of the time of prediction. The limit holds for the whole process. If another thread has set it
    already, this call does nothing.
    """
    if not _lock.acquire(blocking=False):
        yield
        return
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        _lock.release()


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
