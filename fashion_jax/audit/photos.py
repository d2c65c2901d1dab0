"""What the network computes from the photos of a catalogue that is audited."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from fashion_jax.audit.judges import Probabilities
from fashion_jax.data.photos import BadPhoto, decode_photo
from fashion_jax.data.records import Prepared
from fashion_jax.serving.predictor import Predictor
from fashion_jax.serving.shards import SHARD_ROWS, Shards, remedy
from fashion_jax.serving.source import predict_photos
from fashion_jax.system import stored
from fashion_jax.system.progress import progress_bar
from fashion_jax.system.vectors import unit


@dataclass(frozen=True, slots=True)
class PhotoOutputs:
    """What the network computes from n photos; a photo that cannot be decoded has NaN."""

    # float32 (n, size), the pooled features scaled to length 1; for a network with colour heads, the colour features
    # follow, also scaled to length 1, because its pooled features know little of colour
    features: Float32[np.ndarray, "n size"]
    # attribute, multi-valued ones too -> float32 (n, classes of the head); NaN for rows that are not new to the network
    probabilities: dict[str, Float32[np.ndarray, "n classes"]]


def find_new_rows(prepared: Prepared, trained: Set[str] | None) -> Bool[np.ndarray, " n"]:
    """Returns which rows show a product that is new to the network and no near-duplicate of a training product.

    Args:
        trained: ids of the products that the network was trained on. Where it is empty or None, or the records have no
            column of ids, no row counts as new.
    """
    if not trained or not prepared.schema.id_column:
        return np.zeros(len(prepared), bool)
    known = np.isin(prepared.ids.astype(str), sorted(trained))
    return np.asarray(~np.isin(prepared.groups, prepared.groups[known]))


def run_network(
    model: Predictor, prepared: Prepared, new: Bool[np.ndarray, " n"], folder: Path, *, progress: bool = True
) -> PhotoOutputs:
    """Runs the network on all records; shards in `folder` save a second run the work.

    Args:
        new: rows whose probabilities are needed, from `find_new_rows`.
        folder: of the shards; those of another network or of other records are removed.
    """
    names = [*model.attributes, *model.tags]
    total, ends = len(prepared), np.cumsum([len(classes) for classes in {**model.classes, **model.tags}.values()])
    features = np.full((total, model.num_features + model.num_colour_features), np.nan, np.float32)
    probabilities = np.full((total, ends[-1]), np.nan, np.float32)
    shards = Shards(folder, [model.fingerprint, prepared.fingerprint, np.flatnonzero(new).tolist()])
    done = np.zeros(total, bool)
    for arrays in shards.read():
        with stored.reading(folder, remedy(folder)):
            rows = arrays["rows"]
            features[rows], done[rows] = arrays["features"], True
            probabilities[rows[new[rows]]] = arrays["probabilities"]
    with progress_bar(total, "looking at photos", show=progress, unit="photo", initial=int(done.sum())) as bar:

        def read(rows: np.ndarray) -> Iterator[tuple[int, bytes | BadPhoto]]:
            for row in rows.tolist():
                yield row, prepared.read_photo(row)
                bar.update()

        # Rows that are not new need no mirror images, because only their features are used.
        for part, flip in ((~new, False), (new, None)):
            left = np.flatnonzero(part & ~done)
            for start in range(0, len(left), SHARD_ROWS):
                rows = left[start : start + SHARD_ROWS]
                for seen, outputs in predict_photos(
                    model, read(rows), decode=lambda data: decode_photo(data, *model.size), flip=flip
                ):
                    parts = (
                        [outputs.features, outputs.colour_features] if model.num_colour_features else [outputs.features]
                    )
                    features[seen] = np.concatenate([unit(part) for part in parts], 1)
                    if flip is None:
                        every = {**outputs.probabilities, **outputs.tag_probabilities}
                        probabilities[seen] = np.concatenate([every[name] for name in names], 1)
                kept = rows[new[rows]]
                shards.write({"rows": rows, "features": features[rows], "probabilities": probabilities[kept]})
    split = np.split(probabilities, ends[:-1], 1)
    return PhotoOutputs(features, dict(zip(names, split, strict=True)))


def average_with_network(
    fitted: Probabilities, outputs: PhotoOutputs, prepared: Prepared, model: Predictor
) -> Probabilities:
    """Returns the mean of the classifiers' and the network's probabilities for rows that are new to the network.

    The network does not remember the labels of these rows, and it knows more than classifiers that were fitted to
    its features. Other rows keep the classifiers' probabilities, and so does an attribute for which the network has no
    head or whose head lacks one of the source's labels.

    Args:
        fitted: for each attribute of the records, float32 (n, classes); then for each class of each multi-valued
            attribute, (n, 2).
        outputs: from `run_network`.
    """
    averaged = []
    for column, (name, classes) in enumerate(prepared.vocabularies.items()):
        numbers = {label: number for number, label in enumerate(model.classes.get(name, ()))}
        given = np.unique(prepared.labels[:, column])
        mean = fitted[column].copy()
        if numbers and all(classes[label] in numbers for label in given[given >= 0]):
            places = np.array([numbers.get(label, -1) for label in classes])
            own = np.where(places >= 0, outputs.probabilities[name][:, places], 0)
            known = np.isfinite(outputs.probabilities[name]).all(1)
            mean[known] = (fitted[column][known] + own[known]) / 2
        averaged.append(mean)
    for name, tags in prepared.tag_vocabularies.items():
        heads = {tag: place for place, tag in enumerate(model.tags.get(name, ()))}
        for tag in tags:
            mean = fitted[len(averaged)].copy()
            if tag in heads:
                share = outputs.probabilities[name][:, heads[tag]]
                seen = np.isfinite(share)
                mean[seen] = (mean[seen] + np.stack([1 - share[seen], share[seen]], 1)) / 2
            averaged.append(mean)
    return averaged
