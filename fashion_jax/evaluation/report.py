"""A split's scores as files: metrics.json, confusion matrices, tables of classes, and photos with predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, CaptionedPhoto, render_png, shorten, write_photo_grid

_COUNTS_UP_TO = 12  # classes up to which the cells of a picture hold numbers
_SHEET_COLUMNS = 8
_LONGEST_NAME = 40  # characters of a class's name on a picture


def write_evaluation(
    folder: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    confusions: Mapping[str, np.ndarray],
    class_names: Mapping[str, tuple[str, ...]],
    extra: Mapping[str, Any],
    tags: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes metrics.json, and `confusion/<attribute>.csv`, `.png` and `per_class/<attribute>.csv`.

    Args:
        summaries: attribute -> what `summarize` returns.
        confusions: attribute -> counts (classes, classes), [label, prediction].
        class_names: attribute -> names in the order of the labels.
        extra: JSON values that stand beside the attributes.
        tags: multi-valued attribute -> what `summarize_tags` returns; they have no confusion matrix.
    """
    tags = tags or {}
    values = {**extra, "attributes": dict(summaries), **({"multi_valued": dict(tags)} if tags else {})}
    files.write_json(folder / "metrics.json", files.without_nan(values))
    for name, summary in tags.items():
        keys = ("ap", "precision", "recall", "f1", "threshold")
        table = [["class", *keys, "support"]]
        for label, scores in summary["per_class"].items():
            cells = ["" if scores[key] is None else f"{scores[key]:.4f}" for key in keys]
            table.append([label, *cells, str(scores["support"])])
        files.write_text(folder / "per_class" / f"{name}.csv", files.format_csv(table))
    for name, confusion in confusions.items():
        names = class_names[name]
        rows = [["label \\ prediction", *names]]
        rows += [[label, *map(str, counts)] for label, counts in zip(names, confusion.tolist(), strict=True)]
        files.write_text(folder / "confusion" / f"{name}.csv", files.format_csv(rows))
        files.write_bytes(folder / "confusion" / f"{name}.png", draw_confusion(name, confusion, names))
        table = [["class", "precision", "recall", "f1", "support"]]
        for label, scores in summaries[name]["per_class"].items():
            cells = [scores[key] for key in ("precision", "recall", "f1")]
            table.append([label, *("" if c is None else f"{c:.4f}" for c in cells), str(scores["support"])])
        files.write_text(folder / "per_class" / f"{name}.csv", files.format_csv(table))


def draw_confusion(title: str, confusion: np.ndarray, names: tuple[str, ...]) -> bytes:
    """Draws a confusion matrix as PNG: colour is the share of the label's rows, cells hold counts if they are few."""
    from matplotlib.figure import Figure

    count = len(names)
    side = min(4 + 0.24 * count, 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    short = [shorten(name, _LONGEST_NAME) for name in names]
    labels = [f"{name} ({rows:,})" for name, rows in zip(short, confusion.sum(1), strict=True)]
    size = min(9.0, 0.6 * 72 * (side - 4) / max(count, 1))  # points; a row of the picture is 72 (side - 4) / count
    # A class may be named "$5 or $9": that is no formula.
    axes.set_xticks(range(count), short, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(count), labels, fontsize=size, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label (rows)")
    axes.set_title(
        f"{title}: {np.trace(confusion) / max(confusion.sum(), 1):.1%} of {confusion.sum():,} right", parse_math=False
    )
    if count <= _COUNTS_UP_TO:
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", color=colour)
    figure.colorbar(image, ax=axes, label="share of the label's rows", shrink=0.7)
    return render_png(figure)


def write_prediction_sheet(
    path: Path,
    photos: Sequence[UInt8[np.ndarray, "height width 3"]],
    truths: Sequence[Mapping[str, str | None]],
    predictions: Sequence[Mapping[str, tuple[str, float]]],
) -> None:
    """Writes a PNG grid: under each photo its predicted labels, green where right, red (with the label) where wrong.

    Args:
        photos: of any sizes.
        truths: per photo, attribute -> label; None or absent where it is missing (grey).
        predictions: per photo, attribute -> label and its probability in [0, 1].
    """
    cells = []
    for photo, truth, prediction in zip(photos, truths, predictions, strict=True):
        lines = []
        for name, (label, probability) in prediction.items():
            wanted = truth.get(name)
            text = f"{label} {probability:.0%}" + (f" ({wanted})" if wanted not in (None, label) else "")
            lines.append((text, UNKNOWN if wanted is None else RIGHT if wanted == label else WRONG))
        cells.append(CaptionedPhoto(photo, lines))
    columns = _SHEET_COLUMNS
    write_photo_grid(path, [cells[start : start + columns] for start in range(0, len(cells), columns)])
