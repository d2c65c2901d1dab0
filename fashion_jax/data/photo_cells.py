"""Photos in a table: the columns that hold them, and the paths in a cell that names several."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from fashion_jax.data.photo_names import is_address, names_photo

_QUOTED = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"")
_NUMBERED = re.compile(r"\d+")
# Words in the headings of columns that hold more photos of a product. Without them the headings are alike.
_VIEWS = set(
    "additional other others more extra alt alternate alternative second secondary third fourth main primary first "
    "front back rear side left right top bottom detail details hover model gallery list all url urls link links src "
    "path paths file files filename name no nr".split()
)
_PHOTO = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "pic", "pics", "foto", "fotos"}
_SAMPLE = 50  # cells


def split_photos(cell: str) -> list[str]:
    """Returns the paths or addresses in a cell: one, or several that are divided by `|`, line ends, `;`, `,` or spaces.

    A list as Python or JSON writes it (`['a.jpg', 'b.jpg']`) is read too. `;`, `,` and spaces divide only if every part
    ends like a photo's name, because they may also stand in a name.
    """
    text = cell.strip()
    if text[:1] + text[-1:] in ("[]", "()", "{}"):
        text = text[1:-1].strip()
        quoted = [one or other.replace('\\"', '"').replace("\\/", "/") for one, other in _QUOTED.findall(text)]
        if quoted:
            return [part.strip() for part in quoted if part.strip()]
    if "|" in text or "\n" in text:
        return [part for piece in re.split(r"[|\n]", text) for part in split_photos(piece)]
    for sign in (r";", r",", r"\s+"):
        parts = [part for part in (piece.strip() for piece in re.split(sign, text)) if part]
        if len(parts) > 1 and all(map(names_photo, parts)):
            return parts
        addresses = re.split(rf"{sign}\s*(?=https?://)", text)
        if len(addresses) > 1 and all(map(is_address, addresses)):
            return [part.strip(" ,;") for part in addresses]
    return [text] if text else []


def holds_photos(cells: pd.Series) -> bool:
    """True for a column of photos' bytes, or of texts of which most name photos."""
    sample = cells[cells.astype(bool)].head(_SAMPLE)
    if len(sample) and all(isinstance(cell, (bytes, tuple)) for cell in sample):
        return True
    texts = [cell for cell in sample if isinstance(cell, str)]
    return sum(any(map(names_photo, split_photos(cell))) for cell in texts) > len(texts) / 2


def more_photo_columns(table: pd.DataFrame, first: str) -> tuple[str, ...]:
    """Returns the columns that hold more photos of a row's product: `Photo 2` and `Photo 3` beside `Photo 1`.

    Their headings differ from the first one's in numbers and in words such as "additional", "front" and "back". A
    column of addresses beside a column of files holds the same photos.
    """
    if not first or any(isinstance(cell, (bytes, tuple)) for cell in table[first].head(_SAMPLE)):
        return ()
    wanted = _plain_heading(first)
    others = [c for c in map(str, table.columns) if c != first and _plain_heading(c) == wanted]
    by_address = _holds_addresses(table[first])
    return tuple(c for c in others if holds_photos(table[c]) and (by_address or not _holds_addresses(table[c])))


def _holds_addresses(cells: pd.Series) -> bool:
    sample = cells[cells.astype(bool)].head(_SAMPLE)
    return any(is_address(photo) for cell in sample if isinstance(cell, str) for photo in split_photos(cell))


def _plain_heading(column: str) -> frozenset[str]:
    """Returns the words of a heading that are no numbers and no views; every word for a photo becomes "photo"."""
    words = re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+", column)
    plain = {word.casefold() for word in words if not _NUMBERED.fullmatch(word)} - _VIEWS
    return frozenset("photo" if word in _PHOTO else word for word in plain) - {"photo"}


def listed(cell: Any) -> list[str | bytes]:
    """Returns the photos of a cell: paths or bytes."""
    if isinstance(cell, str):
        return list(split_photos(cell))
    return [item for item in (cell if isinstance(cell, tuple) else (cell,)) if item]
