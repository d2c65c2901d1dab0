"""SIGTERM and Ctrl-C: the first makes a run save and stop; a second Ctrl-C stops it at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Tells the training loop whether to stop after a step.

    Attributes:
        signal_number: of the signal that came; 0 before one came.
    """

    def __init__(self) -> None:
        self.signal_number = 0

    def reached(self, step: int) -> bool:
        """True when the run must save and stop. All processes of a run return the same at a step."""
        if jax.process_count() == 1:
            return bool(self.signal_number)
        # The coordination service learns of SIGTERM on any process and names the step at which all of them stop.
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal_number = self.signal_number or signal.SIGTERM
            return True
        return False


@contextmanager
def stop_on_signals(*, owns_process: bool = False) -> Iterator[StopRequest]:
    """Yields a request that signals set. The previous signal handlers come back at the end of the block.

    Args:
        owns_process: whether the process does nothing but this run. A second Ctrl-C then ends the process; otherwise,
            in a notebook or a larger program, it raises KeyboardInterrupt.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    # With several processes, JAX's own handler of SIGTERM informs all of them; so a Ctrl-C sends SIGTERM.
    shared = jax.process_count() > 1
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if number == signal.SIGINT and (request.signal_number or interrupts > 1):
            if owns_process:
                _end_process()
            raise KeyboardInterrupt
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            request.signal_number = number
        print("\nstopping: saving after this step (Ctrl-C again stops at once)", file=sys.stderr, flush=True)

    numbers = (signal.SIGINT,) if shared else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        # A process that is about to end keeps our handlers, so that another Ctrl-C does not print a traceback.
        if not (owns_process and request.signal_number):
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_process() -> NoReturn:
    """Ends the process without waiting for saves; the last whole checkpoint remains.

    An exception would wait for background saves, and is lost where C calls back into Python.
    """
    for child in multiprocessing.active_children():
        child.kill()
    sys.stderr.write("\nstopped at once; the same command goes on from the last checkpoint\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)
