"""Runs functions in children, which can be killed or put before a small disk at no cost to others.

The parent has imported everything and never starts JAX's backend, so that a fork takes milliseconds and works. Only
what JAX has compiled before cannot be read in a fork (it waits for ever): such work runs in a spare process that was
started before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fashion_jax.system.errors import exit_on_user_error

_PR_SET_PDEATHSIG = 1
_FAILED = 70  # exit code of a child whose function raised what is no sentence


@dataclass
class Child:
    """A forked process that runs a function as a command line would."""

    pid: int
    output: Path  # what it writes to standard output and error
    code: int | None = None  # exit code; negative for a signal

    @classmethod
    def start(cls, function: Callable[[], Any], output: Path) -> Child:
        """Starts a child. Its exit code is that of a command: 2 with a sentence for bad input."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return cls(pid, output)
        os._exit(run_as_command(function, output))

    def wait(self, seconds: float) -> int | None:
        """Returns the exit code, or None where the child still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def kill(self) -> int:
        """Ends the child with SIGKILL, if it still runs, and returns its exit code."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


class Spare:
    """A process that has imported everything and waits for its one request; the next one starts meanwhile."""

    def __init__(self, module: str) -> None:
        self._command = [sys.executable, "-m", module, "--spare"]
        self._next = self._start()

    def start(self, request: str, output: Path) -> Child:
        """Gives a line of text to the waiting process, which calls `take_request`."""
        process, self._next = self._next, self._start()
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "a spare process could not start"
        process.stdin.write(f"{output}\t{request}\n".encode())
        process.stdin.close()
        process.stdout.close()
        return Child(process.pid, output)

    def close(self) -> None:
        self._next.kill()
        self._next.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def take_request(function: Callable[[str], Any]) -> None:
    """Waits for the request of a `Spare`, and ends the process with what the function gives."""
    _end_with_parent()
    print("ready", flush=True)
    output, _, request = sys.stdin.readline().rstrip("\n").partition("\t")
    if output:
        os._exit(run_as_command(lambda: function(request), Path(output)))


def run_as_command(function: Callable[[], Any], output: Path) -> int:
    """Runs a function as a command line would, with what it prints in a file; returns the exit code."""
    code = _FAILED
    try:
        _end_with_parent()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = exit_on_user_error(lambda: function() and None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def call(function: Callable[[], Any], output: Path, seconds: float = 300.0) -> Child:
    """Runs a function in a child to its end; one that takes longer is killed, and its exit code is -9."""
    child = Child.start(function, output)
    if child.wait(seconds) is None:
        child.kill()
    return child


def _end_with_parent() -> None:
    """Lets Linux kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def with_own_disks(command: list[str]) -> list[str]:
    """Returns a command that may mount disks which no other process sees, with the flag --disks; else the command."""
    prefix = ["unshare", "-rm"]
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
        test = [*prefix, "mount", "-t", "tmpfs", "none", folder]
        if subprocess.run(test, capture_output=True).returncode == 0:
            return [*prefix, *command, "--disks"]
    return command


def mount_small_disk(folder: Path, size: int) -> None:
    """Mounts an empty disk of so many bytes, in a process that `with_own_disks` started."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Changes a disk of `mount_small_disk`, such as to "ro" or "size=1g"."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
