"""The prediction sheet: photos with their predicted labels, on one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, CaptionedPhoto, write_photo_grid

_COLUMNS = 8


def write_prediction_sheet(
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
    cells = []
    for photo, truth, prediction, confidence in zip(photos, truths, predictions, confidences, strict=True):
        lines = []
        for name, label in prediction.items():
            wanted = truth.get(name)
            text = f"{label} {confidence.get(name, float('nan')):.0%}"
            if wanted is not None and wanted != label:
                text += f" ({wanted})"
            lines.append((text, UNKNOWN if wanted is None else RIGHT if wanted == label else WRONG))
        cells.append(CaptionedPhoto(photo, lines))
    write_photo_grid(path, [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)])
