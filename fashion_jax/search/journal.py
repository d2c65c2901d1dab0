"""The updates since an index was saved, one record each, on the disk before they are seen.

A record is: the magic, the header's and the payload's length, a checksum of both and one of all this, the header
(JSON), the payload (float32 vectors). A record that a crash cut short is no record: it was never acknowledged. It is
told from a damaged one by what follows: nothing. (A last record of full length whose bytes are not what they were may
be either: a machine that lost its power, or a disk that lost an update. `index verify` tells of it.)
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from fashion_jax.search.attributes import make_table
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.snapshot import Snapshot
from fashion_jax.system.errors import UserError

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


def fits(update: Update, snapshot: Snapshot) -> bool:
    """Whether a stored update is one of an index such as this one."""
    if len(snapshot.ids) and update.ids.dtype.kind != snapshot.ids.dtype.kind:
        return False
    if update.deletes:
        return True
    assert update.vectors is not None
    if update.vectors.shape[1] != snapshot.base.vectors.shape[1]:
        return False
    try:
        snapshot.attributes.conform(make_table(update.columns, len(update.ids)))
    except UserError:
        return False
    return set(update.columns or {}) == set(snapshot.attributes.names)


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


def read_updates(path: Path, start: int = 0) -> tuple[list[Update], int, str]:
    """Reads the whole records from a place on.

    Args:
        path: of the journal; none is an empty one.
        start: where a record begins.

    Returns:
        The updates, not yet checked against an index; where they end; and a sentence about what is behind that, empty
        where nothing is.

    Raises:
        UserError: a record is damaged and others follow, which would be lost.
    """
    updates: list[Update] = []
    try:
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind):  # a pipe would never end
            raise UserError(f"{path} is no ordinary file; it was not written by us")
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return updates, start, ""
    place = 0
    while place < len(data):
        end = _end_of_record(data, place)
        if end is None:
            return updates, start + place, _judge_rest(data, place, start, path)
        _, header_length, _, _ = _FRAME.unpack_from(data, place)
        body = place + _FRAME_SIZE + header_length
        updates.append(_parse(data[place + _FRAME_SIZE : body], data[body:end], path))
        place = end
    return updates, start + place, ""


def _judge_rest(data: bytes, place: int, start: int, path: Path) -> str:
    following = data.find(_MAGIC, place + 1)
    while following >= 0:
        if _end_of_record(data, following) is not None:
            raise UserError(
                f"{path} is damaged at byte {start + place}, before other updates; restore it from a copy, or delete "
                "it to go back to the index as it was last saved"
            )
        following = data.find(_MAGIC, following + 1)
    left = len(data) - place
    return (
        f"{path} ends in {left:,} bytes that are no whole update: one that was never acknowledged, because a crash cut "
        "it short, or the last one, damaged since; the next change removes them"
    )


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
        given = values["ids"]
        if not isinstance(given, list) or not given or not isinstance(values["deletes"], bool):
            raise ValueError("its header")
        ids = check_ids(given)
        if values["deletes"]:
            return Update(True, ids)
        columns = values["columns"]
        if not isinstance(columns, dict) or not all(
            isinstance(c, list) and len(c) == len(ids) for c in columns.values()
        ):
            raise ValueError("its columns")
        vectors = np.frombuffer(payload, "<f4").astype(np.float32).reshape(len(ids), values["width"])
        check_unit(vectors)
        return Update(False, ids, vectors, columns)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds a record that is none ({error})") from error
