"""Photos: repaired once at preparation, decoded fast afterwards, padded rather than squashed."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 89_000_000  # of a photo as it comes; Pillow, too, takes larger ones for an attack
MAX_BYTES = 100_000_000
_QUALITY = 92  # of photos that are encoded anew
_MAX_LOST = 0.5  # share of a truncated photo that may be missing

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        BadPhoto: empty, no photo, more than 89 million pixels, or more than half of it is lost.
    """
    if not data:
        raise BadPhoto("the photo is an empty file")
    if len(data) > MAX_BYTES:
        raise BadPhoto(f"the photo has more than {MAX_BYTES:,} bytes")
    if _is_sound(data, max_side):
        return data, ()
    image, repairs = _open(data, max_side)
    return encode_photo(_finish(image, repairs, max_side)), tuple(dict.fromkeys(repairs))


def normalise_image(image: Image.Image, max_side: int = 256) -> UInt8[np.ndarray, "height width 3"]:
    """Treats an opened Pillow image as `normalise_photo` treats a file: upright, RGB on white, of limited size.

    Raises:
        BadPhoto: it cannot be decoded, or has no pixels or too many.
    """
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"the photo has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    try:
        with _switch.strict():
            image.load()
    except Exception as error:  # decoders raise what they like on damaged data: OSError, SyntaxError, struct.error, ...
        raise BadPhoto(f"the photo cannot be decoded: {_first_line(error)}") from error
    return _finish(image, [], max_side)


def _finish(image: Image.Image, repairs: list[str], max_side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Turns, converts and scales a loaded image, and notes what was done."""
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
        repairs.append("rotated")
    image = _to_rgb(image, repairs)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if min(image.size) < 1:
        raise BadPhoto("the photo has no pixels")
    return np.asarray(image)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged tags raise as damaged pixels do; the photo then counts as upright
        return 1
    return value if isinstance(value, int) else 1


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


class _TruncationSwitch:
    """Guards Pillow's process-wide LOAD_TRUNCATED_IMAGES: strict loads run side by side, a lenient one alone.

    Otherwise a photo that one thread decodes while another repairs would lose its check.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._strict = self._lenient = 0  # strict loads that run; lenient ones that run or wait

    @contextmanager
    def strict(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._lenient)
            self._strict += 1
        try:
            yield
        finally:
            with self._condition:
                self._strict -= 1
                self._condition.notify_all()

    @contextmanager
    def lenient(self) -> Iterator[None]:
        with self._condition:
            self._lenient += 1
            try:
                self._condition.wait_for(lambda: not self._strict)
                before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                try:
                    yield
                finally:
                    ImageFile.LOAD_TRUNCATED_IMAGES = before
            finally:
                self._lenient -= 1
                self._condition.notify_all()


_switch = _TruncationSwitch()


def _is_sound(data: bytes, max_side: int) -> bool:
    """True for a complete, upright RGB JPEG of fitting size."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        if b"Exif\0" in data[:65536] and _orientation(_header(data)) != 1:
            return False
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or max(height, width) > max_side:
            return False
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # BadPhoto is one
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
        with _switch.strict():
            image.load()
    except MemoryError:
        raise BadPhoto("the photo does not fit into memory") from None
    except Exception as error:  # as above
        image = _load_truncated(data, max_side, error)
        repairs.append("truncated")
    return image, repairs


def _header(data: bytes) -> Image.Image:
    try:
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
    try:
        with _switch.lenient():
            image.load()
    except Exception as error:
        raise BadPhoto(f"the photo cannot be decoded: {_first_line(cause)}") from error
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
