"""Scores the nearest neighbours of a trained run's embeddings, beside baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.data.loader import ResidentPhotos
from fashion_jax.evaluation.colour_histogram import colour_histogram
from fashion_jax.evaluation.neighbours import join_labels, retrieval_scores
from fashion_jax.models.classifier import make_classifier, split_network
from fashion_jax.run.workdir import find_records, load_run_config
from fashion_jax.search import scann
from fashion_jax.search.index import Index
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import files
from fashion_jax.system.errors import UserError

JOINT = ("articleType", "gender", "baseColour")  # a neighbour must agree in all three, where a catalogue has them


def score_retrieval(workdir: str | Path, split: str = "test", *, progress: bool = True) -> dict[str, Any]:
    """Scores the embeddings of a finished run on a split, and writes `evaluation/<split>/retrieval.json`.

    Each row of the split is a query, and the other rows are its candidates. The baselines are random vectors, colour
    histograms, and the features of the same network with random weights. An index of the embeddings, tuned to a recall
    of 0.95, is compared with exact search.

    Args:
        workdir: of a finished run.
        split: "train", "validation" or "test".
        progress: whether to show bars.

    Returns:
        Method -> attribute -> scores, as `retrieval_scores` returns them, and "index" -> recall@10.

    Raises:
        UserError: there is no finished run, or the split has fewer than two rows.
    """
    workdir = Path(workdir)
    config = load_run_config(workdir)
    prepared = find_records(config, workdir)
    rows = prepared.indices(split)
    if len(rows) < 2:
        raise UserError(f"the split {split!r} of {workdir} has {len(rows)} rows; retrieval needs at least two")
    model = load_model(workdir)
    images = ResidentPhotos(prepared, rows, *model.size, label=split, progress=progress).images
    labels = {name: prepared.labels[rows, place].astype(np.int64) for place, name in enumerate(prepared.attributes)}
    if set(JOINT) <= labels.keys():
        labels[" and ".join(JOINT)] = join_labels(labels, JOINT)
    outputs = model.predict_arrays(images, flip=False)
    vectors = {
        "model": outputs.embeddings,
        **({"its pooled features": outputs.features} if model.subspaces else {}),
        "untrained network": untrained_like(model).predict_arrays(images, flip=False).features,
        "colour histogram": np.stack([colour_histogram(image) for image in images]),
        "random": np.random.default_rng(0).normal(size=(len(rows), 64)).astype(np.float32),
    }
    groups = prepared.groups[rows]
    results: dict[str, Any] = {
        method: retrieval_scores(found, labels, groups, progress=progress) for method, found in vectors.items()
    }
    results["index"] = {"recall@10": _index_recall(vectors["model"])}
    files.write_json(workdir / "evaluation" / split / "retrieval.json", results)
    return results


def untrained_like(model: Predictor) -> Predictor:
    """Returns the same network with random weights, seed 0."""
    _, params, batch_stats = split_network(make_classifier(model.package.model, 0))
    return Predictor(dataclasses.replace(model.package, params=params, batch_stats=batch_stats))


def format_retrieval(results: Mapping[str, Any]) -> str:
    """Returns a table with a row per attribute: P@10 of each method, and more scores of the model.

    "all P@10" also counts queries without a relevant candidate, as 0.
    """
    methods = [name for name in results if name != "index"]
    lines = [
        f"{'label':<36}"
        + "".join(f"{m + ' P@10':>24}" for m in methods)
        + f"{'P@1':>8}{'mAP@R':>8}{'nDCG@10':>9}{'all P@10':>10}"
    ]
    for label, own in results["model"].items():
        cells = "".join(f"{results[m][label]['p@10']:>24.4f}" for m in methods)
        lines.append(
            f"{label:<36}{cells}{own['p@1']:>8.4f}{own['map@r']:>8.4f}{own['ndcg@10']:>9.4f}{own['p@10_labelled']:>10.4f}"
        )
    lines.append(f"recall@10 of an index of the model's embeddings: {results['index']['recall@10']:.4f}")
    return "\n".join(lines)


def _index_recall(embeddings: np.ndarray) -> float:
    """Returns the recall@10 of an index of nine tenths of the rows; the other rows are the queries."""
    lengths = np.linalg.norm(embeddings, axis=1)
    sound = np.flatnonzero(lengths > 0)
    asking = np.arange(len(sound)) % 10 == 0
    held, queries = embeddings[sound[~asking]], embeddings[sound[asking]]
    k = min(10, len(held))
    if not k:
        return 1.0
    backend = "scann" if scann.is_available() else "exact"  # "auto" would search few rows exactly
    approximate = Index.build(held, np.arange(len(held)), backend=backend).search(queries, k).ids
    exact = Index.build(held, np.arange(len(held)), backend="exact").search(queries, k).ids
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(approximate, exact, strict=True)]))
