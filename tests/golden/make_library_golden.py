"""Golden values of the whole library, made before the modules moved into their folders (commit 85a12ca).

    python tests/golden/make_library_golden.py KAGGLE_FOLDER RECORDS_FOLDER OUT.npz

labels/*, probabilities/*, embeddings: of `small`, for 200 photos of Kaggle's small set.
index/*: an exact and a ScaNN index's answers to 100 queries among 2,000 embeddings, with and without a filter.
steps/*: of each array of the state after 20 steps of configs/small_cpu.py, seed 0: size, norm, sum and 16 values. These
depend on the processor to a few digits; a Zen 4 with two cores made them.

The file library.npz beside this script holds the values. Make a new file after a change and compare. Unfiltered answers
of ScaNN may differ, because its settings are tuned by measured times.

KAGGLE_FOLDER holds styles.csv and images/. RECORDS_FOLDER is made where it is absent.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from fashion_jax import Index, load_model, prepare
from fashion_jax.config.files import load_config
from fashion_jax.run.train import train


def predictions(photos: Path) -> tuple[dict[str, np.ndarray], list[int], np.ndarray]:
    """Returns golden values of 200 photos, and ids and embeddings of 2,000."""
    ids = sorted(int(path.stem) for path in photos.glob("*.jpg"))
    ids = ids[:: len(ids) // 2000][:2000]
    model = load_model("small")
    images = np.stack([model.read(photos / f"{number}.jpg") for number in ids])
    outputs = model.predict_arrays(images[:200])
    found = {f"labels/{name}": outputs.labels[name] for name in model.attributes}
    found |= {f"probabilities/{name}": outputs.probabilities[name] for name in model.attributes}
    embeddings = model.predict_arrays(images, flip=False).embeddings
    return {**found, "embeddings": embeddings[:200]}, ids, embeddings


def answers(table: Path, ids: list[int], embeddings: np.ndarray) -> dict[str, np.ndarray]:
    """Returns golden values of an exact and a ScaNN index."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = {int(row["id"]): row for row in csv.DictReader(file, restkey="more")}
    attributes = {name: [rows[number][name] for number in ids] for name in ("gender", "articleType", "baseColour")}
    found = {}
    for backend in ("exact", "scann"):
        index = Index.build(embeddings, ids, attributes, backend=backend)
        for key, where in ((f"index/{backend}", None), (f"index/{backend}/women", "gender == 'Women'")):
            hits = index.search(embeddings[:100], 10, where=where)
            found |= {f"{key}/ids": hits.ids, f"{key}/scores": hits.scores}
    return found


def steps(records: Path, dtype: str) -> dict[str, np.ndarray]:
    """Returns golden values of a state after 20 steps."""
    durations = dict.fromkeys(("train.duration", "train.evaluate_every", "train.checkpoint_every"), "20 steps")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "w"
        config = load_config("small_cpu", {"data.source": str(records), "model.dtype": dtype, **durations})
        train(config, workdir, finish=False)
        for metadata in (workdir / "checkpoints").rglob("_METADATA"):
            tree = ocp.PyTreeCheckpointer().restore(metadata.parent)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                value = np.asarray(leaf).astype(np.float64).ravel()
                places = np.linspace(0, value.size - 1, min(16, value.size)).astype(int) if value.size else []
                summary = [value.size, np.linalg.norm(value), value.sum()]
                found[f"steps/{dtype}/{jax.tree_util.keystr(path)}"] = np.concatenate([summary, value[places]])
    return found


if __name__ == "__main__":
    kaggle, records, out = (Path(argument) for argument in sys.argv[1:])
    found, ids, embeddings = predictions(kaggle / "images")
    found |= answers(kaggle / "styles.csv", ids, embeddings)
    if not records.exists():
        prepare(kaggle, records)
    for dtype in ("float32", "bfloat16"):
        found |= steps(records, dtype)
    np.savez_compressed(out, **found)
