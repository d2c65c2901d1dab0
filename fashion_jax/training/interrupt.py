"""SIGTERM and Ctrl-C: the first asks the loop to save and leave, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
def stop_on_signals() -> Iterator[StopRequest]:
    """Yields the request that signals set; the handlers that were there before come back afterwards."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        # Only the main thread may set handlers, and with several processes JAX has set its own for SIGTERM.
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal_number = number
        print("\nstopping: saving after this step (Ctrl-C again stops at once)", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
