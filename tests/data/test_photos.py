"""Photos: repairs, refusals, and the promise that aspect and colours stay."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from fashion_jax.data.photos import BadPhoto, decode_photo, encode_photo, letterbox, normalise_image, normalise_photo
from profiles import png


def scene(height: int = 80, width: int = 60) -> np.ndarray:
    """A smooth picture that survives JPEG nearly unchanged: left half red, right half blue, brighter downwards."""
    y, x = np.mgrid[:height, :width]
    red = np.where(x < width / 2, 200, 40)
    return np.stack([red, 60 + 40 * y / height, 240 - red], -1).astype(np.uint8)


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = Image.fromarray(scene())


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 6.0) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < tolerance


def test_a_small_sound_photo_keeps_its_bytes():
    data, exif = encode_photo(scene()), Image.Exif()
    exif[0x010F] = "a camera's maker"  # a harmless tag
    tagged = save(PICTURE, "JPEG", quality=95, exif=exif)
    assert b"maker" in tagged
    assert normalise_photo(data) == (data, ()) and normalise_photo(tagged) == (tagged, ())
    assert close(decode_photo(encode_photo(scene(), 100), 80, 60), scene(), 2)


@pytest.mark.parametrize(
    ("data", "repair"),
    [
        (save(PICTURE, "PNG"), "not JPEG"), (save(PICTURE, "WEBP", lossless=True), "not JPEG"),
        (save(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "palette"),
        (save(PICTURE.convert("RGBA"), "PNG"), "alpha"), (save(PICTURE.convert("CMYK"), "JPEG", quality=95), "CMYK"),
    ],
    ids=["png", "webp", "palette", "alpha", "cmyk"],
)  # fmt: skip
def test_repairs_keep_the_picture(data, repair):
    repaired, repairs = normalise_photo(data)
    assert repair in repairs
    assert close(decode_photo(repaired, 80, 60), scene(), 8)
    assert normalise_photo(repaired) == (repaired, ())


def test_grey_scale_becomes_rgb_and_transparency_white():
    repaired, repairs = normalise_photo(save(PICTURE.convert("L"), "JPEG"))
    assert "grey-scale" in repairs
    assert np.ptp(decode_photo(repaired, 80, 60).astype(int), axis=2).max() <= 3
    repaired, _ = normalise_photo(save(Image.new("RGBA", (60, 80), (255, 0, 0, 0)), "PNG"))
    assert decode_photo(repaired, 80, 60).min() > 250


def test_large_photos_are_scaled_once_and_keep_their_aspect():
    repaired, repairs = normalise_photo(save(Image.fromarray(scene(1600, 1200)), "JPEG"), 256)
    assert "scaled" in repairs
    assert Image.open(io.BytesIO(repaired)).size == (192, 256)
    assert close(decode_photo(repaired, 80, 60), scene())


def test_a_truncated_tail_is_repaired_and_a_lost_half_is_not_in_one_thread_or_in_four():
    noise = np.random.default_rng(0).integers(0, 255, (240, 180, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), "JPEG", quality=90)
    lost, tail = whole[: int(len(whole) * 0.35)], whole[: int(len(whole) * 0.9)]
    repaired, repairs = normalise_photo(tail)
    assert "truncated" in repairs
    assert Image.open(io.BytesIO(repaired)).size == (180, 240)
    with pytest.raises(BadPhoto, match="truncated"):
        normalise_photo(lost)

    def outcome(data: bytes) -> bool:
        try:
            return "truncated" in normalise_photo(data)[1]
        except BadPhoto:
            return False

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(outcome, [lost, tail] * 60))
    assert found == [False, True] * 60


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"<html>404</html>", "no photo"), (b"\xff\xd8\xff\xe0" + bytes(100), "photo")]
)
def test_what_is_no_photo_is_refused_with_a_reason(data, reason):
    with pytest.raises(BadPhoto, match=reason):
        normalise_photo(data)


@pytest.mark.parametrize(("side", "reason"), [(9_440, "9440x9440 pixels"), (60_000, "exceeds limit")])
def test_pixel_bombs_are_refused(side, reason):
    data = bytearray(save(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(BadPhoto, match=reason):
        normalise_photo(bytes(data))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "payload",
    [
        b"", b"garbage", b"II*\0", b"MM\0*\0\0\0\x08\0\xff" + bytes(20),
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0" + b"\xff" * 8,
    ],
)  # fmt: skip
def test_damaged_exif_is_not_believed_and_harms_nothing(payload):
    body, jpeg, png = b"Exif\0\0" + payload, bytearray(encode_photo(scene())), bytearray(save(PICTURE, "PNG"))
    jpeg[2:2] = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    chunk = b"eXIf" + payload
    png[33:33] = len(payload).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    for data in (jpeg, png):
        repaired, _ = normalise_photo(bytes(data))
        assert close(decode_photo(repaired, 80, 60), scene())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(PICTURE, "JPEG", quality=95, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    repaired, repairs = normalise_photo(data)
    assert repairs == (("rotated",) if orientation > 1 else ()) and (orientation == 1 or b"Exif" not in repaired)
    assert close(np.asarray(Image.open(io.BytesIO(repaired))), wanted)
    assert close(normalise_image(Image.open(io.BytesIO(data))), wanted)


GREY = np.asarray(PICTURE.convert("L"))
CUT_OUT = np.where(np.mgrid[:80, :60][1] < 20, 0, 255).astype(np.uint8)  # the alpha of a left third that is clear


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def both_routes(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """What a file and the same file as a Pillow image, opened or loaded, become; they must agree."""
    repaired, repairs = normalise_photo(data)
    assert normalise_photo(repaired) == (repaired, ())
    opened, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    image = normalise_image(opened)
    assert close(pixels(repaired), image)
    if "truncated" not in repairs:
        loaded.load()
        assert close(normalise_image(loaded), image, 0.5) and close(normalise_image(opened), image, 0.5)
    return image, repairs


def with_alpha(mode: str) -> Image.Image:
    image = PICTURE.convert("L" if mode[0] == "L" else "RGB")
    image.putalpha(Image.fromarray(CUT_OUT))
    return image.convert(mode)


def with_key(mode: str) -> bytes:
    """A PNG whose tRNS chunk makes one value transparent, which no other pixel has."""
    clear = CUT_OUT == 0
    if mode == "RGB":
        image = np.where(clear[..., None], np.uint8(7), scene())
        return png(8, 2, image, tRNS=struct.pack(">3H", 7, 7, 7))
    if mode == "RGB of 16 bits":
        image = np.where(clear[..., None], 7 * 257, scene().astype(np.uint16) * 257).astype(">u2")
        return png(16, 2, image, tRNS=struct.pack(">3H", *[7 * 257] * 3))
    if mode == "grey":
        return png(8, 0, np.where(clear, np.uint8(7), GREY), tRNS=struct.pack(">H", 7))
    if mode == "grey of 16 bits":
        image = np.where(clear, 7, GREY.astype(np.uint16) * 257).astype(">u2")
        return png(16, 0, image, tRNS=struct.pack(">H", 7))
    if mode == "grey of 4 bits":
        image = np.where(clear, 3, 8).astype(np.uint8)
        return png(4, 0, image[:, ::2] << 4 | image[:, 1::2], 60, tRNS=struct.pack(">H", 3))
    if mode == "grey of 2 bits":
        image = np.where(clear, 1, 2).astype(np.uint8)
        packed = image[:, ::4] << 6 | image[:, 1::4] << 4 | image[:, 2::4] << 2 | image[:, 3::4]
        return png(2, 0, packed, 60, tRNS=struct.pack(">H", 1))
    if mode == "1 bit":
        return png(1, 0, np.packbits(~clear, axis=1) & 0, 60, tRNS=struct.pack(">H", 0))
    image = Image.fromarray(np.where(clear, np.uint8(7), np.uint8(9)), "L").convert("P")
    image.putpalette([v for number in range(256) for v in (number, 0, 0)])
    return save(image, "PNG", transparency=7 if mode == "palette" else bytes([255] * 7 + [0] + [255] * 248))


@pytest.mark.parametrize(
    "data",
    [
        save(with_alpha("RGBA"), "PNG"), save(with_alpha("LA"), "PNG"), save(with_alpha("RGBA"), "WEBP", lossless=True),
        save(with_alpha("RGBA"), "TIFF"), save(with_alpha("RGBA").quantize(32), "PNG"), save(with_alpha("RGBA"), "GIF"),
        *map(with_key, ("RGB", "RGB of 16 bits", "grey", "grey of 16 bits", "grey of 4 bits", "grey of 2 bits",
                        "1 bit", "palette", "palette of alphas")),
    ],
)  # fmt: skip
def test_what_is_transparent_is_white_in_every_mode(data):
    image, repairs = both_routes(data)
    assert "alpha" in repairs
    assert image[:, :19].min() > 240
    if b"IHDR\0\0\0\x3c\0\0\0\x50\x01" not in data:  # of one bit, where all is transparent
        assert image[:, 21:].mean() < 200


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_pillow_images_with_alpha_are_composed_on_white(mode):
    image = normalise_image(with_alpha(mode) if mode not in ("La", "PA") else _rare_alpha(mode))
    assert image[:, :19].min() > 240 and close(image[:, 21:], np.asarray(_opaque(mode))[:, 21:], 12)


def _opaque(mode: str) -> Image.Image:
    return (PICTURE.convert("L") if mode[0] == "L" else PICTURE).convert("RGB")


def _rare_alpha(mode: str) -> Image.Image:
    if mode == "La":
        return with_alpha("LA").convert("La")
    image = PICTURE.quantize(64).convert("PA")
    image.putalpha(Image.fromarray(CUT_OUT))
    return image


def _tiff(values: np.ndarray, **tags: int) -> bytes:
    """A TIFF of one channel in any type, little-endian."""
    body = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    entries = {256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 1, 262: tags.get("photometric", 1), 273: 8,
               277: 1, 278: height, 279: len(body), 339: sample}  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    offset = 8 + len(body)
    return b"II*\0" + struct.pack("<I", offset) + body + struct.pack("<H", len(entries)) + table + bytes(4)


WIDE = {
    "16 bits": _tiff(GREY.astype(np.uint16) * 257),
    "16 bits, white is 0": _tiff(65535 - GREY.astype(np.uint16) * 257, photometric=0),
    "16 bits in PNG": png(16, 0, (GREY.astype(np.uint16) * 257).astype(">u2")),
    "16 bits in PGM": b"P5\n60 80\n65535\n" + (GREY.astype(np.uint16) * 257).astype(">u2").tobytes(),
    "32 bits that hold 8": _tiff(GREY.astype(np.int32)),
    "32 bits that hold 16": _tiff(GREY.astype(np.int32) * 257),
    "32 bits": _tiff(GREY.astype(np.int32) * (2**31 // 256)),
    "32 bits without a sign": _tiff(GREY.astype(np.uint32) * np.uint32(2**32 // 256)),
    "16 bits with a sign": _tiff((GREY.astype(np.int32) * 257 // 2).astype(np.int16)),
    "float to 1": _tiff(GREY.astype(np.float32) / 255),
    "float to 255": _tiff(np.where(np.arange(60) == 59, 255, GREY).astype(np.float32)),
    "float to 1, white is 0": _tiff(1 - GREY.astype(np.float32) / 255, photometric=0),
}


@pytest.mark.parametrize("kind", WIDE)
def test_grey_values_of_more_than_8_bits_are_scaled_by_their_range(kind):
    image, repairs = both_routes(WIDE[kind])
    assert {"grey-scale", "16-bit or float"} <= set(repairs)
    wanted = np.repeat(GREY[..., None], 3, 2)
    assert close(image[:, :59], wanted[:, :59], 2)


def test_big_endian_and_in_memory_modes_negative_values_and_nan_are_safe():
    wide = GREY.astype(np.uint16) * 257
    for image in (Image.fromarray(wide), Image.frombytes("I;16B", (60, 80), wide.astype(">u2").tobytes())):
        assert close(normalise_image(image)[..., 0], GREY, 1)
    values = GREY.astype(np.float32) / 255
    values[0, :4] = (np.nan, np.inf, -np.inf, -5)
    image = normalise_image(Image.fromarray(values))
    assert image[0, :4, 0].tolist() == [255, 255, 0, 0] and close(image[1:, :, 0], GREY[1:], 1)
    assert normalise_image(Image.fromarray(np.full((8, 8), np.nan, np.float32))).min() == 255
    assert normalise_image(Image.fromarray(np.full((8, 8), -9, np.int32))).max() == 0
    assert normalise_image(Image.fromarray(np.zeros((8, 8), np.float32))).max() == 0


def test_colours_of_16_bits_keep_their_high_bytes():
    image, _ = both_routes(png(16, 2, (scene().astype(np.uint16) * 257).astype(">u2")))
    assert close(image, scene(), 1)


def textured(height: int = 200, width: int = 120) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(scene(height, width) + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}), ("JPEG", {"subsampling": 0}), ("JPEG", {"subsampling": 1}), ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"exif": True}), ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("GIF", {"interlace": 0}), ("PPM", {}),
        ("TGA", {}),
    ],
)  # fmt: skip
def test_the_lost_part_of_a_truncated_photo_is_white(kind, options):
    photo = textured()
    if "exif" in options:
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 3
    data = save(photo.quantize(64) if kind == "GIF" else photo, kind, **{"quality": 90, **options})
    image, repairs = both_routes(data[: len(data) * 3 // 4])
    assert "truncated" in repairs
    image = image[::-1, ::-1] if "rotated" in repairs else image
    if kind in ("BMP", "TGA"):  # which begin with the last line
        image = image[::-1]
        photo = photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    white = (image == 255).all(-1).all(1)
    first = int(np.argmax(white))
    assert 0.6 < first / 200 < 0.85 and white[first:].all()  # nothing grey or black is left
    assert close(image[: first - 17], np.asarray(photo)[: first - 17], 14)


def test_a_cut_photo_that_is_not_rgb_is_white_too():
    for mode in ("L", "CMYK"):
        data = save(textured().convert(mode), "JPEG", quality=90)
        image, repairs = both_routes(data[: len(data) * 3 // 4])
        assert "truncated" in repairs and image[-20:].min() == 255
    palette = textured().quantize(64)
    palette.paste(0, (0, 150, 120, 200))  # colour 0 is no sign of a loss
    data = save(palette, "PNG")
    image, _ = both_routes(data[:-30])
    assert image[155:185].min() < 250
    with pytest.raises(BadPhoto, match="truncated"):
        both_routes(save(textured(), "PNG")[:20_000])


def test_lost_lines_of_an_interlaced_photo_are_like_their_neighbours():
    data = save(textured().quantize(64), "GIF", interlace=1)
    image, repairs = both_routes(data[: len(data) * 3 // 4])
    assert "truncated" in repairs and not (image == 255).all(-1).any()
    assert close(image, np.asarray(textured()), 14)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_cut_progressive_jpeg_keeps_its_coarse_picture_wherever_it_ends(subsampling):
    data = save(PICTURE, "JPEG", progressive=True, quality=95, subsampling=subsampling)
    coarse = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)  # where the second scan begins
    for end in range(coarse, len(data) - 2, 5):
        image, repairs = both_routes(data[:end])
        assert repairs == ("truncated",)
        assert close(image, scene(), 16), end


def test_the_first_frame_that_shows_something_is_taken():
    blank, red = Image.new("RGB", (60, 80), "white"), Image.new("RGB", (60, 80), "red")
    clear = Image.new("RGBA", (60, 80), (0, 0, 0, 0))
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"save_all": True, "duration": 100, **({"lossless": True} if kind == "WEBP" else {})}
        image, repairs = both_routes(save(PICTURE, kind, append_images=[blank], **options))
        assert "animation" in repairs and "blank first frame" not in repairs and close(image, scene(), 8)
        for first in (blank, red, clear):
            data = save(first, kind, append_images=[blank.convert(first.mode), PICTURE.convert(first.mode)], **options)
            image, repairs = both_routes(data)
            assert {"animation", "blank first frame"} <= set(repairs) and close(image, scene(), 8), (kind, first.mode)
        data = save(red, kind, append_images=[blank, red], **options)
        image, repairs = both_routes(data)
        assert "blank first frame" not in repairs and close(image, np.asarray(red), 3)
    sought = Image.open(io.BytesIO(save(PICTURE, "GIF", save_all=True, append_images=[red, PICTURE])))
    sought.seek(1)
    assert close(normalise_image(sought), np.asarray(red), 3) and sought.tell() == 1
    pages = save(PICTURE, "TIFF", save_all=True, append_images=[blank])
    assert "several pages" in both_routes(pages)[1]
    camera = save(PICTURE, "MPO", save_all=True, append_images=[blank], quality=95)
    assert normalise_photo(camera) == (camera, ())


def test_an_orientation_in_xmp_holds_for_files_and_images():
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image, repairs = both_routes(save(PICTURE, "JPEG", quality=95, xmp=packet))
    assert repairs == ("rotated",) and image.shape == (60, 80, 3)


def test_the_photo_of_the_caller_is_not_changed():
    for image in (PICTURE.copy(), with_alpha("RGBA"), PICTURE.convert("L")):
        before = image.tobytes()
        normalise_image(image, 16)
        assert image.tobytes() == before and image.size == (60, 80)


def test_letterbox_pads_with_white_and_never_squashes():
    boxed = letterbox(np.zeros((20, 60, 3), np.uint8), 80, 60)
    assert boxed.shape == (80, 60, 3)
    assert (boxed[30:50] == 0).all()
    assert (boxed[:30] == 255).all() and (boxed[50:] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (77, 60), (80, 60), (81, 61), (1000, 30)])
def test_letterbox_takes_any_shape(shape):
    boxed = letterbox(np.zeros((*shape, 3), np.uint8), 80, 60)
    assert boxed.shape == (80, 60, 3)
    assert boxed.min() < 10


def test_damaged_photos_are_refused_or_repaired_but_never_crash():
    rng = np.random.default_rng(0)
    originals = [save(PICTURE, kind) for kind in ("PNG", "GIF", "WEBP")]
    originals += [encode_photo(scene()), save(Image.fromarray(scene(300, 200)), "JPEG")]
    good = bad = 0
    for number in range(300):
        data = bytearray(originals[number % len(originals)])
        for _ in range(int(rng.integers(1, 30))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        cut = bytes(data[: int(rng.integers(1, len(data) + 1))]) if number % 3 == 0 else bytes(data)
        try:
            repaired, _ = normalise_photo(cut)
            assert decode_photo(repaired, 16, 12).shape == (16, 12, 3)
            good += 1
        except BadPhoto as error:
            assert str(error)
            bad += 1
    assert min(good, bad) > 20
