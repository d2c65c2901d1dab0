"""Pictures: grids of photos with captions, and figures as PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fashion_jax.system import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, UNKNOWN = "#1a7f37", "#cf222e", "#57606a"
_FRAME, _QUERY_FRAME = "#d0d7de", "#0969da"
_PHOTO_WIDTH, _PHOTO_HEIGHT, _LINE_HEIGHT = 1.7, 1.9, 0.17  # inches
_FONT_SIZE = 6.5  # points
_LONGEST_LINE = 28  # characters under a photo


@dataclass(frozen=True, slots=True)
class CaptionedPhoto:
    """A photo and the lines of text under it."""

    photo: np.ndarray | None  # uint8 RGB (height, width, 3), of any size; None where it cannot be shown
    lines: Sequence[tuple[str, str]]  # text and colour of each line
    is_query: bool = False  # whether it gets a thick blue frame


def write_photo_grid(path: Path, rows: Sequence[Sequence[CaptionedPhoto]]) -> None:
    """Writes a PNG with rows of photos and the text under each; an empty picture for no rows."""
    from matplotlib.figure import Figure

    count, columns = max(len(rows), 1), max((len(row) for row in rows), default=1)
    text = _LINE_HEIGHT * max((len(item.lines) for row in rows for item in row), default=0)
    height = _PHOTO_HEIGHT + text
    figure = Figure(figsize=(_PHOTO_WIDTH * columns, height * count), dpi=100)
    figure.subplots_adjust(0.01, text / (height * count), 0.99, 0.99, 0.05, 0.05 + text / _PHOTO_HEIGHT)
    for row, items in enumerate(rows):
        for column, item in enumerate(items):
            _draw(figure.add_subplot(count, columns, row * columns + column + 1), item)
    files.write_bytes(path, render_png(figure))


def _draw(axes: Axes, item: CaptionedPhoto) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if item.photo is not None:
        axes.imshow(item.photo, interpolation="lanczos")
    else:
        axes.text(0.5, 0.5, "no photo", ha="center", va="center", fontsize=_FONT_SIZE, color=UNKNOWN)
    for spine in axes.spines.values():
        spine.set_color(_QUERY_FRAME if item.is_query else _FRAME)
        spine.set_linewidth(2.5 if item.is_query else 0.8)
    for number, (text, colour) in enumerate(item.lines, 1):
        axes.annotate(
            shorten(text, _LONGEST_LINE),
            (0.5, 0),
            xycoords="axes fraction",
            xytext=(0, -1.7 * _FONT_SIZE * number),
            textcoords="offset points",
            ha="center",
            fontsize=_FONT_SIZE,
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
