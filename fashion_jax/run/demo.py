"""The demonstration: draws a catalogue, trains on it, scores the model on clean rows, and searches for products."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fashion_jax.config.files import load_config
from fashion_jax.data.drawn.catalogue import draw, plan, write_catalog, wrong_labels
from fashion_jax.data.photos import encode_photo
from fashion_jax.data.records import open_prepared
from fashion_jax.run.train import Result, format_scores, train
from fashion_jax.search.answers import Answer, draw_answers, parse_ids, product_labels
from fashion_jax.search.gallery import build_index
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import similar
from fashion_jax.serving.predictor import load_model

_QUERIES = 8
_NEIGHBOURS = 6
_NEW_PHOTOS = 6


def run_demo(workdir: Path) -> None:
    """Trains `configs/demo.py` in `workdir`; prints the scores, what was made, and commands to try next."""
    begin = time.monotonic()
    config = load_config("demo")
    count, seed = (int(part) for part in config.data.source.split(":")[1:])
    catalogue, photos = workdir / "catalogue", workdir / "photos"
    print(f"[1/4] Generating {count:,} products with photos and labels")
    if not (catalogue / "styles.csv").is_file():  # it is written last
        write_catalog(catalogue, count, seed)
        write_new_photos(photos, seed + 1)
    config.data.source = str(catalogue)
    print("[2/4] Training: about a minute on two fast cores", flush=True)
    result = train(config, workdir, owns_process=True)
    assert result.test is not None
    print(f"[3/4] Scoring the test split, wrong labels included\n{format_scores(result.test)}")
    print("Accuracy on the test rows whose labels are right (2 % of the catalogue's labels are wrong on purpose):")
    for name, accuracy in clean_accuracy(result, wrong_labels(count, seed)).items():
        print(f"{name:<16}{accuracy:.4f}")
    print("[4/4] Building an index of the catalogue and searching it", flush=True)
    index, agreement = search_demo(result, catalogue)
    print(f"{len(index):,} products indexed; the nearest products share {agreement:.0%} of the labels of the query")
    print(f"\nMade in {time.monotonic() - begin:.0f} s:")
    folder = workdir / "evaluation" / "test"
    for path, about in (
        (catalogue, "the generated catalogue"),
        (photos, f"{_NEW_PHOTOS} photos of products that are not in the catalogue"),
        (result.package, "the model"),
        (folder, "scores and confusion matrices"),
        (folder / "contact_sheet.png", "photos with predictions"),
        (workdir / "index", "the index"),
        (workdir / "neighbours.png", "products and the products that look like them"),
    ):
        print(f"  {path!s:<{len(str(folder)) + 21}}{about}")
    script = sys.argv[0] if Path(sys.argv[0]).name == "fashion-jax" else "fashion-jax"
    photo = sorted(photos.iterdir())[0]
    print("\nTry next:")
    for command in (
        f"predict --model {workdir} --source {photos}",
        f"search --index {workdir / 'index'} --image {photo} -k 5",
        f"search --index {workdir / 'index'} --id {index.ids[0]} --change baseColour=Red -k 5",
        f"audit --model {workdir} --source {catalogue} --out {workdir / 'audit'}",
    ):
        print(f"  {script} {command}")


def write_new_photos(folder: Path, seed: int) -> None:
    """Draws photos of products of another catalogue, each of another kind, named by their colour and article type."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds: set[str] = set()
    for spec in plan(100, seed):
        if len(kinds) < _NEW_PHOTOS and spec.truth["subCategory"] not in kinds:
            kinds.add(spec.truth["subCategory"])
            name = f"{spec.truth['baseColour']} {spec.truth['articleType']}".lower().replace(" ", "-")
            (folder / f"{name}.jpg").write_bytes(encode_photo(draw(spec)))


def search_demo(result: Result, catalogue: Path) -> tuple[Index, float]:
    """Indexes the catalogue, searches it for products of the test split, and draws them in `neighbours.png`.

    Returns:
        The index, and the share of the neighbours' labels that agree with the query's.
    """
    prepared, model = open_prepared(result.workdir / "records"), load_model(result.package)
    index = build_index(model, catalogue, result.workdir / "index", progress=False)
    rows = prepared.indices("test")
    ids = parse_ids(index, prepared.ids[rows[:: max(1, len(rows) // _QUERIES)]][:_QUERIES])
    answers = []
    for name in ids:
        labels = product_labels(index, name)
        hits = similar(index, index.vectors([name]), labels, min(_NEIGHBOURS, len(index) - 1), exclude=[name])
        answers.append(Answer(str(name), labels, hits, id=name))
    draw_answers(index, model, answers, result.workdir / "neighbours.png")
    return index, float(np.mean([n in hit.agrees for a in answers for hit in a.hits for n in a.labels]))


def clean_accuracy(result: Result, wrong: set[tuple[str, str]]) -> dict[str, float]:
    """Returns each attribute's accuracy on test rows whose label is right and not missing.

    Args:
        wrong: (id, attribute) of the labels that are wrong.
    """
    assert result.test is not None
    prepared = open_prepared(result.workdir / "records")
    scores = {}
    for name, predicted in result.test.predictions.items():
        labels = prepared.labels[result.test.rows, prepared.attributes.index(name)]
        clean = np.array([(str(prepared.ids[row]), name) not in wrong for row in result.test.rows]) & (labels >= 0)
        scores[name] = float(np.mean(predicted[clean] == labels[clean]))
    return scores
