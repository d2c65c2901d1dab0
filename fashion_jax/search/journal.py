"""The updates since an index was saved, one record each. An update is on the disk before a search can see it.

A record holds: magic bytes, the lengths of header and payload, a checksum of both, a checksum of all this, the header
(JSON), and the payload (float32 vectors). A record that a crash cut short was never acknowledged, so it is dropped. No
record follows it; where one does, the journal is damaged, and that is an error. A last record of full length with
changed bytes may come from either: a loss of power, or a damaged disk. `index verify` reports it.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fashion_jax.search.attributes import KINDS
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.snapshot import Update
from fashion_jax.system.errors import UserError

_MAGIC = b"FJR1"
_FRAME = struct.Struct("<4sIQI")
_FRAME_SIZE = _FRAME.size + 4  # with its checksum


def append_update(file: BinaryIO, update: Update) -> None:
    """Writes an update and returns once it is on the disk. An error leaves what was there before."""
    header = json.dumps(
        {
            "deletes": update.deletes,
            "ids": update.ids.tolist(),
            "width": 0 if update.vectors is None else update.vectors.shape[1],
            "columns": update.columns,
            **({} if update.kinds is None else {"kinds": update.kinds}),
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
    """Reads the whole records.

    Args:
        path: of the journal; a missing file is an empty journal.
        start: the byte where the first record begins.

    Returns:
        The updates, not yet checked against an index; the byte where they end; and a sentence about the bytes behind
        them, empty where there are none.

    Raises:
        UserError: a record is damaged and others follow, which would be lost.
    """
    updates: list[Update] = []
    try:
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind):  # a pipe would never end
            raise UserError(f"{path} is no ordinary file; this package did not write it")
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return updates, start, ""
    place = 0
    while place < len(data):
        end = _end_of_record(data, place)
        if end is None:
            return updates, start + place, _describe_rest(data, place, start, path)
        _, header_length, _, _ = _FRAME.unpack_from(data, place)
        body = place + _FRAME_SIZE + header_length
        updates.append(_parse(data[place + _FRAME_SIZE : body], data[body:end], path))
        place = end
    return updates, start + place, ""


def _describe_rest(data: bytes, place: int, start: int, path: Path) -> str:
    following = data.find(_MAGIC, place + 1)
    while following >= 0:
        if _end_of_record(data, following) is not None:
            raise UserError(
                f"{path} is damaged at byte {start + place}; restore it from a copy, or delete it and lose the changes "
                "since the index was last built or rebuilt"
            )
        following = data.find(_MAGIC, following + 1)
    left = len(data) - place
    return (
        f"the last {left:,} bytes of {path} are no complete change and are ignored: a crash or the disk has damaged "
        "them, and the next change removes them; check that your last change is in the index"
    )


def _end_of_record(data: bytes, start: int) -> int | None:
    """Returns where the record that begins at `start` ends; None where no whole record begins."""
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
            raise ValueError("header")
        kinds = values.get("kinds")
        ids = check_ids(given, repeats=not values["deletes"] and kinds is None)
        if values["deletes"]:
            return Update(True, ids)
        columns = values["columns"]
        if not isinstance(columns, dict) or not all(
            isinstance(c, list) and len(c) == len(ids) for c in columns.values()
        ):
            raise ValueError("columns")
        if kinds is not None:
            if not isinstance(kinds, dict) or not kinds or any(kind not in KINDS for kind in kinds.values()):
                raise ValueError("kinds")
            return Update(False, ids, None, columns, kinds)
        vectors = np.frombuffer(payload, "<f4").astype(np.float32).reshape(len(ids), values["width"])
        check_unit(vectors)
        return Update(False, ids, vectors, columns)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} holds a damaged record ({error})") from error
