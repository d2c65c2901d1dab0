"""Photos with what the model says of them, on one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, draw_captioned, render_png

_COLUMNS = 8
_LONGEST_LINE = 32  # characters under a photo


def write_contact_sheet(
    path: Path,
    photos: Sequence[UInt8[np.ndarray, "height width 3"]],
    truths: Sequence[Mapping[str, str | None]],
    predictions: Sequence[Mapping[str, str | None]],
    confidences: Sequence[Mapping[str, float]],
) -> None:
    """Writes a PNG grid: under each photo its predicted labels, green where right, red (with the label) where wrong.

    Args:
        path: of the PNG.
        photos: of any sizes.
        truths: per photo, attribute -> label; None or absent where it is missing (grey).
        predictions: per photo, attribute -> label.
        confidences: per photo, attribute -> probability in [0, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heads = max((len(p) for p in predictions), default=0)
    columns = min(_COLUMNS, max(len(photos), 1))
    rows = max(-(-len(photos) // columns), 1)
    figure = Figure(figsize=(1.9 * columns, (2.1 + 0.2 * heads) * rows), dpi=100)
    FigureCanvasAgg(figure)
    # Space between the rows for one line of text per head.
    figure.subplots_adjust(0.01, 0.2 * heads / ((2.1 + 0.2 * heads) * rows), 0.99, 0.99, 0.05, 0.06 + 0.12 * heads)
    for place, (photo, truth, prediction, confidence) in enumerate(
        zip(photos, truths, predictions, confidences, strict=True)
    ):
        axes = figure.add_subplot(rows, columns, place + 1)
        lines = []
        for name, label in prediction.items():
            wanted = truth.get(name)
            text = f"{label} {confidence.get(name, float('nan')):.0%}"
            if wanted is not None and wanted != label:
                text += f" ({wanted})"
            lines.append((text, UNKNOWN if wanted is None else RIGHT if wanted == label else WRONG))
        draw_captioned(axes, photo, lines, longest=_LONGEST_LINE, font_size=6.5)
    files.write_bytes(path, render_png(figure))
