"""What all pictures share."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_png(figure: Figure) -> bytes:
    """Returns a figure as PNG; characters that the font lacks become boxes, without a warning for each."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def shorten(text: str, longest: int) -> str:
    """Returns the text, cut to so many characters with an ellipsis where it has more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
