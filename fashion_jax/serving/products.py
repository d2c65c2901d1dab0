"""From predictions of photos to predictions of products, which have one or more photos."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from fashion_jax.data.catalog import Record
from fashion_jax.decision.decisions import Decision, sharpen
from fashion_jax.decision.tags import choose_tags
from fashion_jax.serving.outputs import Outputs, Prediction, label_probabilities, name_labels

_AT_ONCE = 256  # products whose photos are put together at once


def predict_products(
    batches: Iterable[tuple[Sequence[Record], Outputs]],
    num_photos: Mapping[str, int],
    vocabularies: Mapping[str, tuple[str, ...]],
    tags: Mapping[str, tuple[str, ...]],
    decision: Decision | None,
    operating_point: str = "accuracy",
) -> Iterator[tuple[Record, Prediction]]:
    """Yields a prediction of each product, with its first photo's record.

    The photos of a product need not come together. What waits for a product's other photos is kept in memory.

    Args:
        batches: records with the model's outputs for their photos.
        num_photos: product's id -> number of its photos. Photos that turn out to be bad may be missing at the end.
        vocabularies, tags, decision, operating_point: as `name_labels` and `decide` take them.
    """
    waiting: defaultdict[str, list[tuple[Record, Outputs]]] = defaultdict(list)
    whole: list[list[tuple[Record, Outputs]]] = []

    def put_together() -> Iterator[tuple[Record, Prediction]]:
        for start in range(0, len(whole), _AT_ONCE):
            part = [sorted(photos, key=lambda item: item[0].number) for photos in whole[start : start + _AT_ONCE]]
            outputs = Outputs.join([one for photos in part for _, one in photos])
            numbers = np.repeat(np.arange(len(part)), [len(photos) for photos in part])
            found = name_products(outputs, numbers, vocabularies, tags, decision, operating_point)
            yield from zip((photos[0][0] for photos in part), found, strict=True)
        whole.clear()

    for records, outputs in batches:
        single = [place for place, record in enumerate(records) if num_photos[record.id] == 1]
        alone, numbers = outputs.take(single), np.arange(len(single))
        found = name_products(alone, numbers, vocabularies, tags, decision, operating_point)
        yield from zip((records[place] for place in single), found, strict=True)
        for place, record in enumerate(records):
            if num_photos[record.id] > 1:
                waiting[record.id].append((record, outputs.take([place])))
                if len(waiting[record.id]) == num_photos[record.id]:
                    whole.append(waiting.pop(record.id))
        if len(whole) >= _AT_ONCE:
            yield from put_together()
    whole += waiting.values()
    yield from put_together()


def name_products(
    outputs: Outputs,
    products: Int[np.ndarray, " n"],
    vocabularies: Mapping[str, tuple[str, ...]],
    tags: Mapping[str, tuple[str, ...]],
    decision: Decision | None,
    operating_point: str = "accuracy",
) -> list[Prediction]:
    """Returns a prediction of each product, with the number of its photos, and whether they disagree.

    Args:
        outputs: of photos.
        products: of each photo: its product, a number from 0; predictions come in their order.
    """
    pooled = pool_photos(outputs, products, decision, operating_point)
    counts = np.bincount(products, minlength=len(pooled.embeddings))
    disagree = np.zeros(len(counts), bool)
    for labels in outputs.labels.values():
        np.logical_or.at(disagree, products, labels != labels[_first_photos(products)][products])
    for chosen in outputs.tags.values():
        np.logical_or.at(disagree, products, (chosen != chosen[_first_photos(products)][products]).any(1))
    predictions = name_labels(pooled, vocabularies, tags)
    for prediction, count, differ in zip(predictions, counts.tolist(), disagree.tolist(), strict=True):
        prediction.num_photos, prediction.photos_disagree = count, differ
    return predictions


def pool_photos(
    outputs: Outputs, products: Int[np.ndarray, " n"], decision: Decision | None, operating_point: str = "accuracy"
) -> Outputs:
    """Returns the outputs of products.

    A product's probabilities are the mean of its photos', calibrated by the head's product temperature where there are
    several photos. Labels, accepted labels and label sets are chosen from them. Features, embeddings and scores are
    means of the photos'. Colour features are left out.

    Args:
        outputs: of photos.
        products: of each photo: its product, a number from 0; none is left out.
    """
    counts = np.bincount(products)
    if len(counts) == len(products) and (products[:-1] <= products[1:]).all():
        return outputs  # each product has one photo
    order = np.argsort(products, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def mean(values: np.ndarray) -> np.ndarray:
        wide = values[order].astype(np.float64)
        means = np.add.reduceat(wide, starts) / counts.reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(means.astype(values.dtype))

    several = counts > 1
    log_probs = {}
    for name, values in outputs.probabilities.items():
        logs = np.log(np.maximum(mean(values).astype(np.float64), np.finfo(np.float32).tiny))
        if decision is not None:
            logs[several] = sharpen(logs[several], decision.heads[name].product_temperature)
        log_probs[name] = logs
    chosen = label_probabilities(decision, log_probs, operating_point)
    shares = {name: mean(values) for name, values in outputs.tag_probabilities.items()}
    pooled = dataclasses.replace(
        chosen,
        features=mean(outputs.features),
        embeddings=mean(outputs.embeddings),
        tag_probabilities=shares,
        tags=choose_tags({} if decision is None else decision.tags, shares),
    )
    if outputs.out_of_catalogue is None or decision is None or decision.out_of_catalogue is None:
        return pooled
    scores = mean(outputs.out_of_catalogue)
    return dataclasses.replace(
        pooled, out_of_catalogue=scores, is_out_of_catalogue=scores > decision.out_of_catalogue.threshold
    )


def number_products(ids: np.ndarray) -> Int[np.ndarray, " n"]:
    """Returns a number for each photo, from 0 in the order in which their products come; equal for one product."""
    _, first, numbers = np.unique(ids, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[numbers.reshape(-1)])


def _first_photos(products: Int[np.ndarray, " n"]) -> Int[np.ndarray, " products"]:
    """Returns the place of each product's first photo."""
    return np.unique(products, return_index=True)[1]
