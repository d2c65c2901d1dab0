"""Embeds every product of a source, in shards that a killed run does not compute again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.data.catalog import Catalog, Product, Rejected
from fashion_jax.data.schema import Schema
from fashion_jax.serving.predictor import Outputs, Predictor
from fashion_jax.serving.source import SourceRun
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

DTYPES = ("float32", "float16")
_SHARD_ROWS = 8_192


@dataclass
class Embedded:
    """A source's products as the model sees them, in the order of the source.

    Attributes:
        products: that were usable.
        embeddings: of length 1.
        labels: head -> class numbers that the model says.
        confidences: head -> the probability, in [0, 1], of the source's label where it has one (NaN where that is no
            class of the head), else of the class in `labels`.
        catalog: the source, with the rows that were left out.
    """

    products: list[Product]
    embeddings: Float32[np.ndarray, "n features"]
    labels: dict[str, Int64[np.ndarray, " n"]]
    confidences: dict[str, Float32[np.ndarray, " n"]]
    catalog: Catalog

    @property
    def ids(self) -> np.ndarray:
        """The products' ids: int64 where all of them are integers, else texts."""
        names = self.text_ids.tolist()
        # A text that an integer would not print the same way ("007") stays text.
        whole = all(len(i) < 19 and i.isdecimal() and str(int(i)) == i for i in names)
        return np.array(names, np.int64) if whole else self.text_ids

    @property
    def text_ids(self) -> np.ndarray:
        """The products' ids as the source writes them."""
        return np.array([product.id for product in self.products], dtype=str)


@dataclass
class _Shard:
    """Rows that wait to be written, or were."""

    rows: list[int] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    confidences: list[np.ndarray] = field(default_factory=list)


def embed_source(
    model: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    schema: Schema | None = None,
    progress: bool = True,
) -> int:
    """Writes an npz with `ids` (n,) and `embeddings` (n, features) of length 1, rows in the order of the source.

    Ids are int64 where all of them are integers, else text. Unusable rows stand in `<out>.quarantine.csv`. A run that
    was stopped goes on where it was, as long as model and source are the same.

    Args:
        model: from `load_model`.
        source: anything that `open_catalog` reads, labels not needed; a photo or a folder of photos too.
        out: the npz.
        dtype: of the embeddings, "float32" or "float16".
        schema: how to read the source's table; None: known or inferred.
        progress: whether to show a bar and a closing sentence.

    Returns:
        The number of products embedded.

    Raises:
        UserError: the source cannot be read or holds no usable row, or `out` cannot be written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be float32 or float16, not {dtype!r}")
    run = SourceRun(model, source, out, schema=schema, progress=progress, flip=False)
    embedded = run_embedding(model, run)
    with files.replace_file(run.out) as file:
        np.savez(file, ids=embedded.ids, embeddings=embedded.embeddings.astype(dtype))
    remove_shards(run)
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(embedded.products):,} embeddings of {model.embedding_size} features; {note}")
    return len(embedded.products)


def run_embedding(model: Predictor, run: SourceRun) -> Embedded:
    """Embeds the products of a run, with shards beside its `out` until `remove_shards`.

    Raises:
        UserError: no photo was usable, or the shards cannot be written.
    """
    catalog, folder = run.catalog, _shard_folder(run)
    places = {product.row: place for place, product in enumerate(catalog.products)}
    heads = model.attributes
    # Each embedding goes to its place at once: a large catalogue's are held in memory only once.
    embeddings = np.empty((len(places), model.embedding_size), np.float32)
    labels = np.zeros((len(places), len(heads)), np.int32)
    confidences = np.zeros((len(places), len(heads)), np.float32)
    usable = np.zeros(len(places), bool)

    def put(shard: _Shard) -> None:
        where = [places[row] for row in shard.rows]
        embeddings[where] = np.concatenate(shard.embeddings)
        labels[where], confidences[where] = np.concatenate(shard.labels), np.concatenate(shard.confidences)
        usable[where] = True

    done: set[int] = set()
    for shard in _read_shards(folder, model, run):
        put(shard)
        done.update(shard.rows)
    waiting, number = _Shard(), 1 + max((int(p.stem) for p in folder.glob("*.npz") if p.stem.isdecimal()), default=-1)
    for products, outputs in run.batches(done):
        _collect(waiting, products, outputs, model, catalog)
        if len(waiting.rows) >= _SHARD_ROWS:
            put(waiting)
            _write_shard(folder / f"{number:06}.npz", waiting, model, run)
            waiting, number = _Shard(), number + 1
    if waiting.rows:
        put(waiting)
    if not usable.any():
        examples = "; ".join(f"row {r.row} (id {r.id!r}): {r.reason}" for r in catalog.rejected[:3])
        raise UserError(f"no row of {catalog.source} has an embedding: {examples}")
    return Embedded(
        [product for product, kept in zip(catalog.products, usable, strict=True) if kept],
        embeddings if usable.all() else embeddings[usable],
        {head: labels[usable, place].astype(np.int64) for place, head in enumerate(heads)},
        {head: confidences[usable, place] for place, head in enumerate(heads)},
        catalog,
    )


def remove_shards(run: SourceRun) -> None:
    """Removes what `run_embedding` left, once its result is safe."""
    shutil.rmtree(_shard_folder(run), ignore_errors=True)


def _collect(shard: _Shard, products: list[Product], outputs: Outputs, model: Predictor, catalog: Catalog) -> None:
    lengths = np.linalg.norm(outputs.embeddings, axis=1)
    sound = np.isfinite(lengths) & (lengths > 0)
    for product, good in zip(products, sound, strict=True):
        if not good:
            catalog.rejected.append(Rejected(product.row, product.id, "the model gives it no finite embedding"))
    shard.embeddings.append(outputs.embeddings[sound] / lengths[sound, None])
    kept = [product for product, good in zip(products, sound, strict=True) if good]
    shard.rows += [product.row for product in kept]
    labels, confidences = (np.zeros((len(kept), len(model.attributes)), kind) for kind in (np.int64, np.float32))
    columns = {attribute.name: place for place, attribute in enumerate(catalog.schema.attributes)}
    for place, head in enumerate(model.attributes):
        probabilities = outputs.probabilities[head][sound]
        labels[:, place] = outputs.labels[head][sound]
        confidences[:, place] = np.take_along_axis(probabilities, labels[:, place, None], 1)[:, 0]
        numbers = {name: number for number, name in enumerate(model.classes[head])}
        for row, product in enumerate(kept):
            given = product.labels[columns[head]] if head in columns and product.labels else None
            if given is not None:
                confidences[row, place] = probabilities[row, numbers[given]] if given in numbers else np.nan
    shard.labels.append(labels)
    shard.confidences.append(confidences)


def _shard_folder(run: SourceRun) -> Path:
    return run.out.with_name(run.out.name + ".shards")


def _stamp(model: Predictor, run: SourceRun) -> str:
    return hashlib.sha256(json.dumps([model.fingerprint, model.dtype, run.catalog.stamp()]).encode()).hexdigest()


def _write_shard(path: Path, shard: _Shard, model: Predictor, run: SourceRun) -> None:
    with files.replace_file(path) as file:
        np.savez(
            file,
            stamp=np.array(_stamp(model, run)),
            rows=np.array(shard.rows, np.int64),
            embeddings=np.concatenate(shard.embeddings),
            labels=np.concatenate(shard.labels),
            confidences=np.concatenate(shard.confidences),
        )


def _read_shards(folder: Path, model: Predictor, run: SourceRun) -> Iterator[_Shard]:
    stamp, known = _stamp(model, run), {product.row for product in run.catalog.products}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rows = arrays["rows"].tolist()
                parts = [arrays[name] for name in ("embeddings", "labels", "confidences")]
                ours = str(arrays["stamp"]) == stamp and known.issuperset(rows)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            ours = False
        if not ours:
            path.unlink()  # of another model or source
            continue
        yield _Shard(rows, *([part] for part in parts))
