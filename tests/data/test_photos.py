"""Photos: repairs, refusals, and the promise that aspect and colours stay."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from fashion_jax.data.photos import BadPhoto, decode_photo, encode_photo, letterbox, normalise_image, normalise_photo


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
