"""SIGTERM and Ctrl-C: the first asks the loop to save and leave, a second Ctrl-C stops at once."""

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


class Interrupted(Exception):  # noqa: N818 - not an error: the run saved what it had and can go on
    """The run was asked to stop, and has saved.

    Attributes:
        exit_code: 128 plus the signal's number, as shells have it.
    """

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step} and saved; the same command goes on from here")
        self.exit_code = 128 + signal_number


class StopRequest:
    """Tells the loop whether to stop after a step.

    Attributes:
        signal_number: of the signal that came; 0 while none has.
    """

    def __init__(self) -> None:
        self.signal_number = 0

    def reached(self, step: int) -> bool:
        """True when the run must save and leave; all processes of a run answer alike at a step."""
        if jax.process_count() == 1:
            return bool(self.signal_number)
        # The coordination service hears of SIGTERM on any process and names the step at which all of them stop.
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal_number = self.signal_number or signal.SIGTERM
            return True
        return False


@contextmanager
def stop_on_signals(*, owns_process: bool = False) -> Iterator[StopRequest]:
    """Yields the request that signals set; the handlers that were there before come back afterwards.

    Args:
        owns_process: whether the run is all that this process does. A second Ctrl-C then ends the process; in a
            notebook or a larger program it raises KeyboardInterrupt instead.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    # With several processes JAX has its own handler for SIGTERM, which tells all of them; a Ctrl-C takes the same way.
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
        # A process that was told to stop is on its way out, and an impatient Ctrl-C must not end it in a traceback.
        if not (owns_process and request.signal_number):
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_process() -> NoReturn:
    """Ends the process without waiting for saves: as after a power cut, the last whole checkpoint stands.

    An exception would not do: it waits for background saves, and is swallowed where Python calls back from C.
    """
    for child in multiprocessing.active_children():
        child.kill()
    sys.stderr.write("\nstopped at once; the same command goes on from the last checkpoint\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)
