"""How many planted wrong labels does the audit find?

Plants 5 % wrong labels in every attribute of a catalogue, trains on them, audits, and writes OUT/scores.json,
OUT/table.md and, by what describes the photos, OUT/descriptions.json. Commands:

    python experiments/2026-11-25-label-audit/run.py --source synthetic:3000 --noise uniform --out OUT
    python experiments/2026-11-25-label-audit/run.py --source fashion-product-images-small.tar.xz --config small_cpu \\
        --noise uniform --out OUT

The second trains for an hour on 2 cores. With --records nothing is trained: errors are planted in the labels of
prepared records, and a network that never saw them describes the photos, as the audit has it do (--model), or by an npz
of `fashion-jax embed` (--embeddings):

    python experiments/2026-11-25-label-audit/run.py --records W/records --model small --noise uniform --out OUT

With --held-out, too, the records' validation and test rows are a catalogue of their own, one that is new to a network
that was trained on the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.rank import get_label_quality_scores

from fashion_jax import files
from fashion_jax.audit import JUDGES, audit, judge_photos
from fashion_jax.audit_photos import describe_photos
from fashion_jax.config_files import load_config
from fashion_jax.data.manifest import Prepared, open_prepared
from fashion_jax.data.prepare import prepare
from fashion_jax.data.synthetic import DEFAULT_COUNT, plan
from fashion_jax.evaluation.audit import Finding, find_wrong_labels, weigh_evidence
from fashion_jax.evaluation.out_of_fold import group_folds
from fashion_jax.experiment import train
from fashion_jax.main import split_overrides
from fashion_jax.runtime import start_devices
from fashion_jax.serving.predictor import load_model

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planting import NOISES, plant, write_planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="synthetic:3000")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--records", type=Path, help="prepared records, instead of a source")
    parser.add_argument("--model", help="package or workdir that describes the records' photos")
    parser.add_argument("--embeddings", type=Path, help="of the records' photos: ids, embeddings")
    parser.add_argument("--held-out", action="store_true", help="of the records, those that no network was trained on")
    parser.add_argument("--noise", choices=NOISES, default="uniform")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--judges", nargs="+", choices=(*JUDGES, "network"), default=["linear", "neighbours", "network"]
    )
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    overrides, rest = split_overrides(sys.argv[1:])
    flags = parser.parse_args(rest)
    if flags.held_out and not flags.records:
        parser.error("--held-out is of --records")
    config = load_config(flags.config, overrides)
    start_devices(config.runtime.cpu_devices, config.model.dtype)
    scores = from_embeddings(flags) if flags.records else from_source(flags, config)
    files.write_json(flags.out / "scores.json", scores)
    files.write_text(flags.out / "table.md", format_table(scores))
    print(format_table(scores))


def from_source(flags: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Plants in a catalogue, trains on it, and audits it by each judge."""
    clean = prepare(flags.source, flags.out / "clean")
    attributes = list(config.data.attributes or clean.attributes)
    planted = plant(clean, attributes, flags.noise, flags.rate, flags.seed)
    corrections = flags.out / "planted.csv"
    write_planted(corrections, clean, attributes, planted)
    config.data.source, config.data.corrections = flags.source, str(corrections)
    workdir = flags.out / "run"
    train(config, workdir)
    noisy = open_prepared(workdir / "records")
    places = {name: place for place, name in enumerate(clean.ids.tolist())}
    planted = planted[[places[name] for name in noisy.ids.tolist()]] >= 0
    wrong = planted | false_labels(flags.source, noisy, attributes)
    scores = {}
    for judge in flags.judges:
        if judge == "network":
            findings = by_the_network(workdir, noisy, attributes)
        else:
            source: Path | str = workdir / "records"
            extra: dict[str, Any] = {}
            if judge == "retrain":
                source, extra = flags.source, {"corrections": corrections}
            result = audit(workdir, source, flags.out / f"audit_{judge}", judge=judge, num_folds=flags.folds, **extra)
            findings = result.findings
            if judge == "retrain":  # its records have an order of their own
                rows = {name: row for row, name in enumerate(noisy.ids.tolist())}
                to = [rows[name] for name in result.prepared.ids.tolist()]
                findings = [dataclasses.replace(f, row=to[f.row]) for f in findings]
        scores[judge] = score(findings, noisy, attributes, planted, wrong)
        if judge == "linear":
            model, folds = load_model(workdir), group_folds(noisy.groups, flags.folds)
            features = describe_photos(model, noisy, flags.out / "audit_linear" / "embeddings")
            write_ablation(flags.out, judge_photos(features, noisy, folds), noisy, attributes, planted)
            said = describe_photos(model, noisy, flags.out / "embeddings_said", by="embeddings")
            described = {"features": features, "embeddings": said, "side by side": np.concatenate([features, said], 1)}
            found = score_descriptions(described, noisy, attributes, folds, planted, wrong)
            files.write_json(flags.out / "descriptions.json", found)
    return scores


def from_embeddings(flags: argparse.Namespace) -> dict[str, Any]:
    """Plants in the labels of records; the network that made the embeddings never saw the planted ones."""
    clean = open_prepared(flags.records)
    attributes = list(clean.attributes)
    planted = plant(clean, attributes, flags.noise, flags.rate, flags.seed)
    noisy = dataclasses.replace(clean, labels=np.where(planted >= 0, planted, clean.labels).astype(np.int32))
    if flags.model:
        model = load_model(flags.model)
        embeddings = describe_photos(model, clean, flags.out / "embeddings")
        said = describe_photos(model, clean, flags.out / "embeddings_said", by="embeddings")
    else:
        with np.load(flags.embeddings, allow_pickle=False) as arrays:
            places = {str(name): place for place, name in enumerate(arrays["ids"])}
            embeddings = said = arrays["embeddings"][[places[name] for name in clean.ids.tolist()]]
    if flags.held_out:  # as a catalogue of its own
        keep = np.flatnonzero(clean.splits > 0)
        kept = {name: getattr(noisy, name)[keep] for name in ("ids", "labels", "splits", "groups")}
        noisy = dataclasses.replace(noisy, titles=[noisy.titles[row] for row in keep], **kept)
        planted, embeddings, said = planted[keep], embeddings[keep], said[keep]
    folds, errors = group_folds(noisy.groups, flags.folds), planted >= 0
    scores = {}
    for judge in [judge for judge in flags.judges if judge in ("linear", "neighbours")]:
        shares = judge_photos(embeddings, noisy, folds, judge=judge)
        findings = find_wrong_labels(shares, noisy.labels, noisy.groups, noisy.vocabularies)
        scores[judge] = score(findings, noisy, attributes, errors, errors)
        if judge == "linear":
            write_ablation(flags.out, shares, noisy, attributes, errors)
            if flags.model:
                described = {"embeddings": said, "side by side": np.concatenate([embeddings, said], 1)}
                others = score_descriptions(described, noisy, attributes, folds, errors, errors)
                files.write_json(flags.out / "descriptions.json", {"features": scores[judge], **others})
    return scores


def score_descriptions(
    described: dict[str, np.ndarray],
    noisy: Prepared,
    attributes: list[str],
    folds: np.ndarray,
    planted: np.ndarray,
    wrong: np.ndarray,
) -> dict[str, Any]:
    """Returns the linear judge's scores by what describes the photos, the network itself not being asked."""
    scores = {}
    for name, vectors in described.items():
        shares = judge_photos(vectors, noisy, folds)
        findings = find_wrong_labels(shares, noisy.labels, noisy.groups, noisy.vocabularies, attributes)
        scores[name] = score(findings, noisy, attributes, planted, wrong)
    return scores


def write_ablation(
    out: Path, shares: list[np.ndarray], noisy: Prepared, attributes: list[str], planted: np.ndarray
) -> None:
    """Writes OUT/ablation.md: recall within the first 1.5 n by each kind of evidence, and by other orders of it."""
    alone = np.arange(len(noisy))
    lines = ["| attribute | photo | + near-duplicates | + other labels | all | all, margin | all, class-adjusted |"]
    lines.append("|" + "---|" * 7)
    everything = weigh_evidence(shares, noisy.labels, noisy.groups)
    others = weigh_evidence(shares, noisy.labels, alone)
    for place, name in enumerate(attributes):
        column = noisy.attributes.index(name)
        labels, n = noisy.labels[:, column].astype(np.int64), int(planted[:, place].sum())
        known = np.flatnonzero(labels >= 0)
        present, numbers = np.unique(labels[known], return_inverse=True)
        only = noisy.labels[:, [column]]
        photo = weigh_evidence([shares[column]], only, alone)[0]
        twins = weigh_evidence([shares[column]], only, noisy.groups)[0]
        cells = []
        for judged, method, adjust in (
            (photo, "self_confidence", False),
            (twins, "self_confidence", False),
            (others[column], "self_confidence", False),
            (everything[column], "self_confidence", False),
            (everything[column], "normalized_margin", False),
            (everything[column], "self_confidence", True),
        ):
            rows = judged[known][:, present] + 1e-12
            rows /= rows.sum(1, keepdims=True)
            quality = get_label_quality_scores(numbers, rows, method=method, adjust_pred_probs=adjust)
            first = known[np.argsort(quality, kind="stable")[: round(1.5 * n)]]
            cells.append(f"{planted[first, place].sum() / n:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    files.write_text(out / "ablation.md", "\n".join(lines) + "\n")


def by_the_network(workdir: Path, noisy: Prepared, attributes: list[str]) -> list[Finding]:
    """The same by the network's own probabilities, which are not out of fold: what remembering costs."""
    from fashion_jax.data.photos import decode_photo

    model = load_model(workdir)
    images = np.stack([decode_photo(noisy.read_photo(row), *model.size) for row in range(len(noisy))])
    own = model.predict_arrays(images).probabilities
    shares = [own.get(name, np.full((len(noisy), len(v)), 1 / len(v))) for name, v in noisy.vocabularies.items()]
    return find_wrong_labels(shares, noisy.labels, noisy.groups, noisy.vocabularies, attributes)


def false_labels(source: str, noisy: Prepared, attributes: list[str]) -> np.ndarray:
    """Returns where the embedded catalogue's labels, planted or its own, are not what the photo shows."""
    wrong = np.zeros((len(noisy), len(attributes)), bool)
    if source.split(":")[0] != "synthetic":
        return wrong
    count, _, seed = source.partition(":")[2].partition(":")
    truth = {spec.id: spec.truth for spec in plan(int(count or DEFAULT_COUNT), int(seed or 0))}
    for place, name in enumerate(attributes):
        labels, classes = noisy.labels[:, noisy.attributes.index(name)], noisy.vocabularies[name]
        for row in np.flatnonzero(labels >= 0):
            wrong[row, place] = truth[str(noisy.ids[row])][name] != classes[labels[row]]
    return wrong


def score(
    findings: list[Finding], noisy: Prepared, attributes: list[str], planted: np.ndarray, wrong: np.ndarray
) -> dict[str, Any]:
    """Returns per attribute what the first n and 1.5 n findings hold, n the number of planted errors."""
    trained = noisy.splits == 0
    result: dict[str, Any] = {}
    for place, name in enumerate(attributes):
        rows = np.array([f.row for f in findings if f.attribute == name], np.int64)
        n = int(planted[:, place].sum())
        first, more = rows[:n], rows[: round(1.5 * n)]
        found = planted[more, place]
        seen, unseen = planted[:, place] & trained, planted[:, place] & ~trained
        result[name] = {
            "planted": n,
            "findings": len(rows),
            "precision_n": float(planted[first, place].sum() / n),
            "precision_n_any": float(wrong[first, place].sum() / n),
            "recall_1.5n": float(found.sum() / n),
            "recall_all": float(planted[rows, place].sum() / n),
            "recall_1.5n_trained": float((found & trained[more]).sum() / max(seen.sum(), 1)),
            "recall_1.5n_held_out": float((found & ~trained[more]).sum() / max(unseen.sum(), 1)),
        }
    every = [(f.row, attributes.index(f.attribute)) for f in findings if f.attribute in attributes]
    n = int(planted.sum())
    result["all at once"] = {
        "planted": n,
        "findings": len(every),
        "precision_n": float(np.mean([planted[i] for i in every[:n]])),
        "precision_n_any": float(np.mean([wrong[i] for i in every[:n]])),
        "recall_1.5n": float(sum(planted[i] for i in every[: round(1.5 * n)]) / n),
        "recall_all": float(sum(planted[i] for i in every) / n),
    }
    return result


def format_table(scores: dict[str, Any]) -> str:
    """Returns a Markdown table."""
    keys = list(next(iter(next(iter(scores.values())).values())))
    lines = ["| judge | attribute | " + " | ".join(keys) + " |", "|" + "---|" * (len(keys) + 2)]
    for judge, attributes in scores.items():
        for name, values in attributes.items():
            shown = [values.get(key, "") for key in keys]
            cells = [f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in shown]
            lines.append(f"| {judge} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
