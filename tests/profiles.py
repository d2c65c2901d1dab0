"""Files that Pillow cannot write: ICC profiles of a wide space, a grey space and a press, and PNGs of every kind."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

# The columns of each space's matrix to XYZ under D50, as published, and its gamma.
RGB_PROFILES = {
    "adobe": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 2.19921875),
    "p3": ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407), 2.2),
    "prophoto": ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03136, 0.00009, 0.82491), 1.8),
}


def rgb_profile(red, green, blue, gamma: float | bytes) -> bytes:
    """From the XYZ of the three colours, and a gamma or the samples of a curve."""
    curve = _curve(gamma)
    tags = {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A press: paper is (100, 0, 0) in CIELAB, magenta (50, 60, 0), yellow (90, 0, 70), and black is black."""
    grid = b""
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4):
        light = 100 * (1 - 0.45 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow) * (1 - black)
        a, b = (60 * magenta - 20 * cyan) * (1 - black), (70 * yellow - 30 * cyan) * (1 - black)
        grid += bytes((round(light * 2.55), round(a) + 128, round(b) + 128))
    identity = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    table = b"mft1" + struct.pack(">4x4B", 4, 3, 2, 0) + identity + bytes(range(256)) * 4 + grid + bytes(range(256)) * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def printed(ink: int) -> bytes:
    """One pixel of paper (0), magenta (1), yellow (2) or black (3)."""
    return bytes(255 * (ink == place > 0) for place in range(4))


def tagged(image: Image.Image, profile: tuple, kind: str, **options) -> bytes:
    """A file that shows an sRGB image with the numbers of another space."""
    icc = rgb_profile(*profile)
    rgb = image.convert("RGBA" if image.has_transparency_data else "RGB")
    moved = ImageCms.profileToProfile(
        rgb.convert("RGB"), ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(icc)), renderingIntent=1
    )
    if rgb.mode == "RGBA":
        moved.putalpha(rgb.getchannel("A"))
    if image.mode == "P":
        moved = moved.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    moved.save(buffer, kind, icc_profile=icc, **options)
    return buffer.getvalue()


def png(depth: int, kind: int, rows: np.ndarray, width: int | None = None, **chunks: bytes) -> bytes:
    """A PNG of `rows`, whose values are stored as they are; `width` is needed where a byte holds several pixels."""
    header = struct.pack(">IIBBBBB", width or rows.shape[1], len(rows), depth, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in [("IHDR", header), *chunks.items(), ("IDAT", body), ("IEND", b"")]:
        tag = name.encode()
        file += struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    return file


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = (0.9642, 1.0, 0.8249)
    text = b"desc" + struct.pack(">4xI5s79x", 5, b"none\0")
    tags = {b"desc": text, b"cprt": b"text" + struct.pack(">4x5s3x", b"none\0"), b"wtpt": _xyz(white), **tags}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02100000, device, space, connection)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(white)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def _xyz(values) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *np.round(np.array(values) * 65536).astype(int).tolist())


def _curve(gamma: float | bytes) -> bytes:
    return b"curv\0\0\0\0" + (gamma if isinstance(gamma, bytes) else struct.pack(">IHxx", 1, round(gamma * 256)))
