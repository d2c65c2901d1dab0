"""Keeps compiled programs in files for the next command, and prints a line when a command compiles for long.

JAX has its own cache of files. But it writes a file in place: a killed command leaves half a file, which later commands
read and never replace. And processes wait for each other at a lock that limits the size. So the files are our own, and
JAX only reads and writes them through `ProgramCache`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import re
import stat
import struct
import sys
import threading
import time
from pathlib import Path

import jax

from fashion_jax.system import files
from fashion_jax.system.process import num_cores
from fashion_jax.system.progress import say

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_KIND = re.compile(r"(model name|flags|Features|CPU implementer|CPU part)\s*:")  # what compilers look at
_LIMIT_BYTES = 512 << 20  # of all files together
_LEAST_SECONDS = 0.1  # a program that took less is compiled again
_DIGEST_BYTES = 32  # A file begins with the SHA-256 of its name and of all that follows,
_SECONDS = struct.Struct(">f")  # and with the seconds that compiling took.
_MOMENT_SECONDS = 2.0
_LOWERED, _COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"

_started = False


class ProgramCache:
    """Files that JAX asks for: it calls `get` before it compiles, and `put` after it. Neither raises OSError.

    A file holds machine code. So the folder must belong to the user and nobody else may write it, or it is not used.
    """

    def __init__(self, folder: Path, limit: int = _LIMIT_BYTES) -> None:
        """Takes a folder, which need not exist, and the limit in bytes of all its files."""
        self._path = folder  # by this name JAX knows it
        self._limit = limit
        self._machine = _describe_machine()
        self._begun: dict[str, float] = {}  # key of a program that JAX compiles -> time
        self._told = False

    def get(self, key: str) -> bytes | None:
        """Returns the program for a key of JAX; None if there is no undamaged one."""
        if jax.process_count() > 1:
            return None  # The processes of one run must all compile a program or all read it, and disks may differ.
        self._begun[key] = time.monotonic()
        path = self._file(key)
        try:
            if _find_danger(self._path):
                return None
            data = path.read_bytes()
            os.utime(path)  # it was used
        except OSError:
            return None
        head, rest = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if head != _digest(path, rest):
            say(f"warning: {path} is damaged; it is removed, and its program is compiled again")
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return rest[_SECONDS.size :]

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program. If that is not possible, says so once."""
        if jax.process_count() > 1:
            return
        path = self._file(key)
        rest = _SECONDS.pack(time.monotonic() - self._begun.pop(key, math.inf)) + value
        try:
            problem = _find_danger(self._path)
            if not problem and len(rest) + _DIGEST_BYTES <= self._limit:
                self._make_room(len(rest) + _DIGEST_BYTES)
                files.write_bytes(path, _digest(path, rest) + rest)
        except OSError as error:
            problem = f"{error.strerror} at {self._path}"
        if problem and not self._told:
            self._told = True
            say(
                f"note: compiled programs are not kept for the next command: {problem}; "
                "correct this, or set JAX_COMPILATION_CACHE_DIR to another folder"
            )

    def seconds(self, name: str) -> float | None:
        """Returns how long the last program of this name took to compile; None where no file says so."""
        with contextlib.suppress(OSError, struct.error):
            found = max(
                self._path.glob(f"{_file_name(name)}.*"), key=lambda path: path.stat().st_mtime_ns, default=None
            )
            if found is not None:
                with found.open("rb") as file:
                    file.seek(_DIGEST_BYTES)
                    return float(_SECONDS.unpack(file.read(_SECONDS.size))[0])
        return None

    def _file(self, key: str) -> Path:
        return self._path / f"{_file_name(key.rpartition('-')[0])}.{files.digest([key, self._machine])[:32]}"

    def _make_room(self, size: int) -> None:
        """Removes the files that were not used for the longest time, until `size` bytes more are within the limit."""
        found = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        total = size + sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes_


class _Announcer:
    """Says once that the command compiles, when that has taken a moment. It listens to JAX's durations."""

    def __init__(self, cache: ProgramCache | None) -> None:
        self._cache = cache
        self._timers: dict[int, threading.Timer] = {}  # thread that compiles -> what will say so
        self._lock = threading.Lock()
        self._said = False

    def __call__(self, event: str, duration_secs: float, **about: str | int) -> None:
        thread = threading.get_ident()
        if event == _COMPILED and thread in self._timers:
            self._timers.pop(thread).cancel()
        elif event == _LOWERED and not self._said:  # JAX compiles next
            timer = threading.Timer(_MOMENT_SECONDS, self._say, [str(about.get("fun_name", ""))])
            timer.daemon = True
            self._timers[thread] = timer
            timer.start()

    def _say(self, name: str) -> None:
        with self._lock:
            if self._said or jax.process_index():
                return
            self._said = True
        before = None if self._cache is None else self._cache.seconds(name)
        say("compiling" if before is None else f"compiling, about {before:.0f} s")


def keep_programs() -> None:
    """Makes JAX keep its programs in the user's cache folder, and say when it compiles. Call it before JAX computes.

    JAX's own settings count: with `JAX_ENABLE_COMPILATION_CACHE=false` nothing is kept, and with
    `JAX_COMPILATION_CACHE_DIR` JAX keeps programs there in its own way.
    """
    global _started
    if _started:
        return
    _started, cache = True, None
    folder, settings = _choose_folder(), jax.config.values
    if folder and settings["jax_enable_compilation_cache"] and not settings["jax_compilation_cache_dir"]:
        # Not a public function of JAX. If a later JAX does not call it, JAX's own cache is used, and a test fails.
        from jax._src import compilation_cache

        most = settings["jax_compilation_cache_max_size"]
        cache = ProgramCache(folder, _LIMIT_BYTES if most < 0 else most)
        compilation_cache.get_file_cache = lambda path: (cache, path)  # type: ignore[assignment, return-value]
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA would write files by itself
    jax.monitoring.register_event_duration_secs_listener(_Announcer(cache))


def _choose_folder() -> Path | None:
    """Returns the place of our files below the user's cache folder; None for a user without a home."""
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if Path(given).is_absolute():
        return Path(given, "fashion_jax", "programs")
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fashion_jax" / "programs"


def _find_danger(folder: Path) -> str:
    """Makes a folder that only the user may use; or returns why another user could change its files."""
    if os.name == "posix":  # on Windows the folders of a user are private
        for parent in filter(Path.exists, folder.resolve().parents):
            status, anybody = parent.stat(), stat.S_IWOTH | stat.S_ISVTX
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & anybody == stat.S_IWOTH:
                return f"another user could replace {folder}: check the owner and the mode of {parent}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix":
        own = folder.lstat()
        if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid():
            return f"{folder} is not a folder, or belongs to another user"
        if own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"other users may write {folder}"
    return ""


def _describe_machine() -> list[object]:
    """Returns properties of the machine that JAX's keys lack. Different machines may share a home folder."""
    with contextlib.suppress(OSError):
        kinds = sorted({line for line in _CPU_INFO.read_text().splitlines() if _CPU_KIND.match(line)})
        return [num_cores(), platform.machine(), *kinds]
    return [num_cores(), platform.machine(), platform.processor(), platform.release()]


def _file_name(name: str) -> str:
    """Returns the name of a program as the beginning of a file's name."""
    return re.sub(r"\W+", "_", name)[:80].strip("_")


def _digest(path: Path, rest: bytes) -> bytes:
    digest = hashlib.sha256(path.name.encode())
    digest.update(rest)
    return digest.digest()
