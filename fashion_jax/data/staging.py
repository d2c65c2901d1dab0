"""The slow part of a preparation: every photo is repaired, scaled and hashed.

The results are kept in chunks on the disk, so that a preparation that was killed goes on where it stopped.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
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
from fashion_jax.system import files
from fashion_jax.system.progress import progress_bar

_CHUNK = 1024  # photos per file
_VIEW = (80, 60)  # height and width at which photos are compared, whatever size they are stored at


@dataclass
class Staged:
    """The repaired photos of a catalogue, by the numbers of their records."""

    photos: dict[int, tuple[Path, int, int]] = field(default_factory=dict)  # (file, offset, length) of each JPEG
    digests: dict[int, str] = field(default_factory=dict)  # hash of the photo's bytes before the repair
    hashes: dict[int, np.ndarray] = field(default_factory=dict)  # perceptual hash
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)  # small copy
    bad: dict[int, str] = field(default_factory=dict)  # the reason why a photo cannot be used
    repairs: Counter[str] = field(default_factory=Counter)  # name of a repair -> photos that needed it

    def read(self, number: int) -> bytes:
        """Returns the JPEG of a record."""
        path, offset, length = self.photos[number]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


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
    if folder.exists() and (not marker.is_file() or marker.read_text() != key):
        shutil.rmtree(folder)
    files.write_text(marker, key)
    staged = Staged()
    chunks = []
    for path in sorted(folder.glob("chunk-*.npz")):
        chunks.append(int(path.stem.removeprefix("chunk-")))
        _add_chunk(staged, path)
    done = staged.photos.keys() | staged.bad.keys()
    rest = [record for record in catalog.records if record.number not in done]
    next_number = max(chunks, default=-1) + 1
    bar = progress_bar(len(catalog.records), "reading photos", show=progress, initial=len(done), unit="photo")
    photos = decode_photos(partial(_repair, max_side=max_side), catalog.iter_photos(rest))
    with bar, closing(photos):
        while chunk := list(islice(photos, _CHUNK)):
            path = folder / f"chunk-{next_number:06}.npz"
            # A photo that could not be read is not kept: the next preparation tries it again.
            _write_chunk(path, [(r, photo) for r, photo in chunk if not isinstance(photo, UnreadPhoto)])
            _add_chunk(staged, path)
            staged.bad.update({r.number: str(photo) for r, photo in chunk if isinstance(photo, UnreadPhoto)})
            next_number += 1
            bar.update(len(chunk))
    return staged


def _repair(data: bytes, max_side: int) -> _Photo:
    repaired, repairs = normalise_photo(data, max_side)
    # All photos are compared at one size, so that a product is found again at 60x80 and at 1800x2400.
    image = letterbox(decode_photo(repaired, *_VIEW), *_VIEW)
    return _Photo(repaired, files.digest(data), repairs, perceptual_hash(image), thumbnail(image))


def _write_chunk(path: Path, chunk: Sequence[tuple[Record, _Photo | BadPhoto]]) -> None:
    good = [(record.number, photo) for record, photo in chunk if isinstance(photo, _Photo)]
    photos = [photo for _, photo in good]
    table: dict[str, Any] = {
        "numbers": [number for number, _ in good],
        "lengths": [len(photo.data) for photo in photos],
        "digests": [photo.digest for photo in photos],
        "bad": {str(record.number): str(photo) for record, photo in chunk if isinstance(photo, BadPhoto)},
        "repairs": Counter(name for photo in photos for name in photo.repairs),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        photos=np.frombuffer(b"".join(photo.data for photo in photos), np.uint8),
        table=np.frombuffer(json.dumps(table).encode(), np.uint8),
        hashes=np.array([photo.hash for photo in photos], np.uint64).reshape(-1, 2),
        thumbnails=np.array([photo.thumbnail for photo in photos], np.uint8).reshape(-1, *THUMBNAIL, 3),
    )
    files.write_bytes(path, buffer.getvalue())


def _add_chunk(staged: Staged, path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        table = json.loads(arrays["table"].tobytes())
        hashes, thumbnails = arrays["hashes"], arrays["thumbnails"]
    offset = _offset_of_photos(path)
    for place, (number, length) in enumerate(zip(table["numbers"], table["lengths"], strict=True)):
        staged.photos[number] = (path, offset, length)
        staged.digests[number] = table["digests"][place]
        staged.hashes[number], staged.thumbnails[number] = hashes[place], thumbnails[place]
        offset += length
    staged.bad.update({int(number): reason for number, reason in table["bad"].items()})
    staged.repairs.update(table["repairs"])


def _offset_of_photos(path: Path) -> int:
    """Returns where the photos' bytes begin. An npz does not compress its members, so they can be read in place."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo("photos.npy")
        file.seek(info.header_offset + 26)
        name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(file)
        return file.tell()
