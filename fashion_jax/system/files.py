"""Files that are whole or absent: they are written under another name, flushed to the disk, and renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import numbers
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from fashion_jax.system.errors import UserError

_SIGNS = "=+-@\N{MINUS SIGN}"  # the first sign of a formula
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs without ink; other blanks have a category of their own
_MAX_JSON_BYTES = 100_000_000  # of a file that is read as one JSON object


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file that replaces `path` at the end of the block; after an error it is removed and `path` stays.

    Parent folders are made. Raises OSError as the system does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _name_aside(path)
    try:
        with aside.open("xb") as file:
            _try_lock(file)  # so that `remove_stale` leaves it
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        _name_target(error, aside, path)
        with contextlib.suppress(OSError):
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
    """Returns rows as CSV text with commas and "\\n"; no text in it is a formula to a spreadsheet.

    Args:
        rows: of cells; the first row should be the names of the columns. Numbers stay numbers (-1 is "-1"), None is an
            empty cell, and all else is text, which `escape_cell` changes where it must. `parse_csv` changes it back.
    """
    lines: list[str] = []
    # With "\n" for the end of a line, the writer of Python 3.11 leaves "\r" in a cell unquoted, and a reader ends the
    # row there.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return "".join(f"{line.removesuffix(writer.dialect.lineterminator)}\n" for line in lines)


def parse_csv(text: str) -> list[list[str]]:
    """Returns the rows of a text from `format_csv`, the names of the columns too; csv.Error for another text."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if any(begin in text for begin in ("\n'", ",'", "\"'")) or text.startswith("'"):  # most tables have none
        rows = [[unescape_cell(cell) if cell[:1] == "'" else cell for cell in row] for row in rows]
    return rows


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file as column -> cell; a row that is too short has empty cells at its end.

    Raises whatever the system, the decoder and the CSV reader raise.
    """
    names, *rows = [row for row in parse_csv(path.read_bytes().decode("utf-8-sig")) if row] or [[]]
    return [dict(zip(names, row + [""] * (len(names) - len(row)), strict=False)) for row in rows]


def escape_cell(text: str) -> str:
    """Returns a text as a cell that is no formula to a spreadsheet: with `'` in front; `unescape_cell` undoes it."""
    return f"'{text}" if text.startswith("'") or _is_formula(text) else text


def unescape_cell(cell: str) -> str:
    """Returns the text that `escape_cell` made a cell of; a cell that a person wrote (`'80s`) stays as it is."""
    escaped = cell.startswith("'") and (cell[1:].startswith("'") or _is_formula(cell[1:]))
    return cell[1:] if escaped else cell


def _csv_cell(cell: object) -> object:
    return cell if cell is None or isinstance(cell, numbers.Number) else escape_cell(str(cell))


def _is_formula(text: str) -> bool:
    """True for a text that a spreadsheet may run (OWASP, "CSV injection"): by its sign, also behind blanks."""
    for char in text:
        if char.isascii() and char.isalnum():  # most texts
            return False
        if char in "\t\r\n":
            return True
        if unicodedata.category(char)[0] not in "CMZ" and char not in _BLANK:
            return unicodedata.normalize("NFKC", char)[0] in _SIGNS  # full-width signs become the usual ones
    return False


def digest(value: Any) -> str:
    """Returns the SHA-256 of bytes, or of a JSON value, in hexadecimal."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, without reading it into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_size(path: Path, size: Any) -> bool:
    """Returns whether a path is a file of this size. Files of /proc claim to be empty, and may have no end."""
    if not path.is_file() or type(size) is not int or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return size > 0 or not file.read(1)


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
        raise UserError(f"{path} has more than {most:,} bytes, the limit for such a file; give a smaller file")
    return data


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; UserError where the file holds anything else, OSError as the system does."""
    data = read_limited(path, _MAX_JSON_BYTES)
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); correct the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object, which is written in {{ }}; correct the file")
    return value


def _unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        double = Counter(key for key, _ in members).most_common(1)[0][0]
        raise ValueError(f"the key {double!r} comes twice")
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
    aside = _name_aside(path)
    old = aside.with_suffix(".old")
    try:
        aside.mkdir()
        yield aside
        for folder, _, names in os.walk(aside):
            for name in names:
                sync_file(Path(folder) / name)
            sync_directory(Path(folder))
        if path.exists():
            path.rename(old)  # a folder that is not empty cannot be renamed over
        aside.rename(path)
    except BaseException as error:
        _name_target(error, aside, path)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _name_aside(path: Path) -> Path:
    """Returns a free name beside `path`, which `remove_stale` knows.

    `tempfile` would make a private file, and to share it, the process's umask would have to be changed for a moment, in
    which the files of other threads were open to everybody.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def _name_target(error: BaseException, aside: Path, path: Path) -> None:
    """Puts the path that a user knows into an error that names no file, or one that is written aside."""
    if isinstance(error, OSError) and error.errno is not None and aside.name in str(error.filename or aside):
        error.filename = str(path)


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
        if not _try_lock(lock):
            raise UserError(busy)
        yield


def _try_lock(file: BinaryIO) -> bool:
    """Locks an open file until it is closed; returns False where another process has locked it."""
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _is_free(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _try_lock(file)
    return False


def remove_stale(path: str | os.PathLike[str]) -> None:
    """Removes what killed writers of `path` left beside it.

    Files that are being written stay. If `path` is a folder, nobody else may write it meanwhile. A writer that was
    killed between its two renames left no `path`; the folder that it had moved aside is put back.
    """
    path = Path(path)
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.(part|old)")  # not what belongs to `path.v2`
    for stale in [entry for entry in path.parent.glob(".*") if name.fullmatch(entry.name)]:
        if stale.suffix == ".old" and not path.exists():
            stale.rename(path)
        elif stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        elif stale.is_file() and _is_free(stale):
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


def is_line(text: str) -> bool:
    """True for text that can be a line of a UTF-8 file: no line ends, and no half characters, which JSON can hold."""
    return bool(text) and not set("\r\n\0") & set(text) and not any("\ud800" <= c <= "\udfff" for c in text)
