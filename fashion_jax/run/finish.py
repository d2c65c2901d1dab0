"""Scores of a run's split: fits decisions on the validation rows, judges them on the split, writes both."""

from __future__ import annotations

import csv
import dataclasses
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fashion_jax.data.drawn.not_products import KINDS, draw_not_products
from fashion_jax.data.loader import spread_rows
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import fit_temperature
from fashion_jax.decision.decisions import Decision
from fashion_jax.decision.embedding import EmbeddingPlan
from fashion_jax.decision.embedding_plan import compared_attributes, fit_embedding
from fashion_jax.decision.hierarchy import Pair
from fashion_jax.decision.out_of_catalogue import REFERENCE_ROWS
from fashion_jax.decision.trust import Judgement, Rows, fit_decision, judge
from fashion_jax.decision.trust_report import format_accepted, write_trust
from fashion_jax.evaluation.colour_report import JUST_TOLERABLE, colour_scores
from fashion_jax.evaluation.contact_sheet import write_contact_sheet
from fashion_jax.evaluation.evaluate import Evaluation
from fashion_jax.evaluation.report import write_evaluation
from fashion_jax.run.session import Session
from fashion_jax.serving.outputs import Outputs, Prediction, decide, name_labels
from fashion_jax.serving.predict import prediction_cells, prediction_columns
from fashion_jax.system import files
from fashion_jax.training.state import TrainState

_SHEET_PHOTOS = 48
NOT_PRODUCTS_PER_KIND = 20  # drawn photos that judge the out-of-catalogue score


@dataclass(frozen=True, slots=True)
class Trust:
    """What was fitted on the validation rows.

    Attributes:
        decision: for the package.
        pairs: of attributes of which one determines the other in training rows.
        embedding: what embeddings are made of; None for the pooled features.
    """

    decision: Decision
    pairs: list[Pair]
    embedding: EmbeddingPlan | None


def fit_trust(session: Session, state: TrainState) -> Trust | None:
    """Fits a decision for a model's weights; every process takes part, and all find the same.

    Returns:
        None where there is no validation row.
    """
    if not len(session.prepared.indices("validation")):
        return None
    if session.progress:
        print("fitting probabilities and labels on the validation split", file=sys.stderr, flush=True)
    scored = session.evaluator("validation", keep_outputs=True)(state)
    validation = _rows(session, scored)
    training = session.prepared.indices("train")
    some = spread_rows(training, REFERENCE_ROWS)
    reference = session.evaluator("train", rows=some, keep_outputs=True)(state).outputs
    assert reference is not None
    trust = session.config.trust
    decision, pairs = fit_decision(
        validation,
        {n: session.prepared.labels[training, c] for n, c in zip(session.attributes, session.columns, strict=True)},
        reference.features,
        precision=trust.precision,
        coverage=trust.label_set_coverage,
    )
    groups = session.prepared.groups[scored.rows]
    assert scored.outputs is not None
    # Embeddings are of the photos themselves, and so is what they are fitted to.
    own = dataclasses.replace(validation, logits=scored.outputs.own_logits)
    return Trust(decision, pairs, _plan_embedding(session, own, groups, reference.features, pairs))


def _plan_embedding(
    session: Session,
    validation: Rows,
    groups: np.ndarray,
    reference: np.ndarray,
    pairs: list[Pair],
) -> EmbeddingPlan | None:
    embedding, sizes = session.config.embedding, {n: len(v) for n, v in session.vocabularies.items()}
    room: dict[str, Any] = {"size": embedding.size, "appearance": embedding.appearance}
    if embedding.kind == "features":
        return None
    return fit_embedding(
        validation.logits,
        validation.labels,
        groups,
        reference,
        attributes=compared_attributes(embedding.attributes, sizes, pairs, embedding.size),
        temperatures={name: _temperature(validation, name) for name in sizes},
        **room,
    )


def _temperature(rows: Rows, name: str) -> float:
    known = rows.labels[name] != MISSING
    return fit_temperature(rows.logits[name][known], rows.labels[name][known])


def score_split(session: Session, state: TrainState, split: str, trust: Trust | None) -> Evaluation | None:
    """Scores a split and writes `evaluation/<split>`; every process takes part.

    Args:
        session: of the run.
        state: whose weights are judged.
        split: "train", "validation" or "test".
        trust: what was fitted; None leaves labels and probabilities as the network has them.

    Returns:
        None where the split is empty.
    """
    if not len(session.prepared.indices(split)):
        return None
    result = session.evaluator(split, keep_outputs=True)(state)
    judgement = None if trust is None else _judge(session, state, result, trust)
    if judgement is not None:
        result = dataclasses.replace(result, trust=files.without_nan(judgement.report))
    decision = None if trust is None else trust.decision
    outputs = package_outputs(result, decision)
    result = dataclasses.replace(result, colours=files.without_nan(_score_colours(session, result, outputs)))
    if jax.process_index() == 0:
        folder = session.workdir / "evaluation" / split
        extra = {"step": int(state.step), "colours": result.colours}
        extra |= {} if result.trust is None else {"trust": result.trust}
        write_evaluation(folder, result.summaries, result.confusions, session.vocabularies, extra)
        if judgement is not None:
            write_trust(folder, judgement, fitted_here=split == "validation")
        labels = name_labels(outputs, session.vocabularies)
        _write_predictions(session, result, labels, decision, folder / "predictions.csv")
        _write_sheet(session, result, labels, folder / "contact_sheet.png")
    return result


def package_outputs(result: Evaluation, decision: Decision | None) -> Outputs:
    """Returns what a package with this decision says of the rows that were scored."""
    assert result.outputs is not None
    return decide(decision, result.outputs.logits, result.outputs.features, result.outputs.energies)


def format_scores(evaluation: Evaluation) -> str:
    """Returns a table of the split's scores, one attribute a line, and another of what may be trusted."""
    lines = [f"{'attribute':<16}{'rows':>7}{'accuracy':>10}{'macro-F1':>10}{'weighted':>10}{'top-5':>8}"]
    for name, summary in evaluation.summaries.items():
        scores = [summary[key] for key in ("accuracy", "macro_f1", "weighted_f1", "top5_accuracy")]
        cells = ["-" if score is None else f"{score:.4f}" for score in scores]
        lines.append(f"{name:<16}{summary['count']:>7}{cells[0]:>10}{cells[1]:>10}{cells[2]:>10}{cells[3]:>8}")
    for name, found in (evaluation.colours or {}).items():
        if found["accuracy"] is not None:
            lines.append(
                f"{name}: {found['family_accuracy']:.4f} by colour family; {found['tolerant_accuracy']:.4f} exact or "
                f"alike (CIEDE2000 of the classes' means up to {JUST_TOLERABLE:g})"
            )
    if evaluation.trust is not None:
        lines += [
            "as the package decides, accuracy / macro-F1 at its two operating points:",
            format_accepted(evaluation.trust),
        ]
    return "\n".join(lines)


def _score_colours(session: Session, result: Evaluation, outputs: Outputs) -> dict[str, dict[str, float]]:
    columns = dict(zip(session.attributes, session.columns, strict=True))
    scores = {}
    for name in session.colours:
        labels = session.prepared.labels[result.rows, columns[name]]
        known = labels != MISSING
        scores[name] = colour_scores(
            outputs.probabilities[name][known],
            outputs.labels[name][known],
            labels[known],
            session.vocabularies[name],
            session.colour_differences[name],
        )
    return scores


def _rows(session: Session, result: Evaluation) -> Rows:
    assert result.outputs is not None
    labels = session.prepared.labels[result.rows]
    return Rows(
        result.outputs.logits,
        {name: labels[:, column] for name, column in zip(session.attributes, session.columns, strict=True)},
        result.outputs.features,
        result.outputs.energies,
    )


def _judge(session: Session, state: TrainState, result: Evaluation, trust: Trust) -> Judgement:
    data = session.config.data
    outside: Rows | None = None
    kinds: list[str] = []
    if trust.decision.out_of_catalogue is not None:
        images, kinds = draw_not_products(NOT_PRODUCTS_PER_KIND, data.height, data.width)
        said = session.evaluate_images(state, images).outputs
        assert said is not None
        outside = Rows(said.logits, {}, said.features, said.energies)
    rows = _rows(session, result)
    return judge(trust.decision, trust.pairs, rows, outside=outside, kinds=kinds, groups=KINDS)


def _write_predictions(
    session: Session, result: Evaluation, labels: list[Prediction], decision: Decision | None, path: Path
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *prediction_columns(session.attributes, decision)])
    for number, said in zip(session.prepared.ids[result.rows], labels, strict=True):
        writer.writerow([number, *prediction_cells(said)])
    files.write_text(path, text.getvalue())


def _write_sheet(session: Session, result: Evaluation, labels: list[Prediction], path: Path) -> None:
    chosen, data = spread_rows(np.arange(len(result.rows)), _SHEET_PHOTOS), session.config.data
    rows = result.rows[chosen]
    photos = [decode_photo(session.prepared.read_photo(int(row)), data.height, data.width) for row in rows]

    def label(name: str, number: int) -> str | None:
        return session.vocabularies[name][number] if number >= 0 else None

    columns = dict(zip(session.attributes, session.columns, strict=True))
    truths = [{n: label(n, session.prepared.labels[row, c]) for n, c in columns.items()} for row in rows]
    said = [labels[i] for i in chosen]
    predictions: list[dict[str, str | None]] = [{n: found for n, (found, _) in labels.items()} for labels in said]
    confidences = [{n: share for n, (_, share) in labels.items()} for labels in said]
    write_contact_sheet(path, photos, truths, predictions, confidences)
