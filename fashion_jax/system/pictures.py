"""What all pictures share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#cf222e", "#57606a"
_FRAME = "#d0d7de"


def draw_captioned(
    axes: Axes,
    photo: np.ndarray | None,
    lines: Sequence[tuple[str, str]],
    *,
    longest: int,
    font_size: float,
    frame: str = _FRAME,
    frame_width: float = 0.8,
) -> None:
    """Draws a photo with lines of text under it.

    Args:
        axes: to draw on.
        photo: uint8 RGB (height, width, 3); None where it cannot be shown.
        lines: text and colour of each.
        longest: characters of a line.
        font_size: in points.
        frame: colour of the frame.
        frame_width: in points.
    """
    axes.set_xticks([])
    axes.set_yticks([])
    if photo is not None:
        axes.imshow(photo, interpolation="lanczos")
    else:
        axes.text(0.5, 0.5, "no photo", ha="center", va="center", fontsize=font_size, color=UNKNOWN)
    for spine in axes.spines.values():
        spine.set_color(frame)
        spine.set_linewidth(frame_width)
    for number, (text, colour) in enumerate(lines, 1):
        axes.annotate(
            shorten(text, longest),
            (0.5, 0),
            xycoords="axes fraction",
            xytext=(0, -1.7 * font_size * number),
            textcoords="offset points",
            ha="center",
            fontsize=font_size,
            color=colour,
            parse_math=False,
        )


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
