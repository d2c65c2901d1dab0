"""Predicts the labels of every product of a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fashion_jax.data.schema import BETWEEN_TAGS, Schema
from fashion_jax.decision.decisions import Decision
from fashion_jax.serving.outputs import Prediction, Predictions, name_labels
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun
from fashion_jax.system import files
from fashion_jax.system.text import format_table

MOST_SHOWN = 20  # products


def predict_source(
    model: Predictor,
    source: str | Path,
    out: str | Path | None = None,
    *,
    schema: Schema | None = None,
    progress: bool = True,
    operating_point: str = "accuracy",
) -> Predictions:
    """Predicts the products of a source, and writes predictions.csv.

    The columns are id, then for each attribute its label and `<attribute>_confidence` in [0, 1]. Where the package has
    a decision, `<attribute>_accepted` (1 or 0) follows, and the last columns are `out_of_catalogue` (a score) and
    `is_out_of_catalogue` (1 or 0). A multi-valued attribute has its classes, the most probable first, with `|` between
    them (`Casual|Summer`), and their probabilities in the same order (`0.970000|0.810000`); both cells are empty where
    no class is predicted. Rows keep the order of the source. `<out>.quarantine.csv` lists unusable rows with
    their reason.

    Args:
        source: anything that `open_catalog` reads, with or without labels; also a photo or a folder of photos.
        out: the file to write; None writes nothing.
        schema: how to read the source's table; None: known or inferred.
        operating_point: as `Predictor.predict_arrays` takes it.

    Returns:
        The predictions in the order of the source, named by the products' ids.

    Raises:
        UserError: the source cannot be read or holds no usable row, `out` cannot be written, or the package has no such
            operating point.
    """
    run = SourceRun(model, source, out, schema=schema, progress=progress, operating_point=operating_point)
    found: list[tuple[int, str, Prediction]] = []
    for records, outputs in run.batches():
        for record, prediction in zip(records, name_labels(outputs, model.classes, model.tags), strict=True):
            found.append((record.number, record.id, prediction))
    found.sort(key=lambda item: item[0])
    predictions = Predictions((item[2] for item in found), (item[1] for item in found))
    if out is not None:
        header = ["id", *prediction_columns(model.attributes, model.package.decision, tuple(model.tags))]
        rows = ([name, *prediction_cells(one)] for name, one in zip(predictions.names, predictions, strict=True))
        files.write_text(run.out, files.format_csv([header, *rows]))
    note = run.write_quarantine()
    if progress:
        print(f"{out or source}: {len(predictions):,} products; {note}")
    return predictions


def format_predictions(predictions: Predictions) -> str:
    """Returns a table of the first 20 products: id, and for each attribute its labels and probabilities."""
    shown = predictions[:MOST_SHOWN]
    unsure = any(not sure for prediction in shown for sure in prediction.accepted.values())
    rows = [["id", *((*shown[0], *shown[0].tags) if shown else ())]]
    for name, prediction in zip(predictions.names, shown, strict=False):
        marks = {name: "" if sure else "?" for name, sure in prediction.accepted.items()}
        several = (", ".join(f"{label} {p:.0%}" for label, p in found) or "-" for found in prediction.tags.values())
        rows.append([name, *(f"{label} {p:.0%}{marks.get(a, '')}" for a, (label, p) in prediction.items()), *several])
    lines = [format_table(*rows)]
    if len(predictions) > len(shown):
        lines.append(f"... and {len(predictions) - len(shown):,} more products")
    if unsure:
        lines.append("?: not sure enough to be used without a check")
    return "\n".join(lines)


def prediction_columns(attributes: Sequence[str], decision: Decision | None, tags: Sequence[str] = ()) -> list[str]:
    """Returns the names of the columns after `id`."""
    suffixes = ("", "_confidence") if decision is None else ("", "_confidence", "_accepted")
    names = [f"{attribute}{suffix}" for attribute in attributes for suffix in suffixes]
    names += [f"{attribute}{suffix}" for attribute in tags for suffix in ("", "_confidence")]
    if decision is not None and decision.out_of_catalogue is not None:
        names += ["out_of_catalogue", "is_out_of_catalogue"]
    return names


def prediction_cells(prediction: Prediction) -> list[str]:
    """Returns the cells of one product, in the order of `prediction_columns`."""
    cells = []
    for name, value in prediction.to_dict().items():
        if isinstance(value, bool):
            cells.append(str(int(value)))
        elif isinstance(value, float):
            cells.append(f"{value:.{4 if name == 'out_of_catalogue' else 6}f}")
        elif isinstance(value, list):
            cells.append(BETWEEN_TAGS.join(f"{item:.6f}" if isinstance(item, float) else item for item in value))
        else:
            cells.append(value)
    return cells
