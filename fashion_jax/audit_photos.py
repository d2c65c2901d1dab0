"""What a network says of the photos of a catalogue whose labels are audited, kept in shards."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fashion_jax import files
from fashion_jax.data.manifest import Prepared
from fashion_jax.data.photos import BadPhoto, decode_photo
from fashion_jax.progress import progress_bar
from fashion_jax.serving.predictor import Predictor

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
    key = hashlib.sha256(json.dumps([model.fingerprint, prepared.fingerprint, by]).encode()).hexdigest()
    width = model.embedding_size if by == "embeddings" else model.num_features + model.num_colour_features
    vectors = np.full((len(prepared), width), np.nan, np.float32)
    starts, left = range(0, len(prepared), _SHARD_ROWS), []
    for start in starts:
        shard = _read_shard(folder / f"{start:09}.npz", key)
        part = vectors[start : start + _SHARD_ROWS]
        if shard is not None and shard.shape == part.shape:
            part[:] = shard
        else:
            left.append(start)
    done = len(prepared) - sum(min(_SHARD_ROWS, len(prepared) - start) for start in left)
    with progress_bar(len(prepared), "embedding photos", show=progress, unit="photo", initial=done) as bar:
        for start in left:
            stop = min(start + _SHARD_ROWS, len(prepared))
            for first in range(start, stop, model.batch_size):
                rows = np.arange(first, min(first + model.batch_size, stop))
                photos = [decode_row(prepared, row, *model.size) for row in rows.tolist()]
                good = [photo is not None for photo in photos]
                if any(good):
                    images = np.stack([photo for photo in photos if photo is not None])
                    vectors[rows[good]] = _describe(model, images, by, whole_batches=len(prepared) > model.batch_size)
                bar.update(len(rows))
            with files.replace_file(folder / f"{start:09}.npz") as file:
                np.savez(file, key=np.array(key), embeddings=vectors[start:stop])
    return vectors


def decode_row(prepared: Prepared, row: int, height: int, width: int) -> np.ndarray | None:
    """Returns a row's photo, uint8 RGB (height, width, 3); None where it cannot be decoded."""
    try:
        return decode_photo(prepared.read_photo(row), height, width)
    except BadPhoto:
        return None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns the rows at length 1; rows of zeros stay."""
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def _describe(model: Predictor, images: np.ndarray, by: str, *, whole_batches: bool) -> np.ndarray:
    if by == "embeddings":
        return model.predict_arrays(images, flip=False, whole_batches=whole_batches).embeddings
    said = model.run_network(images, whole_batches=whole_batches, flip=False)
    parts = [said.features, said.colour] if model.num_colour_features else [said.features]
    return np.concatenate([unit(part) for part in parts], 1)


def _read_shard(path: Path, key: str) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays["embeddings"], np.float32) if str(arrays["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
