"""Photos: repaired once at preparation, decoded fast afterwards, padded rather than squashed."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # of a photo as it comes; larger ones are taken for an attack
MAX_BYTES = 100_000_000
_QUALITY = 92  # of photos that are encoded anew
_MAX_LOST = 0.5  # share of a truncated photo that may be missing

_truncated_lock = threading.Lock()  # guards Pillow's process-wide switch


class BadPhoto(ValueError):  # noqa: N818 - a finding about a photo more than an error
    """A photo that cannot be repaired; the message is the reason."""


def normalise_photo(data: bytes, max_side: int = 256) -> tuple[bytes, tuple[str, ...]]:
    """Makes any photo a sound RGB JPEG of limited size; a small sound one is returned as it is.

    Args:
        data: a photo in any format that Pillow reads.
        max_side: pixels that neither side exceeds in the result.

    Returns:
        JPEG bytes, and the names of the repairs made: "grey-scale", "palette", "alpha", "CMYK", "rotated",
        "truncated", "scaled", "not JPEG".

    Raises:
        BadPhoto: empty, no photo, more than 100 million pixels, or more than half of it is lost.
    """
    if not data:
        raise BadPhoto("the photo is an empty file")
    if len(data) > MAX_BYTES:
        raise BadPhoto(f"the photo has more than {MAX_BYTES:,} bytes")
    if _is_sound(data, max_side):
        return data, ()
    image, repairs = _open(data, max_side)
    if image.getexif().get(0x0112, 1) != 1:  # the Orientation tag
        image = ImageOps.exif_transpose(image)
        repairs.append("rotated")
    image = _to_rgb(image, repairs)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if min(image.size) < 1:
        raise BadPhoto("the photo has no pixels")
    return encode_photo(np.asarray(image)), tuple(dict.fromkeys(repairs))


def encode_photo(image: UInt8[np.ndarray, "height width 3"], quality: int = _QUALITY) -> bytes:
    """Returns JPEG bytes with full-resolution colour, because colour is a label."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")
    return data


def decode_photo(data: bytes, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Decodes a JPEG and fits it into height x width: aspect kept, centred, padded with white.

    Args:
        data: from `normalise_photo`, or any RGB or grey JPEG.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Raises:
        BadPhoto: not a JPEG.
    """
    try:
        # Scaled decoding stops at the smallest of libjpeg's sizes that still covers the result.
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError as error:
        raise BadPhoto(f"the photo cannot be decoded: {error}") from error
    return letterbox(image, height, width)


def letterbox(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Scales an RGB image so that it just fits, and centres it on white; returned as it is where the size fits."""
    if image.shape[:2] == (height, width):
        return image
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    size = (min(size[0], width), min(size[1], height))
    if size != (image.shape[1], image.shape[0]):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = image
    return canvas


def _is_sound(data: bytes, max_side: int) -> bool:
    """True for a complete, upright RGB JPEG of fitting size."""
    if data[:2] != b"\xff\xd8" or b"Exif\0" in data[:65536]:
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or max(height, width) > max_side:
            return False
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return False
    return True


def _open(data: bytes, max_side: int) -> tuple[Image.Image, list[str]]:
    """Loads a photo, the whole of it or what is left; names what is wrong with its container."""
    repairs = []
    image = _header(data)
    if image.format != "JPEG":
        repairs.append("not JPEG")
    if max(image.size) > max_side:
        repairs.append("scaled")
        image.draft(None, (max_side, max_side))
    try:
        image.load()
    except MemoryError:
        raise BadPhoto("the photo does not fit into memory") from None
    except Exception as error:  # decoders raise what they like on damaged data: OSError, SyntaxError, struct.error, ...
        image = _load_truncated(data, max_side, error)
        repairs.append("truncated")
    return image, repairs


def _header(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of size; we decide below
            image = Image.open(io.BytesIO(data))
            width, height = image.size
    except UnidentifiedImageError:
        raise BadPhoto("the file is no photo, or of an unknown format") from None
    except Exception as error:  # as above
        raise BadPhoto(f"the photo cannot be read: {_first_line(error)}") from error
    if width * height > MAX_PIXELS:
        raise BadPhoto(f"the photo has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if min(width, height) < 1:
        raise BadPhoto("the photo has no pixels")
    return image


def _load_truncated(data: bytes, max_side: int, cause: Exception) -> Image.Image:
    image = _header(data)
    image.draft(None, (max_side, max_side))
    with _truncated_lock:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            image.load()
        except Exception as error:
            raise BadPhoto(f"the photo cannot be decoded: {_first_line(cause)}") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
    # Decoders leave what is lost at the bottom mid-grey (JPEG) or black (the others).
    rows = np.asarray(image.convert("L")).astype(int)
    filled = (np.abs(rows - 128) <= 2).all(1) | (rows == 0).all(1)
    lost = len(filled) if filled.all() else int(np.argmin(filled[::-1]))
    if lost > _MAX_LOST * len(filled):
        raise BadPhoto(f"the photo is truncated: {lost} of its {len(filled)} rows are lost")
    return image


def _to_rgb(image: Image.Image, repairs: list[str]) -> Image.Image:
    if image.mode == "P":
        repairs.append("palette")
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        repairs.append("grey-scale" if image.mode.startswith("L") else "alpha")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "CMYK":
        repairs.append("CMYK")
    elif image.mode.startswith("I;16"):
        repairs.append("grey-scale")
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode in ("L", "1", "I", "F"):
        repairs.append("grey-scale")
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
