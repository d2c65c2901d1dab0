"""Files that are whole or absent: they are written under another name, flushed to the disk, and renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fashion_jax.system.errors import UserError

_MAX_JSON_BYTES = 100_000_000  # of a file that is read as one JSON object


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` at the end of the block; after an error it is removed and `path` stays.

    Parent folders are made. Raises OSError as the system does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())  # mkstemp makes private files
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    sync_directory(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces `path` by `data` in one step; parent folders are made. Raises OSError as the system does."""
    with replace_file(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces `path` by `text` (UTF-8) in one step."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replaces `path` by `value` as indented JSON in one step; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def format_csv(rows: Iterable[Iterable[object]]) -> str:
    """Returns rows as CSV text with commas and "\\n"; the first row should be the names of the columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def digest(value: Any) -> str:
    """Returns the SHA-256 of bytes, or of a JSON value, in hexadecimal."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, without reading it into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> None:
    """Raises UserError where there is no ordinary file: a device has no end, and a pipe waits for its writer."""
    if not path.exists():
        link = " (a link leads nowhere, or in a circle)" if path.is_symlink() else ""
        raise UserError(f"there is nothing at {path}{link}; check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, pipe or socket"
        raise UserError(f"{path} is {kind}; give an ordinary file")


def read_limited(path: Path, most: int) -> bytes:
    """Returns the bytes of an ordinary file that has at most `most` of them.

    Raises:
        UserError: it is no ordinary file, or it is larger.
        OSError: the system does not let it be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, most) + 1)
    if len(data) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which is the limit for such files")
    return data


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; UserError where the file holds anything else, OSError as the system does."""
    data = read_limited(path, _MAX_JSON_BYTES)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def _unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        double = Counter(key for key, _ in members).most_common(1)[0][0]
        raise ValueError(f"the key {double!r} comes twice; remove one")
    return value


def without_nan(value: Any) -> Any:
    """Returns JSON values with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(k): without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def replace_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new folder that replaces `path` at the end of the block; after an error the new one is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = aside.with_suffix(".old")
    try:
        yield aside
        for folder, _, names in os.walk(aside):
            for name in names:
                sync_file(Path(folder) / name)
            sync_directory(Path(folder))
        aside.chmod(0o777 & ~_umask())
        if path.exists():
            path.rename(old)  # a folder that is not empty cannot be renamed over
        aside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync_directory(path.parent)


def open_own(path: Path, flags: int) -> BinaryIO:
    """Opens a file for writing with the flags of `os.open`; OSError where it is a link or no ordinary file."""
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        return os.fdopen(descriptor, "rb+", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str, busy: str) -> Iterator[None]:
    """Holds a lock file while the block runs. The operating system releases it, however the process ends.

    Args:
        path: of the lock file; its folder is made.
        what: names, in the error, what cannot be written if the lock file cannot.
        busy: the error message if the lock is held already.

    Raises:
        UserError: the lock file cannot be written, or the lock is held.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(busy) from None
        yield


def remove_stale(path: str | os.PathLike[str]) -> None:
    """Removes what killed writers of `path` left beside it. Call it only while nobody else writes `path`."""
    path = Path(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.(part|old)")  # not what belongs to `path.v2`
    for stale in [entry for entry in path.parent.glob(".*") if name.fullmatch(entry.name)]:
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Flushes a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flushes a folder to the disk, so that a rename survives a power cut (POSIX only)."""
    if os.name == "posix":
        sync_file(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_line(text: str) -> bool:
    """True for text that can be a line of a UTF-8 file: no line ends, and no half characters, which JSON can hold."""
    return bool(text) and not set("\r\n\0") & set(text) and not any("\ud800" <= c <= "\udfff" for c in text)
