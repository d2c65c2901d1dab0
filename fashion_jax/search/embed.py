"""Embeds every product of a source."""

from __future__ import annotations

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
        UserError: the source cannot be read or holds no usable row, or `out` cannot be written.
    """
    run = SourceRun(model, source, out, schema=schema, progress=progress)
    # Each embedding goes to its place at once: a large catalogue's are held in memory only once.
    places = {product.row: place for place, product in enumerate(run.catalog.products)}
    names = [product.id for product in run.catalog.products]
    embeddings = np.empty((len(places), model.embedding_size), np.float32)
    usable = np.zeros(len(places), bool)
    for products, outputs in run.batches():
        chosen = [places[product.row] for product in products]
        embeddings[chosen], usable[chosen] = outputs.embeddings, True
    ids = [name for name, kept in zip(names, usable, strict=True) if kept]
    # A text that an integer would not print the same way ("007") stays text.
    whole = all(len(i) < 19 and i.isdecimal() and str(int(i)) == i for i in ids)
    named = np.array(ids, np.int64) if whole else np.array(ids, dtype=str)
    with files.replace_file(run.out) as file:
        np.savez(file, ids=named, embeddings=embeddings if usable.all() else embeddings[usable])
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(ids):,} embeddings of {model.embedding_size} features; {note}")
    return len(ids)
