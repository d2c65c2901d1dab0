"""Results of long work on many photos, kept in files so that a stopped run does not compute them again.

A file holds the digest of its key, the digest (SHA-256) of all that follows it, and an npz.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.system import files, stored
from fashion_jax.system.progress import say

SHARD_ROWS = 8_192
_SUFFIX = ".shard"
_DIGEST_SIZE = 32


def remedy(folder: Path) -> str:
    """Returns what a user can do about an undamaged file that no work wrote, as the end of a sentence."""
    return f"delete the {_SUFFIX} files in {folder}; they are temporary results, not your photos"


class Shards:
    """Numbered files in a folder that belong to one key."""

    def __init__(self, folder: Path, key: Any) -> None:
        """Opens a folder, which need not exist.

        Args:
            folder: of the files; nothing else should lie in it.
            key: JSON value that names everything on which the results depend, such as the model and the catalogue.
        """
        self.folder = folder
        self._key = bytes.fromhex(files.digest(key))

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of each file. Removes files of another key, and damaged files, of which it tells.

        Raises:
            UserError: a file cannot be read, or no work wrote it. It stays.
        """
        for path in sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if path.is_file()):
            with stored.reading(path, remedy(self.folder)):
                arrays = self._unpack(path)
            if arrays is None:
                path.unlink(missing_ok=True)
            else:
                yield arrays

    def _unpack(self, path: Path) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a file; None where it is damaged or has another key."""
        data = path.read_bytes()
        head, content = data[: 2 * _DIGEST_SIZE], memoryview(data)[2 * _DIGEST_SIZE :]
        key = head[:_DIGEST_SIZE]
        if _digest(key, content) != head[_DIGEST_SIZE:]:
            say(f"warning: {path} is damaged ({stored.CHANGED}); its results are computed again")
            return None
        if key != self._key:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds a file with these arrays. Raises OSError where the folder cannot be written."""
        numbers = [int(path.stem) for path in self.folder.glob(f"*{_SUFFIX}") if path.stem.isdecimal()]
        packed = io.BytesIO()
        path = self.folder / f"{1 + max(numbers, default=-1):06}{_SUFFIX}"
        with files.replace_file(path) as file, stored.writing(path):
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            content = packed.getbuffer()
            file.write(self._key + _digest(self._key, content))
            file.write(content)

    def remove(self) -> None:
        """Removes the folder, once the result of the work is safe elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _digest(key: bytes, content: memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return digest.digest()
