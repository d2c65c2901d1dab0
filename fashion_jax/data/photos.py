"""Photos: repaired once when a catalogue is prepared, then decoded fast, many at once, and padded to one size."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from fashion_jax.data.colour_spaces import CONVERTED, find_profile, is_srgb, to_srgb
from fashion_jax.data.photo_names import HEIC_BRANDS, enable_heic
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores

K = TypeVar("K")
T = TypeVar("T")

MAX_PIXELS = 89_000_000  # of a photo before it is scaled; Pillow also refuses larger ones as a possible attack
MAX_BYTES = 100_000_000  # of a photo's file
_QUALITY = 92  # JPEG quality of photos that are encoded again
_CONVERTED_QUALITY = 98  # the same after a change of the colour space, which has cost exactness already
_MAX_LOST = 0.5  # share of a truncated photo's pixels that may be missing
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose further pictures are frames; in others they are previews
_MAX_FRAMES = 50  # of an animation that are searched for the first one that is not blank
_BLANK = 3  # a frame is blank if no channel differs by more than this between any two pixels
_BATCH_PHOTOS, _BATCH_BYTES = 64, 4_000_000  # a thread gets as many photos at a time as fit within both
_WAITING_BYTES = 256_000_000  # of photos that have been read and not yet decoded

_ORIENTATION_TAG = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
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
    """Turns any photo into a complete sRGB JPEG of limited size. A photo that is one already is returned unchanged.

    The photo is turned upright. Its embedded colour profile, or the colour space that Exif or PNG name, is converted
    to sRGB. What is transparent becomes white, and so does the part that a truncated file lacks. Grey values of more
    than 8 bits are scaled by their range (`_to_8_bits` says how). An animation's first frame is taken that is not of
    one colour.

    Args:
        data: the bytes of a photo in any format that Pillow reads.
        max_side: the longest side of the result, in pixels; larger photos are scaled down.

    Returns:
        JPEG bytes, and the names of the repairs: "grey-scale", "palette", "alpha", "CMYK", "LAB", "HSV", "YCbCr",
        "16-bit or float", "colour profile", "colour profile ignored", "animation", "blank first frame",
        "several pages", "rotated", "truncated", "scaled", "not JPEG".

    Raises:
        BadPhoto: the file is empty or no photo, it has more than 89 million pixels, or more than half of it is lost.
    """
    if not data:
        raise BadPhoto("the photo is an empty file")
    if len(data) > MAX_BYTES:
        raise BadPhoto(f"the photo has more than {MAX_BYTES:,} bytes")
    if _is_sound(data, max_side):
        return data, ()
    image, repairs = _header(data), []
    if image.format not in ("JPEG", "MPO"):  # MPO is a JPEG with a second picture behind it
        repairs.append("not JPEG")
    if max(image.size) > max_side:
        repairs.append("scaled")
        image.draft(None, (max_side, max_side))
    pixels = _repair(image, repairs, max_side)
    quality = _CONVERTED_QUALITY if CONVERTED in repairs else _QUALITY
    return encode_photo(pixels, quality), tuple(dict.fromkeys(repairs))


def normalise_image(image: Image.Image, max_side: int = 256) -> UInt8[np.ndarray, "height width 3"]:
    """Does with a Pillow image what `normalise_photo` does with a file, and returns the pixels.

    The frame is kept to which an animation was sought, unless that is the first one.

    Raises:
        BadPhoto: the image cannot be decoded, has no pixels or too many, or more than half of it is lost.
    """
    _check_size(image)
    return _repair(image, [], max_side)


def _repair(image: Image.Image, repairs: list[str], max_side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Loads an image, turns, converts and scales it; adds what it did to `repairs`."""
    image, lost = _load(image, repairs)
    try:
        turn = _UPRIGHT.get(_orientation(image))
        image = _to_rgb(image, repairs)
    except MemoryError:
        raise BadPhoto("the photo does not fit into memory") from None
    except Exception as error:  # an unknown mode or palette
        raise BadPhoto(f"the photo's colours cannot be read: {_first_line(error)}") from error
    if lost is not None:
        image = _replace(image, lost)
    if turn is not None:
        image = image.transpose(turn)
        repairs.append("rotated")
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
    """True for a complete, upright sRGB JPEG whose sides are within `max_side`."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or max(height, width) > max_side:
            return False
        if b"Exif\0" in data or b"ICC_PROFILE\0" in data or b"tiff:Orientation" in data:
            header = _header(data)
            if _orientation(header) != 1 or not is_srgb(header):
                return False
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # BadPhoto is one
        return False
    return True


def _header(data: bytes) -> Image.Image:
    """Opens a photo without decoding it."""
    try:
        try:
            image = Image.open(io.BytesIO(data))
        except ValueError:  # Pillow refuses a PNG with a long text or profile unless it is lenient
            with _switch.lenient():
                image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
            return _open_heic(data)
        raise BadPhoto("the file is no photo, or of an unknown format") from None
    except Exception as error:
        raise BadPhoto(f"the photo cannot be read: {_first_line(error)}") from error
    _check_size(image)
    return image


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadPhoto(f"the photo has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}; scale it down")
    if min(image.size) < 1:
        raise BadPhoto("the photo has no pixels")


def _load(image: Image.Image, repairs: list[str]) -> tuple[Image.Image, np.ndarray | None]:
    """Decodes an image, or the part of it that is left.

    Returns:
        The image, and a mask of its lost pixels, bool (height, width): None if it is complete.
    """
    lost = None
    try:
        with _switch.strict():
            image.load()
    except MemoryError:
        raise BadPhoto("the photo does not fit into memory") from None
    except Exception as error:  # on damaged data decoders raise OSError, SyntaxError, struct.error and others
        image, lost = _load_truncated(image, error)
        repairs.append("truncated")
    return (_first_frame(image, repairs) if lost is None else image), lost


def _load_truncated(image: Image.Image, cause: Exception) -> tuple[Image.Image, np.ndarray]:
    """Decodes what is left of a photo's file; returns it and a mask of the pixels that are lost."""
    try:
        file = image.fp  # type: ignore[attr-defined]
        file.seek(0)
        data = file.read()
        jpeg = isinstance(image, JpegImageFile)
        with _switch.lenient():
            # Decoders leave lost pixels as they were, so these keep the colour of the ground.
            black, image = (_load_over(_whole_segments(data) if jpeg else data, ground) for ground in (0, 255))
            pixels = np.asarray(image)
            lost = (np.asarray(black) != pixels).reshape(*pixels.shape[:2], -1).any(-1)
            if jpeg:
                lost |= _lost_by_jpeg(pixels, image.layer)  # type: ignore[attr-defined]
    except Exception as error:
        raise BadPhoto(f"the photo cannot be decoded: {_first_line(cause)}") from error
    if lost.mean() > _MAX_LOST:
        raise BadPhoto(f"the photo is truncated: {100 * lost.mean():.0f} % of its pixels are lost")
    return image, lost


def _open_heic(data: bytes) -> Image.Image:
    """Opens a HEIC photo, whatever its file is called."""
    try:
        enable_heic()
        image = Image.open(io.BytesIO(data))
    except UserError as error:
        raise BadPhoto(f"the photo is HEIC: {error}") from None
    except Exception as error:
        raise BadPhoto(f"the photo cannot be read: {_first_line(error)}") from error
    _check_size(image)
    return image


def _load_over(data: bytes, value: int) -> Image.Image:
    """Decodes a photo over a plain ground."""
    image = Image.open(io.BytesIO(data))
    bands = len(image.getbands())
    image.im = Image.new(image.mode, image.size, value if bands == 1 else (value,) * bands).im
    image.load()
    return image


def _replace(image: Image.Image, lost: np.ndarray) -> Image.Image:
    """Makes the lost pixels of an RGB image white. A lost line between others becomes like the line above it."""
    pixels, lines = np.array(image), np.any(lost, axis=1)
    if np.count_nonzero(lines[:-1] & ~lines[1:]) > 1:  # interlaced: the file holds every other line first
        above = np.roll(lost, 1, 0)
        pixels = np.where((lost & ~above)[..., None], np.roll(pixels, 1, 0), pixels)
        lost = lost & above
    pixels[lost] = 255
    return Image.fromarray(pixels)


def _whole_segments(data: bytes) -> bytes:
    """Removes the segment in which a JPEG ends, because libjpeg would take the end marker as a part of it."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0:
        marker = data[place + 1 : place + 2]
        if marker == b"\xff":  # a fill byte
            place += 1
        elif marker in b"\0\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9":  # no segment follows
            place += 2
        else:
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            if end > len(data) or place + 4 > len(data):
                return data[:place]
            place = end
    return data


def _lost_by_jpeg(image: np.ndarray, components: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns a mask of the pixels that a cut JPEG lacks.

    The file holds blocks of pixels, line by line. libjpeg fills the blocks that are missing with mid-grey. A cut
    progressive JPEG usually has all blocks, only coarser.

    Args:
        image: (height, width) or (height, width, channels).
        components: of the file's colours: (id, horizontal and vertical sampling, table).
    """
    filled: np.ndarray = np.all(np.abs(image.reshape(*image.shape[:2], -1) - 127.5) < 1, axis=-1)
    tall = wide = 8  # pixels of a block
    if len(components) > 1:
        wide, tall = (8 * max(component[place] for component in components) for place in (1, 2))
    lost = np.zeros(filled.shape, bool)
    for top in reversed(range(0, filled.shape[0], tall)):
        for left in reversed(range(0, filled.shape[1], wide)):
            # The colours of a lost block's first lines are mixed with those of its neighbour.
            if not filled[top : top + tall, left : left + wide][2:, 2:].all():
                return lost
            lost[top : top + tall, left : left + wide] = True
    return lost


def _first_frame(image: Image.Image, repairs: list[str]) -> Image.Image:
    """Returns the first frame of an animation that is not of one colour, or its first frame."""
    if not getattr(image, "is_animated", False) or image.format not in (*_ANIMATIONS, "TIFF"):
        return image
    repairs.append("several pages" if image.format == "TIFF" else "animation")
    if image.format == "TIFF":
        return image
    if image.tell() != 0 or not _is_blank(image):
        return image
    first, found = image.copy(), None
    try:
        with _switch.strict():
            for number in range(1, min(image.n_frames, _MAX_FRAMES)):  # type: ignore[attr-defined]
                image.seek(number)
                if not _is_blank(image):
                    found = image.copy()
                    repairs.append("blank first frame")
                    break
            image.seek(0)
    except Exception:  # the rest of the animation is damaged
        return found or first
    return found or first


def _is_blank(image: Image.Image) -> bool:
    colours = np.asarray(_to_rgb(image, [])).reshape(-1, 3)
    return bool(np.all(np.ptp(colours, axis=0) <= _BLANK))


def _to_rgb(image: Image.Image, repairs: list[str]) -> Image.Image:
    """Returns a loaded image as sRGB on white."""
    profile = find_profile(image)
    colours, alpha = _split_alpha(image, repairs)
    if colours.mode in ("1", "L", "I", "F") or colours.mode.startswith("I;16"):
        repairs.append("grey-scale")
        if colours.mode not in ("1", "L"):
            repairs.append("16-bit or float")
            colours = _to_8_bits(colours)
        colours = colours.convert("L")
    elif colours.mode not in ("RGB", "CMYK", "LAB"):
        if colours.mode in ("HSV", "YCbCr"):
            repairs.append(colours.mode)
        colours = colours.convert("RGB")
    if colours.mode in ("CMYK", "LAB"):
        repairs.append(colours.mode)
    if profile is not None:
        colours, repair = to_srgb(colours, profile)
        repairs += [repair] if repair else []
    colours = colours.convert("RGB")
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), colours).convert("RGB")


def _split_alpha(image: Image.Image, repairs: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Returns an image without alpha, and its alpha as an image of mode L: None if it is opaque."""
    if image.mode == "P":
        repairs.append("palette")
    key = image.info.get("transparency")
    if not image.has_transparency_data:
        return (image.convert("RGB") if image.mode == "P" else image), None
    if image.mode == "F" or image.mode.startswith("I"):
        repairs.append("alpha")
        return image, Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    if image.mode not in ("LA", "La", "PA", "P", "RGBA", "RGBa", "1", "L", "RGB"):
        return image, None  # a transparent colour that the mode cannot have
    repairs.append("alpha")
    if key is not None and image.mode in ("L", "RGB"):
        image = image.copy()
        image.info["transparency"] = _in_8_bits(key, image)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    return image.convert("L" if image.mode == "LA" else "RGB"), image.getchannel("A")


def _in_8_bits(key: int | tuple[int, ...], image: Image.Image) -> int | tuple[int, ...]:
    """Returns a PNG's transparent colour in the range of the pixels: Pillow scales these, but not the colour."""
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if max(key) > 255 else key
    if 0 < key < 16:
        levels = np.flatnonzero(image.histogram())
        for step in (85, 17):  # between the values of a file of 2 or 4 bits; with 8 bits, the colour would not occur
            if not (levels % step).any() and key * step < 256:
                return key * step
    return key


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of 12, 16 or 32 bits to 8.

    Values of 12 and 16 bits are divided by the largest one that their type can hold. Values of 32 bits are divided by
    the smallest of 255, 65,535 and the type's largest value that is large enough for the photo: programs use 32 bits
    for each of them. Floating-point values within 0 and 1 are multiplied by 255, others are divided by their maximum.
    Negative values become black, and NaN becomes white.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "F":
        finite = values[np.isfinite(values)]
        top = max(1.0, float(finite.max(initial=0)))
        values = np.nan_to_num(values.astype(np.float64), nan=top, posinf=top, neginf=0)
    elif image.mode == "I":
        bits = _tag(tags, _TIFF_BITS, 32)
        top = 2 ** (bits - 1) - 1
        if tags and bits == 32 and _tag(tags, _TIFF_SAMPLE_FORMAT, 1) == 1:
            values, top = values.view(np.uint32), 2**32 - 1  # Pillow has no mode for these
        top = next((limit for limit in (255, 65_535) if values.max(initial=0) <= limit < top), top)
    else:
        top = 2 ** _tag(tags, _TIFF_BITS, 16) - 1
    levels = np.clip(values / top, 0, 1) * 255
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white; Pillow turns only values of 8 bits and fewer
        levels = 255 - levels
    return Image.fromarray(np.round(levels).astype(np.uint8))


def _tag(tags: Mapping[int, Any], number: int, default: int) -> int:
    value = tags.get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
