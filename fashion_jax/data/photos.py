"""Photos: repaired once when a catalogue is prepared, then decoded fast, many at once, and padded to one size."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from fashion_jax.system.process import num_cores

K = TypeVar("K")
T = TypeVar("T")

MAX_PIXELS = 89_000_000  # of a photo before it is scaled; Pillow also refuses larger ones as a possible attack
MAX_BYTES = 100_000_000  # of a photo's file
_QUALITY = 92  # JPEG quality of photos that are encoded again
_MAX_LOST = 0.5  # share of a truncated photo's rows that may be missing
_BATCH_PHOTOS, _BATCH_BYTES = 64, 4_000_000  # a thread gets as many photos at a time as fit within both
_WAITING_BYTES = 256_000_000  # of photos that have been read and not yet decoded

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPhoto(ValueError):  # noqa: N818 - a finding about a photo more than an error
    """A photo that cannot be used; the message is the reason."""


class UnreadPhoto(BadPhoto):
    """A photo whose file could not be read; reading it again later may succeed."""


def normalise_photo(data: bytes, max_side: int = 256) -> tuple[bytes, tuple[str, ...]]:
    """Turns any photo into a complete RGB JPEG of limited size. A photo that is one already is returned unchanged.

    Args:
        data: the bytes of a photo in any format that Pillow reads.
        max_side: the longest side of the result, in pixels; larger photos are scaled down.

    Returns:
        JPEG bytes, and the names of the repairs: "grey-scale", "palette", "alpha", "CMYK", "rotated", "truncated",
        "scaled", "not JPEG".

    Raises:
        BadPhoto: the file is empty or no photo, it has more than 89 million pixels, or more than half of it is lost.
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
    """Turns an opened Pillow image upright, puts it on white as RGB, and limits its size.

    This is what `normalise_photo` does with a file.

    Raises:
        BadPhoto: the image cannot be decoded, has no pixels, or has too many.
    """
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"the photo has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    try:
        with _switch.strict():
            image.load()
    except Exception as error:  # on damaged data decoders raise OSError, SyntaxError, struct.error and others
        raise BadPhoto(f"the photo cannot be decoded: {_first_line(error)}") from error
    return _finish(image, [], max_side)


def _finish(image: Image.Image, repairs: list[str], max_side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Rotates, converts and scales a loaded image; adds what it did to `repairs`."""
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
    except Exception:  # with damaged tags a photo counts as upright
        return 1
    return value if isinstance(value, int) else 1


def encode_photo(image: UInt8[np.ndarray, "height width 3"], quality: int = _QUALITY) -> bytes:
    """Returns JPEG bytes. The colour keeps its full resolution, because colour is a label."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "444")
    return data


def decode_photo(data: bytes, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Decodes a JPEG and fits it into height x width pixels as `letterbox` does.

    Args:
        data: the result of `normalise_photo`, or any RGB or grey JPEG.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Raises:
        BadPhoto: the data is no JPEG.
    """
    try:
        # libjpeg decodes at the smallest of its scales that still covers the result, which is faster.
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError as error:
        raise BadPhoto(f"the photo cannot be decoded: {error}") from error
    return letterbox(image, height, width)


def letterbox(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Scales an RGB image until it just fits into height x width, and centres it on white; the aspect is kept."""
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


def decode_photos(
    decode: Callable[[bytes], T], photos: Iterable[tuple[K, bytes | BadPhoto]]
) -> Generator[tuple[K, T | BadPhoto], None, None]:
    """Decodes photos ahead in threads, and yields them in the order of `photos`.

    Everything that decodes many photos uses this function. Photos are read in the thread of the caller, and at most
    about 256 MB of them wait in memory. Close the generator if it is not read to its end.

    Args:
        decode: makes what is wanted from a photo's bytes, or raises BadPhoto. It runs in the threads.
        photos: pairs of a key and a photo's bytes, or the reason why there are none.

    Yields:
        The key and the decoded photo, or the key and the reason why the photo cannot be used.
    """
    workers = num_cores()
    pool = ThreadPoolExecutor(workers)
    running: deque[tuple[Future[list[tuple[K, T | BadPhoto]]], int]] = deque()
    waiting = 0

    def decode_batch(batch: list[tuple[K, bytes | BadPhoto]]) -> list[tuple[K, T | BadPhoto]]:
        decoded: list[tuple[K, T | BadPhoto]] = []
        for key, data in batch:
            try:
                decoded.append((key, data if isinstance(data, BadPhoto) else decode(data)))
            except BadPhoto as error:
                decoded.append((key, error))
        return decoded

    try:
        for batch, size in _batches(photos):
            running.append((pool.submit(decode_batch, batch), size))
            waiting += size
            while len(running) > 4 * workers or waiting > _WAITING_BYTES:
                done, size = running.popleft()
                yield from done.result()
                waiting -= size
        for done, _ in running:
            yield from done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(photos: Iterable[tuple[K, bytes | BadPhoto]]) -> Iterator[tuple[list[tuple[K, bytes | BadPhoto]], int]]:
    """Yields photos in batches, each with the sum of its bytes."""
    batch: list[tuple[K, bytes | BadPhoto]] = []
    size = 0
    for key, data in photos:
        batch.append((key, data))
        size += len(data) if isinstance(data, bytes) else 0
        if len(batch) == _BATCH_PHOTOS or size >= _BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


class _TruncationSwitch:
    """Guards Pillow's LOAD_TRUNCATED_IMAGES, which holds for the whole process.

    Strict loads run at the same time; a lenient load runs alone. Otherwise one thread's repair would switch off the
    check of a photo that another thread decodes.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._strict = self._lenient = 0  # strict loads that run; lenient loads that run or wait

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
    """True for a complete, upright RGB JPEG whose sides are within `max_side`."""
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
    """Loads a photo, or the part of it that is left; returns it with the names of its faults."""
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
    except Exception as error:
        image = _load_truncated(data, max_side, error)
        repairs.append("truncated")
    return image, repairs


def _header(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
    except UnidentifiedImageError:
        raise BadPhoto("the file is no photo, or of an unknown format") from None
    except Exception as error:
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
    # Decoders fill the lost rows at the bottom with mid-grey (JPEG) or black (other formats).
    rows = np.asarray(image.convert("L")).astype(int)
    filled = (np.abs(rows - 128) <= 2).all(1) | (rows == 0).all(1)
    lost = len(filled) if filled.all() else int(np.argmin(filled[::-1]))
    if lost > _MAX_LOST * len(filled):
        raise BadPhoto(f"the photo is truncated: {lost} of its {len(filled)} lines of pixels are lost")
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
