"""Answers of a search for people: what a query was, what was found, and the picture of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fashion_jax.search.attributes import Scalar
from fashion_jax.search.contact_sheet import Cell, write_neighbours
from fashion_jax.search.gallery import CONFIDENCE, TITLE, open_gallery, read_photos
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import Recommendation
from fashion_jax.serving.predictor import Predictor
from fashion_jax.system.errors import UserError, nearest

_MOST_DIGITS = 20  # of an id


@dataclass
class Answer:
    """A query with what was found.

    Attributes:
        name: of the query, for people.
        labels: known of it.
        hits: best first.
        photo: of the query, or None.
        id: of the product that is the query, or None.
    """

    name: str
    labels: dict[str, Scalar]
    hits: list[Recommendation]
    photo: np.ndarray | None = None
    id: int | str | None = None


def product_labels(index: Index, name: int | str) -> dict[str, Scalar]:
    """Returns what an index knows of a product, without its title and the model's confidences."""
    row = index.attributes([name])[0]
    return {column: value for column, value in row.items() if column != TITLE and not column.endswith(CONFIDENCE)}


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
    """Writes a contact sheet; UserError where the catalogue of the index cannot be read."""
    ids = [hit.id for answer in answers for hit in answer.hits] + [a.id for a in answers if a.id is not None]
    photos = read_photos(open_gallery(index, source), ids, model)
    rows = []
    for answer in answers:
        known = [name for name in model.attributes if answer.labels.get(name) is not None][:3]
        photo = answer.photo if answer.id is None else photos[answer.id]
        query = Cell(photo, ((answer.name, None), *((str(answer.labels[name]), None) for name in known)))
        cells = []
        for hit in answer.hits:
            lines: list[tuple[str, bool | None]] = [(f"{hit.id}  {hit.score:.2f}", None)]
            lines += [(str(hit.attributes.get(name)), name in hit.agrees) for name in known]
            cells.append(Cell(photos[hit.id], tuple(lines)))
        rows.append((query, cells))
    write_neighbours(path, rows)
