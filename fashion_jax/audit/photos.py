"""What a network says of the photos of a catalogue whose labels are audited, kept in shards."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fashion_jax.audit.judges import Probabilities
from fashion_jax.data.photos import BadPhoto, decode_photo
from fashion_jax.data.records import Prepared
from fashion_jax.serving.predictor import Predictor
from fashion_jax.system import files
from fashion_jax.system.progress import progress_bar
from fashion_jax.system.vectors import unit

DESCRIPTIONS = ("features", "embeddings")
_SHARD_ROWS = 8_192


def describe_photos(
    model: Predictor, prepared: Prepared, folder: Path, *, by: str = "features", progress: bool = True
) -> Float32[np.ndarray, "n features"]:
    """Returns what describes the photos of records, row by row; shards in `folder` spare a second run the work.

    Args:
        model: whose network looks at them.
        prepared: the records.
        folder: of the shards; those of another network, other records or another description are written over.
        by: "features": pooled features and, of a network with colour heads, what these see besides, each of length 1,
            for such a network's pooled features know little of colour; or "embeddings", as `Predictor.embed` has them.
        progress: whether to show a bar.

    Returns:
        float32 (rows, features); a photo that cannot be decoded has NaN.
    """
    width = model.embedding_size if by == "embeddings" else model.num_features + model.num_colour_features

    def describe(images: np.ndarray, whole_batches: bool) -> np.ndarray:
        if by == "embeddings":
            return model.predict_arrays(images, flip=False, whole_batches=whole_batches).embeddings
        said = model.run_network(images, whole_batches=whole_batches, flip=False)
        parts = [said.features, said.colour] if model.num_colour_features else [said.features]
        return np.concatenate([unit(part) for part in parts], 1)

    look = _Look(model, prepared, np.arange(len(prepared)), by, width, describe)
    return look.collect(folder, "embedding photos", progress)


def ask_network(
    model: Predictor,
    prepared: Prepared,
    trained: Set[str],
    probabilities: Probabilities,
    folder: Path,
    *,
    progress: bool = True,
) -> Probabilities:
    """Returns probabilities that are means of a judge's and the network's own, for products new to the network.

    It remembers nothing of those, and knows more than a judge that was fitted to its features. A near-duplicate of a
    training product is none. An attribute that has no head, or labels in the source that its head does not know, is
    left to the judge.

    Args:
        model: the network.
        prepared: the records.
        trained: ids of the products that it was trained on; without any, or of records without a column of ids, nothing
            is known, and nothing changes.
        probabilities: the judge's, per attribute of the records, (rows, classes).
        folder: of the shards, another than that of `describe_photos`.
        progress: whether to show a bar.
    """
    if not trained or not prepared.schema.id_column:
        return probabilities
    known = np.isin(prepared.ids.astype(str), sorted(trained))
    rows = np.flatnonzero(~np.isin(prepared.groups, prepared.groups[known]))
    places: dict[str, np.ndarray] = {}  # attribute -> the head's number of each class
    for column, (name, classes) in enumerate(prepared.vocabularies.items()):
        numbers = {label: number for number, label in enumerate(model.classes.get(name, ()))}
        given = np.unique(prepared.labels[:, column])
        if numbers and all(classes[label] in numbers for label in given[given >= 0]):
            places[name] = np.array([numbers.get(label, -1) for label in classes])
    if not len(rows) or not places:
        return probabilities

    def ask(images: np.ndarray, whole_batches: bool) -> np.ndarray:
        said = model.predict_arrays(images, whole_batches=whole_batches).probabilities
        return np.concatenate([np.where(at >= 0, said[name][:, at], 0) for name, at in places.items()], 1)

    look = _Look(model, prepared, rows, [list(places), rows.tolist()], sum(map(len, places.values())), ask)
    own = look.collect(folder, "asking the network about products new to it", progress)
    sound = np.isfinite(own).all(1)
    parts = dict(zip(places, np.split(own[sound], np.cumsum([len(at) for at in places.values()])[:-1], 1), strict=True))
    mixed = []
    for name, judged in zip(prepared.attributes, probabilities, strict=True):
        mean = judged.copy()
        if name in parts:
            mean[rows[sound]] = (judged[rows[sound]] + parts[name]) / 2
        mixed.append(mean)
    return mixed


@dataclass(frozen=True, slots=True)
class _Look:
    """What is to be found out of each photo of some rows.

    Attributes:
        model: that looks.
        prepared: the records.
        rows: of them.
        kind: of what is found out, as JSON values.
        width: of what is found out.
        see: photos of the model's size, and whether batches are to be whole -> float32 (photos, width).
    """

    model: Predictor
    prepared: Prepared
    rows: np.ndarray
    kind: Any
    width: int
    see: Callable[[np.ndarray, bool], np.ndarray]

    def collect(self, folder: Path, label: str, progress: bool) -> Float32[np.ndarray, "rows width"]:
        """Finds it out, but for what the shards in a folder have; NaN for a photo that cannot be decoded."""
        model, total = self.model, len(self.rows)
        digests = [model.fingerprint, self.prepared.fingerprint, self.kind]
        key = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        found = np.full((total, self.width), np.nan, np.float32)
        left = []
        for start in range(0, total, _SHARD_ROWS):
            shard, part = _read_shard(folder / f"{start:09}.npz", key), found[start : start + _SHARD_ROWS]
            if shard is not None and shard.shape == part.shape:
                part[:] = shard
            else:
                left.append(start)
        done = total - sum(min(_SHARD_ROWS, total - start) for start in left)
        with progress_bar(total, label, show=progress, unit="photo", initial=done) as bar:
            for start in left:
                stop = min(start + _SHARD_ROWS, total)
                for first in range(start, stop, model.batch_size):
                    places = np.arange(first, min(first + model.batch_size, stop))
                    photos = [decode_row(self.prepared, row, *model.size) for row in self.rows[places].tolist()]
                    good = [photo is not None for photo in photos]
                    if any(good):
                        images = np.stack([photo for photo in photos if photo is not None])
                        found[places[good]] = self.see(images, total > model.batch_size)
                    bar.update(len(places))
                with files.replace_file(folder / f"{start:09}.npz") as file:
                    np.savez(file, key=np.array(key), embeddings=found[start:stop])
        return found


def decode_row(prepared: Prepared, row: int, height: int, width: int) -> np.ndarray | None:
    """Returns a row's photo, uint8 RGB (height, width, 3); None where it cannot be decoded."""
    try:
        return decode_photo(prepared.read_photo(row), height, width)
    except BadPhoto:
        return None


def _read_shard(path: Path, key: str) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["embeddings"], np.float32) if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
