"""Keeps compiled programs for the next command, and prints a line when a command compiles for long.

The files are those of JAX's own cache. This module chooses their folder, limits its size, and removes damaged files,
which JAX would read again and again.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import stat
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import jax

from fashion_jax.system import files
from fashion_jax.system.process import num_cores
from fashion_jax.system.progress import say

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_KIND = re.compile(r"(model name|flags|Features|CPU implementer|CPU part)\s*:")  # what compilers look at
_LIMIT_BYTES = 512 << 20  # of all files together
_LEAST_SECONDS = 0.1  # a program that took less is compiled again
_MOMENT_SECONDS = 2.0
_LOWERED, _COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"
_DAMAGED = r"Error reading persistent compilation cache entry for '(.+?)'"  # JAX's warnings
_NOT_KEPT = "Error writing persistent compilation cache entry"

_started = False
_folder: Path | None = None  # where programs are kept


def keep_programs() -> None:
    """Makes JAX keep programs in the user's cache folder, and print a line if it compiles. Call it before JAX computes.

    JAX's own settings count: with `JAX_ENABLE_COMPILATION_CACHE=false` nothing is kept, and with
    `JAX_COMPILATION_CACHE_DIR` JAX keeps programs there without the help of this module.
    """
    global _started, _folder
    if _started:
        return
    _started, root = True, _choose_folder()
    config: Any = jax.config  # its settings have no types
    jax.monitoring.register_event_duration_secs_listener(_Announcer())
    if root is None or not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir:
        return
    folder = root / files.digest(_describe_machine())[:16]
    if not _is_private(root) or not _is_private(folder):
        return
    _remove_oldest(root)
    _folder = folder
    _explain_warnings(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA would write files by itself


def keep_nothing() -> None:
    """Ends `keep_programs` for a run of several processes.

    They must all compile a program or all read it, and their disks may differ. Call it before anything is compiled.
    """
    config: Any = jax.config
    if _folder is not None and config.jax_compilation_cache_dir == str(_folder):
        config.update("jax_compilation_cache_dir", None)


def _choose_folder() -> Path | None:
    """Returns the place of our files below the user's cache folder; None for a user without a home."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    home = Path()
    with contextlib.suppress(RuntimeError):
        home = Path.home()  # "/" if HOME is empty
    if Path(given).is_absolute():
        return Path(given, "fashion_jax", "programs")
    if not home.is_absolute() or home == Path(home.anchor):
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fashion_jax" / "programs"


def _describe_machine() -> list[object]:
    """Returns what machine code depends on. Different machines may share a home folder."""
    kinds = [platform.processor(), platform.release()]
    with contextlib.suppress(OSError):
        kinds = sorted({line for line in _CPU_INFO.read_text().splitlines() if _CPU_KIND.match(line)})
    return [jax.__version__, num_cores(), platform.machine(), *kinds]


def _is_private(folder: Path) -> bool:
    """Makes a folder, and returns whether the user owns it and nobody else may write or replace it.

    The files hold machine code, which JAX runs.
    """
    try:
        if os.name != "posix":  # on Windows the folders of a user are private
            folder.mkdir(parents=True, exist_ok=True)
            return True
        for parent in filter(Path.exists, folder.resolve().parents):
            status, anybody = parent.stat(), stat.S_IWOTH | stat.S_ISVTX
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & anybody == stat.S_IWOTH:
                return False
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = folder.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(own.st_mode) and own.st_uid == os.geteuid()
    return mine and not own.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _remove_oldest(root: Path) -> None:
    """Removes the oldest programs of all machines, until the rest is within the limit."""
    found = []
    for path in root.glob("*/*-cache"):
        with contextlib.suppress(OSError):  # another process has removed it
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= _LIMIT_BYTES:
            return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size


def _explain_warnings(folder: Path) -> None:
    """Removes damaged programs, which JAX compiles again but does not replace, and prints a plain line about them.

    A program is damaged if a command was killed, or the disk was full, while JAX wrote it.
    """
    show = warnings.showwarning

    def explain(message: Warning | str, *arguments: Any, **more: Any) -> None:
        damaged = re.match(_DAMAGED, str(message))
        if damaged is None:
            show(message, *arguments, **more)
            return
        for path in folder.glob(f"{glob.escape(damaged[1])}-*-cache"):  # JAX names the program, not the file
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        say(f"note: the program {damaged[1]} in {folder} is damaged; it is compiled again")

    warnings.showwarning = explain
    warnings.filterwarnings("always", message=_DAMAGED)
    warnings.filterwarnings("ignore", message=_NOT_KEPT)


class _Announcer:
    """Prints a line once when JAX has compiled for a moment. It listens to JAX's durations."""

    def __init__(self) -> None:
        self._timers: dict[int, threading.Timer] = {}  # thread that compiles -> what will print the line
        self._said = False

    def __call__(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event in (_LOWERED, _COMPILED) and (timer := self._timers.pop(threading.get_ident(), None)):
            timer.cancel()
        if event == _LOWERED and not self._said:  # JAX compiles next
            timer = self._timers[threading.get_ident()] = threading.Timer(_MOMENT_SECONDS, self._say)
            timer.daemon = True
            timer.start()

    def _say(self) -> None:
        say("compiling", show=not self._said and not jax.process_index())
        self._said = True
