"""Finds labels of a catalogue that may be wrong: what `fashion-jax audit` does.

OUT/
  findings.csv       id, attribute, given, suggested, score, reason, and two columns for a person: decision, corrected
  findings.html      the first 300 findings with their photos, in one file without links
  quarantine.csv     rows whose photo or labels could not be read, and why
  records/           the catalogue as records, unless the source is prepared already
  photos.shards/     what the network computed from the photos, so that the same command does not compute it again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fashion_jax.audit.evidence import Finding, find_wrong_labels, require_cleanlab
from fashion_jax.audit.judges import group_folds, linear_probabilities
from fashion_jax.audit.page import Card, write_page
from fashion_jax.audit.photos import average_with_network, find_new_rows, run_network
from fashion_jax.audit.tags import audited_columns, describe_change, labels_with_tags, name_tags
from fashion_jax.data.corrections import holds_decisions
from fashion_jax.data.photos import BadPhoto, decode_photo
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import Prepared, is_prepared, open_prepared
from fashion_jax.data.schema import Schema
from fashion_jax.run.start import ever_trained_on
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system import files
from fashion_jax.system.errors import UserError, nearest
from fashion_jax.system.progress import say
from fashion_jax.system.text import format_table

COLUMNS = ("id", "attribute", "given", "suggested", "score", "reason", "decision", "corrected")
_ON_PAGE = 300  # findings
_THUMBNAIL = (120, 90)  # height, width in pixels


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit."""

    findings: list[Finding]  # the label that is most probably wrong comes first
    prepared: Prepared  # the records of the catalogue; findings name its rows
    folder: Path  # where the files are


def audit(
    model: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    attributes: Sequence[str] = (),
    num_folds: int = 5,
    corrections: str | Path | None = None,
    schema: Schema | None = None,
    progress: bool = True,
) -> Audit:
    """Finds labels of a catalogue that may be wrong, and writes the findings to a folder.

    Linear classifiers are fitted on the network's features of the photos, fold by fold, and give probabilities for rows
    that they were not fitted on. For products that the network was not trained on, these are averaged with the
    network's own probabilities. `find_wrong_labels` adds the evidence of near-duplicates and of the row's other labels.

    Args:
        model: a workdir, a model package, or the name of a model of the library. Only a workdir knows the products that
            the network was trained on.
        source: as `fashion-jax prepare` takes it, or a prepared folder.
        out: folder for the findings.
        attributes: to audit; empty for all that both the source and the model have.
        num_folds: number of parts of the catalogue; near-duplicates stay in one part.
        corrections: a table of corrected labels, applied to the source first.
        schema: how to read the source's table; None: known or inferred.

    Raises:
        UserError: cleanlab, the model or the source is not usable, an attribute is unknown, the number of folds does
            not fit, or `out` holds findings with a person's decisions.
    """
    require_cleanlab()
    out = Path(out)
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise UserError(f"{out} lies in the source, and its tables would be read as products; give another --out")
    if (out / "findings.csv").exists() and holds_decisions(out / "findings.csv"):
        raise UserError(
            f"{out / 'findings.csv'} holds your decisions, which would be overwritten; move it, or give another --out"
        )
    network = load_model(model)
    prepared = _read_source(source, out, network, corrections, schema, progress)
    names = _choose_attributes(attributes, prepared, network)
    _, groups = np.unique(prepared.groups, return_inverse=True)
    if not 2 <= num_folds <= groups.max() + 1:
        raise UserError(
            f"--folds={num_folds} must be from 2 to {groups.max() + 1:,}: near-duplicates are one group, and each fold "
            "needs a group"
        )
    trained = ever_trained_on(Path(model))
    if trained is None and progress:
        say(
            f"note: {model} does not say which products it was trained on, so the audit uses no predictions "
            "of the model, only classifiers that are fitted on its features"
        )
    outputs = run_network(network, prepared, find_new_rows(prepared, trained), out / "photos.shards", progress=progress)
    labels, vocabularies = labels_with_tags(prepared)
    sizes = [len(classes) for classes in vocabularies.values()]
    folds = group_folds(groups, num_folds)
    probabilities = linear_probabilities(outputs.features, labels, sizes, folds, progress=progress)
    probabilities = average_with_network(probabilities, outputs, prepared, network)
    audited = audited_columns(names, prepared)
    findings = find_wrong_labels(probabilities, labels, prepared.groups, vocabularies, audited)
    result = Audit(_one_per_label(name_tags(findings), prepared), prepared, out)
    _write(result)
    return result


def _one_per_label(findings: Sequence[Finding], prepared: Prepared) -> list[Finding]:
    """Keeps the surest finding of each label: the photos of one product have the same label."""
    kept: dict[tuple[str, str, str, int], Finding] = {}
    for finding in findings:
        key = (str(prepared.ids[finding.row]), finding.attribute, finding.tag, finding.given)
        kept.setdefault(key, finding)
    return list(kept.values())


def format_audit(result: Audit) -> str:
    """Returns a table for the console: labels and findings of each attribute."""
    counts = Counter(finding.attribute for finding in result.findings)
    sure = Counter(finding.attribute for finding in result.findings if finding.score >= 0.99)
    if not counts:
        return "no label looks wrong"
    rows = [["attribute", "labels", "findings", "score >= 0.99"]]
    for place, name in enumerate(result.prepared.attributes):
        if name in counts:
            labelled = int((result.prepared.labels[:, place] >= 0).sum())
            rows.append([name, f"{labelled:,}", f"{counts[name]:,}", f"{sure[name]:,}"])
    for name, vectors in result.prepared.tags.items():
        if name in counts:
            rows.append([name, f"{int((vectors >= 0).sum()):,}", f"{counts[name]:,}", f"{sure[name]:,}"])
    return format_table(*rows)


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
            raise UserError(
                f"{source} is prepared already, and corrections are applied while a catalogue is prepared; "
                "give the catalogue itself as --source"
            )
        return open_prepared(source)
    # Any number of bad rows is quarantined, because the other rows can be audited without them.
    options = PrepareOptions(schema, model.package.preprocessing["max_side"], 1.0, corrections=corrections)
    return prepare(source, out / "records", options, progress=progress)


def _choose_attributes(wanted: Sequence[str], prepared: Prepared, model: Predictor) -> tuple[str, ...]:
    every = (*prepared.attributes, *prepared.tags)
    for name in wanted:
        if name not in every:
            raise UserError(f"the source has no attribute {name!r}{nearest(name, every)}; it has {', '.join(every)}")
    if wanted:
        return tuple(wanted)
    known = tuple(name for name in every if name in model.attributes or name in model.tags)
    if not known:
        raise UserError(
            f"the source has labels for none of the model's attributes ({', '.join(model.attributes)}); "
            f"name the attributes to audit: --attributes {','.join(prepared.attributes)}"
        )
    return known


def _write(result: Audit) -> None:
    prepared, out = result.prepared, result.folder
    rows: list[Sequence[str | float]] = [COLUMNS]
    for f in result.findings:
        label, suggested = describe_change(f, prepared.vocabularies, prepared.tags, prepared.tag_vocabularies)
        rows.append([prepared.ids[f.row], f.attribute, label, suggested, f"{f.score:.6f}", f.reason, "", ""])
    files.write_text(out / "findings.csv", files.format_csv(rows))
    cards = [_card(result, finding) for finding in result.findings[:_ON_PAGE]]
    write_page(out / "findings.html", cards, total=len(result.findings), products=len(np.unique(prepared.ids)))
    quarantine = prepared.folder / "quarantine.csv"
    if quarantine.is_file():
        files.write_bytes(out / "quarantine.csv", quarantine.read_bytes())


def _card(result: Audit, finding: Finding) -> Card:
    prepared = result.prepared
    given, suggested = describe_change(finding, prepared.vocabularies, prepared.tags, prepared.tag_vocabularies)
    try:
        photo = decode_photo(prepared.read_photo(finding.row), *_THUMBNAIL)
    except BadPhoto:
        photo = None
    return Card(
        id=str(prepared.ids[finding.row]),
        title=prepared.titles[finding.row],
        attribute=finding.attribute,
        given=given,
        suggested=suggested,
        score=finding.score,
        reason=finding.reason,
        photo=photo,
    )
