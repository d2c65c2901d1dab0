"""Progress bars for terminals and log files."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_LOG_INTERVAL = 15.0  # seconds between the lines of a log file


def progress_bar(total: int, description: str, *, show: bool = True, initial: int = 0, **kwargs: Any) -> tqdm[Any]:
    """Returns a bar on standard error. In a terminal it moves; a log file gets a line every 15 seconds.

    Args:
        initial: items that an earlier run has done.
    """
    in_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=not show,
        mininterval=0.2 if in_terminal else _LOG_INTERVAL,
        maxinterval=1.0 if in_terminal else _LOG_INTERVAL,
        **kwargs,
    )


def say(text: str, *, show: bool = True) -> None:
    """Prints text on standard error, above a progress bar if there is one; nothing where `show` is False."""
    if show:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
