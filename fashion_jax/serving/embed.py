"""Embeds the products of a source; a run that was stopped does not compute its embeddings again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from fashion_jax.data.catalog import Catalog, Record, Rejected
from fashion_jax.data.schema import Schema
from fashion_jax.serving.predictor import Outputs, Predictor
from fashion_jax.serving.shards import SHARD_ROWS, Shards, remedy
from fashion_jax.serving.source import SourceRun
from fashion_jax.system import files, stored
from fashion_jax.system.errors import UserError

DTYPES = ("float32", "float16")


@dataclass
class Embedded:
    """The usable records of a source with the model's outputs, in the order of the source."""

    records: list[Record]  # that were usable
    embeddings: Float32[np.ndarray, "n size"]  # of length 1
    labels: dict[str, Int64[np.ndarray, " n"]]  # attribute -> predicted class numbers
    # attribute -> probability in [0, 1] of the source's label where it has one (NaN where the model does not know that
    # class), else of the predicted class
    confidences: dict[str, Float32[np.ndarray, " n"]]
    catalog: Catalog  # the source, with the rows that were left out
    tags: dict[str, Float32[np.ndarray, "n classes"]]  # multi-valued attribute -> probabilities of its classes

    @property
    def ids(self) -> np.ndarray:
        """The products' ids: int64 where all of them are integers, else texts."""
        names = self.text_ids.tolist()
        return np.array(names, np.int64) if are_integers(names) else self.text_ids

    @property
    def text_ids(self) -> np.ndarray:
        """The products' ids as the source writes them."""
        return np.array([record.id for record in self.records], dtype=str)


def are_integers(names: Iterable[str]) -> bool:
    """Returns whether all ids are integers; one that an integer would not print the same way ("007") is a text."""
    return all(len(name) < 19 and name.isdecimal() and str(int(name)) == name for name in names)


def embed_source(
    model: Predictor,
    source: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    schema: Schema | None = None,
    progress: bool = True,
) -> int:
    """Writes an npz with `ids` (n,), `photos` (n,) and `embeddings` (n, size) of length 1, in the order of the source.

    There is a row for each photo; the photos of one product share its id. Ids are int64 where all of them are integers,
    else text; photos are the names of files. `<out>.quarantine.csv` lists unusable rows. A run that was
    stopped continues where it was, as long as the model and the source are the same.

    Args:
        source: anything that `open_catalog` reads, with or without labels; also a photo or a folder of photos.
        dtype: of the embeddings, "float32" or "float16".
        schema: how to read the source's table; None: known or inferred.

    Returns:
        The number of embeddings.

    Raises:
        UserError: the source cannot be read or holds no usable row, or `out` cannot be written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be float32 or float16, not {dtype!r}")
    run = SourceRun(model, source, out, schema=schema, progress=progress, flip=False)
    shards = open_shards(model, run)
    embedded = run_embedding(model, run, shards)
    with files.replace_file(run.out) as file, stored.writing(run.out):
        names = run.catalog.name_photos()
        photos = np.array([names[record.number] for record in embedded.records], dtype=str)
        np.savez(file, ids=embedded.ids, photos=photos, embeddings=embedded.embeddings.astype(dtype))
    shards.remove()
    note = run.write_quarantine()
    if progress:
        print(f"{out}: {len(embedded.records):,} embeddings of size {model.embedding_size}; {note}")
    return len(embedded.records)


def open_shards(model: Predictor, run: SourceRun) -> Shards:
    """Returns the place beside the run's `out` where `run_embedding` keeps what it has computed."""
    folder = run.out.with_name(run.out.name + ".shards")
    return Shards(folder, [model.fingerprint, model.dtype, run.catalog.stamp()])


def run_embedding(model: Predictor, run: SourceRun, shards: Shards) -> Embedded:
    """Embeds the products of a run.

    Args:
        shards: from `open_shards`; the caller removes them when the result is saved.

    Raises:
        UserError: no photo was usable, or the shards cannot be written.
    """
    catalog, heads = run.catalog, model.attributes
    places = {record.number: place for place, record in enumerate(catalog.records)}
    # Each embedding is stored in its place at once, so that memory holds a large catalogue's only once.
    embeddings = np.empty((len(places), model.embedding_size), np.float32)
    labels = np.zeros((len(places), len(heads)), np.int32)
    confidences = np.zeros((len(places), len(heads)), np.float32)
    ends = np.cumsum([len(classes) for classes in model.tags.values()])
    tags = np.zeros((len(places), ends[-1] if len(ends) else 0), np.float32)
    usable = np.zeros(len(places), bool)

    def put(arrays: dict[str, np.ndarray]) -> None:
        where = [places[number] for number in arrays["numbers"].tolist()]
        embeddings[where], labels[where] = arrays["embeddings"], arrays["labels"]
        confidences[where], tags[where], usable[where] = arrays["confidences"], arrays["tags"], True

    done: set[int] = set()
    for arrays in shards.read():
        with stored.reading(shards.folder, remedy(shards.folder)):
            put(arrays)
            done.update(arrays["numbers"].tolist())
    waiting: dict[str, list[np.ndarray]] = defaultdict(list)

    def join_waiting() -> dict[str, np.ndarray]:
        arrays = {name: np.concatenate(parts) for name, parts in waiting.items()}
        waiting.clear()
        return arrays

    for records, outputs in run.batches(done, "embedding"):
        for name, array in _summarise(records, outputs, model, catalog).items():
            waiting[name].append(array)
        if sum(map(len, waiting["numbers"])) >= SHARD_ROWS:
            arrays = join_waiting()
            put(arrays)
            shards.write(arrays)
    if waiting:
        put(join_waiting())
    run.check_enough(int(usable.sum()))
    return Embedded(
        [record for record, kept in zip(catalog.records, usable, strict=True) if kept],
        embeddings if usable.all() else embeddings[usable],
        {head: labels[usable, place].astype(np.int64) for place, head in enumerate(heads)},
        {head: confidences[usable, place] for place, head in enumerate(heads)},
        catalog,
        dict(zip(model.tags, np.split(tags[usable], ends[:-1], 1), strict=True)) if model.tags else {},
    )


def _summarise(records: list[Record], outputs: Outputs, model: Predictor, catalog: Catalog) -> dict[str, np.ndarray]:
    """Returns numbers, embeddings, labels and confidences of records with a finite embedding; rejects the others."""
    lengths = np.linalg.norm(outputs.embeddings, axis=1)
    sound = np.isfinite(lengths) & (lengths > 0)
    for record, good in zip(records, sound, strict=True):
        if not good:
            catalog.rejected.append(Rejected(record.row, record.id, "the embedding of the photo holds NaN or infinity"))
    kept = [record for record, good in zip(records, sound, strict=True) if good]
    labels, confidences = (np.zeros((len(kept), len(model.attributes)), kind) for kind in (np.int64, np.float32))
    columns = {attribute.name: place for place, attribute in enumerate(catalog.schema.attributes)}
    for place, head in enumerate(model.attributes):
        probabilities = outputs.probabilities[head][sound]
        labels[:, place] = outputs.labels[head][sound]
        confidences[:, place] = np.take_along_axis(probabilities, labels[:, place, None], 1)[:, 0]
        numbers = {name: number for number, name in enumerate(model.classes[head])}
        for row, record in enumerate(kept):
            given = record.labels[columns[head]] if head in columns and record.labels else None
            if given is not None:
                confidences[row, place] = probabilities[row, numbers[given]] if given in numbers else np.nan
    return {
        "numbers": np.array([record.number for record in kept], np.int64),
        "embeddings": outputs.embeddings[sound] / lengths[sound, None],
        "labels": labels,
        "confidences": confidences,
        "tags": np.concatenate(
            [np.zeros((len(kept), 0), np.float32), *(outputs.tag_probabilities[name][sound] for name in model.tags)], 1
        ),
    }
