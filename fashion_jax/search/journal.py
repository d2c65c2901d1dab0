"""The updates since an index was saved, one record each, on the disk before they are seen.

A record is: the magic, the header's and the payload's length, a checksum of both and one of all this, the header
(JSON), the payload (float32 vectors). A record that a crash cut short is no record: it was never acknowledged. It is
told from a damaged one by what follows: nothing.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from fashion_jax.errors import UserError

_MAGIC = b"FJR1"
_FRAME = struct.Struct("<4sIQI")
_FRAME_SIZE = _FRAME.size + 4  # and its checksum


@dataclass(frozen=True, slots=True)
class Update:
    """One update.

    Attributes:
        deletes: whether it removes products; else it adds or replaces them.
        ids: of the products.
        vectors: of length 1; none for a removal.
        columns: name -> a value per product, None where missing; None for a removal.
    """

    deletes: bool
    ids: np.ndarray
    vectors: Float32[np.ndarray, "n dim"] | None = None
    columns: dict[str, list[Any]] | None = None


def append_update(file: BinaryIO, update: Update) -> None:
    """Writes an update and returns once it is on the disk. An error leaves what was there before."""
    header = json.dumps(
        {
            "deletes": update.deletes,
            "ids": update.ids.tolist(),
            "width": 0 if update.vectors is None else update.vectors.shape[1],
            "columns": update.columns,
        },
        ensure_ascii=False,
    ).encode()
    payload = b"" if update.vectors is None else update.vectors.astype("<f4").tobytes()
    frame = _FRAME.pack(_MAGIC, len(header), len(payload), zlib.crc32(payload, zlib.crc32(header)))
    left = memoryview(frame + struct.pack("<I", zlib.crc32(frame)) + header + payload)
    start = file.seek(0, os.SEEK_END)
    try:
        while left:
            left = left[os.write(file.fileno(), left) :]
        os.fsync(file.fileno())
    except BaseException:
        # Half a record in the middle would hide those that follow it.
        file.truncate(start)
        raise


def read_updates(path: Path, start: int = 0) -> Iterator[tuple[Update, int]]:
    """Yields the whole records from a place on, each with the place where it ends.

    Args:
        path: of the journal; none is an empty one.
        start: where a record begins.

    Raises:
        UserError: a record is damaged and others follow, which would be lost.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    while start < len(data):
        end = _end_of_record(data, start)
        if end is None:
            following = data.find(_MAGIC, start + 1)
            while following >= 0:
                if _end_of_record(data, following) is not None:
                    raise UserError(
                        f"{path} is damaged at byte {start}, before other updates; restore it from a copy, or delete "
                        "it to go back to the index as it was last saved"
                    )
                following = data.find(_MAGIC, following + 1)
            return  # the last one, cut short
        _, header_length, _, _ = _FRAME.unpack_from(data, start)
        header = data[start + _FRAME_SIZE : start + _FRAME_SIZE + header_length]
        yield _parse(header, data[start + _FRAME_SIZE + header_length : end], path), end
        start = end


def _end_of_record(data: bytes, start: int) -> int | None:
    """Returns where the record ends that begins here; None where no whole one does."""
    body = start + _FRAME_SIZE
    if body > len(data) or data[start : start + 4] != _MAGIC:
        return None
    _, header_length, payload_length, checksum = _FRAME.unpack_from(data, start)
    if struct.pack("<I", zlib.crc32(data[start : start + _FRAME.size])) != data[start + _FRAME.size : body]:
        return None
    end = body + header_length + payload_length
    if end > len(data) or zlib.crc32(memoryview(data)[body:end]) != checksum:
        return None
    return end


def _parse(header: bytes, payload: bytes, path: Path) -> Update:
    try:
        values = json.loads(header)
        texts = any(isinstance(i, str) for i in values["ids"])
        ids = np.array(values["ids"], dtype=str if texts else np.int64)
        if values["deletes"]:
            return Update(True, ids)
        vectors = np.frombuffer(payload, "<f4").astype(np.float32).reshape(len(ids), values["width"])
        return Update(False, ids, vectors, values["columns"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds a record that is none ({error})") from error
