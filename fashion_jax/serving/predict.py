"""Labels every product of a source."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fashion_jax import files
from fashion_jax.data.schema import Schema
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun


def predict_source(
    model: Predictor, source: str | Path, out: str | Path, *, schema: Schema | None = None, progress: bool = True
) -> int:
    """Writes predictions.csv: id, then per attribute its label and `<attribute>_confidence` in [0, 1].

    Rows stand in the order of the source. Unusable ones stand in `<out>.quarantine.csv` with their reason.

    Args:
        model: from `load_model`.
        source: anything that `open_catalog` reads, labels not needed; a photo or a folder of photos too.
        out: the CSV.
        schema: how to read the source's table; None: known or inferred.
        progress: whether to show a bar and a closing sentence.

    Returns:
        The number of products labelled.

    Raises:
        UserError: the source cannot be read or holds no usable row, or `out` cannot be written.
    """
    run = SourceRun(model, source, out, schema=schema, progress=progress)
    rows: list[tuple[int, list[str]]] = []
    for products, outputs in run.batches():
        for product, labels in zip(products, model.name_labels(outputs), strict=True):
            cells = [text for label, share in labels.values() for text in (label, f"{share:.6f}")]
            rows.append((product.row, [product.id, *cells]))
    rows.sort(key=lambda item: item[0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *(name for a in model.attributes for name in (a, f"{a}_confidence"))])
    writer.writerows(cells for _, cells in rows)
    files.write_text(run.out, text.getvalue())
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(rows):,} products; {note}")
    return len(rows)
