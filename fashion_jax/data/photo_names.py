"""How files of photos are called, and how they begin: suffixes, addresses, the first bytes."""

from __future__ import annotations

import posixpath
import re

from fashion_jax.system.errors import UserError, missing_extra

HEIC_SUFFIXES = (".heic", ".heif", ".hif")  # iPhones and cameras; Pillow reads them with the extra [heif]
# Of the suffixes that Pillow reads, those of photos. Documents, icons, film and data of science are left out.
PHOTO_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".jpe", ".jfif", ".apng", ".avif", ".avifs", ".dib", ".j2c",
    ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm", ".qoi", ".tga", ".tif",
    ".tiff", *HEIC_SUFFIXES,
)  # fmt: skip
HEAD_BYTES = 16  # of a file, which tell whether it is a photo
MAX_PHOTO_BYTES = 100_000_000  # of a photo's file

_ADDRESS = re.compile(
    r"\s*([a-z][a-z0-9+.-]*://|//[^/\\\s.]+\.[^/\\\s]++/|www\.[^/\\\s]++/|data:image/)", re.IGNORECASE
)
_QUERY = re.compile("({})[?#].*$".format("|".join(map(re.escape, PHOTO_SUFFIXES))), re.IGNORECASE | re.DOTALL)
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_PHOTO_WORD = "(?:product[-_ ]?)?(?:images?|img|photos?|pictures?|pics?)"
_PLACEHOLDER = re.compile(
    rf"no[-_ ]?{_PHOTO_WORD}(?:[-_ ]?(?:available|found|yet|selection|icon|placeholder|large|small|default))?"
    rf"|(?:default|missing|blank|empty)[-_ ]?{_PHOTO_WORD}|{_PHOTO_WORD}[-_ ]?(?:not[-_ ]?(?:available|found)|missing)"
    rf"|(?:woocommerce[-_ ]?)?(?:{_PHOTO_WORD}[-_ ]?)?placeholder(?:[-_ ]?{_PHOTO_WORD})?"
    rf"|(?:{_PHOTO_WORD}[-_ ]?)?coming[-_ ]?soon|kein[-_ ]?(?:bild|foto)|sin[-_ ]?(?:imagen|foto)"
    r"|pas[-_ ]?d[-_ ]?image",
    re.IGNORECASE,
)
_LONGEST_PLACEHOLDER = 60  # characters
# Folders of macOS, of Synology and QNAP, of Linux, of Picasa, and of Windows.
_LITTER = frozenset([
    "__MACOSX", ".AppleDouble", ".Trashes", ".Trash", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", ".@__thumb",
    ".sh_thumbnails", ".thumbnails", ".thumbs", ".thumb", ".picasaoriginals", ".ipynb_checkpoints",
])  # fmt: skip
_BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51", b"qoif",
    b"\0\0\0\x0cjP  ",
)  # fmt: skip


def is_address(text: str) -> bool:
    """True for `https://...`, `//host.com/...`, `s3://...`, `www.host.com/...`; not for `file://...`."""
    return _ADDRESS.match(text) is not None and not text.lstrip().lower().startswith("file:")


def without_query(text: str) -> str:
    """Returns a photo's path or address without `?v=1` or `#x` after its suffix."""
    return _QUERY.sub(r"\1", text) if "?" in text or "#" in text else text


def names_photo(text: str) -> bool:
    """True for paths and addresses that end like a photo's name."""
    return without_query(text).lower().endswith(PHOTO_SUFFIXES)


def base_name(path: str) -> str:
    """Returns the last part of a path or address, without its query."""
    return without_query(path).replace("\\", "/").rstrip("/").rpartition("/")[2]


def is_placeholder(path: str) -> bool:
    """True for the file of a picture that shops show where they have no photo: `no-image.jpg`, `placeholder.png`."""
    base = base_name(path)
    return len(base) < _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(posixpath.splitext(base)[0]) is not None


def has_suffix(name: str) -> bool:
    """False for `a`, `v1.2` and `a.jpg_large`, whose first bytes tell what they are; True for `a.json` and `.a`."""
    base = posixpath.basename(name)
    return base.startswith(".") or _SUFFIX.search(base) is not None


def begins_like_photo(head: bytes) -> bool:
    """True where a file's first bytes (HEAD_BYTES of them) are those of a photo that Pillow reads, or of HEIC."""
    if head.startswith(_BEGINNINGS):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis", *HEIC_BRANDS)
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    return bitmap or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_litter(name: str) -> bool:
    """True for files that macOS adds to folders and zips, and for previews and bins that other systems keep."""
    base = posixpath.basename(name)
    return base.startswith("._") or not _LITTER.isdisjoint(name.split("/")[:-1])


def kind_of_file(name: str) -> str:
    """Returns what a file is counted as: its suffix, "no suffix" or "hidden"."""
    base = posixpath.basename(name)
    if base.startswith("."):
        return "hidden"
    return posixpath.splitext(base)[1].lower() if has_suffix(base) else "no suffix"


def readable(name: str) -> str:
    """Returns a file's name as text that can be written. A name that is not UTF-8 is read as Windows-1252."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return name


def enable_heic() -> None:
    """Lets Pillow read HEIC in this process; UserError says what it needs, and what helps without it."""
    try:
        import pillow_heif
    except ImportError as error:
        needed = missing_extra("reading HEIC photos (.heic, .heif)", "heif")
        raise UserError(f"{needed}; or convert the photos to JPEG") from error
    pillow_heif.register_heif_opener()
