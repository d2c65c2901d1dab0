"""From the colour space that a photo's file names to sRGB, as a browser shows the photo."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

CONVERTED, IGNORED = "colour profile", "colour profile ignored"  # names of repairs

_MAX_PROFILE = 8_000_000  # bytes; the profiles of printing presses have about 2 million
_COLOUR_MODES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}  # Pillow's mode -> a profile's colour space
_SPACE = slice(16, 20)  # where a profile's header names its colour space
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# White point, red, green, blue: x and y of each.
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256  # and its gamma
_SAME = 2  # a profile that changes no value of 0 to 255 by more is sRGB, as some program wrote it
_FLAT = 64  # a profile that maps all colours to a smaller range than this is damaged

# ICC.1:2022, annex E: the Bradford adaptation to the white point D50.
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])

_EXIF_IFD, _INTEROP_IFD = 0x8769, 0xA005
_COLOUR_SPACE, _INTEROP_INDEX = 0xA001, 0x0001
_MAX_EXIF = 1_000_000  # bytes; a JPEG holds 65,533, and every two of them may become a number


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Converts a photo's colours with its profile; relative colorimetric, with black point compensation.

    Args:
        image: of the mode RGB, L, CMYK or LAB, without alpha.
        profile: what `find_profile` returned.

    Returns:
        The photo, and the name of the repair: None for an sRGB profile; "colour profile" if the photo was converted,
        which makes it RGB; "colour profile ignored" if the profile is damaged or made for another mode.
    """
    if image.mode == "L" and profile[_SPACE] == b"RGB ":
        image = image.convert("RGB")  # grey values that stand for three equal ones; browsers do the same
    transform = _transform(profile, image.mode) if 0 < len(profile) <= _MAX_PROFILE else "unusable"
    if transform == "unusable":
        return image, IGNORED
    if transform == "same":
        return image, None
    return _apply(transform, image), CONVERTED


def is_srgb(image: Image.Image) -> bool:
    """True if an RGB photo's file names no colour space but sRGB."""
    profile = find_profile(image)
    return profile is None or (len(profile) <= _MAX_PROFILE and _transform(profile, "RGB") == "same")


def find_profile(image: Image.Image) -> bytes | None:
    """Returns an ICC profile of the colour space that a photo's file names, or None if it names none.

    An embedded profile is preferred. It is empty if the file says that there is one, and it cannot be read. Cameras
    set to Adobe RGB embed none; they write the word "R03" (DCF 2.0) or a colour space of 2 into Exif. A PNG may hold
    gamma and chromaticities instead.
    """
    if "icc_profile" in image.info:
        return bytes(image.info["icc_profile"] or b"")
    if image.mode not in ("CMYK", "LAB") and _exif_names_adobe_rgb(image):
        return _matrix_profile(*_ADOBE_RGB)
    if image.format == "PNG" and "srgb" not in image.info:
        return _png_profile(image)
    return None


def get_exif(image: Image.Image) -> Image.Exif:
    """Returns an image's Exif; an empty one where it is longer than a camera writes."""
    return Image.Exif() if len(image.info.get("exif") or b"") > _MAX_EXIF else image.getexif()


def _exif_names_adobe_rgb(image: Image.Image) -> bool:
    try:
        exif = get_exif(image)
        colour_space = exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE) if _EXIF_IFD in exif else None
        if colour_space in (1, 2) or _EXIF_IFD not in exif:
            return bool(colour_space == 2)
        return str(exif.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX)).startswith("R03")
    except Exception:  # damaged tags name nothing
        return False


def _png_profile(image: Image.Image) -> bytes | None:
    gamma = image.info.get("gamma") or 1 / 2.2
    chromaticities = image.info.get("chromaticity") or _SRGB_CHROMATICITIES
    # Most programs write the values of sRGB, rounded; browsers take a gamma near 1 / 2.2 as sRGB's curve too.
    usual_gamma = abs(gamma * 2.2 - 1) < 0.05
    if usual_gamma and np.allclose(chromaticities, _SRGB_CHROMATICITIES, rtol=0, atol=0.005):
        return None
    try:
        with np.errstate(all="raise"):
            return _matrix_profile(tuple(chromaticities), 1 / gamma)
    except Exception:  # no colours, or a gamma beyond 255
        return b""


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | Literal["same", "unusable"]:
    """Builds the transform from a profile to sRGB once."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        core = source.profile
        if core.xcolor_space != _COLOUR_MODES.get(mode) or core.device_class in ("link", "nmcl"):
            return "unusable"
        transform = ImageCms.buildTransform(
            source, _SRGB, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        )
        samples = _samples(mode)
        converted = np.asarray(_apply(transform, samples)).astype(int)
    except Exception:  # a damaged profile: OSError, PyCMSError, ValueError
        return "unusable"
    if np.ptp(converted) < _FLAT:
        return "unusable"
    if mode in ("RGB", "L") and np.abs(converted - np.asarray(samples.convert("RGB"))).max() <= _SAME:
        return "same"
    return transform


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = transform.apply(image)
    converted.info = {}  # neither the old profile nor a transparent colour holds for the new values
    return converted


def _samples(mode: str) -> Image.Image:
    """Returns an image of a mode that has a grid of all its colours."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, {1: 256, 3: 17, 4: 9}[bands]).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands), -1).reshape(1, -1, bands)
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())


@lru_cache(maxsize=16)
def _matrix_profile(chromaticities: tuple[float, ...], gamma: float) -> bytes:
    """Returns an ICC profile (version 2) of an RGB space: x and y of white, red, green and blue, and one gamma."""
    xy = np.array(chromaticities, np.float64).reshape(4, 2)
    xyz = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]])  # one column for each
    white, primaries = xyz[:, 0], xyz[:, 1:]
    primaries = primaries * np.linalg.solve(primaries, white)
    to_d50 = np.linalg.solve(_BRADFORD, np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD)
    red, green, blue = (to_d50 @ primaries).T
    curve = b"curv" + struct.pack(">4xIHxx", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc" + struct.pack(">4xI5s79x", 5, b"none\0"),
        b"cprt": b"text" + struct.pack(">4x5s3x", b"none\0"),
        b"wtpt": _xyz(_D50), b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s12x4s28x12s48x",
        *(start + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp", _xyz(_D50)[8:]),
    )
    return header + struct.pack(">I", len(tags)) + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *np.round(values * 65536).astype(int).tolist())
