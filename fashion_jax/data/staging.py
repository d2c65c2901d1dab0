"""The slow part of a preparation, photo by photo, kept in chunks so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.data.catalog import Catalog
from fashion_jax.data.duplicates import THUMBNAIL, perceptual_hash, thumbnail
from fashion_jax.data.parallel import RawPhoto, map_photos
from fashion_jax.data.photos import BadPhoto, decode_photo, letterbox, normalise_photo
from fashion_jax.system import files
from fashion_jax.system.progress import progress_bar

_CHUNK = 1024  # photos per file
_VIEW = (80, 60)  # size at which photos are compared, whatever they are stored at


@dataclass
class Staged:
    """Photos that have been repaired, by row of the table.

    Attributes:
        photos: row -> (file, offset, length) of its JPEG.
        digests: row -> hash of the photo's bytes as they came.
        hashes: row -> perceptual hash.
        thumbnails: row -> small copy.
        bad: row -> why its photo is not usable.
        repairs: repair -> photos.
    """

    photos: dict[int, tuple[Path, int, int]] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    hashes: dict[int, np.ndarray] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)

    def read(self, row: int) -> bytes:
        """Returns a row's JPEG."""
        path, offset, length = self.photos[row]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@dataclass(frozen=True, slots=True)
class _Photo:
    row: int
    reason: str = ""
    unread: bool = False  # the reason may be gone the next time
    data: bytes = b""
    digest: str = ""
    repairs: tuple[str, ...] = ()
    hash: np.ndarray | None = None
    thumbnail: np.ndarray | None = None


def stage_photos(
    catalog: Catalog, folder: Path, key: str, *, max_side: int, num_workers: int | None, progress: bool
) -> Staged:
    """Repairs, scales and hashes every photo of a catalogue.

    Args:
        catalog: whose products are read.
        folder: for the chunks; those of another key are removed first.
        key: names what the chunks depend on.
        max_side: of the stored photos, in pixels.
        num_workers: threads; None for one per core.
        progress: whether to show a bar.
    """
    marker = folder / "key"
    if folder.exists() and (not marker.is_file() or marker.read_text() != key):
        shutil.rmtree(folder)
    files.write_text(marker, key)
    staged = Staged()
    numbers = []
    for path in sorted(folder.glob("chunk-*.npz")):
        numbers.append(int(path.stem.removeprefix("chunk-")))
        _take_chunk(staged, path)
    done = staged.photos.keys() | staged.bad.keys()
    rest = [product for product in catalog.products if product.row not in done]
    next_number = max(numbers, default=-1) + 1
    bar = progress_bar(len(catalog.products), "reading photos", show=progress, initial=len(done), unit="photo")
    photos = map_photos(partial(_treat, max_side=max_side), catalog.iter_photos(rest), num_workers=num_workers)
    with bar, closing(photos):
        while chunk := list(islice(photos, _CHUNK)):
            path = folder / f"chunk-{next_number:06}.npz"
            _write_chunk(path, [photo for photo in chunk if not photo.unread])
            _take_chunk(staged, path)
            staged.bad.update({photo.row: photo.reason for photo in chunk if photo.unread})
            next_number += 1
            bar.update(len(chunk))
    return staged


def _treat(photo: RawPhoto, max_side: int) -> _Photo:
    product, data = photo
    if isinstance(data, BadPhoto):
        return _Photo(product.row, str(data), unread=True)
    try:
        repaired, repairs = normalise_photo(data, max_side)
        # Decoding at a fixed size makes one product alike at 60x80 and at 1800x2400.
        image = letterbox(decode_photo(repaired, *_VIEW), *_VIEW)
    except BadPhoto as error:
        return _Photo(product.row, str(error))
    return _Photo(
        product.row,
        data=repaired,
        digest=hashlib.sha256(data).hexdigest(),
        repairs=repairs,
        hash=perceptual_hash(image),
        thumbnail=thumbnail(image),
    )


def _write_chunk(path: Path, chunk: list[_Photo]) -> None:
    good = [photo for photo in chunk if not photo.reason]
    facts: dict[str, Any] = {
        "rows": [p.row for p in good],
        "lengths": [len(p.data) for p in good],
        "digests": [p.digest for p in good],
        "bad": {str(p.row): p.reason for p in chunk if p.reason},
        "repairs": Counter(name for p in good for name in p.repairs),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        photos=np.frombuffer(b"".join(p.data for p in good), np.uint8),
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        hashes=np.array([p.hash for p in good], np.uint64).reshape(-1, 2),
        thumbnails=np.array([p.thumbnail for p in good], np.uint8).reshape(-1, *THUMBNAIL, 3),
    )
    files.write_bytes(path, buffer.getvalue())


def _take_chunk(staged: Staged, path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        hashes, thumbnails = arrays["hashes"], arrays["thumbnails"]
    offset = _offset_of_photos(path)
    for place, (row, length) in enumerate(zip(facts["rows"], facts["lengths"], strict=True)):
        staged.photos[row] = (path, offset, length)
        staged.digests[row] = facts["digests"][place]
        staged.hashes[row], staged.thumbnails[row] = hashes[place], thumbnails[place]
        offset += length
    staged.bad.update({int(row): reason for row, reason in facts["bad"].items()})
    staged.repairs.update(facts["repairs"])


def _offset_of_photos(path: Path) -> int:
    """Returns where the photos' bytes begin: npz members are stored, not compressed, so they can be read in place."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        info = archive.getinfo("photos.npy")
        file.seek(info.header_offset + 26)
        name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        read(file)
        return file.tell()
