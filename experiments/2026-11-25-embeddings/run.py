"""Which vector finds products that share the query's labels: the pooled features, or what the heads make of them?

Command: python experiments/2026-11-25-embeddings/run.py --workdir RUN

Compares, on the test rows of a finished run, cosine neighbours of
  features     the pooled features, which `embed` returned then;
  posteriors   square roots of each head's probabilities side by side, so that the cosine is the mean Bhattacharyya
               coefficient of the label distributions (Bhattacharyya 1943; Hellinger 1909), at several temperatures;
  mirrored     posteriors that are means over a photo and its mirror image;
  both         features of length w beside posteriors of length 1.
Writes table.md beside this file: P@10 per label, and of articleType, gender and baseColour at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.special

from fashion_jax.data.manifest import open_prepared
from fashion_jax.evaluation.retrieval import join_labels, retrieval_scores
from fashion_jax.retrieval import JOINT, read_photos
from fashion_jax.runtime import start_devices
from fashion_jax.serving.predictor import load_model

TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
WEIGHTS = (0.25, 0.5, 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a finished run, with its records")
    flags = parser.parse_args()
    start_devices()
    model, prepared = load_model(flags.workdir), open_prepared(flags.workdir / "records")
    rows = prepared.indices("test")
    images = read_photos(prepared, rows, model.size)
    labels = {name: prepared.labels[rows, place].astype(np.int64) for place, name in enumerate(prepared.attributes)}
    labels["all three"] = join_labels(labels, JOINT)
    said = model.run_network(images, flip=False)
    logits, features, mirrored = said.logits, said.features, model.run_network(images, flip=True).logits
    lines = ["| vectors | features | " + " | ".join(labels) + " |", "|---" * (len(labels) + 2) + "|"]
    for name, vectors in candidates(
        features, *({name: said[name] for name in JOINT} for said in (logits, mirrored))
    ).items():
        scores = retrieval_scores(vectors.astype(np.float32), labels, prepared.groups[rows])
        cells = " | ".join(f"{scores[label]['p@10']:.3f}" for label in labels)
        lines.append(f"| {name} | {vectors.shape[1]} | {cells} |")
        print(lines[-1], flush=True)
    text = "# Precision at 10\n\n" + "\n".join(lines) + "\n"
    Path(__file__).with_name("table.md").write_text(text, encoding="utf-8")
    return 0


def candidates(
    features: np.ndarray, logits: dict[str, np.ndarray], mirrored: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns what is compared, by name; `mirrored` has the means over photos and their mirror images."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = {"features": unit}
    for temperature in TEMPERATURES:
        found[f"posteriors, T = {temperature}"] = posteriors(logits, temperature)
    found["posteriors, T = 1, mean of mirror images"] = posteriors(mirrored, 1.0)
    for weight in WEIGHTS:
        found[f"posteriors, T = 1, and {weight} features"] = np.concatenate(
            [posteriors(logits, 1.0), weight * unit], axis=1
        )
    return found


def posteriors(logits: dict[str, np.ndarray], temperature: float) -> np.ndarray:
    """Returns rows of length 1."""
    parts = [np.sqrt(scipy.special.softmax(values / temperature, axis=1)) for values in logits.values()]
    return np.concatenate(parts, axis=1) / np.sqrt(len(parts))


if __name__ == "__main__":
    raise SystemExit(main())
