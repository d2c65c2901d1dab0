"""How `fashion-jax search` works: flags become queries, and results become lines, JSON and a picture."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.commands.command import start_for_prediction
from fashion_jax.data.carried import name_columns
from fashion_jax.data.values import cell_text, csv_cell
from fashion_jax.search.answers import Answer, draw_answers, other_columns, parse_ids, product_labels
from fashion_jax.search.attributes import PHOTO, TITLE, Scalar
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import Recommendation, by_attributes, keep_and_change, similar
from fashion_jax.search.where import parse_where
from fashion_jax.serving.outputs import name_labels
from fashion_jax.serving.predictor import Predictor
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

_SHOWN = 8  # columns beside the title that a line shows; the CSV and the JSON have all


def run_search(flags: argparse.Namespace) -> int:
    """Searches and prints the results; UserError for bad input."""
    if sum(bool(query) for query in (flags.image, flags.id, flags.attribute)) != 1:
        raise UserError("give one of --image, --id and --attribute, and only one")
    if (flags.keep or flags.change) and flags.attribute:
        raise UserError("--keep and --change need a product: give --image or --id with them")
    if flags.attribute and (flags.diversity or flags.min_score is not None or flags.weigh):
        raise UserError("--diversity, --min-score and --weigh need a product: give --image or --id with them")
    start_for_prediction()
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
            _print(answer, other_columns(index), len(index) < index.num_photos)
    if flags.csv:
        _write_csv(flags.csv, index, answers)
        print(f"table: {flags.csv}", file=sys.stderr if flags.json else sys.stdout)
    if flags.where and not any(answer.hits for answer in answers):
        for hint in parse_where(flags.where).hints(index.snapshot.attributes):
            print(f"hint: {hint}", file=sys.stderr)
    if flags.contact_sheet:
        model = model or load_index_model(index, flags.model)
        draw_answers(index, model, answers, flags.contact_sheet, flags.source)
        print(f"picture: {flags.contact_sheet}", file=sys.stderr if flags.json else sys.stdout)
    return 0


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
    labels: dict[str, Scalar] = {name: label for name, (label, _) in name_labels(outputs, model.classes)[0].items()}
    vectors = outputs.embeddings
    name = flags.image[0].name + (f" and {len(flags.image) - 1} more" if len(flags.image) > 1 else "")
    return Answer(name, labels, _find(index, vectors, labels, flags, _options(index, flags, None)), images[0])


def _by_id(index: Index, name: int | str, flags: argparse.Namespace) -> Answer:
    labels = product_labels(index, name)
    row = index.attributes([name])[0]
    labels |= {column: row[column] for column in flags.keep if column in row}
    hits = _find(index, index.vectors([name]), labels, flags, _options(index, flags, [name]))
    return Answer(str(name), labels, hits, id=name)


def _print(answer: Answer, others: list[str], several_photos: bool) -> None:
    """Prints a query and its hits.

    Args:
        others: columns that are no labels, such as price; the first few are shown with each hit.
        several_photos: whether products have several photos, so that the one that matched is named.
    """
    print(f"query {answer.name}: " + ", ".join(f"{n} {v}" for n, v in answer.labels.items() if v is not None))
    if not answer.hits:
        print("  nothing was found")
    for place, hit in enumerate(answer.hits, 1):
        differs = ", ".join(f"{name} {value}" for name, value in hit.differs.items())
        known = [(name, cell_text(hit.attributes[name])) for name in others]
        parts = [
            str(hit.attributes.get(TITLE) or ""),
            (hit.photo or "") if several_photos else "",
            ", ".join(f"{name} {text}" for name, text in known[:_SHOWN] if text),
            f"(differs: {differs})" if differs else "",
        ]
        print("  ".join([f"{place:>4}  {hit.score:.4f}  {hit.id}", *filter(None, parts)]))


def _write_csv(path: Path, index: Index, answers: list[Answer]) -> None:
    """Writes a row per hit: query, rank, id, photo, score, and all columns."""
    columns = [name for name in index.columns if name != PHOTO]
    header = ["query", "rank", "id", PHOTO, "score"]
    rows: list[list[str | float]] = [[*header, *name_columns(columns, header).values()]]
    for answer in answers:
        for place, hit in enumerate(answer.hits, 1):
            cells = [csv_cell(value) for value in (hit.id, hit.photo, round(float(hit.score), 6))]
            rows.append([answer.name, place, *cells, *(csv_cell(hit.attributes[name]) for name in columns)])
    files.write_text(path, files.format_csv(rows))


def _as_json(answer: Answer) -> dict[str, Any]:
    hits = [
        {
            "rank": place,
            "id": hit.id,
            "photo": hit.photo,
            "score": hit.score,
            "agrees": list(hit.agrees),
            "attributes": hit.attributes,
        }
        for place, hit in enumerate(answer.hits, 1)
    ]
    return {"query": answer.name, "labels": answer.labels, "hits": hits}


def load_index_model(index: Index, given: Path | None) -> Predictor:
    """Loads the model that made an index; UserError when the index does not name it, or another model is given."""
    from fashion_jax.search.gallery import check_model
    from fashion_jax.serving.predictor import load_model

    where = given or index.about.get("model", "")
    if not where:
        raise UserError("the index does not say which model made it; name the model with --model")
    model = load_model(where)
    check_model(index, model)
    return model


def parse_pairs(pairs: list[str], flag: str) -> dict[str, str]:
    """Returns COLUMN=VALUE arguments as a dictionary; UserError for an argument of another form."""
    found = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not name or not value:
            raise UserError(f"{flag} takes COLUMN=VALUE, such as baseColour=Red, not {pair!r}")
        found[name.strip()] = value.strip()
    return found


def print_json(value: Any) -> None:
    """Prints a value as JSON; letters of any language stay as they are."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
