"""Embeds every product of a source."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fashion_jax import files
from fashion_jax.data.schema import Schema
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.source import SourceRun


def embed_source(
    model: Predictor, source: str | Path, out: str | Path, *, schema: Schema | None = None, progress: bool = True
) -> int:
    """Writes an npz with `ids` (n,) and `embeddings` float32 (n, features), rows in the order of the source.

    Ids are int64 where all of them are integers, else text. Unusable rows stand in `<out>.quarantine.csv`.

    Args:
        model: from `load_model`.
        source: anything that `open_catalog` reads, labels not needed; a photo or a folder of photos too.
        out: the npz.
        schema: how to read the source's table; None: known or inferred.
        progress: whether to show a bar and a closing sentence.

    Returns:
        The number of products embedded.

    Raises:
        UserError: the source cannot be read, or `out` cannot be written.
    """
    out = Path(out)
    run = SourceRun(model, source, out, schema=schema, progress=progress)
    rows: list[int] = []
    ids: list[str] = []
    parts = [np.empty((0, model.embedding_size), np.float32)]
    for products, outputs in run.batches():
        rows += [product.row for product in products]
        ids += [product.id for product in products]
        parts.append(outputs.embeddings)
    order = np.argsort(rows, kind="stable")
    # A text that an integer would not print the same way ("007") stays text.
    whole = all(i.isdecimal() and str(int(i)) == i and len(i) < 19 for i in ids)
    named = np.array(ids, np.int64) if whole else np.array(ids, dtype=str)
    buffer = io.BytesIO()
    np.savez(buffer, ids=named[order], embeddings=np.concatenate(parts)[order])
    files.write_bytes(out, buffer.getvalue())
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(ids):,} embeddings of {model.embedding_size} features; {note}")
    return len(ids)
