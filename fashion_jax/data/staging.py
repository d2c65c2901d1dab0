"""The slow part of a preparation: every photo is repaired, scaled and hashed.

The results are kept in chunks on the disk, so that a preparation that was killed goes on where it stopped. A chunk is a
digest, a line of JSON, and then arrays and photos as bytes. The digest also covers the chunk's name and the key of the
preparation, so that a chunk that was damaged, renamed, or made for something else is made anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.data.catalog import Catalog, Record
from fashion_jax.data.duplicates import THUMBNAIL, perceptual_hash, thumbnail
from fashion_jax.data.photos import BadPhoto, UnreadPhoto, decode_photo, decode_photos, letterbox, normalise_photo
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UnreadableError, UserError
from fashion_jax.system.progress import progress_bar, say

_CHUNK = 1024  # photos per file
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"chunk-(\d{6})\.bin")
_VIEW = (80, 60)  # height and width at which photos are compared, whatever size they are stored at


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a repaired photo lies."""

    path: Path  # of the chunk
    offset: int  # of the first byte
    length: int  # in bytes
    digest: str  # of these bytes


@dataclass
class Staged:
    """The repaired photos of a catalogue, by the numbers of their records."""

    photos: dict[int, _Place] = field(default_factory=dict)  # where each JPEG lies
    digests: dict[int, str] = field(default_factory=dict)  # hash of the photo's bytes before the repair
    hashes: dict[int, np.ndarray] = field(default_factory=dict)  # perceptual hash
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)  # small copy
    bad: dict[int, str] = field(default_factory=dict)  # the reason why a photo cannot be used
    repairs: Counter[str] = field(default_factory=Counter)  # name of a repair -> photos that needed it

    def add(self, other: Staged) -> None:
        """Adds the photos of other records."""
        self.photos.update(other.photos)
        self.digests.update(other.digests)
        self.hashes.update(other.hashes)
        self.thumbnails.update(other.thumbnails)
        self.bad.update(other.bad)
        self.repairs.update(other.repairs)

    def read(self, number: int) -> bytes:
        """Returns the JPEG of a record; UserError where its bytes are not those that were stored."""
        place = self.photos[number]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.length)
        if files.digest(data) != place.digest:
            raise UserError(f"{place.path} was damaged while it was in use; check the disk, and run the command again")
        return data


@dataclass(frozen=True, slots=True)
class _Photo:
    data: bytes  # the repaired JPEG
    digest: str
    repairs: tuple[str, ...]
    hash: np.ndarray
    thumbnail: np.ndarray


def stage_photos(catalog: Catalog, folder: Path, key: str, *, max_side: int, progress: bool) -> Staged:
    """Repairs, scales and hashes every photo of a catalogue.

    Args:
        catalog: its records' photos are read.
        folder: for the chunks. Chunks that were made with another key are removed first.
        key: names everything that the chunks depend on.
        max_side: of the stored photos, in pixels.
    """
    marker = folder / "key"
    if not _holds(marker, key):
        _remove(folder)
    files.write_text(marker, key)
    staged, next_number, damaged = Staged(), 0, 0
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            next_number = max(next_number, int(match[1]) + 1)
            chunk = _read_chunk(path, key)
            if chunk is None:
                _remove(path)
                damaged += 1
            else:
                staged.add(chunk)
    if damaged:
        say(f"warning: {damaged} temporary files in {folder} are damaged; their photos are read again")
    done = staged.photos.keys() | staged.bad.keys()
    rest = [record for record in catalog.records if record.number not in done]
    bar = progress_bar(len(catalog.records), "reading photos", show=progress, initial=len(done), unit="photo")
    photos = decode_photos(partial(_repair, max_side=max_side), catalog.iter_photos(rest))
    with bar, closing(photos):
        while batch := list(islice(photos, _CHUNK)):
            path = folder / f"chunk-{next_number:06}.bin"
            # A photo that could not be read is not kept: the next preparation tries it again.
            _write_chunk(path, key, [(r, photo) for r, photo in batch if not isinstance(photo, UnreadPhoto)])
            chunk = _read_chunk(path, key)
            if chunk is None:
                raise UserError(f"{path} does not hold what was written; check the disk, and run the command again")
            staged.add(chunk)
            staged.bad.update({r.number: str(photo) for r, photo in batch if isinstance(photo, UnreadPhoto)})
            next_number += 1
            bar.update(len(batch))
    return staged


def _repair(data: bytes, max_side: int) -> _Photo:
    repaired, repairs = normalise_photo(data, max_side)
    # All photos are compared at one size, so that a product is found again at 60x80 and at 1800x2400.
    image = letterbox(decode_photo(repaired, *_VIEW), *_VIEW)
    return _Photo(repaired, files.digest(data), repairs, perceptual_hash(image), thumbnail(image))


def _write_chunk(path: Path, key: str, chunk: Sequence[tuple[Record, _Photo | BadPhoto]]) -> None:
    good = [(record.number, photo) for record, photo in chunk if isinstance(photo, _Photo)]
    photos = [photo for _, photo in good]
    table: dict[str, Any] = {
        "numbers": [number for number, _ in good],
        "lengths": [len(photo.data) for photo in photos],
        "stored": [files.digest(photo.data) for photo in photos],
        "digests": [photo.digest for photo in photos],
        "bad": {str(record.number): str(photo) for record, photo in chunk if isinstance(photo, BadPhoto)},
        "repairs": Counter(name for photo in photos for name in photo.repairs),
    }
    hashes = np.array([photo.hash for photo in photos], "<u8").reshape(-1, 2)
    thumbnails = np.array([photo.thumbnail for photo in photos], np.uint8).reshape(-1, *THUMBNAIL, 3)
    head = [json.dumps(table).encode(), b"\n", hashes.tobytes(), thumbnails.tobytes()]
    digest = _new_digest(path, key)
    for part in (*head, *(photo.data for photo in photos)):
        digest.update(part)
    with files.replace_file(path) as file:
        file.writelines([digest.digest(), *head, *(photo.data for photo in photos)])


def _new_digest(path: Path, key: str) -> hashlib._Hash:
    return hashlib.sha256(f"{path.name}\n{key}\n".encode())


def _read_chunk(path: Path, key: str) -> Staged | None:
    """Returns the photos of a chunk; None where it does not hold what was written for this key.

    Raises:
        OSError, UnreadableError: the system failed, so the chunk may be undamaged.
    """
    if not path.is_file():  # opening a pipe would wait
        return None
    try:
        with stored.reading(path, "its photos are read again"):
            return _parse_chunk(path, key)
    except UnreadableError:
        raise
    except UserError:
        return None


def _parse_chunk(path: Path, key: str) -> Staged | None:
    """Returns as `_read_chunk`; some error where the digest fits, but the content is none."""
    found = Staged()
    with path.open("rb") as file:
        digest = file.read(_DIGEST_BYTES)
        if digest != hashlib.file_digest(file, lambda: _new_digest(path, key)).digest():
            return None
        file.seek(_DIGEST_BYTES)
        table = json.loads(file.readline())
        count = len(table["numbers"])
        hashes = np.frombuffer(file.read(16 * count), "<u8").reshape(count, 2)
        thumbnails = np.frombuffer(file.read(math.prod(THUMBNAIL) * 3 * count), np.uint8)
        thumbnails = thumbnails.reshape(count, *THUMBNAIL, 3)
        offset = file.tell()
    columns = (table[name] for name in ("numbers", "lengths", "stored", "digests"))
    for place, (number, length, kept, source) in enumerate(zip(*columns, strict=True)):
        found.photos[number] = _Place(path, offset, length, kept)
        found.digests[number] = source
        found.hashes[number], found.thumbnails[number] = hashes[place], thumbnails[place]
        offset += length
    found.bad = {int(number): str(reason) for number, reason in table["bad"].items()}
    found.repairs.update(table["repairs"])
    return found


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _remove(path: Path) -> None:
    """Removes a file, a link, or a folder with all that it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
