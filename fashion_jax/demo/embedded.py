"""The demonstration on the embedded catalogue: train, score on clean rows, and say where things are."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fashion_jax.config import Config
from fashion_jax.config_files import load_config
from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.synthetic import DEFAULT_COUNT, wrong_labels
from fashion_jax.experiment import Result, format_scores, train
from fashion_jax.training.interrupt import Interrupted


def run_demo(workdir: Path) -> int:
    """Trains `configs/demo.py` in `workdir` and prints the scores and the paths of what it made.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped it.
    """
    begin = time.monotonic()
    config = load_config("demo")
    print("Training on the embedded catalogue (3,000 drawn products); about three minutes on two cores.")
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
    folder = result.workdir / "evaluation" / "test"
    print(f"\nPhotos with predictions   {folder / 'contact_sheet.png'}")
    print(f"Scores and confusions     {folder}")
    print(f"The model                 {result.package}")
    script = sys.argv[0] if Path(sys.argv[0]).name == "fashion-jax" else "fashion-jax"
    print(f"Took {time.monotonic() - begin:.0f} s. Next: {script} predict --model {workdir} --source PHOTO.jpg")
    return 0


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
