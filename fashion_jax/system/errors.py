"""Errors that a user caused, and the one place that turns them into an exit code."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable
from itertools import islice

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_MOST_KNOWN = 10_000  # spellings that are compared; a hint is not worth seconds


class UserError(ValueError):
    """Bad input: the message is one or two sentences that say what was wrong, where, and what to do."""


class NotFiniteError(UserError):
    """A training step whose loss, gradient or parameters are not finite; all processes see it at the same step."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the closest known spelling of `name`, or an empty string."""
    close = difflib.get_close_matches(name, islice(known, _MOST_KNOWN), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def exit_on_user_error(run: Callable[[], int | None]) -> int:
    """Calls `run` and returns its exit code; bad input is printed as a sentence instead of a traceback.

    Args:
        run: the body of a command; None stands for exit code 0.

    Returns:
        0, the command's own code, 2 for bad input (`UserError`, no permission, disk full), 130 for Ctrl-C.
    """
    try:
        return run() or 0
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        message = _describe(error)
        if not message:
            raise
    print(f"error: {message}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _describe(error: OSError) -> str:
    """A sentence for the operating system's refusals that a user can mend; empty for anything else."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space and run the same command again, finished work is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission{where}; choose a folder that you may write to"
    if error.errno in (
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY,
    ):  # fmt: skip
        return f"{error.strerror}{where}; check the path"
    return ""
