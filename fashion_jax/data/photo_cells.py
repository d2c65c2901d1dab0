"""Photos in a table: the columns that hold them, and the paths in a cell that names several."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from fashion_jax.data.photo_names import is_address, names_photo

_QUOTED = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"")
SAMPLE = 50  # cells that tell what a column holds


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
    sample = cells[cells.astype(bool)].head(SAMPLE)
    if len(sample) and all(isinstance(cell, (bytes, tuple)) for cell in sample):
        return True
    texts = [cell for cell in sample if isinstance(cell, str)]
    return sum(any(map(names_photo, split_photos(cell))) for cell in texts) > len(texts) / 2


def listed(cell: Any) -> list[str | bytes]:
    """Returns the photos of a cell: paths or bytes."""
    if isinstance(cell, str):
        return list(split_photos(cell))
    return [item for item in (cell if isinstance(cell, tuple) else (cell,)) if item]
