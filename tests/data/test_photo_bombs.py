"""Photos that were made to cost minutes or gigabytes are refused, with a reason and at once."""

from __future__ import annotations

import io
import struct
import subprocess
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_jax.data import photos
from fashion_jax.data.photos import BadPhoto, normalise_photo, read_photo
from fashion_jax.system.errors import UserError

RED = Image.new("RGB", (64, 64), "red")


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int = 1, height: int = 1, before: bytes = b"", after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(4)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND")


def gif(comment: bytes = b"", *, size: int = 10, behind: bool = False) -> bytes:
    data = save(Image.new("P", (10, 10)), "GIF")
    start = data.index(b",", 13)
    frame = data[start:-1]
    parts = b"!\xfe" + b"".join(b"\xff" + comment[p : p + 255] for p in range(0, len(comment), 255)) + b"\0"
    data = data[:-1] + parts + frame + b";" if behind else data[:start] + parts + data[start:]
    return data[:6] + struct.pack("<HH", size, size) + data[10:]


def jpeg(inserted: bytes = b"", *, side: int = 64, scans: int = 0) -> bytes:
    data = save(RED, "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    data = data[:end] + data[last:end] * scans + data[end:]
    size = data.index(b"\xff\xc2") + 5
    data = data[:size] + struct.pack(">HH", side, side) + data[size + 4 :]
    return data[:2] + inserted + data[2:]


def tiff(**changed: int | bytes) -> bytes:
    """Values that are bytes are those of many numbers of 16 bits."""
    tags: dict[str, int | bytes] = {"256": 10, "257": 10, "258": 8, "259": 1, "262": 1, "277": 1, **changed}
    values, entries, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, value in sorted((int(tag.lstrip("t")), value) for tag, value in tags.items()):
        if isinstance(value, bytes):
            entries += struct.pack("<HHII", tag, 3, len(value) // 2, start + len(values))
            values += value
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values


MANY = 30_000
BOMBS = {
    "PNG of 1x80,000,000": (png(1, 80_000_000), "1x80000000 pixels"),
    "PNG of 80,000,000x1": (png(80_000_000, 1), "a side of more"),
    "PNG of 8100x8100": (png(8100, 8100), "more than 64,000,000"),
    "PNG of many chunks": (png(before=chunk(b"prVt") * MANY), "too many or too large metadata blocks"),
    "PNG of many chunks behind": (png(after=chunk(b"prVt") * 10 * MANY), "too many or too large metadata blocks"),
    "PNG of empty data": (png(before=chunk(b"IDAT") * 10 * MANY), "too many or too large metadata blocks"),
    "GIF of 9000x9000": (gif(size=9000), "9000x9000"),
    "GIF with a comment": (gif(b"c" * 255 * MANY), "too many or too large metadata blocks"),
    "JPEG of 9400x9500": (jpeg(side=9500), "pixels"),
    "JPEG of many scans": (jpeg(side=3500, scans=100), "too many scans"),
    "JPEG of many segments": (jpeg(b"\xff\xfe\0\2" * 10 * MANY, side=300), "too many or too large metadata blocks"),
    "JPEG with filling": (jpeg(b"\xff" * 40 * MANY), "too many or too large metadata blocks"),
    "JPEG with junk": (jpeg(b"\xff\xfe\0\2" + b"U" * 40 * MANY), "too many or too large metadata blocks"),
    "TIFF of many values": (tiff(t273=bytes(34_000_000), t279=100), "too many or too large metadata blocks"),
    "TIFF of huge tiles": (tiff(t322=30_000, t323=30_000, t324=8, t325=100), "10x10 pixels"),
    "PPM with a long header": (b"P6\n" + b" " * MANY + b"\n1 1\n255\n123", "too many or too large metadata blocks"),
    "PPM as text": (b"P3\n1500 1500\n255\n" + b"1 " * 2_100_000, "written as text"),
    "AVIF of 40 MB": (b"\0\0\0\x1cftypavif" + bytes(40_000_000), "AVIF or HEIC of more"),
    "WebP of 6000x6000": (save(Image.new("RGB", (6000, 6000)), "WEBP", method=0), "more than 32,000,000"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) system\n", "unknown format"),
    "ICO": (save(RED, "ICO"), "unknown format"),
    "PCX": (save(RED, "PCX"), "unknown format"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # Pillow runs Ghostscript for EPS
    data, reason = BOMBS[name]
    start = time.thread_time()
    with pytest.raises(BadPhoto, match=reason):
        normalise_photo(data)
    assert time.thread_time() - start < 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_what_is_rightly_large_is_taken() -> None:
    """Unusual photos that are no attack: many comments, a film behind a JPEG, many scans, a long side, long Exif."""
    red = np.asarray(RED)
    text = jpeg(b"\xff\xfe\0\5abc" * 60)
    assert normalise_photo(text) == (text, ())
    film = b"\xff\xda\0\2" * 600_000
    for data, repairs in (
        (jpeg(scans=20), ()), (jpeg() + film[:400_000], ()), (jpeg() + film, ("surplus bytes",)),
        (gif(b"c" * 255, behind=True), ("not JPEG", "animation", "palette")),
        (png(before=chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6" + bytes(2_000_000))), ("not JPEG",)),
    ):  # fmt: skip
        fixed, found = normalise_photo(data)
        assert found == repairs and len(fixed) < 500_000
    assert np.abs(np.asarray(Image.open(io.BytesIO(normalise_photo(jpeg() + film)[0]))).astype(int) - red).max() < 8
    banner = save(Image.new("RGB", (790, 30_000), "red"), "JPEG")
    assert normalise_photo(banner)[1] == ("scaled",)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("QOI", b"qoif" + struct.pack(">IIBB", 90, 90, 3, 0) + b"\0\1" * 4050 + bytes(7) + b"\1"),
        ("PPM", b"P6\n90 90\n254\n" + bytes(90 * 90 * 3)), ("BMP", save(RED.convert("P"), "BMP")),
    ],
)  # fmt: skip
def test_what_pillow_decodes_in_python_has_a_limit(monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes) -> None:
    if kind == "BMP":  # of runs of one pixel
        start = int.from_bytes(data[10:14], "little")
        data = data[:30] + b"\1\0\0\0" + data[34:start] + (b"\1\1" * 64 + b"\0\0") * 64 + b"\0\1"
    assert normalise_photo(data)[1][0] == "not JPEG"
    monkeypatch.setitem(photos._MAX_READS, kind, 1000)
    with pytest.raises(BadPhoto, match="too many or too large metadata blocks"):
        normalise_photo(data)


def test_frames_are_looked_at_up_to_a_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Image.new("RGB", (64, 64), "white")
    stripes = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8) * 4, 64 * 3).reshape(64, 64, 3))
    grey = [Image.new("RGB", (64, 64), (level,) * 3) for level in range(100, 110)]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = save(blank, kind, save_all=True, append_images=[*grey, stripes], **options)
        for most, found in ((64 * 64 * 5, False), (64 * 64 * 11, True)):
            monkeypatch.setattr(photos, "_MAX_FRAME_PIXELS", most)
            assert ("blank first frame" in normalise_photo(data)[1]) == found


def test_a_large_photo_with_alpha_looks_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((600, 400, 4), np.uint8)
    picture[:, :200] = (200, 30, 30, 255)
    picture[300:, 200:] = (30, 30, 200, 128)
    data = save(Image.fromarray(picture), "PNG")
    wanted = np.asarray(Image.open(io.BytesIO(normalise_photo(data, 64)[0]))).astype(int)
    monkeypatch.setattr(photos, "_REDUCED", 1000)
    found = np.asarray(Image.open(io.BytesIO(normalise_photo(data, 64)[0])))
    assert found.shape == wanted.shape and np.abs(found - wanted).mean() < 2


def test_a_cut_photo_is_repaired_up_to_a_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = save(Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)), "PNG")[:20_000]
    assert "truncated" in normalise_photo(cut)[1]
    monkeypatch.setattr(photos, "_MAX_REPAIRED", 8000)
    with pytest.raises(BadPhoto, match="too large to be repaired"):
        normalise_photo(cut)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(UserError, match="more than 100,000,000 bytes"):
        read_photo(tmp_path / "a.jpg")


def test_looking_for_lost_pixels_takes_little_memory() -> None:
    data = (Path(__file__).parents[1] / "faults/corpus/photo/long_truncated_progressive").read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(BadPhoto, match="truncated"):
            normalise_photo(data)
        assert tracemalloc.get_traced_memory()[1] < 400_000_000  # 27 million pixels of 3 bytes
    finally:
        tracemalloc.stop()
