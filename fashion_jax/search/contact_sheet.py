"""Queries and their neighbours on one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fashion_jax import files
from fashion_jax.pictures import render_png, shorten

_LONGEST_LINE = 24  # characters under a photo
_LINES = 5
_AGREES, _DIFFERS, _PLAIN = "#1a7f37", "#cf222e", "#57606a"


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
            _draw(axes, cell, is_query=column == 0)
    files.write_bytes(path, render_png(figure))


def _draw(axes, cell: Cell, *, is_query: bool) -> None:  # type: ignore[no-untyped-def]
    axes.set_xticks([])
    axes.set_yticks([])
    if cell.photo is not None:
        axes.imshow(cell.photo, interpolation="lanczos")
    else:
        axes.text(0.5, 0.5, "no photo", ha="center", va="center", fontsize=7, color=_PLAIN)
    for spine in axes.spines.values():
        spine.set_color("#0969da" if is_query else "#d0d7de")
        spine.set_linewidth(2.5 if is_query else 0.8)
    for line, (text, agrees) in enumerate(cell.lines[:_LINES]):
        axes.annotate(
            shorten(text, _LONGEST_LINE),
            (0.5, 0),
            xycoords="axes fraction",
            xytext=(0, -10 * (line + 1)),
            textcoords="offset points",
            ha="center",
            fontsize=6,
            color=_PLAIN if agrees is None else _AGREES if agrees else _DIFFERS,
            parse_math=False,
        )
