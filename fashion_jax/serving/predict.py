"""Predicts the labels of every product of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fashion_jax.data.schema import Schema
from fashion_jax.decision.decisions import Decision
from fashion_jax.serving.outputs import Prediction, name_labels
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun
from fashion_jax.system import files


def predict_source(
    model: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    schema: Schema | None = None,
    progress: bool = True,
    operating_point: str = "accuracy",
) -> int:
    """Writes predictions.csv: id, then for each attribute its label and `<attribute>_confidence` in [0, 1].

    Where the package has a decision, `<attribute>_accepted` (1 or 0) follows, and the last columns are
    `out_of_catalogue` (a score) and `is_out_of_catalogue` (1 or 0). Rows keep the order of the source.
    `<out>.quarantine.csv` lists unusable rows with their reason.

    Args:
        source: anything that `open_catalog` reads, with or without labels; also a photo or a folder of photos.
        schema: how to read the source's table; None: known or inferred.
        operating_point: as `Predictor.predict_arrays` takes it.

    Returns:
        The number of products.

    Raises:
        UserError: the source cannot be read or holds no usable row, `out` cannot be written, or the package has no such
            operating point.
    """
    run = SourceRun(model, source, out, schema=schema, progress=progress, operating_point=operating_point)
    rows: list[tuple[int, list[str]]] = []
    for products, outputs in run.batches():
        for product, prediction in zip(products, name_labels(outputs, model.classes), strict=True):
            rows.append((product.row, [product.id, *prediction_cells(prediction)]))
    rows.sort(key=lambda item: item[0])
    header = ["id", *prediction_columns(model.attributes, model.package.decision)]
    files.write_text(run.out, files.format_csv([header, *(cells for _, cells in rows)]))
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(rows):,} products; {note}")
    return len(rows)


def prediction_columns(attributes: Sequence[str], decision: Decision | None) -> list[str]:
    """Returns the names of the columns after `id`."""
    suffixes = ("", "_confidence") if decision is None else ("", "_confidence", "_accepted")
    names = [f"{attribute}{suffix}" for attribute in attributes for suffix in suffixes]
    if decision is not None and decision.out_of_catalogue is not None:
        names += ["out_of_catalogue", "is_out_of_catalogue"]
    return names


def prediction_cells(prediction: Prediction) -> list[str]:
    """Returns the cells of one product, in the order of `prediction_columns`."""
    cells = []
    for name, (label, probability) in prediction.items():
        cells += [label, f"{probability:.6f}"]
        if prediction.accepted:
            cells.append(str(int(prediction.accepted[name])))
    if prediction.out_of_catalogue is not None:
        cells += [f"{prediction.out_of_catalogue:.4f}", str(int(bool(prediction.is_out_of_catalogue)))]
    return cells
