"""Answers of a search for people: the query, what was found, and a picture of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fashion_jax.search.attributes import CONFIDENCE, PHOTO, TITLE, Scalar
from fashion_jax.search.gallery import PhotoName, open_gallery, read_photos
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import Recommendation
from fashion_jax.serving.predictor import Predictor
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.pictures import RIGHT, UNKNOWN, WRONG, CaptionedPhoto, write_photo_grid

_MOST_DIGITS = 20  # of an id
_MOST_LABELS = 3  # under a photo


@dataclass
class Answer:
    """A query with what was found."""

    name: str  # the query's name, for people
    labels: dict[str, Scalar]  # the query's known labels
    hits: list[Recommendation]  # best first
    photo: np.ndarray | None = None  # the query's photo, or None
    id: int | str | None = None  # the id of the query, if it is a product of the index


def product_labels(index: Index, name: int | str) -> dict[str, Scalar]:
    """Returns the labels that an index knows of a product: its columns without those of `other_columns`."""
    row, others = index.attributes([name])[0], {TITLE, PHOTO, *other_columns(index)}
    return {name: value for name, value in row.items() if name not in others and not name.endswith(CONFIDENCE)}


def other_columns(index: Index) -> list[str]:
    """Returns the columns that are no labels, such as price and brand; none where the index does not know its labels.

    The title, the photo and the model's confidences are not among them.
    """
    labels = index.about.get("labels")
    if not isinstance(labels, list):
        return []
    own = {TITLE, PHOTO, *labels}
    return [name for name in index.columns if name not in own and not name.endswith(CONFIDENCE)]


def parse_ids(index: Index, texts: list[str]) -> list[int | str]:
    """Returns ids of the index's kind; UserError for one that is not there."""
    integers = index.snapshot.ids.dtype.kind == "i"
    found: list[int | str] = []
    for text in texts:
        name: int | str = int(text) if integers and text.isdecimal() and len(text) < _MOST_DIGITS else text
        if name not in index:
            hint = "" if integers else nearest(text, [str(i) for i in index.ids[:20_000]])
            raise UserError(f"the index has no product {text!r}{hint}")
        found.append(name)
    return found


def draw_answers(index: Index, model: Predictor, answers: list[Answer], path: Path, source: str | None = None) -> None:
    """Writes a PNG with a row per query: the query, then the matching photos of its hits, best first.

    Raises:
        UserError: the catalogue of the index cannot be read.
    """
    wanted: list[PhotoName] = [(hit.id, hit.photo) for answer in answers for hit in answer.hits]
    wanted += [(answer.id, None) for answer in answers if answer.id is not None]
    photos = read_photos(open_gallery(index, source), wanted, model)
    rows = []
    for answer in answers:
        known = [name for name in model.attributes if answer.labels.get(name) is not None][:_MOST_LABELS]
        photo = answer.photo if answer.id is None else photos[answer.id, None]
        lines = [(text, UNKNOWN) for text in (answer.name, *(str(answer.labels[name]) for name in known))]
        row = [CaptionedPhoto(photo, lines, is_query=True)]
        for hit in answer.hits:
            lines = [(f"{hit.id}  {hit.score:.2f}", UNKNOWN)]
            lines += [(str(hit.attributes.get(name)), RIGHT if name in hit.agrees else WRONG) for name in known]
            row.append(CaptionedPhoto(photos[hit.id, hit.photo], lines))
        rows.append(row)
    write_photo_grid(path, rows)
