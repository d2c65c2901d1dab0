"""Colour spaces that files name: what comes out is what the same photo shows in sRGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from fashion_jax.data.colour_spaces import to_srgb
from fashion_jax.data.drawn.catalogue import draw, plan
from fashion_jax.data.photos import normalise_image, normalise_photo
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.cielab import ciede2000, to_cielab
from profiles import RGB_PROFILES, cmyk_profile, grey_profile, png, printed, rgb_profile, tagged

COLOURS = [(0, 128, 128), (0, 140, 40), (255, 105, 180), (128, 0, 32), (240, 230, 60), (30, 30, 30), (250, 250, 250)]


def patches(colours=COLOURS, side: int = 16) -> Image.Image:
    row = np.repeat(np.array([colours], np.uint8), side, 1)
    return Image.fromarray(np.repeat(row, side, 0))


PATCHES = patches()


def save(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def difference(image: np.ndarray, wanted: Image.Image | np.ndarray) -> float:
    """Mean CIEDE2000 of two images; 1 is just visible."""
    return float(ciede2000(to_cielab(np.asarray(image)), to_cielab(np.asarray(wanted))).mean())


@pytest.mark.parametrize("name", RGB_PROFILES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_a_wide_space_comes_back_as_srgb_within_half_a_ciede2000(kind, name):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"subsampling": "4:4:4"}}
    data = tagged(PATCHES, RGB_PROFILES[name], kind, **options.get(kind, {}))
    repaired, repairs = normalise_photo(data)
    assert "colour profile" in repairs
    for image in (pixels(repaired), normalise_image(Image.open(io.BytesIO(data)))):
        assert difference(image, PATCHES) < (1 if kind == "AVIF" else 0.5)
        if kind != "AVIF":  # which also mixes the colours at their borders
            assert ciede2000(to_cielab(image), to_cielab(np.asarray(PATCHES))).max() < 1
    untagged = pixels(data) if kind != "AVIF" else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert difference(untagged, PATCHES) > 2  # the profile mattered
    assert normalise_photo(repaired) == (repaired, ())


def test_srgb_under_any_name_keeps_its_bytes():
    lcms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curve = [
        round(65535 * ((v / 1023 + 0.055) / 1.055) ** 2.4 if v > 41 else 65535 * v / 1023 / 12.92) for v in range(1024)
    ]
    srgb = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)
    for profile in (lcms, rgb_profile(*srgb, struct.pack(">I1024H", 1024, *curve))):
        data = save(PATCHES, "JPEG", icc_profile=profile, quality=95)
        assert normalise_photo(data) == (data, ())
    other = save(PATCHES, "JPEG", icc_profile=rgb_profile(*srgb, 1.8), quality=95)
    assert normalise_photo(other)[1] == ("colour profile",)


def test_a_grey_profile_and_an_rgb_profile_hold_for_grey_values():
    grey = Image.new("L", (40, 40), 55)  # 0.2157 of the light, which sRGB writes as 128
    for profile in (grey_profile(1.0), rgb_profile(*RGB_PROFILES["adobe"][:3], 1.0)):
        for mode, kind in (("L", "PNG"), ("L", "JPEG"), ("LA", "PNG")):
            repaired, repairs = normalise_photo(save(grey.convert(mode), kind, icc_profile=profile))
            assert {"grey-scale", "colour profile"} <= set(repairs)
            assert np.abs(pixels(repaired).astype(int) - 128).max() <= 2


def test_a_cmyk_profile_says_how_inks_look():
    inks = Image.frombytes("CMYK", (64, 16), b"".join(printed(ink) * 16 for ink in range(4)) * 16)
    wanted = [(100, 0, 0), (50, 60, 0), (90, 0, 70), (0, 0, 0)]  # CIELAB of paper, magenta, yellow and black
    for kind in ("JPEG", "TIFF"):
        data = save(inks, kind, icc_profile=cmyk_profile(), **({"quality": 98} if kind == "JPEG" else {}))
        repaired, repairs = normalise_photo(data)
        assert {"CMYK", "colour profile"} <= set(repairs)
        lab = to_cielab(pixels(repaired)[8, 8::16])
        assert ciede2000(lab, np.array(wanted, np.float32)).max() < 3
        assert difference(normalise_image(Image.open(io.BytesIO(data))), pixels(repaired)) < 1


def test_a_profile_holds_below_transparency_and_in_palettes():
    cut_out = PATCHES.convert("RGBA")
    cut_out.paste((9, 9, 9, 0), (0, 0, 16, 16))
    wanted = PATCHES.copy()
    wanted.paste((255, 255, 255), (0, 0, 16, 16))
    for image in (cut_out, cut_out.quantize(32)):
        data = tagged(image, RGB_PROFILES["prophoto"], "PNG")
        repaired, repairs = normalise_photo(data)
        assert {"alpha", "colour profile"} <= set(repairs)
        assert difference(pixels(repaired), wanted) < 1


@pytest.mark.parametrize(
    "profile",
    [b"no profile", b"", rgb_profile(*RGB_PROFILES["adobe"])[:200], cmyk_profile(), grey_profile(2.2),
     rgb_profile((0, 0, 0), (0, 0, 0), (0, 0, 0), 2.2), bytes(9_000_000)],
    ids=["garbage", "empty", "cut", "cmyk", "grey", "all black", "large"],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_is_ignored_and_counted(profile):
    if profile:
        data = save(PATCHES, "TIFF", icc_profile=profile)
        repaired, repairs = normalise_photo(data)
        assert repairs == ("not JPEG", "colour profile ignored")
        assert difference(pixels(repaired), PATCHES) < 1
    assert to_srgb(PATCHES, profile) == (PATCHES, "colour profile ignored")


def test_broken_and_overlong_profiles_of_files_do_not_refuse_the_photo():
    rows = np.asarray(PATCHES)
    many = zlib.compress(rgb_profile(*RGB_PROFILES["adobe"]) + bytes(2_000_000))
    profile = rgb_profile(*RGB_PROFILES["adobe"])
    jpeg = save(PATCHES, "JPEG", quality=95, icc_profile=profile)
    cases = {
        "more than Pillow unpacks": png(8, 2, rows, iCCP=b"wide\0\0" + many),
        "no zlib": png(8, 2, rows, iCCP=b"wide\0\0garbage"),
        "a lost part": jpeg.replace(b"ICC_PROFILE\0\x01\x01", b"ICC_PROFILE\0\x01\x02"),
    }
    for case, data in cases.items():
        repaired, repairs = normalise_photo(data)
        assert "colour profile ignored" in repairs, case
        assert difference(pixels(repaired), PATCHES) < 1.5, case
    text = png(8, 2, rows, zTXt=b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
    assert normalise_photo(text)[1] == ("not JPEG",)


@pytest.mark.parametrize(
    ("colour_space", "index", "adobe"),
    [
        (65535, "R03", True), (None, "R03", True), (2, None, True),
        (65535, "R98", False), (1, "R03", False), (65535, None, False),
    ],
)  # fmt: skip
def test_a_cameras_adobe_rgb_is_read_from_exif(colour_space, index, adobe):
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    details[0x9000] = b"0230"
    if colour_space is not None:
        details[0xA001] = colour_space
    if index is not None:
        details[0xA005] = {1: index}
    moved = Image.open(io.BytesIO(tagged(PATCHES, RGB_PROFILES["adobe"], "PNG")))
    moved.info.clear()
    data = save(moved, "JPEG", quality=95, subsampling=0, exif=exif)
    repaired, repairs = normalise_photo(data)
    if adobe:
        assert repairs == ("colour profile",)
        assert difference(pixels(repaired), PATCHES) < 1
        assert difference(normalise_image(Image.open(io.BytesIO(data))), PATCHES) < 1
    else:
        assert (repaired, repairs) == (data, ())


def test_a_png_may_name_gamma_and_chromaticities():
    srgb = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    adobe = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    grey = np.full((20, 20, 3), 55, np.uint8)
    usual = png(8, 2, grey, gAMA=struct.pack(">I", 45455), cHRM=struct.pack(">8I", *srgb))
    assert normalise_photo(usual)[1] == ("not JPEG",)
    named = png(8, 2, grey, sRGB=b"\0", gAMA=struct.pack(">I", 100_000))
    assert normalise_photo(named)[1] == ("not JPEG",)
    for case in (grey, grey[..., 0]):
        linear = png(8, 2 if case.ndim == 3 else 0, case, gAMA=struct.pack(">I", 100_000))
        repaired, repairs = normalise_photo(linear)
        assert "colour profile" in repairs and np.abs(pixels(repaired).astype(int) - 128).max() <= 2
    moved = np.asarray(Image.open(io.BytesIO(tagged(PATCHES, RGB_PROFILES["adobe"], "PNG"))))
    wide = png(8, 2, moved, gAMA=struct.pack(">I", 45455), cHRM=struct.pack(">8I", *adobe))
    assert difference(pixels(normalise_photo(wide)[0]), PATCHES) < 1
    for values in ((0,) * 8, (31270, 0, *srgb[2:]), (31270, 32900, *(64000, 33000) * 3)):
        broken = png(8, 2, np.asarray(PATCHES), gAMA=struct.pack(">I", 45455), cHRM=struct.pack(">8I", *values))
        repaired, repairs = normalise_photo(broken)
        assert "colour profile ignored" in repairs and difference(pixels(repaired), PATCHES) < 1


def test_lab_hsv_and_ycbcr_images_are_converted():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    as_lab = ImageCms.profileToProfile(PATCHES, srgb, lab, outputMode="LAB")
    for image in (
        as_lab,
        Image.open(io.BytesIO(save(as_lab, "TIFF"))),
        PATCHES.convert("HSV"),
        PATCHES.convert("YCbCr"),
    ):
        assert difference(normalise_image(image), PATCHES) < 2, image.mode
    assert "LAB" in normalise_photo(save(as_lab, "TIFF"))[1]
    ycbcr = save(PATCHES, "TIFF", compression="jpeg", quality=95)
    assert difference(pixels(normalise_photo(ycbcr)[0]), PATCHES) < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", RGB_PROFILES)
def test_products_in_a_wide_space_get_the_labels_of_their_srgb_copies(name):
    model = load_model("small")
    products = [Image.fromarray(draw(spec)) for spec in plan(120, seed=7)]
    plain = [save(product, "JPEG", quality=95, subsampling=0) for product in products]
    wide = [tagged(product, RGB_PROFILES[name], "JPEG", quality=95, subsampling=0) for product in products]
    pairs = zip(model.predict(plain), model.predict(wide), strict=True)
    same = [first[attribute][0] == second[attribute][0] for first, second in pairs for attribute in model.attributes]
    assert np.mean(same) >= 0.97
    first, second = model.embed(plain), model.embed(wide)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert cosines.min() >= 0.99
