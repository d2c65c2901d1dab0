"""Plants wrong labels in a catalogue, as a file of corrections: the catalogue itself is left as it is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from fashion_jax import files
from fashion_jax.cielab import to_cielab
from fashion_jax.data.duplicates import thumbnail
from fashion_jax.data.manifest import Prepared
from fashion_jax.data.photos import decode_photo
from fashion_jax.progress import progress_bar

NOISES = ("uniform", "confusable")
_NEAREST = 3  # classes for which a confusable one is taken


def plant(prepared: Prepared, attributes: list[str], noise: str, rate: float, seed: int) -> np.ndarray:
    """Returns the class number that a row's label becomes, int32 (n, attributes), -1 where it is left alone.

    Exactly `round(rate * labelled rows)` labels of each attribute change. "uniform" draws from all other classes that
    the catalogue has; "confusable" from the three whose mean photo (20x15 pixels) is the nearest to the class's own.
    """
    planted = np.full((len(prepared), len(attributes)), -1, np.int32)
    views = _views(prepared) if noise == "confusable" else None
    for place, name in enumerate(attributes):
        rng = np.random.default_rng([seed, place])
        labels = prepared.labels[:, prepared.attributes.index(name)]
        present = np.unique(labels[labels >= 0])
        rows = np.flatnonzero(labels >= 0)
        rows = np.sort(rng.choice(rows, round(rate * len(rows)), replace=False))
        if views is None:
            others = {c: present[present != c] for c in present.tolist()}
        else:
            means = np.stack([views[labels == c].mean(0) for c in present])
            apart = ((means[:, None] - means[None]) ** 2).sum(-1)
            np.fill_diagonal(apart, np.inf)
            nearest = np.argsort(apart, axis=1, kind="stable")[:, : min(_NEAREST, len(present) - 1)]
            others = {c: present[nearest[i]] for i, c in enumerate(present.tolist())}
        planted[rows, place] = [rng.choice(others[int(labels[row])]) for row in rows]
    return planted


def write_planted(path: Path, prepared: Prepared, attributes: list[str], planted: np.ndarray) -> None:
    """Writes planted labels as a file of corrections: id, attribute, given, corrected."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "attribute", "given", "corrected"])
    for place, name in enumerate(attributes):
        classes, column = prepared.vocabularies[name], prepared.attributes.index(name)
        for row in np.flatnonzero(planted[:, place] >= 0):
            given = classes[prepared.labels[row, column]]
            writer.writerow([prepared.ids[row], name, given, classes[planted[row, place]]])
    files.write_text(path, text.getvalue())


def _views(prepared: Prepared) -> np.ndarray:
    """Returns every row's photo at 20x15 pixels, in CIELAB, float32 (n, 900)."""
    views = np.empty((len(prepared), 900), np.float32)
    with progress_bar(len(prepared), "reading photos", unit="photo") as bar:
        for row in range(len(prepared)):
            small = thumbnail(decode_photo(prepared.read_photo(row), 80, 60))
            views[row] = to_cielab(small).reshape(-1)
            bar.update()
    return views
