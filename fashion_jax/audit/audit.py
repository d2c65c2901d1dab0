"""The audit of a catalogue's labels: what `fashion-jax audit` does.

OUT/
  findings.csv       id, attribute, given, suggested, score, reason; decision and corrected are for a person to fill in
  findings.html      the first findings with their photos, one file without links
  findings.png       the very first ones as a picture
  quarantine.csv     rows that could not be looked at, and why
  records/           the catalogue as read, unless the source is prepared already
  embeddings/ own/   what describes its photos, and what the network says itself of those that are new to it, so that
                     the same command does not compute them again
  folds/             with `retrain`: a run per fold
"""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fashion_jax.audit.evidence import Finding, find_wrong_labels, require_cleanlab
from fashion_jax.audit.judges import (
    Probabilities,
    group_folds,
    linear_probabilities,
    neighbour_probabilities,
    num_fits,
)
from fashion_jax.audit.page import Card, write_page
from fashion_jax.audit.photos import DESCRIPTIONS, ask_network, decode_row, describe_photos
from fashion_jax.audit.retrain import retrained_probabilities, run_schema
from fashion_jax.data.corrections import escape_cell, holds_decisions
from fashion_jax.data.prepare import prepare
from fashion_jax.data.records import Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import Schema
from fashion_jax.evaluation.contact_sheet import write_contact_sheet
from fashion_jax.run.start import ever_trained_on
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import progress_bar
from fashion_jax.system.vectors import unit

COLUMNS = ("id", "attribute", "given", "suggested", "score", "reason", "decision", "corrected")
JUDGES = ("linear", "neighbours", "retrain")
_ON_PAGE, _ON_SHEET = 300, 48
_THUMBNAIL = (120, 90)  # height, width in pixels


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        findings: the surest first.
        prepared: the catalogue that was looked at; findings name its rows.
        folder: where the files are.
    """

    findings: list[Finding]
    prepared: Prepared
    folder: Path


def audit(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    attributes: Sequence[str] = (),
    num_folds: int = 5,
    judge: str = "linear",
    describe_by: str = "features",
    corrections: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool = True,
) -> Audit:
    """Looks for wrong labels in a catalogue and writes what it found to a folder.

    Args:
        model: a workdir or a model package. How it describes photos is used, and where it is known what it was trained
            on (of a workdir, unless that run began with a package), what it says of other products.
        source: as `fashion-jax prepare` takes it, or a prepared folder.
        out: folder for the findings.
        attributes: to be audited; empty: those of the model's heads that the source labels.
        num_folds: of near-duplicate groups; each is judged by what was fitted on the others.
        judge: "linear", "neighbours", or "retrain": whole networks, one per fold, by the workdir's configuration.
        describe_by: what tells the other judges of a photo: "features", pooled ones and what colour heads see, or
            "embeddings", which say what the network thinks of it, and remember what it was trained on: better where
            labels went wrong afterwards, worse where it has learnt wrong ones.
        corrections: applied to the source first, to look for what is left.
        schema: how to read the source's table; None: known or inferred.
        progress: whether to show what is going on.

    Raises:
        UserError: cleanlab, the model or the source is not usable, an attribute or option is unknown, or `out` holds
            findings with a person's decisions.
    """
    require_cleanlab()
    out = Path(out)
    if judge not in JUDGES:
        raise UserError(f"the judge {judge!r} is none of {', '.join(JUDGES)}")
    if describe_by not in DESCRIPTIONS:
        raise UserError(f"photos are described by {' or '.join(DESCRIPTIONS)}, not by {describe_by!r}")
    if judge == "retrain" and describe_by != DESCRIPTIONS[0]:
        raise UserError("--retrain judges by networks that look at photos themselves; leave --describe-by out")
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f"{out} lies in the source, which would have a second table then; give an --out outside of it")
    _keep_decisions(out / "findings.csv")
    if judge == "retrain":
        schema = schema or run_schema(model)
    predictor = load_model(model)
    prepared = _read_source(source, out, predictor, corrections, schema, progress)
    names = _choose_attributes(attributes, prepared, predictor, judge)
    _, groups = np.unique(prepared.groups, return_inverse=True)
    if not 2 <= num_folds <= groups.max() + 1:
        raise UserError(f"--folds={num_folds} is not between 2 and the {groups.max() + 1:,} groups of the catalogue")
    folds = group_folds(groups, num_folds)
    if judge == "retrain":
        probabilities = retrained_probabilities(
            model, source, out / "folds", prepared, folds, corrections=corrections, schema=schema, progress=progress
        )
    else:
        vectors = describe_photos(predictor, prepared, out / "embeddings", by=describe_by, progress=progress)
        probabilities = judge_photos(vectors, prepared, folds, judge=judge, progress=progress)
        known = ever_trained_on(Path(model))
        if known is None and progress:
            print(
                f"which products {model} was trained on is not known, so that the network itself is not asked about "
                "others; judges fitted to what it sees are",
                file=sys.stderr,
                flush=True,
            )
        probabilities = ask_network(predictor, prepared, known or set(), probabilities, out / "own", progress=progress)
    findings = find_wrong_labels(probabilities, prepared.labels, prepared.groups, prepared.vocabularies, names)
    result = Audit(findings, prepared, out)
    _write(result)
    return result


def judge_photos(
    embeddings: Float32[np.ndarray, "n features"],
    prepared: Prepared,
    folds: np.ndarray,
    *,
    judge: str = "linear",
    progress: bool = True,
) -> Probabilities:
    """Returns class probabilities per attribute of the records, by judges that did not see the row's own label.

    Args:
        embeddings: of the records' photos; rows that are not finite are judged as the average photo.
        prepared: the records.
        folds: from `group_folds`.
        judge: "linear" or "neighbours".
        progress: whether to show a bar.
    """
    sound = np.isfinite(embeddings).all(1)
    vectors = np.where(sound[:, None], unit(embeddings), 0)
    if not sound.all():
        vectors[~sound] = vectors[sound].mean(0) if sound.any() else 0
    sizes = [len(classes) for classes in prepared.vocabularies.values()]
    if judge == "neighbours":
        with progress_bar(-(-len(vectors) // 4096), "comparing photos", show=progress) as bar:
            return neighbour_probabilities(vectors, prepared.labels, sizes, prepared.groups, done=bar.update)
    with progress_bar(num_fits(len(np.unique(folds))), "fitting judges", show=progress, unit="fit") as bar:
        return linear_probabilities(vectors, prepared.labels, sizes, folds, done=bar.update)


def format_audit(result: Audit) -> str:
    """Returns a table for people: findings per attribute, and where they are."""
    counts = Counter(finding.attribute for finding in result.findings)
    sure = Counter(finding.attribute for finding in result.findings if finding.score >= 0.99)
    lines = [f"{'attribute':<16}{'labels':>9}{'findings':>10}{'score >= .99':>14}"]
    for place, name in enumerate(result.prepared.attributes):
        if name in counts:
            labelled = int((result.prepared.labels[:, place] >= 0).sum())
            lines.append(f"{name:<16}{labelled:>9,}{counts[name]:>10,}{sure[name]:>14,}")
    if not counts:
        lines = ["no label looks wrong"]
    return "\n".join(lines)


def _read_source(
    source: str | Path,
    out: Path,
    model: Predictor,
    corrections: str | Path | None,
    schema: Schema | None,
    progress: bool,
) -> Prepared:
    if is_prepared(Path(source)):
        if corrections:
            raise UserError(f"{source} is prepared already; corrections can be applied to the catalogue itself alone")
        return open_prepared(source)
    # Bad rows are quarantined, however many: what is left can be looked at all the same.
    return prepare(
        source,
        out / "records",
        schema=schema,
        max_side=model.preprocessing["max_side"],
        max_bad_fraction=1.0,
        corrections=corrections,
        progress=progress,
    )


def _choose_attributes(wanted: Sequence[str], prepared: Prepared, model: Predictor, judge: str) -> tuple[str, ...]:
    for name in wanted:
        if name not in prepared.attributes:
            hint = nearest(name, prepared.attributes)
            raise UserError(f"the source has no attribute {name!r}{hint}; it has {', '.join(prepared.attributes)}")
        if judge == "retrain" and name not in model.attributes:
            raise UserError(f"--retrain judges by heads alone, and the run has none for {name!r}; leave --retrain out")
    if wanted:
        return tuple(wanted)
    known = tuple(name for name in prepared.attributes if name in model.attributes)
    if not known:
        raise UserError(
            f"the source labels none of the model's attributes ({', '.join(model.attributes)}); "
            f"name those to be audited: --attributes {','.join(prepared.attributes)}"
        )
    return known


def _keep_decisions(path: Path) -> None:
    """Raises UserError where findings stand that a person has been over."""
    if not path.exists():
        return
    if holds_decisions(path):
        raise UserError(f"{path} holds decisions of a person; move it, or give another --out")


def _write(result: Audit) -> None:
    prepared, out = result.prepared, result.folder
    classes = prepared.vocabularies
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for f in result.findings:
        names = [
            str(prepared.ids[f.row]),
            f.attribute,
            classes[f.attribute][f.given],
            classes[f.attribute][f.suggested],
        ]
        cells = [escape_cell(name) for name in names]
        writer.writerow([*cells, f"{f.score:.6f}", escape_cell(f.reason), "", ""])
    files.write_text(out / "findings.csv", text.getvalue())
    cards = [_card(result, finding) for finding in result.findings[:_ON_PAGE]]
    write_page(out / "findings.html", cards, total=len(result.findings), products=len(prepared))
    shown = [card for card in cards if card.photo is not None][:_ON_SHEET]
    write_contact_sheet(
        out / "findings.png",
        [card.photo for card in shown if card.photo is not None],
        [{card.attribute: card.given} for card in shown],
        [{card.attribute: card.suggested} for card in shown],
        [{card.attribute: card.score} for card in shown],
    )
    quarantine = prepared.folder / "quarantine.csv"
    if quarantine.is_file():
        files.write_bytes(out / "quarantine.csv", quarantine.read_bytes())


def _card(result: Audit, finding: Finding) -> Card:
    prepared, classes = result.prepared, result.prepared.vocabularies[finding.attribute]
    return Card(
        id=str(prepared.ids[finding.row]),
        title=prepared.titles[finding.row],
        attribute=finding.attribute,
        given=classes[finding.given],
        suggested=classes[finding.suggested],
        score=finding.score,
        reason=finding.reason,
        photo=decode_row(prepared, finding.row, *_THUMBNAIL),
    )
