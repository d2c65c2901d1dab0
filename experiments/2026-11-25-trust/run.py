"""What is a trained package worth with calibration, hierarchy, operating points and an out-of-catalogue score?

Command: python experiments/2026-11-25-trust/run.py --workdir RUN [--flip]

Scores the package of a finished run on its own records: everything is fitted on the validation split and judged on the
test split, which training has not seen. Prints and writes table.md beside this file (table_flip.md with --flip: means
over photos and their mirror images).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy.special

from fashion_jax.data.manifest import open_prepared
from fashion_jax.data.schema import MISSING
from fashion_jax.evaluation.calibration import fit_temperature
from fashion_jax.evaluation.not_products import KINDS, draw_not_products
from fashion_jax.evaluation.out_of_catalogue import REFERENCE_ROWS, judge_scores, threshold_above
from fashion_jax.evaluation.trust import Rows, fit_decision, judge, mean_loss
from fashion_jax.evaluation.trust_report import format_report
from fashion_jax.models.decision import POOLINGS, Decision, pool, scale, sum_along
from fashion_jax.progress import progress_bar
from fashion_jax.retrieval import read_photos
from fashion_jax.runtime import start_devices
from fashion_jax.serving.predictor import Predictor, load_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a finished run, with its records")
    parser.add_argument("--flip", action="store_true", help="mean over photos and their mirror images")
    parser.add_argument("--per-kind", type=int, default=50, help="drawn photos of each kind that is no product")
    flags = parser.parse_args()
    start_devices()
    begin, model, prepared = time.monotonic(), load_model(flags.workdir), open_prepared(flags.workdir / "records")
    names = model.attributes
    labels = {name: prepared.labels[:, prepared.attributes.index(name)] for name in names}

    def rows(chosen: np.ndarray, what: str) -> Rows:
        said = run(model, read_photos(prepared, chosen, model.size, label=f"reading {what} photos"), flags.flip)
        return Rows(said[0], {name: labels[name][chosen] for name in names}, *said[1:])

    training = prepared.indices("train")
    some = training[np.unique(np.linspace(0, len(training) - 1, REFERENCE_ROWS).astype(int))]
    images, kinds = draw_not_products(flags.per_kind, *model.size)
    strange = run(model, images, flags.flip)
    outside = Rows(strange[0], {}, *strange[1:])
    validation, test = (rows(prepared.indices(split), split) for split in ("validation", "test"))
    reference = run(model, read_photos(prepared, some, model.size, label="reading training photos"), False)[1]
    decision, pairs = fit_decision(
        validation, {n: labels[n][training] for n in names}, reference, precision=0.98, coverage=0.95, flagged=0.01
    )
    found = judge(decision, pairs, test, outside=outside, kinds=kinds, groups=KINDS)
    text = "\n".join(
        [
            format_report(found.report, fitted_here=False),
            compare_scores(decision, validation, test, outside, reference, kinds),
            compare_pooling(decision, pairs, validation, test),
        ]
    )
    print(text)
    print(f"{time.monotonic() - begin:.0f} s for {len(validation.energies):,} + {len(test.energies):,} photos")
    name = "table_flip.md" if flags.flip else "table.md"
    Path(__file__).with_name(name).write_text(text, encoding="utf-8")
    return 0


def run(model: Predictor, images: np.ndarray, flip: bool) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Runs the network with progress."""
    parts = []
    with progress_bar(len(images), "running the network", unit="photo") as bar:
        for start in range(0, len(images), model.batch_size):
            part = images[start : start + model.batch_size]
            parts.append(model.run_network(part, whole_batches=True, flip=flip))
            bar.update(len(part))
    logits = {name: np.concatenate([p.logits[name] for p in parts]) for name in model.attributes}
    return logits, np.concatenate([p.features for p in parts]), np.concatenate([p.energies for p in parts])


def compare_scores(
    decision: Decision, validation: Rows, test: Rows, outside: Rows, reference: np.ndarray, kinds: list[str]
) -> str:
    """Judges the parts of the out-of-catalogue score, and others that were thought of."""
    own = decision.out_of_catalogue
    assert own is not None
    gallery = reference / np.linalg.norm(reference, axis=1, keepdims=True)

    def fifth_neighbour(rows: Rows) -> np.ndarray:
        unit = rows.embeddings / np.linalg.norm(rows.embeddings, axis=1, keepdims=True)
        near = [np.partition(unit[i : i + 512] @ gallery.T, -5, axis=1)[:, -5] for i in range(0, len(unit), 512)]
        return 1 - np.concatenate(near)

    def doubt(rows: Rows) -> np.ndarray:
        return 1 - np.mean([scipy.special.softmax(v, axis=1).max(1) for v in rows.logits.values()], axis=0)

    methods = {
        "energy, mean over heads": lambda rows: rows.energies,
        "energy of articleType": lambda rows: -scipy.special.logsumexp(rows.logits["articleType"], axis=1),
        "1 - highest probability, mean over heads": doubt,
        "distance to the fifth of 5,000 training photos": fifth_neighbour,
        "Mahalanobis distance, 64 directions": lambda rows: own.log_distances(rows.embeddings),
        "energy and Mahalanobis distance (kept)": lambda rows: own.scores(rows.embeddings, rows.energies),
    }
    lines = [
        "## Scores compared\n",
        "| score | AUROC | noise | patterns | other domains | flagged | products flagged |",
    ]
    lines.append("|" + " --- |" * 7)
    for name, score in methods.items():
        limit = threshold_above(score(validation), 0.01)
        result = judge_scores(score(test), score(outside), kinds, KINDS, limit)
        others = result["others"]
        assert isinstance(others, dict)
        cells = [f"{others[group]['auroc']:.4f}" for group in ("all", "noise", "patterns", "other domains")]
        cells += [f"{others['all']['flagged']:.1%}", f"{result['flagged_products']:.1%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def compare_pooling(decision: Decision, pairs: list, validation: Rows, test: Rows) -> str:
    """Judges mixtures of a head with a finer one on the test split; weight and temperature by validation."""
    lines = ["## Poolings compared (weight and temperature by validation)\n"]
    lines += ["| attribute | also from | pooling | weight | test NLL | test accuracy |", "|" + " --- |" * 6]
    for pair in pairs:
        name, head, results = pair.coarser, decision.heads[pair.coarser], {}
        for rows in (validation, test):
            finer = scale(rows.logits[pair.finer], decision.heads[pair.finer].temperature)
            known = rows.labels[name] != MISSING
            own = scale(rows.logits[name], head.temperature)
            results[id(rows)] = own[known], sum_along(finer, pair.counts)[known], rows.labels[name][known]
        for pooling in POOLINGS:
            own, summed, truth = results[id(validation)]
            losses = [
                mean_loss(scale(pool(own, summed, pooling=pooling, weight=w), 1.0), truth)
                for w in np.linspace(0, 1, 21)
            ]
            for weight in (0.0, float(np.linspace(0, 1, 21)[int(np.argmin(losses))]), 1.0):
                own, summed, truth = results[id(validation)]
                last = fit_temperature(pool(own, summed, pooling=pooling, weight=weight), truth)
                own, summed, truth = results[id(test)]
                mixed = scale(pool(own, summed, pooling=pooling, weight=weight), last)
                right = np.mean(mixed.argmax(1) == truth)
                cells = f"{weight:.2f} | {mean_loss(mixed, truth):.4f} | {right:.4f}"
                lines.append(f"| {name} | {pair.finer} | {pooling} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
