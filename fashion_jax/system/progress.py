"""Progress bars that suit a terminal, and a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_LOG_INTERVAL = 15.0  # seconds between lines where nobody watches


def progress_bar(total: int, description: str, *, show: bool = True, initial: int = 0, **kwargs: Any) -> tqdm[Any]:
    """Returns a bar on standard error; a terminal sees it move, a log file gets a line every 15 seconds.

    Args:
        total: items.
        description: of what is going on, as "reading photos".
        show: False for none.
        initial: items done earlier.
        kwargs: of tqdm.
    """
    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=not show,
        mininterval=0.2 if watched else _LOG_INTERVAL,
        maxinterval=1.0 if watched else _LOG_INTERVAL,
        **kwargs,
    )


def say(text: str, *, show: bool = True) -> None:
    """Prints text on standard error, above a progress bar if there is one; nothing where `show` is False."""
    if show:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
