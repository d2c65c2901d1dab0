"""Compares packages on the validation and test rows of the records that they were trained on, alone and together.

Command: python experiments/2026-11-29-second-lap/compare.py --records runs/small_lap/records \
             --models runs/small_best runs/small_lap

Prints, per split and attribute, each package's accuracy / macro-F1 and mean negative log-likelihood, and the accuracy
of the sum of their log-probabilities; then the most that P@10 of all three of articleType, baseColour and gender at
once can be: the mean over test rows of the others with the same three, ten at most, over ten.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.metrics import f1_score

from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.schema import MISSING
from fashion_jax.runtime import start_devices
from fashion_jax.serving.predictor import load_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True)
    parser.add_argument("--models", required=True, nargs="+")
    flags = parser.parse_args()
    start_devices(training=False)
    prepared, models = open_prepared(flags.records), [load_model(path) for path in flags.models]
    for split in ("validation", "test"):
        rows = prepared.indices(split)
        said = []
        for model in models:
            photos = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in rows])
            said.append(model.predict_arrays(photos))
        for column, (name, classes) in enumerate(prepared.vocabularies.items()):
            taught = {label: number for number, label in enumerate(models[0].classes[name])}
            numbers = np.array([taught.get(label, MISSING) for label in classes] + [MISSING])
            labels = numbers[prepared.labels[rows, column]]
            known = labels != MISSING
            right = labels[known]
            cells = []
            for outputs in said:
                found, shares = outputs.labels[name][known], outputs.probabilities[name][known]
                macro = f1_score(right, found, labels=np.unique(right), average="macro")
                loss = -np.log(shares[np.arange(len(right)), right] + 1e-12).mean()
                cells.append(f"{(found == right).mean():.4f} / {macro:.4f}, {loss:.4f}")
            together = np.sum([np.log(outputs.probabilities[name][known] + 1e-12) for outputs in said], axis=0)
            cells.append(f"{(together.argmax(1) == right).mean():.4f}")
            print(f"| {split} | {name} | {' | '.join(cells)} |")
    compared = [prepared.attributes.index(name) for name in ("articleType", "baseColour", "gender")]
    labels = prepared.labels[prepared.indices("test")][:, compared]
    _, places, counts = np.unique(labels[(labels != MISSING).all(1)], axis=0, return_inverse=True, return_counts=True)
    print(f"the most that P@10 of all three can be: {np.minimum(counts[places] - 1, 10).mean() / 10:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
