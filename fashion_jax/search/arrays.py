"""Arrays in files of a saved index. Nothing is unpickled, and sizes are checked before memory is allocated."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array as an npy file."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path, dtype: type | None, shape: tuple[int | None, ...]) -> np.ndarray:
    """Reads what `save_array` wrote.

    Args:
        dtype: that it must have; None for integers or texts.
        shape: that it must have; None for a length that may be any.

    Raises:
        ValueError: it is another, or the file is shorter than its header says.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, _, kind = read(file)
        start = file.tell()
    wanted = kind.kind in "iU" if dtype is None else kind == dtype
    fits = len(found) == len(shape) and all(length in (None, here) for length, here in zip(shape, found, strict=True))
    # Checked before memory is asked for.
    if not fits or not wanted or start + math.prod(found) * kind.itemsize != path.stat().st_size:
        raise ValueError(f"{path.name} holds {kind} {found}, which does not fit the index or the size of the file")
    array: np.ndarray = np.load(path, allow_pickle=False)
    return array


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz that is not compressed, as ours are; ValueError or BadZipFile for any other."""
    with zipfile.ZipFile(path) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ValueError(f"{path.name} is compressed")
        if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
            raise ValueError(f"{path.name} names more bytes than it has")
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    if strange := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{path.name} holds {strange[0]}, which is no array")
    return found
