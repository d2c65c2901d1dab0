"""Photos: repaired once when a catalogue is prepared, then decoded fast, many at once, and padded to one size."""

from __future__ import annotations

import io
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from fashion_jax.data.colour_spaces import CONVERTED, find_profile, get_exif, is_srgb, to_srgb
from fashion_jax.data.photo_names import HEIC_BRANDS, MAX_PHOTO_BYTES, enable_heic
from fashion_jax.system import files
from fashion_jax.system.errors import UserError
from fashion_jax.system.process import num_cores
from fashion_jax.system.stored import first_line

K = TypeVar("K")
T = TypeVar("T")

# The formats that are opened. Pillow knows others that are no photos, run other programs (EPS) or are read in Python.
# MPO is among JPEG.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "QOI", "TGA",
)  # fmt: skip
# Limits of what a photo costs: about a second and 500 MB.
MAX_PIXELS = 89_000_000  # of a JPEG, which is decoded at a smaller scale
# Decoders of these formats need more memory or time than others.
_MAX_PIXELS = {"WEBP": 32_000_000, "AVIF": 25_000_000, "JPEG2000": 24_000_000, "HEIF": 50_000_000}
_MAX_DECODED = 64_000_000  # pixels of all other formats; cameras of studios have up to 62 million
_MAX_SIDE = 65_535  # pixels; a JPEG cannot be longer, and a line costs memory of its own
_MAX_REPAIRED = 30_000_000  # pixels of a truncated photo, which is decoded twice
_MAX_SCANNED = 1_200_000_000  # pixels times scans of a JPEG; usual progressive ones have about 10 scans
_MAX_PLAIN = 4_000_000  # bytes of a PPM that is written as text
_MAX_BOXED = 30_000_000  # bytes of AVIF and HEIC, whose Exif is read at once
_MAX_OPEN_READS, _MAX_TAG_BYTES = 20_000, 32_000_000  # for what stands before the pixels; bytes: of a TIFF's tags
# For the pixels. A GIF has parts of 255 bytes. Pillow decodes some formats in Python, and reads for each run of pixels.
_MAX_READS = {"GIF": 20_000, "PPM": 500_000, "QOI": 1_500_000, "BMP": 1_500_000, "DIB": 1_500_000}
_MAX_OTHER_READS = 200_000
_MAX_SURPLUS = 1_000_000  # bytes of a JPEG beyond three for each pixel, such as a film behind it
_QUALITY = 92  # JPEG quality of photos that are encoded again
_CONVERTED_QUALITY = 98  # the same after a change of the colour space, which has cost exactness already
_MAX_LOST = 0.5  # share of a truncated photo's pixels that may be missing
_ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # formats whose further pictures are frames; in others they are previews
# Frames of an animation that are searched for the first one that is not blank, and pixels of these frames.
_MAX_FRAMES, _MAX_FRAME_PIXELS = 50, 40_000_000
_BLANK = 3  # a frame is blank if no channel differs by more than this between any two pixels
_REDUCED = 8_000_000  # pixels from which an image with alpha is scaled roughly before it is converted
_BATCH_PHOTOS, _BATCH_BYTES = 64, 4_000_000  # a thread gets as many photos at a time as fit within both
_WAITING_BYTES = 256_000_000  # of photos that have been read and not yet decoded

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment of a JPEG, or of its end
_SCAN, _END = 0xDA, 0xD9
_ORIENTATION_TAG, _TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 0x0112, 322, 323
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
        data: the bytes of a JPEG, PNG, WebP, GIF, AVIF, HEIC (extra "heif"), TIFF, BMP, JPEG 2000, PPM, QOI or TGA.
        max_side: the longest side of the result, in pixels; larger photos are scaled down.

    Returns:
        JPEG bytes, and the names of the repairs: "grey-scale", "palette", "alpha", "CMYK", "LAB", "HSV", "YCbCr",
        "16-bit or float", "colour profile", "colour profile ignored", "animation", "blank first frame",
        "several pages", "surplus bytes", "rotated", "truncated", "scaled", "not JPEG".

    Raises:
        BadPhoto: the file is empty or no photo, it would cost more than about a second or 500 MB to decode, or more
            than half of it is lost.
    """
    if not data:
        raise BadPhoto("the photo is an empty file; copy it again")
    if len(data) > MAX_PHOTO_BYTES:
        raise BadPhoto(f"the photo has more than {MAX_PHOTO_BYTES:,} bytes; save it as a smaller JPEG")
    if _is_sound(data, max_side):
        return data, ()
    file = _File(data)
    image, repairs = _header(file), []
    if image.format not in ("JPEG", "MPO"):  # MPO is a JPEG with a second picture behind it
        repairs.append("not JPEG")
    elif _has_surplus(data, image.width * image.height):
        repairs.append("surplus bytes")
    if max(image.size) > max_side:
        repairs.append("scaled")
        with _reading("the photo cannot be decoded"):
            image.draft(None, (max_side, max_side))
    pixels = _repair(image, repairs, max_side, file)
    quality = _CONVERTED_QUALITY if CONVERTED in repairs else _QUALITY
    return encode_photo(pixels, quality), tuple(dict.fromkeys(repairs))


def normalise_image(image: Image.Image, max_side: int = 256) -> UInt8[np.ndarray, "height width 3"]:
    """Does with a Pillow image what `normalise_photo` does with a file, and returns the pixels.

    The frame is kept to which an animation was sought, unless that is the first one.

    Raises:
        BadPhoto: the image cannot be decoded, has no pixels or too many, or more than half of it is lost.
    """
    _check_size(image, MAX_PIXELS)
    return _repair(image, [], max_side, _File(b""))


def read_photo(path: Path) -> bytes:
    """Returns the bytes of a photo's file.

    Raises:
        UserError: it is no ordinary file, or too large.
        OSError: the system does not let it be read.
    """
    return files.read_limited(path, MAX_PHOTO_BYTES)


def _repair(image: Image.Image, repairs: list[str], max_side: int, file: _File) -> UInt8[np.ndarray, "height width 3"]:
    """Loads an image, turns, converts and scales it; adds what it did to `repairs`.

    Args:
        file: that the image was opened from.
    """
    image, lost = _load(image, repairs)
    with _reading("the photo's colours cannot be read"):  # an unknown mode or palette
        file.allow(_MAX_OPEN_READS, _MAX_TAG_BYTES)
        turn = _UPRIGHT.get(_orientation(image))
        image = _to_rgb(image, repairs, max_side if lost is None else 0)
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


@contextmanager
def _reading(problem: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a BadPhoto with the problem and the decoder's words."""
    try:
        yield
    except BadPhoto:
        raise
    except MemoryError:
        raise BadPhoto("the photo does not fit into memory") from None
    except Exception as error:
        raise BadPhoto(f"{problem}: {first_line(error)}") from error


def _orientation(image: Image.Image) -> int:
    try:
        value = get_exif(image).get(_ORIENTATION_TAG, 1)
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
    with _reading("the photo cannot be decoded"):
        # libjpeg decodes at the smallest of its scales that still covers the result, which is faster.
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
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


class _File(io.BytesIO):
    """A photo's file, of which only so much is read: other files keep Pillow's Python code busy for minutes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.allow(_MAX_OPEN_READS, _MAX_TAG_BYTES if data[:2] in (b"II", b"MM") else math.inf)

    def allow(self, reads: int, size: float = math.inf) -> None:
        """Sets how often and how many bytes may be read from now on."""
        self._reads, self._size = reads, size

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._reads -= 1
        self._size -= len(data)
        if self._reads < 0 or self._size < 0:
            raise BadPhoto(
                "the photo has too many or too large metadata blocks, such as comments; save it without metadata"
            )
        return data


def _is_sound(data: bytes, max_side: int) -> bool:
    """True for a complete, upright sRGB JPEG whose sides are within `max_side`."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB") or max(height, width) > max_side or _has_many_scans(data, height * width):
            return False
        if _has_surplus(data, height * width):
            return False
        if b"Exif\0" in data or b"ICC_PROFILE\0" in data or b"tiff:Orientation" in data:
            header = _header(_File(data))
            if _orientation(header) != 1 or not is_srgb(header):
                return False
        simplejpeg.decode_jpeg(data, "RGB")
    except Exception:  # it is damaged, and what can be repaired of it is found later
        return False
    return True


def _has_surplus(data: bytes, pixels: int) -> bool:
    return len(data) > 3 * pixels + _MAX_SURPLUS


def _header(file: _File) -> Image.Image:
    """Opens a photo without decoding it."""
    data = file.getvalue()  # not a copy
    is_boxed = data[4:8] == b"ftyp"
    if is_boxed and len(data) > _MAX_BOXED:
        raise BadPhoto(f"the photo is AVIF or HEIC of more than {_MAX_BOXED:,} bytes; convert it to JPEG")
    if data[:2] in (b"P1", b"P2", b"P3") and len(data) > _MAX_PLAIN:
        raise BadPhoto(f"the photo is a PPM written as text of more than {_MAX_PLAIN:,} bytes; convert it to JPEG")
    with _reading("the photo cannot be read"):
        try:
            image = _open(file, _FORMATS)
        except UnidentifiedImageError:
            if not is_boxed or data[8:12] not in HEIC_BRANDS:
                raise BadPhoto("the file is no photo, or of an unknown format") from None
            image = _open_heic(file)
    kind = str(image.format)
    _check_size(image, MAX_PIXELS if kind in ("JPEG", "MPO") else _MAX_PIXELS.get(kind, _MAX_DECODED))
    if kind in ("JPEG", "MPO") and _has_many_scans(data, image.width * image.height):
        raise BadPhoto("the photo is a progressive JPEG with too many scans; save it as a baseline JPEG")
    file.allow(_MAX_READS.get(kind, _MAX_OTHER_READS))
    return image


def _open(file: _File, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(file, formats=formats)
    except BadPhoto:
        raise
    except ValueError:  # Pillow refuses a PNG with a long text or profile unless it is lenient
        with _switch.lenient():
            return Image.open(file, formats=formats)


def _check_size(image: Image.Image, most: int) -> None:
    tags = getattr(image, "tag_v2", {})
    tile = _tag(tags, _TILE_WIDTH_TAG, 0) * _tag(tags, _TILE_LENGTH_TAG, 0)
    if max(image.width * image.height, tile) > most or max(image.size) > _MAX_SIDE:
        raise BadPhoto(
            f"the photo has {image.width}x{image.height} pixels, more than {most:,} or a side of more than "
            f"{_MAX_SIDE:,}; scale it down"
        )
    if min(image.size) < 1:
        raise BadPhoto("the photo has no pixels")


def _has_many_scans(data: bytes, pixels: int) -> bool:
    """True for a JPEG whose scans would take more than about a second."""
    most = _MAX_SCANNED // max(pixels, 1)
    if data.count(b"\xff\xda") <= most:  # these bytes also stand in previews, and in what follows the photo
        return False
    scans = 0
    for number, (marker, _, _) in enumerate(_segments(data)):
        scans += marker == _SCAN
        if scans > most or number > _MAX_OTHER_READS:
            return True
        if marker == _END:
            break
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, begin, end) of the segments of a JPEG, and of its end; the last one may be cut."""
    place = 2
    while match := _MARKER.search(data, place):
        begin, marker = match.start(), match.group()[1]
        size = 0 if marker == _END else int.from_bytes(data[begin + 2 : begin + 4], "big")
        place = begin + 2 + size
        yield marker, begin, place


def _load(image: Image.Image, repairs: list[str]) -> tuple[Image.Image, np.ndarray | None]:
    """Decodes an image, or the part of it that is left.

    Returns:
        The image, and a mask of its lost pixels, bool (height, width): None if it is complete.
    """
    lost = None
    try:
        with _switch.strict():
            image.load()
    except (BadPhoto, MemoryError) as error:
        raise BadPhoto(str(error) or "the photo does not fit into memory") from None
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
    except BadPhoto:
        raise
    except Exception as error:
        raise BadPhoto(f"the photo cannot be decoded: {first_line(cause)}") from error
    if lost.mean() > _MAX_LOST:
        raise BadPhoto(f"the photo is truncated: {100 * lost.mean():.0f} % of its pixels are lost")
    return image, lost


def _open_heic(file: _File) -> Image.Image:
    """Opens a HEIC photo, whatever its file is called."""
    try:
        enable_heic()
    except UserError as error:
        raise BadPhoto(f"the photo is HEIC: {error}") from None
    return Image.open(file, formats=("HEIF",))


def _load_over(data: bytes, value: int) -> Image.Image:
    """Decodes a photo over a plain ground."""
    file = _File(data)
    image = Image.open(file, formats=(*_FORMATS, "HEIF") if "HEIF" in Image.OPEN else _FORMATS)
    if image.width * image.height > _MAX_REPAIRED:
        raise BadPhoto(f"the photo is damaged, and too large to be repaired ({image.width}x{image.height} pixels)")
    file.allow(_MAX_READS.get(str(image.format), _MAX_OTHER_READS))
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
    for _, begin, end in _segments(data):
        if end > len(data) or begin + 4 > len(data):
            return data[:begin]
    return data


def _lost_by_jpeg(image: np.ndarray, components: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Returns a mask of the pixels that a cut JPEG lacks.

    The file holds blocks of pixels, line by line. libjpeg fills the blocks that are missing with mid-grey. A cut
    progressive JPEG usually has all blocks, only coarser.

    Args:
        image: (height, width) or (height, width, channels).
        components: of the file's colours: (id, horizontal and vertical sampling, table).
    """
    tall = wide = 8  # pixels of a block
    if len(components) > 1:
        wide, tall = (8 * max(component[place] for component in components) for place in (1, 2))
    lost = np.zeros(image.shape[:2], bool)
    for top in reversed(range(0, len(image), tall)):
        strip = image[top : top + tall]
        grey = strip - np.uint8(127) < 2  # 127 or 128
        filled: np.ndarray = np.all(grey.reshape(*strip.shape[:2], -1), axis=-1)
        if filled.all():
            lost[top : top + tall] = True
            continue
        for left in reversed(range(0, filled.shape[1], wide)):
            # The colours of a lost block's first lines are mixed with those of its neighbour.
            if not filled[2:, left + 2 : left + wide].all():
                return lost
            lost[top : top + tall, left : left + wide] = True
    return lost


def _first_frame(image: Image.Image, repairs: list[str]) -> Image.Image:
    """Returns the first frame of an animation that is not of one colour, or its first frame."""
    if image.format not in (*_ANIMATIONS, "TIFF") or not _is_animated(image):
        return image
    repairs.append("several pages" if image.format == "TIFF" else "animation")
    if image.format == "TIFF" or image.tell() != 0 or not _is_blank(image):
        return image
    first, found = image.copy(), None
    try:
        with _switch.strict():
            for number in range(1, min(_MAX_FRAMES, 1 + _MAX_FRAME_PIXELS // (image.width * image.height))):
                image.seek(number)
                if not _is_blank(image):
                    found = image.copy()
                    repairs.append("blank first frame")
                    break
            image.seek(0)
    except Exception:  # there are no more frames, or the rest of the animation is damaged
        return found or first
    return found or first


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what follows the first frame is damaged
        return False


def _is_blank(image: Image.Image) -> bool:
    return all(high - low <= _BLANK for low, high in _to_rgb(image, []).getextrema())  # type: ignore[misc]


def _to_rgb(image: Image.Image, repairs: list[str], max_side: int = 0) -> Image.Image:
    """Returns a loaded image as sRGB on white.

    Args:
        max_side: to which it will be scaled; a huge image with alpha is scaled roughly before it is converted. 0: not.
    """
    profile = find_profile(image)
    colours, alpha = _split_alpha(image, repairs, max_side)
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
    if colours.mode != "RGB" or colours is image:  # whose pixels are the caller's
        colours = colours.convert("RGB")
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", colours.size, (255, 255, 255, 255)), colours).convert("RGB")


def _split_alpha(image: Image.Image, repairs: list[str], max_side: int) -> tuple[Image.Image, Image.Image | None]:
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
    factor = max(image.size) // (2 * max_side) if max_side and image.width * image.height > _REDUCED else 1
    if factor > 1:
        image = image.reduce(factor)
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
        top = max(1.0, float(values.max(initial=0, where=np.isfinite(values))))
    elif image.mode == "I":
        bits = _tag(tags, _TIFF_BITS, 32)
        top = 2 ** (bits - 1) - 1
        if tags and bits == 32 and _tag(tags, _TIFF_SAMPLE_FORMAT, 1) == 1:
            values, top = values.view(np.uint32), 2**32 - 1  # Pillow has no mode for these
        top = next((limit for limit in (255, 65_535) if values.max(initial=0) <= limit < top), top)
    else:
        top = 2 ** _tag(tags, _TIFF_BITS, 16) - 1
    levels = np.empty(values.shape, np.uint8)
    for line, scaled in zip(values, levels, strict=True):  # one by one, because a float takes eight bytes
        if image.mode == "F":
            line = np.nan_to_num(line.astype(np.float64), nan=top, posinf=top, neginf=0)
        scaled[:] = np.round(np.clip(line / top, 0, 1) * 255)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white; Pillow turns only values of 8 bits and fewer
        levels = 255 - levels
    return Image.fromarray(levels)


def _tag(tags: Mapping[int, Any], number: int, default: int) -> int:
    value = tags.get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)
