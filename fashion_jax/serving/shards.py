"""Results of long work on many photos, kept in files so that a stopped run does not compute them again."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.system import files
from fashion_jax.system.stored import writing

SHARD_ROWS = 8_192


class Shards:
    """Numbered npz files in a folder that belong to one key."""

    def __init__(self, folder: Path, key: Any) -> None:
        """Opens a folder, which need not exist.

        Args:
            folder: of the files; nothing else should lie in it.
            key: JSON value that names everything on which the results depend, such as the model and the catalogue.
        """
        self._folder = folder
        self._key = files.digest(key)

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of each file. Removes damaged files and files of another key."""
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as stored:  # An npz is a zip file, which checks a CRC-32.
                    arrays = {name: stored[name] for name in stored.files}
                ours = str(arrays.pop("key")) == self._key
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                ours = False
            if ours:
                yield arrays
            else:
                path.unlink()

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds a file with these arrays. Raises OSError where the folder cannot be written."""
        numbers = [int(path.stem) for path in self._folder.glob("*.npz") if path.stem.isdecimal()]
        stored: dict[str, Any] = {**arrays, "key": np.array(self._key)}
        path = self._folder / f"{1 + max(numbers, default=-1):06}.npz"
        with files.replace_file(path) as file, writing(path):
            np.savez(file, **stored)

    def remove(self) -> None:
        """Removes the folder, once the result of the work is safe elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)
