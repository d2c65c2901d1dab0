"""What do a mirror image, a shift by the classes' frequencies and the hierarchy bring to a network that is finished?

Command: python experiments/2026-11-27-ablation/decisions.py --records RECORDS --model small --out results/FILE.md

Nothing is trained: a package's decision is taken apart, one step after the other, on the test rows of the records that
it was trained on. The table has accuracy / macro-F1 of each attribute, and the share of rows of which a predicted class
contradicts another (hierarchy as measured from the training rows).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from fashion_jax import files
from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.hierarchy import count_contradictions, measure_pairs
from fashion_jax.evaluation.operating_points import label_scores
from fashion_jax.models.decision import Decision
from fashion_jax.retrieval import read_photos
from fashion_jax.runtime import start_devices
from fashion_jax.serving.outputs import NetworkOutputs, decide
from fashion_jax.serving.predictor import load_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    flags = parser.parse_args()
    start_devices(training=False)
    prepared, model = open_prepared(flags.records), load_model(flags.model)
    classes = model.classes
    labels = {name: renumber(prepared.labels[:, c], prepared.vocabularies[name], classes[name])
              for c, name in enumerate(prepared.attributes) if name in classes}  # fmt: skip
    training, test = prepared.indices("train"), prepared.indices("test")
    pairs = measure_pairs(
        {n: values[training] for n, values in labels.items()}, {n: len(c) for n, c in classes.items()}
    )
    photos = read_photos(prepared, test, model.size)
    alone, both = (model.run_network(photos, flip=flip) for flip in (False, True))
    decision = model.package.decision
    assert decision is not None
    steps: tuple[tuple[str, NetworkOutputs, Decision | None], ...] = (
        ("the network, of the photo", alone, None),
        ("and of its mirror image", both, None),
        ("shifted by frequencies, heads apart", both, apart(decision, linked=False)),
        ("and summed along the hierarchy", both, apart(decision, linked=True)),
        ("and decided together: the package", both, decision),
    )
    lines = ["| labels | " + " | ".join(labels) + " | contradictions |", "|---" * (len(labels) + 2) + "|"]
    for title, said, how in steps:
        found = decide(how, said.logits, said.features, said.energies).labels
        cells = []
        for name, values in labels.items():
            known = values[test] != MISSING
            scores = label_scores(values[test][known], found[name][known], len(classes[name]))
            cells.append(f"{scores['accuracy']:.4f} / {scores['macro_f1']:.4f}")
        against = count_contradictions(pairs, found)["any"]["share"]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {against:.2%} |")
    files.write_text(flags.out, "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


def apart(decision: Decision, *, linked: bool) -> Decision:
    """Returns the decision of each head for itself, with what it takes from a finer one or without."""
    heads = decision.heads if linked else {n: dataclasses.replace(h, link=None) for n, h in decision.heads.items()}
    return dataclasses.replace(decision, heads=heads, joint=())


def renumber(numbers: np.ndarray, of: tuple[str, ...], to: tuple[str, ...]) -> np.ndarray:
    """Returns class numbers by the places in `to`; MISSING for classes that are not there."""
    places = {name: place for place, name in enumerate(to)}
    table = np.array([*(places.get(name, MISSING) for name in of), MISSING])
    renumbered: np.ndarray = table[numbers]
    return renumbered


if __name__ == "__main__":
    raise SystemExit(main())
