"""`fashion-jax search`: from flags to queries, and from hits to lines, JSON and a picture."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.errors import UserError
from fashion_jax.runtime import start_devices
from fashion_jax.search.attributes import Scalar
from fashion_jax.search.commands import load_index_model, parse_ids, parse_pairs, print_json
from fashion_jax.search.contact_sheet import Cell, write_neighbours
from fashion_jax.search.gallery import CONFIDENCE, TITLE, open_gallery, read_photos
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import Recommendation, by_attributes, keep_and_change, similar
from fashion_jax.search.where import parse_where
from fashion_jax.serving.predictor import Predictor


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


def run_search(flags: argparse.Namespace) -> int:
    """Runs the command; UserError for bad input."""
    asked = [name for name in ("image", "id", "attribute") if getattr(flags, name)]
    if len(asked) != 1:
        raise UserError("give one of --image, --id and --attribute, and not several of them")
    if (flags.keep or flags.change) and flags.attribute:
        raise UserError("--keep and --change need a product: give --image or --id with them")
    if flags.attribute and (flags.diversity or flags.min_score is not None or flags.weigh):
        raise UserError("--diversity, --min-score and --weigh need a product: give --image or --id with them")
    start_devices(training=False)
    index = Index.load(flags.index)
    model: Predictor | None = None
    if flags.image:
        model = load_index_model(index, flags.model)
        answers = [_by_image(index, model, flags)]
    elif flags.id:
        answers = [_by_id(index, name, flags) for name in parse_ids(index, flags.id)]
    else:
        wanted = parse_pairs(flags.attribute, "--attribute")
        hits = by_attributes(index, wanted, min(flags.k, len(index)), flags.where, flags.group_by)
        answers = [Answer(", ".join(f"{n}={v}" for n, v in wanted.items()), dict(wanted), hits)]
    if flags.json:
        print_json([_as_json(answer) for answer in answers])
    else:
        for answer in answers:
            _print(answer)
    if flags.where and not any(answer.hits for answer in answers):
        for hint in parse_where(flags.where).hints(index.snapshot.attributes):
            print(f"hint: {hint}", file=sys.stderr)
    if flags.contact_sheet:
        model = model or load_index_model(index, flags.model)
        draw_answers(index, model, answers, flags.contact_sheet, flags.source)
        print(f"picture: {flags.contact_sheet}", file=sys.stderr if flags.json else sys.stdout)
    return 0


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


def _options(index: Index, flags: argparse.Namespace, exclude: list[int | str] | None) -> dict[str, Any]:
    return {
        "k": max(1, min(flags.k, len(index) - len(exclude or []))) if flags.k > 0 else flags.k,
        "where": flags.where,
        "group_by": flags.group_by,
        "diversity": flags.diversity,
        "min_score": flags.min_score,
        "exclude": exclude,
        "weights": _weights(flags.weigh),
    }


def _weights(pairs: list[str]) -> dict[str, float] | None:
    found = {}
    for name, text in parse_pairs(pairs, "--weigh").items():
        try:
            found[name] = float(text)
        except ValueError:
            raise UserError(f"--weigh takes PART=FACTOR, such as baseColour=3, not {name}={text}") from None
    return found or None


def _find(
    index: Index, vectors: np.ndarray, labels: dict[str, Scalar], flags: argparse.Namespace, options: dict[str, Any]
) -> list[Recommendation]:
    if flags.keep or flags.change:
        return keep_and_change(index, vectors, labels, flags.keep, parse_pairs(flags.change, "--change"), **options)
    return similar(index, vectors, labels, **options)


def _by_image(index: Index, model: Predictor, flags: argparse.Namespace) -> Answer:
    images = np.stack([model.read(path) for path in flags.image])
    outputs = model.predict_arrays(images)
    said = model.name_labels(outputs)[0]
    labels: dict[str, Scalar] = {name: label for name, (label, _) in said.items()}
    vectors = index.project(outputs.embeddings)
    name = flags.image[0].name + (f" and {len(flags.image) - 1} more" if len(flags.image) > 1 else "")
    return Answer(name, labels, _find(index, vectors, labels, flags, _options(index, flags, None)), images[0])


def product_labels(index: Index, name: int | str) -> dict[str, Scalar]:
    """Returns what an index knows of a product, without its title and the model's confidences."""
    row = index.attributes([name])[0]
    return {column: value for column, value in row.items() if column != TITLE and not column.endswith(CONFIDENCE)}


def _by_id(index: Index, name: int | str, flags: argparse.Namespace) -> Answer:
    labels = product_labels(index, name)
    hits = _find(index, index.vectors([name]), labels, flags, _options(index, flags, [name]))
    return Answer(str(name), labels, hits, id=name)


def _print(answer: Answer) -> None:
    print(f"query {answer.name}: " + ", ".join(f"{n} {v}" for n, v in answer.labels.items() if v is not None))
    if not answer.hits:
        print("  nothing was found")
    for place, hit in enumerate(answer.hits, 1):
        differs = ", ".join(f"{name} {value}" for name, value in hit.differs.items())
        title = hit.attributes.get(TITLE) or ""
        print(f"{place:>4}  {hit.score:.4f}  {hit.id}  {title}" + (f"  (differs: {differs})" if differs else ""))


def _as_json(answer: Answer) -> dict[str, Any]:
    hits = [
        {"rank": place, "id": hit.id, "score": hit.score, "agrees": list(hit.agrees), "attributes": hit.attributes}
        for place, hit in enumerate(answer.hits, 1)
    ]
    return {"query": answer.name, "labels": answer.labels, "hits": hits}
