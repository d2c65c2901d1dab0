"""Photos: repairs, refusals, and the promise that aspect and colours stay."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fashion_jax.data.photos import BadPhoto, decode_photo, encode_photo, letterbox, normalise_photo


def scene(height: int = 80, width: int = 60) -> np.ndarray:
    """A smooth picture that survives JPEG nearly unchanged: left half red, right half blue, brighter downwards."""
    y, x = np.mgrid[:height, :width]
    red = np.where(x < width / 2, 200, 40)
    return np.stack([red, 60 + 40 * y / height, 240 - red], -1).astype(np.uint8)


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 6.0) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < tolerance


def test_a_small_sound_photo_keeps_its_bytes():
    data = encode_photo(scene())
    assert normalise_photo(data) == (data, ())


def test_exact_size_is_passed_through():
    data = encode_photo(scene(), 100)
    assert close(decode_photo(data, 80, 60), scene(), 2)


@pytest.mark.parametrize(
    ("make", "repair"),
    [
        (lambda i: save(i, "PNG"), "not JPEG"),
        (lambda i: save(i, "WEBP", lossless=True), "not JPEG"),
        (lambda i: save(i.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), "palette"),
        (lambda i: save(i.convert("RGBA"), "PNG"), "alpha"),
        (lambda i: save(i.convert("CMYK"), "JPEG", quality=95), "CMYK"),
    ],
)
def test_repairs_keep_the_picture(make, repair):
    repaired, repairs = normalise_photo(make(Image.fromarray(scene())))
    assert repair in repairs
    assert close(decode_photo(repaired, 80, 60), scene(), 8)
    assert normalise_photo(repaired) == (repaired, ())


def test_grey_scale_becomes_rgb():
    repaired, repairs = normalise_photo(save(Image.fromarray(scene()).convert("L"), "JPEG"))
    image = decode_photo(repaired, 80, 60)
    assert "grey-scale" in repairs
    assert np.ptp(image.astype(int), axis=2).max() <= 3


def test_transparency_becomes_white():
    image = Image.new("RGBA", (60, 80), (255, 0, 0, 0))
    repaired, _ = normalise_photo(save(image, "PNG"))
    assert decode_photo(repaired, 80, 60).min() > 250


def test_exif_rotation_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray(scene()).rotate(90, expand=True)
    repaired, repairs = normalise_photo(save(sideways, "JPEG", quality=95, exif=exif))
    assert repairs == ("rotated",)
    assert close(decode_photo(repaired, 80, 60), scene())
    assert b"Exif" not in repaired


def test_large_photos_are_scaled_once_and_keep_their_aspect():
    repaired, repairs = normalise_photo(save(Image.fromarray(scene(1600, 1200)), "JPEG"), 256)
    assert "scaled" in repairs
    assert Image.open(io.BytesIO(repaired)).size == (192, 256)
    assert close(decode_photo(repaired, 80, 60), scene())


def test_a_truncated_tail_is_repaired_and_a_lost_half_is_not():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (80, 60, 3), dtype=np.uint8))
    data = save(image, "JPEG", quality=90)
    repaired, repairs = normalise_photo(data[: int(len(data) * 0.9)])
    assert "truncated" in repairs
    assert Image.open(io.BytesIO(repaired)).size == (60, 80)
    with pytest.raises(BadPhoto, match="truncated"):
        normalise_photo(data[: int(len(data) * 0.35)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html>404</html>", "no photo"), (b"\xff\xd8\xff\xe0" + bytes(100), "photo")],
)
def test_what_is_no_photo_is_refused_with_a_reason(data, reason):
    with pytest.raises(BadPhoto, match=reason):
        normalise_photo(data)


def test_pixel_bombs_are_refused():
    header = bytearray(save(Image.new("L", (8, 8)), "PNG"))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(BadPhoto):
        normalise_photo(bytes(header))


def test_letterbox_pads_with_white_and_never_squashes():
    wide = np.zeros((20, 60, 3), np.uint8)
    boxed = letterbox(wide, 80, 60)
    dark = (boxed == 0).all(-1)
    assert boxed.shape == (80, 60, 3)
    assert dark.sum() == 20 * 60
    assert dark[30:50].all()
    assert (boxed[:30] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (77, 60), (80, 60), (81, 61), (1000, 30)])
def test_letterbox_takes_any_shape(shape):
    boxed = letterbox(np.zeros((*shape, 3), np.uint8), 80, 60)
    assert boxed.shape == (80, 60, 3)
    assert boxed.min() < 10


def test_damaged_photos_are_refused_or_repaired_but_never_crash():
    rng = np.random.default_rng(0)
    originals = [
        encode_photo(scene()),
        save(Image.fromarray(scene()), "PNG"),
        save(Image.fromarray(scene()), "GIF"),
        save(Image.fromarray(scene(300, 200)), "JPEG"),
        save(Image.fromarray(scene()), "WEBP"),
    ]
    outcomes = {"good": 0, "bad": 0}
    for number in range(300):
        data = bytearray(originals[number % len(originals)])
        for _ in range(int(rng.integers(1, 30))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        cut = bytes(data[: int(rng.integers(1, len(data) + 1))]) if number % 3 == 0 else bytes(data)
        try:
            repaired, _ = normalise_photo(cut)
            assert decode_photo(repaired, 16, 12).shape == (16, 12, 3)
            outcomes["good"] += 1
        except BadPhoto as error:
            assert str(error)
            outcomes["bad"] += 1
    assert min(outcomes.values()) > 20
