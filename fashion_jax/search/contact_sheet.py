"""Queries and their neighbours on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, draw_captioned, render_png

_LONGEST_LINE = 24  # characters under a photo
_LINES = 5
_QUERY_FRAME, _HIT_FRAME = ("#0969da", 2.5), ("#d0d7de", 0.8)  # colour, width in points


@dataclass(frozen=True, slots=True)
class Cell:
    """A photo and what stands under it.

    Attributes:
        photo: uint8 RGB, or None where it cannot be shown.
        lines: text, and whether it agrees with the query; None for neither.
    """

    photo: np.ndarray | None
    lines: tuple[tuple[str, bool | None], ...]


def write_neighbours(path: Path, rows: Sequence[tuple[Cell, Sequence[Cell]]]) -> None:
    """Writes a PNG: per query a row, the query at its left, then its neighbours, best first.

    Args:
        path: of the PNG.
        rows: query and neighbours.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + max((len(hits) for _, hits in rows), default=0)
    count = max(1, len(rows))
    text = 0.155 * _LINES
    figure = Figure(figsize=(1.45 * columns, (1.6 + text) * count), dpi=100)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.005, text / ((1.6 + text) * count), 0.995, 0.995, 0.04, text / 1.6 + 0.04)
    for row, (query, hits) in enumerate(rows):
        for column, cell in enumerate([query, *hits]):
            axes = figure.add_subplot(count, columns, row * columns + column + 1)
            lines = [(line, UNKNOWN if ok is None else RIGHT if ok else WRONG) for line, ok in cell.lines[:_LINES]]
            frame, width = _QUERY_FRAME if column == 0 else _HIT_FRAME
            draw_captioned(axes, cell.photo, lines, longest=_LONGEST_LINE, font_size=6, frame=frame, frame_width=width)
    files.write_bytes(path, render_png(figure))
