"""A split's scores as files: metrics.json, and per attribute a confusion matrix and a table of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.system import files
from fashion_jax.system.pictures import render_png, shorten

_COUNTS_UP_TO = 12  # classes up to which the cells of a picture hold numbers
_LONGEST_NAME = 40  # characters of a class's name on a picture


def write_evaluation(
    folder: Path,
    summaries: Mapping[str, Mapping[str, Any]],
    confusions: Mapping[str, np.ndarray],
    class_names: Mapping[str, tuple[str, ...]],
    extra: Mapping[str, Any],
) -> None:
    """Writes metrics.json, and `confusion/<attribute>.csv`, `.png` and `per_class/<attribute>.csv`.

    Args:
        folder: made if absent.
        summaries: attribute -> what `summarize` returns.
        confusions: attribute -> counts (classes, classes), [label, prediction].
        class_names: attribute -> names in the order of the labels.
        extra: JSON values that stand beside the attributes.
    """
    files.write_json(folder / "metrics.json", files.without_nan({**extra, "attributes": dict(summaries)}))
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
