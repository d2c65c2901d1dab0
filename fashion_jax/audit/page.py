"""Writes findings with their photos as one HTML file without links or scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from fashion_jax.data.photos import encode_photo
from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, shorten

_QUALITY = 80  # of the photos on the page
_LONGEST = 400  # characters of a text from the catalogue; longer texts are cut

_HEAD = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Label audit</title><style>
body {{ font: 13px/1.35 sans-serif; margin: 1.5em; color: #1f2328 }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: .8em; padding: 0 }}
li {{ list-style: none; border: 1px solid #d0d7de; border-radius: 4px; padding: .6em; overflow-wrap: anywhere }}
img {{ display: block; height: 120px; margin: 0 auto .4em }}
.given {{ color: {WRONG} }} .suggested {{ color: {RIGHT} }} .faint {{ color: {UNKNOWN} }}
</style></head><body>
"""


@dataclass(frozen=True, slots=True)
class Card:
    """A finding as the page shows it."""

    id: str  # of the product
    title: str  # of the product; may be empty
    attribute: str  # for example colour
    given: str  # the label in the catalogue
    suggested: str  # the label that may be right instead
    score: float  # in [0, 1]; higher for a label that is more probably wrong
    reason: str  # why the label may be wrong, for people
    photo: UInt8[ndarray, "height width 3"] | None  # uint8 RGB (height, width, 3); None where it cannot be decoded


def write_page(path: Path, cards: Sequence[Card], *, total: int, products: int) -> None:
    """Writes the page in one step.

    Args:
        cards: the findings to show, in their order.
    """
    parts = [
        _HEAD,
        f"<h1>Label audit</h1><p>{total:,} labels of {products:,} products may be wrong. This page shows "
        f"{len(cards):,} of them; the label that is most probably wrong comes first. To correct labels, edit "
        "findings.csv: write accept in the column decision, or the right class in the column corrected. Then give the "
        "file to <code>fashion-jax prepare --corrections</code> or "
        "<code>fashion-jax train --corrections</code>.</p><ol>\n",
    ]
    for card in cards:
        image = '<p class="faint">no photo</p>'
        if card.photo is not None:
            data = base64.b64encode(encode_photo(card.photo, _QUALITY)).decode("ascii")
            image = f'<img alt="" src="data:image/jpeg;base64,{data}">'
        parts.append(
            f'<li>{image}<b>{_text(card.attribute)}</b>: <span class="given">{_text(card.given)}</span> &rarr; '
            f'<span class="suggested">{_text(card.suggested)}</span> <span class="faint">{card.score:.3f}</span><br>'
            f'{_text(card.reason)}<br><span class="faint">{_text(card.id)} {_text(card.title)}</span></li>\n'
        )
    parts.append("</ol></body></html>\n")
    files.write_text(path, "".join(parts))


def _text(text: str) -> str:
    """Returns a text of the catalogue as HTML: cut, escaped, and without characters that UTF-8 cannot write."""
    return escape(shorten(text, _LONGEST).encode("utf-8", "replace").decode("utf-8"), quote=True)
