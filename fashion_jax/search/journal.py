"""The updates since an index was saved, one record each. An update is on the disk before a search can see it.

The journal begins with two copies of its head, 4 KiB apart; the records follow. A head says how many updates were
acknowledged, where they end, and the digest of the last record. A record holds magic bytes, its number, the lengths of
header and payload, the digest of the record before it, its own digest (SHA-256), the header (JSON), and the payload
(float32 vectors). In place of a record before the first one stands the digest of the generation's manifest, so that
the journal of another index, or of another generation, does not fit.

An update is acknowledged after four steps: its record is written, the record is flushed to the disk, one copy of the
head is written, the head is flushed. The copies take turns, so that the other one still names the update before.

- *A crash* leaves bytes behind the end that the head names. They belong to an update that was not acknowledged. They
  are ignored, and the next update removes them. A loss of power can also leave one copy of the head unreadable: the
  other copy then names one update less, and the record of that update is whole, so it counts.
- *Damage* is refused: the journal is absent, empty, cut anywhere before the end that the head names, changed in a
  record, lacks a record, has two in another order, is another journal's, or neither copy of the head is readable.
- *One unreadable copy of the head* may be either. All updates are read, and `fashion-jax verify` reports it.
- *Not to be told*: an older whole copy of the same journal, and an unreadable copy of the head where the last record,
  and nothing else, is gone too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fashion_jax.search.attributes import KINDS
from fashion_jax.search.inputs import check_ids, check_unit
from fashion_jax.search.snapshot import Update
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

_DIGEST_SIZE = 32
_HEAD_MAGIC, _RECORD_MAGIC = b"FJX head", b"FJX1"
_HEAD = struct.Struct(f"<8sQQ{_DIGEST_SIZE}s")  # magic, updates, end, digest of the last record; then a digest of these
_APART = 4096  # bytes from one copy of the head to the other: a disk that fails to write a block spoils one of them
_BEGIN = 2 * _APART  # of the first record
_RECORD = struct.Struct(f"<4sQIQ{_DIGEST_SIZE}s")  # magic, number, two lengths, previous digest; then a digest of all
_ATTEMPTS, _PAUSE = 3, 0.01  # to read a head that a writer is writing; seconds between them


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two records of a journal."""

    count: int  # records before it
    end: int  # byte where they end
    digest: bytes  # of the last of them; of the manifest where there are none

    @classmethod
    def first(cls, manifest_digest: str) -> Place:
        """Returns the place before the first record of a generation's journal."""
        return cls(0, _BEGIN, bytes.fromhex(manifest_digest))


@dataclass(frozen=True, slots=True)
class NewUpdates:
    """What a journal holds behind a place."""

    updates: list[Update]  # not yet checked against an index
    place: Place  # behind them
    note: str = ""  # a sentence about bytes that a crash left behind the last update; empty for none
    damage: str = ""  # a sentence about a damaged copy of the head; empty for none


def create_journal(path: Path, place: Place) -> None:
    """Writes a journal without updates, in one step; `place` is the first one."""
    files.write_bytes(path, 2 * _pack_head(place).ljust(_APART, b"\0"))


def open_to_append(path: Path, place: Place) -> BinaryIO:
    """Opens a journal that was read up to `place`, and removes what a crash left there. Nobody else may write.

    Raises:
        UserError: the journal cannot be written.
    """
    try:
        file = files.open_own(path, os.O_RDWR)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
    try:
        for number, head in enumerate(_read_heads(file)):
            if head is None:
                _write_head(file, number, place)
        file.truncate(place.end)
    except BaseException:
        file.close()
        raise
    return file


def append_update(file: BinaryIO, update: Update, place: Place) -> Place:
    """Writes an update and returns once it is on the disk. An error leaves what was there before.

    Args:
        file: from `open_to_append`.
        place: behind the last update.

    Returns:
        The place behind this update.
    """
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
    frame = _RECORD.pack(_RECORD_MAGIC, place.count + 1, len(header), len(payload), place.digest)
    digest = hashlib.sha256(frame + header + payload).digest()
    record = frame + digest + header + payload
    following = Place(place.count + 1, place.end + len(record), digest)
    try:
        _write(file, place.end, record)
        _write_head(file, following.count % 2, following)
    except BaseException:
        # The head goes first: it must never name an update that is gone.
        _write_head(file, following.count % 2, place)
        file.truncate(place.end)
        raise
    return following


def read_updates(path: Path, after: Place, remedy: str) -> NewUpdates:
    """Reads the updates that were acknowledged behind a place. A writer may append meanwhile.

    Args:
        path: of the journal.
        after: the place, which was read before, or the first one.
        remedy: what a user can do about a damaged or missing journal, as the end of a sentence.

    Raises:
        UserError: the journal is missing, damaged, or another one.
    """
    with stored.reading(path, remedy):
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would never end
            raise UserError(f"{path} is no ordinary file; {remedy}")
        # The head comes first: whatever it names is in the file by the time that the records are read.
        with path.open("rb", buffering=0) as heads:
            known = [head for head in _read_heads(heads) if head is not None]
        if not known:
            raise ValueError("neither copy of its header can be read")
        head, sure = max(known, key=lambda one: one.count), len(known) == 2
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < after.end or (sure and head.count < after.count):
                raise UserError(
                    f"{path} has lost changes that this process has in memory; save the index into another folder"
                )
            file.seek(after.end)
            data = memoryview(file.read((min(head.end, size) if sure else size) - after.end))
        updates, place = [], after
        while place.count < head.count or (not sure and place.end < size):
            update, place = _read_record(data[place.end - after.end :], place, head.count)
            updates.append(update)
            if place.count == head.count and place != head:
                raise ValueError(f"change {place.count} is not the last one that its header names")
        if place.count == head.count and place != head:
            raise ValueError(_OTHER if not place.count else "its header belongs to other changes")
    left = size - place.end
    note = (
        f"{path} ends with {left:,} bytes of a change that was not finished. No finished change is lost. The next "
        "change removes these bytes"
    )
    damage = (
        f"{path} is damaged: one of the two copies of its header cannot be read. All changes were read with the other "
        "copy. The next change writes both copies. If there was no power failure, copy the index to another disk"
    )
    return NewUpdates(updates, place, note if left else "", "" if sure else damage)


_OTHER = "it belongs to another index, or to an earlier state of this one"


def _read_record(data: memoryview, place: Place, count: int) -> tuple[Update, Place]:
    """Returns the update at the beginning of some bytes, which lie at `place`; ValueError where it is not as written.

    Args:
        count: how many updates the head names.
    """
    number, body = place.count + 1, _RECORD.size + _DIGEST_SIZE
    header_length, payload_length, previous = 0, 0, b""
    if len(data) >= body:
        magic, found, header_length, payload_length, previous = _RECORD.unpack_from(data)
        if magic != _RECORD_MAGIC:
            raise ValueError(f"change {number} at byte {place.end} is damaged")
    end = body + header_length + payload_length
    if end > len(data):
        raise ValueError(f"change {number} of {count} is cut short or damaged at byte {place.end}")
    digest = hashlib.sha256(data[: _RECORD.size])
    digest.update(data[body:end])
    if digest.digest() != data[_RECORD.size : body]:
        raise ValueError(f"change {number} at byte {place.end} is damaged")
    if previous != place.digest or found != number:
        raise ValueError(_OTHER if number == found == 1 else f"it holds change {found} in place of change {number}")
    try:
        update = _parse(bytes(data[body : body + header_length]), data[body + header_length : end])
    except Exception as error:  # the record may hold anything
        raise ValueError(f"change {number} holds values that no index writes: {stored.first_line(error)}") from error
    return update, Place(number, place.end + end, digest.digest())


def _parse(header: bytes, payload: memoryview) -> Update:
    """Returns the update of a record that was not damaged; some error where no index wrote it."""
    values = json.loads(header)
    given = values["ids"]
    if not isinstance(given, list) or not given or not isinstance(values["deletes"], bool):
        raise ValueError("header")
    kinds = values.get("kinds")
    ids = check_ids(given, repeats=not values["deletes"] and kinds is None)
    if values["deletes"]:
        return Update(True, ids)
    columns = values["columns"]
    if not isinstance(columns, dict) or not all(isinstance(c, list) and len(c) == len(ids) for c in columns.values()):
        raise ValueError("columns")
    if kinds is not None:
        if not isinstance(kinds, dict) or not kinds or any(kind not in KINDS for kind in kinds.values()):
            raise ValueError("kinds")
        return Update(False, ids, None, columns, kinds)
    vectors = np.frombuffer(payload, "<f4").astype(np.float32).reshape(len(ids), values["width"])
    check_unit(vectors)
    return Update(False, ids, vectors, columns)


def _pack_head(place: Place) -> bytes:
    head = _HEAD.pack(_HEAD_MAGIC, place.count, place.end, place.digest)
    return head + hashlib.sha256(head).digest()


def _read_heads(file: BinaryIO) -> list[Place | None]:
    """Returns both copies of the head, None for an unreadable one. The file has no buffer."""
    heads: list[Place | None] = []
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE if attempt else 0)
        heads = [_read_head(file, number) for number in range(2)]
        if None not in heads:
            break
    return heads


def _read_head(file: BinaryIO, number: int) -> Place | None:
    file.seek(number * _APART)
    data = file.read(_HEAD.size + _DIGEST_SIZE)
    if len(data) < _HEAD.size + _DIGEST_SIZE or hashlib.sha256(data[: _HEAD.size]).digest() != data[_HEAD.size :]:
        return None
    magic, count, end, digest = _HEAD.unpack_from(data)
    return Place(count, end, digest) if magic == _HEAD_MAGIC and end >= _BEGIN else None


def _write_head(file: BinaryIO, number: int, place: Place) -> None:
    _write(file, number * _APART, _pack_head(place))


def _write(file: BinaryIO, start: int, data: bytes) -> None:
    """Writes bytes and returns once they are on the disk."""
    file.seek(start)
    left = memoryview(data)
    while left:
        left = left[os.write(file.fileno(), left) :]
    os.fsync(file.fileno())
