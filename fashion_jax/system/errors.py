"""Errors for users, and the function that turns them into an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
_MOST_KNOWN = 10_000  # spellings to compare a name with; more would take seconds


class UserError(ValueError):
    """Bad input. The message says in one or two sentences what is wrong, where, and what to do."""


class UnreadableError(UserError):
    """The system failed to read a file, which may be undamaged: nothing is removed or replaced for this reason."""


class NotFiniteError(UserError):
    """A training step gave a loss, gradient or parameter that is not finite; all processes raise it together."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run has saved and can go on
    """A signal stopped the run after it had saved. `exit_code` is 128 plus the signal's number, as in shells."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {step} and saved; the same command goes on from here")
        self.exit_code = 128 + signal_number


def missing_extra(what: str, extra: str) -> UserError:
    """Returns the error for an extra that is not installed, with the command that installs it."""
    root = Path(__file__).resolve().parents[2]
    target = f"-c '{root}/constraints.txt' -e '{root}[{extra}]'"
    if not (root / "constraints.txt").is_file():  # not a checkout
        target = f"'fashion-jax[{extra}]'"
    return UserError(f"{what} needs the extra [{extra}]; run: '{sys.executable}' -m pip install {target}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name that is closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, islice(known, _MOST_KNOWN), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def exit_on_user_error(run: Callable[[], int | None]) -> int:
    """Calls `run` and returns its exit code. Bad input is printed as a sentence instead of a traceback.

    Args:
        run: the body of a command; a result of None is exit code 0.

    Returns:
        The command's own code; 2 for bad input (UserError), for what the system refuses (no permission, disk full) and
        for too little memory; 130 or 143 for a signal.
    """
    try:
        code = run() or 0
        _flush_output()
        return code
    except UserError as error:
        message = str(error)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        message = _describe(error)
        with contextlib.suppress(OSError):
            _flush_output()
    except MemoryError as error:
        about = f" ({error})" if str(error) else ""
        message = f"the memory is too small{about}; use a smaller batch, or a computer with more memory"
    print(f"error: {message}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _describe(error: OSError) -> str:
    """Returns a sentence for an error of the system."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space and run the same command again, finished work is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission{where}; choose a folder that you may write to"
    if error.errno in (
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY,
    ):  # fmt: skip
        return f"{error.strerror}{where}; check the path"
    if error.errno == errno.EPIPE:
        return "the program that reads the output has ended; write the output to a file"
    reason = error.strerror or next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"the system reports: {reason}{where}; check the path, the disk and the connection"


def _flush_output() -> None:
    """Writes what waits for standard output. Where it cannot be written, it is dropped, and OSError is raised."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try it once more when it ends, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = error.filename or "standard output"
        raise
