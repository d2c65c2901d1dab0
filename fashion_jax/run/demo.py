"""The demonstration on the embedded catalogue: train, score on clean rows, search, and say where things are."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fashion_jax.config.fields import Config
from fashion_jax.config.files import load_config
from fashion_jax.data.drawn.catalogue import DEFAULT_COUNT, wrong_labels
from fashion_jax.data.records import open_prepared
from fashion_jax.run.train import Result, format_scores, train
from fashion_jax.search.answers import Answer, draw_answers, parse_ids, product_labels
from fashion_jax.search.gallery import build_index
from fashion_jax.search.recommend import similar
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.interrupt import Interrupted

_QUERIES = 12
_NEIGHBOURS = 8


def run_demo(workdir: Path) -> int:
    """Trains `configs/demo.py` in `workdir` and prints the scores and the paths of what it made.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped it.
    """
    begin = time.monotonic()
    config = load_config("demo")
    print("Training on the embedded catalogue (3,000 drawn products); four to five minutes on two cores.")
    try:
        result = train(config, workdir, owns_process=True)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    assert result.test is not None
    print(f"\nScores on the test split, wrong labels included:\n{format_scores(result.test)}")
    print("\nAccuracy on its clean rows (2 % of the catalogue's labels are wrong on purpose; those are left out):")
    for name, accuracy in clean_accuracy(result, config).items():
        print(f"  {name:<16}{accuracy:.4f}")
    sheet = search_demo(result)
    folder = result.workdir / "evaluation" / "test"
    print(f"\nPhotos with predictions   {folder / 'contact_sheet.png'}")
    print(f"Scores and confusions     {folder}")
    print(f"Products and their like   {sheet}")
    print(f"The model                 {result.package}")
    print(f"The index                 {result.workdir / 'index'}")
    script = sys.argv[0] if Path(sys.argv[0]).name == "fashion-jax" else "fashion-jax"
    print(f"Took {time.monotonic() - begin:.0f} s. Next: {script} search --index {workdir / 'index'} --image PHOTO.jpg")
    return 0


def search_demo(result: Result) -> Path:
    """Indexes the whole catalogue, searches it for products of the test split, and draws what was found.

    Returns:
        The picture: queries at the left, their neighbours beside them, green where a label agrees.
    """
    print("\nIndexing the catalogue and searching it")
    prepared, model = open_prepared(result.workdir / "records"), load_model(result.package)
    source = load_config("demo").data.source
    index = build_index(model, source, result.workdir / "index")
    ids = parse_ids(index, prepared.ids[prepared.indices("test")[:: max(1, len(prepared.indices("test")) // _QUERIES)]])
    answers = []
    for name in ids[:_QUERIES]:
        labels = product_labels(index, name)
        hits = similar(index, index.vectors([name]), labels, min(_NEIGHBOURS, len(index) - 1), exclude=[name])
        answers.append(Answer(str(name), labels, hits, id=name))
    sheet = result.workdir / "neighbours.png"
    draw_answers(index, model, answers, sheet)
    agreeing = [name in hit.agrees for answer in answers for hit in answer.hits for name in answer.labels]
    print(f"{len(index):,} products indexed; {np.mean(agreeing):.0%} of the labels of the neighbours drawn agree")
    return sheet


def clean_accuracy(result: Result, config: Config) -> dict[str, float]:
    """Returns each attribute's accuracy on test rows whose label was not falsified and is not missing."""
    assert result.test is not None
    _, _, rest = config.data.source.partition(":")
    count, _, seed = rest.partition(":")
    wrong = wrong_labels(int(count or DEFAULT_COUNT), int(seed or 0))
    prepared = open_prepared(result.workdir / "records")
    scores = {}
    for name, predicted in result.test.predictions.items():
        labels = prepared.labels[result.test.rows, prepared.attributes.index(name)]
        clean = np.array([(str(prepared.ids[row]), name) not in wrong for row in result.test.rows]) & (labels >= 0)
        scores[name] = float(np.mean(predicted[clean] == labels[clean]))
    return scores
