"""Scores the nearest neighbours of a trained run's embeddings, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from fashion_jax.data.loader import ResidentPhotos
from fashion_jax.evaluation.neighbours import join_labels, retrieval_scores
from fashion_jax.run.workdir import find_records, load_run_config
from fashion_jax.serving.predictor import load_model
from fashion_jax.system import files
from fashion_jax.system.cielab import product_pixels
from fashion_jax.system.errors import UserError
from fashion_jax.system.text import format_table

JOINT = ("articleType", "gender", "baseColour")  # a neighbour must agree in all three, where a catalogue has them

_BINS = (6, 8, 8)  # of L, a and b
_RANGES = ((0.0, 100.0), (-80.0, 80.0), (-80.0, 80.0))


def score_retrieval(workdir: str | Path, split: str = "test", *, progress: bool = True) -> dict[str, Any]:
    """Scores the embeddings of a finished run on a split, and writes `evaluation/<split>/retrieval.json`.

    Each row of the split is a query, and the other rows are its candidates. The baselines are random vectors and colour
    histograms.

    Args:
        split: "train", "validation" or "test".

    Returns:
        Method -> attribute -> scores, as `retrieval_scores` returns them.

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
        "colour histogram": np.stack([colour_histogram(image) for image in images]),
        "random": np.random.default_rng(0).normal(size=(len(rows), 64)).astype(np.float32),
    }
    groups = prepared.groups[rows]
    results = {method: retrieval_scores(found, labels, groups, progress=progress) for method, found in vectors.items()}
    files.write_json(workdir / "evaluation" / split / "retrieval.json", results)
    return results


def format_retrieval(results: Mapping[str, Any]) -> str:
    """Returns a table with a row per attribute: P@10 of each method, and more scores of the model.

    "all P@10" also counts queries without a relevant candidate, as 0.
    """
    rows = [["label", *(f"{method} P@10" for method in results), "P@1", "mAP@R", "nDCG@10", "all P@10"]]
    for label, own in results["model"].items():
        scores = [results[method][label]["p@10"] for method in results]
        scores += [own[key] for key in ("p@1", "map@r", "ndcg@10", "p@10_labelled")]
        rows.append([label, *(f"{score:.4f}" for score in scores)])
    return format_table(*rows)


def colour_histogram(image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, " bins"]:
    """Returns the square roots of the shares of colours of a photo, the white background left out; of length 1."""
    product = product_pixels(image)
    limits = np.array(_RANGES)
    inside = np.clip(product, limits[:, 0] + 1e-3, limits[:, 1] - 1e-3)
    histogram, _ = np.histogramdd(inside, _BINS, _RANGES)
    return np.sqrt(histogram.reshape(-1) / len(product)).astype(np.float32)
