"""Photos in a table: the columns that hold them, and the paths in a cell that names several."""

from __future__ import annotations

import html
import re
from typing import Any

import pandas as pd

from fashion_jax.data.cell_lists import is_bracketed, read_list
from fashion_jax.data.photo_names import PHOTO_SUFFIXES, is_address, names_photo

_LONGEST_CELL = 20_000  # characters of a cell that is taken apart
_PLAIN = re.compile(r"[\w./\\-]*[\w/\\]")
# Spaces and signs without width.
_BLANK = "\t\n\v\f\r \xa0\u3000\xad\ufeff" + "".join(map(chr, [*range(0x200B, 0x2010), *range(0x2028, 0x2070)]))
_EDGES = _BLANK + ",;|、，；｜"  # what is dropped at the ends of a name
_QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "»": "«", "‘": "’", "`": "`"}
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*+)(?:'|\Z)|\"((?:[^\"\\]|\\.)*+)(?:\"|\Z)|([^,'\"\[\]{}()]++)", re.DOTALL)
_END = f"(?:{'|'.join(map(re.escape, sorted(PHOTO_SUFFIXES, key=len, reverse=True)))})"
# Between two names: signs that hardly stand in names, or spaces, or a slash or dash with spaces around it.
_AFTER_SUFFIX = re.compile(
    rf"(?P<name>{_END}(?:[?][^\s,;]{{0,500}}+)?+)[\"'”]?(?P<sign>\s++(?:[/\\-]++|and|und|et|y)\s++|\s*[^\w\s./\\?%()\[\]{{}}\"'@$-]+\s*|\s++)",
    re.IGNORECASE,
)
_BEFORE_ADDRESS = re.compile(r"(?<![\s,;&^+、，；])[\s,;&^+、，；]++(?=https?://)", re.IGNORECASE)
# What stands behind a photo's name in exports: `::alt=Front` and ` ! alt : Front` (WooCommerce), ` (https://...)`
# (Airtable).
_TOLD = re.compile(rf"({_END})(?:::|\s++!\s|\s++\(https?://[^()\s]++\)\Z).*+", re.IGNORECASE | re.DOTALL)
_IMG = re.compile(r"<img\b[^<>]*?\ssrc\s*+=\s*+[\"']?([^\"'<>\s]++)", re.IGNORECASE)
# Keys of the photo in a JSON object, the likeliest first.
_KEYS = "src url path file filename file_name uri href link image images photo photos name".split()
SAMPLE = 50  # cells that tell what a column holds


def split_photos(cell: str) -> list[str]:
    """Returns the paths or addresses in a cell: one, or several.

    `|` and line ends always divide. Other signs (`;`, `,`, `&`, ` / `, spaces, ...) may stand in a name, so they divide
    only where every part ends like a photo's name, or is an address. Lists and objects as Python or JSON write them
    (`['a.jpg', 'b.jpg']`, `[{"url": "a.jpg"}]`) and HTML images (`<img src="a.jpg">`) are read too. Quotes around a
    path, signs without width and separators at its ends are dropped. So is what some shops write behind a path
    (`a.jpg::alt=...`). A cell of more than 20,000 characters is returned as it is.
    """
    if _PLAIN.fullmatch(cell):
        return [cell]
    text = cell.strip(_BLANK)
    if len(text) > _LONGEST_CELL:
        return [text]
    if text.startswith("<") and "<img" in text.lower() and not re.sub(r"<[^<>]*+>", "", text).strip():
        return [html.unescape(source) for source in _IMG.findall(text)]
    text = re.sub(r"<br\s*+/?>", "\n", text, flags=re.IGNORECASE) if "<" in text else text
    if is_bracketed(text):
        if (parts := _read_list(text)) is not None:
            return parts
        text = text[1:-1].strip()
    if "|" in text or "\n" in text:
        return [part for piece in re.split(r"[|\n]", text) for part in split_photos(piece)]
    return _split_names(text)


def _read_list(text: str) -> list[str] | None:
    """Returns the photos of a list in brackets; None where nothing in it has quotes."""
    if (items := read_list(text)) is not None:
        parts = _walk(items)
        if not any(ord(letter) < 32 for part in parts for letter in part):  # "C:\new" in a list that is no JSON
            return [part.strip() for part in parts if part.strip()]
    found = [(match[1] or match[2] or "", match[3] or "") for match in _QUOTED.finditer(text[1:-1])]
    if not any(quoted for quoted, _ in found):
        return None
    parts = [quoted.replace('\\"', '"').replace("\\'", "'").replace("\\/", "/").strip() for quoted, _ in found]
    bare = [part.strip() for _, part in found]
    if "{" in text[:2] or any(map(names_photo, bare)):  # an object's keys and values, or a list without some quotes
        both = [quoted or part for quoted, part in zip(parts, bare, strict=True)]
        return [part for part in both if names_photo(part)] or [part for part in parts if part]
    return [part for part in parts if part]


def _walk(value: Any) -> list[str]:
    """Returns the photos of a JSON value: texts of lists, and of objects those that their keys or endings tell."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [part for item in value for part in _walk(item)]
    if not isinstance(value, dict):
        return []
    for key in _KEYS:
        if found := [part for name, item in value.items() if name.casefold() == key for part in _walk(item)]:
            return found
    return [part for item in value.values() for part in _walk(item) if names_photo(part) or is_address(part)]


def _split_names(text: str) -> list[str]:
    """Returns the names in a text, without quotes around them and signs behind them."""
    if text[:1] in _QUOTES and text[-1:] in _QUOTES.values():
        found = [(match[1] or match[2], (match[3] or "").strip(_EDGES)) for match in _QUOTED.finditer(text)]
        if len(found) > 1 and not any(bare for _, bare in found):
            return [part for quoted, _ in found if quoted and (part := _clean(quoted))]
    begin, parts, signs = 0, [], set()
    for match in _AFTER_SUFFIX.finditer(text):
        parts.append(_clean(text[begin : match.end("name")]))
        signs |= set(match["sign"]) - set(_BLANK)
        begin = match.end()
    parts = [part for part in (*parts, _clean(text[begin:])) if part]
    addresses = sum(map(is_address, parts))
    # An address may hold these signs: `https://host/?front=a.jpg&back=b.jpg`.
    if len(parts) > 1 and all(map(names_photo, parts)) and (signs <= set(",;") or addresses in (0, len(parts))):
        return parts
    parts = [part for part in map(_clean, _BEFORE_ADDRESS.split(text)) if part]
    if len(parts) > 1 and all(map(is_address, parts)):
        return parts
    text = _clean(text)
    return [text] if text else []


def _clean(text: str) -> str:
    for _ in range(3):  # quotes, signs behind them, and quotes within those
        text = text.strip(_EDGES)
        bare = text.rstrip(_EDGES + ".:*~^&+=#/\\")
        text = bare if names_photo(bare) else _TOLD.sub(r"\1", text)
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            text = text[1:-1]
    return text


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
