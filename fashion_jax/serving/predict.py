"""Predicts the labels of every product of a source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fashion_jax.data.catalog import Record
from fashion_jax.data.schema import BETWEEN_TAGS, Schema
from fashion_jax.decision.decisions import Decision
from fashion_jax.serving.outputs import Prediction, Predictions, name_labels
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.products import predict_products
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
    per_photo: bool = False,
) -> Predictions:
    """Predicts the products of a source, and writes predictions.csv with a line for each product.

    The columns are id, then for each attribute its label and `<attribute>_confidence` in [0, 1]. Where the package has
    a decision, `<attribute>_accepted` (1 or 0) follows, and after the attributes `out_of_catalogue` (a score) and
    `is_out_of_catalogue` (1 or 0). A multi-valued attribute has its classes, the most probable first, with `|` between
    them (`Casual|Summer`), and their probabilities in the same order (`0.970000|0.810000`); both cells are empty where
    no class is predicted. Then come `num_photos` and `photos_disagree` (1 or 0), whether the product's photos alone
    would get different labels. The last columns are those that the source's table carries along, such as price and
    brand (a name that is taken becomes "NAME (table)"). Lines keep the order of the source. `<out>.quarantine.csv`
    lists unusable rows and photos with their reason.

    Args:
        source: anything that `open_catalog` reads, with or without labels; also a photo or a folder of photos.
        out: the file to write; None writes nothing.
        schema: how to read the source's table; None: known or inferred.
        operating_point: as `Predictor.predict_arrays` takes it.
        per_photo: whether to give a line for each photo; its columns are id, photo and those of the attributes.

    Returns:
        The predictions in the order of the source, named by the products' ids, or by the photos with `per_photo`.

    Raises:
        UserError: the source cannot be read or holds no usable row, `out` cannot be written, or the package has no such
            operating point.
    """
    run = SourceRun(model, source, out, schema=schema, progress=progress, operating_point=operating_point)
    decision = model.package.decision
    pairs: Iterable[tuple[Record, Prediction]]
    if per_photo:
        pairs = (
            pair
            for records, outputs in run.batches()
            for pair in zip(records, name_labels(outputs, model.classes, model.tags), strict=True)
        )
    else:
        sizes = run.catalog.count_photos()
        pairs = predict_products(run.batches(), sizes, model.classes, model.tags, decision, operating_point)
    found = sorted(pairs, key=lambda pair: pair[0].number)
    photo_names = run.catalog.name_photos()
    names = (photo_names[record.number] if per_photo else record.id for record, _ in found)
    predictions = Predictions((one for _, one in found), names)
    if out is not None:
        first = ["id", "photo"] if per_photo else ["id"]
        header = [*first, *prediction_columns(model.attributes, decision, tuple(model.tags), per_photo=per_photo)]
        carried = run.catalog.carried
        keys = ([record.id, photo_names[record.number]][: len(first)] for record, _ in found)
        rows = (
            [*name, *prediction_cells(one), *carried.cells(name[0])] for name, (_, one) in zip(keys, found, strict=True)
        )
        files.write_text(run.out, files.format_csv([[*header, *carried.headings(header)], *rows]))
    note = run.write_quarantine()
    if progress:
        photos = sum(one.num_photos or 1 for one in predictions)
        several = f" with {photos:,} photos" if photos != len(predictions) else ""
        print(*([f"{note}\n" for note in run.catalog.carried.notes()] if out is not None else []), sep="", end="")
        print(f"{out or source}: {len(predictions):,} {'photos' if per_photo else 'products'}{several}; {note}")
    return predictions


def format_predictions(predictions: Predictions) -> str:
    """Returns a table of the first 20 products: id, and for each attribute its labels and probabilities."""
    shown = predictions[:MOST_SHOWN]
    unsure = any(not sure for prediction in shown for sure in prediction.accepted.values())
    several = any((prediction.num_photos or 1) > 1 for prediction in shown)
    by_photo = any(prediction.num_photos is None for prediction in shown)
    header = ["photo" if by_photo else "id", *(["photos"] if several else [])]
    rows = [[*header, *((*shown[0], *shown[0].tags) if shown else ())]]
    for name, prediction in zip(predictions.names, shown, strict=False):
        marks = {name: "" if sure else "?" for name, sure in prediction.accepted.items()}
        photos = [f"{prediction.num_photos}{'!' if prediction.photos_disagree else ''}"] if several else []
        labels = (f"{label} {p:.0%}{marks.get(a, '')}" for a, (label, p) in prediction.items())
        tags = (", ".join(f"{label} {p:.0%}" for label, p in found) or "-" for found in prediction.tags.values())
        rows.append([name, *photos, *labels, *tags])
    lines = [format_table(*rows)]
    if len(predictions) > len(shown):
        lines.append(f"... and {len(predictions) - len(shown):,} more {'photos' if by_photo else 'products'}")
    if unsure:
        lines.append("?: not sure enough to be used without a check")
    if any(prediction.photos_disagree for prediction in shown):
        lines.append("!: the product's photos would get different labels when each photo is predicted alone")
    return "\n".join(lines)


def prediction_columns(
    attributes: Sequence[str], decision: Decision | None, tags: Sequence[str] = (), *, per_photo: bool = False
) -> list[str]:
    """Returns the names of the columns after `id`."""
    suffixes = ("", "_confidence") if decision is None else ("", "_confidence", "_accepted")
    names = [f"{attribute}{suffix}" for attribute in attributes for suffix in suffixes]
    names += [f"{attribute}{suffix}" for attribute in tags for suffix in ("", "_confidence")]
    if decision is not None and decision.out_of_catalogue is not None:
        names += ["out_of_catalogue", "is_out_of_catalogue"]
    return names if per_photo else [*names, "num_photos", "photos_disagree"]


def prediction_cells(prediction: Prediction) -> list[str | float]:
    """Returns the cells of one product for `files.format_csv`, in the order of `prediction_columns`."""
    cells: list[str | float] = []
    for name, value in prediction.to_dict().items():
        if isinstance(value, bool):
            cells.append(str(int(value)))
        elif isinstance(value, float):
            cells.append(round(value, 4) if name == "out_of_catalogue" else f"{value:.6f}")  # a score may be negative
        elif isinstance(value, list):
            cells.append(BETWEEN_TAGS.join(f"{item:.6f}" if isinstance(item, float) else item for item in value))
        else:
            cells.append(str(value))
    return cells
