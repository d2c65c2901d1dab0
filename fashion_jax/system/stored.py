"""What the library stores, with digests that it checks when it reads.

A document is a JSON object that holds the digest of its other keys. A sealed folder has a document that lists all of
its other files with their sizes and digests. Foreign libraries read and write inside `reading` and `writing`, which
turn whatever they raise into a sentence.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fashion_jax.system import files
from fashion_jax.system.errors import UnreadableError, UserError

DIGEST = "sha256"  # the key of a document's digest
CHANGED = "its content was changed after it was written: its SHA-256 differs"
# Numbers of errors that tell something of the path itself. All others are of the system, such as too many open files.
_OF_THE_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL,
    errno.EOVERFLOW,
)  # fmt: skip
_DISK_IS_FULL = ("No space left on device", "Disk quota exceeded")
_DIGESTS_AT_ONCE = 4  # files; SHA-256 of one file keeps one core busy
_NO_ROOM = 4096  # bytes
MAX_DOCUMENT_BYTES = 1_000_000_000  # an index of millions of photos has their names in its manifest
_WRITTEN_IN_PART = "requested and"  # NumPy: "4096 requested and 512 written"

Listing = dict[str, dict[str, Any]]  # name relative to the folder, with "/" -> {"bytes": size, "sha256": digest}


def write_document(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces `path` by a JSON object with a digest, in one step.

    Args:
        value: JSON values; the key "sha256" is not free.
    """
    assert DIGEST not in value
    files.write_json(path, {**value, DIGEST: document_digest(value)})


def read_document(path: Path, *, remedy: str) -> dict[str, Any]:
    """Returns what `write_document` wrote.

    Args:
        remedy: what a user can do about a damaged or missing file, as the end of a sentence.

    Raises:
        UserError: the file is missing, damaged, or was changed.
    """
    with reading(path, remedy):
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device would never end
            raise ValueError("it is no ordinary file")
        data = files.read_limited(path, MAX_DOCUMENT_BYTES) if path.is_file() else path.read_bytes()
        value = json.loads(data)
        if not isinstance(value, dict):
            raise TypeError("it holds no JSON object")
        if value.pop(DIGEST, None) != document_digest(value):
            raise ValueError(CHANGED)
    return dict(value)


def list_files(folder: Path, *, besides: Iterable[str] = ()) -> Listing:
    """Returns every file of a folder and its subfolders with its size and digest, without those named `besides`."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {
        name: {"bytes": path.stat().st_size, DIGEST: files.file_digest(path)}
        for name, path in names.items()
        if name not in set(besides)
    }


def check_files(folder: Path, listing: Any, *, remedy: str, contents: bool = True) -> None:
    """Checks that the files of a folder are those of a listing; files that the listing does not name are not looked at.

    Args:
        listing: as `list_files` returned it, read from a document.
        remedy: what a user can do about a damaged or missing file, as the end of a sentence.
        contents: False compares only the sizes.

    Raises:
        UserError: a file is missing, or its bytes are others.
    """
    with reading(folder, remedy):
        for name in listing:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"it lists the file {name!r}, which lies outside of the folder")

        def is_same(name: str) -> bool:
            path, known = folder / name, listing[name]
            return files.has_size(path, known["bytes"]) and (not contents or files.file_digest(path) == known[DIGEST])

        with ThreadPoolExecutor(_DIGESTS_AT_ONCE) as threads:
            for name, same in zip(listing, threads.map(is_same, listing), strict=True):
                if not same:
                    state = f"is damaged ({CHANGED})" if (folder / name).is_file() else "is missing"
                    raise UserError(f"{folder / name} {state}; {remedy}")


def check_format(folder: Path, found: Any, known: int, *, remedy: str) -> None:
    """Raises UserError where another version of the library wrote a folder.

    Args:
        found: the format that the folder's document names.
        known: the format that this version reads.
        remedy: what a user can do about it, as the end of a sentence.
    """
    if found != known:
        about = f"format {str(found)[:20]}; this version reads {known}"
        raise UserError(f"{folder} was written by another version of the library ({about}); {remedy}")


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a reader raises about a stored file into a UserError that names the file and a remedy.

    Errors of permission, a lack of memory, and absent libraries pass unchanged, and so do UserErrors that name the
    file or its folder.

    Args:
        path: of the file or folder.
        remedy: what a user can do about it, as the end of a sentence.

    Raises:
        UnreadableError: the system failed, which says nothing about the file.
        UserError: the file is missing or damaged.
    """
    try:
        yield
    except (PermissionError, MemoryError, ImportError, UnreadableError):
        raise
    except UserError as error:
        if any(len(name) > 1 and name in str(error) for name in (str(path), path.name, str(path.parent))):
            raise
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path} is missing; {remedy}") from error
    except OSError as error:
        if error.errno is not None and error.errno not in _OF_THE_PATH:
            about = f"{error.filename or path} cannot be read ({error.strerror})"
            raise UnreadableError(f"{about}; check the disk, and run the command again") from error
        if error.errno is not None:
            raise UserError(f"{error.filename or path} cannot be read ({error.strerror}); {remedy}") from error
        raise UserError(f"{path} is damaged ({first_line(error)}); {remedy}") from error
    except Exception as error:  # foreign readers raise whatever they like
        raise UserError(f"{path} is damaged ({first_line(error)}); {remedy}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an OSError with its number of what a writer raises when the disk is full, and lets all else pass.

    An OSError that names no file gets `path`.

    Args:
        path: of the file or folder that is written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
            raise
        text = str(error)
        partly = isinstance(error, OSError) and _WRITTEN_IN_PART in text
        if partly or any(sign in text for sign in _DISK_IS_FULL) or _is_full(path):
            raise OSError(errno.ENOSPC, _DISK_IS_FULL[0], str(path)) from error
        raise


def _is_full(path: Path) -> bool:
    """True where a disk has no room left: ScaNN says no more than "I/O error"."""
    place = next(place for place in (path, *path.parents, Path()) if place.exists())
    return shutil.disk_usage(place).free < _NO_ROOM


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, shortened; its kind where it has none."""
    if isinstance(error, KeyError) and not (error.args and " " in str(error.args[0])):  # else it is a sentence
        return f"the key {str(error)[:200]} is missing"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def document_digest(value: Mapping[str, Any]) -> str:
    """Returns the digest that a document with these keys holds."""
    return files.digest(json.dumps(value, sort_keys=True).encode())
