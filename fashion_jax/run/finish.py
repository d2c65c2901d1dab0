"""Finishes a run: fits decisions on the validation split, scores a split with them, and writes the model package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fashion_jax.data.drawn.not_products import KINDS, draw_not_products
from fashion_jax.data.loader import StreamedPhotos, spread_rows
from fashion_jax.data.schema import MISSING, NOT_APPLICABLE
from fashion_jax.decision.decisions import Decision
from fashion_jax.decision.embedding import EmbeddingPlan, compared_attributes, fit_embedding
from fashion_jax.decision.fit import DecisionScores, fit_decision, score_decision
from fashion_jax.decision.hierarchy import Pair
from fashion_jax.decision.operating_points import label_scores
from fashion_jax.decision.out_of_catalogue import REFERENCE_ROWS
from fashion_jax.decision.report import format_accepted, write_decision_scores
from fashion_jax.decision.tags import fit_tags
from fashion_jax.evaluation.colour_report import JUST_TOLERABLE, colour_scores
from fashion_jax.evaluation.evaluate import Evaluation, RowOutputs
from fashion_jax.evaluation.report import write_evaluation, write_prediction_sheet
from fashion_jax.evaluation.tags import format_tag_scores, summarize_tags
from fashion_jax.run.second_heads import TRIED, fit_second_heads, restore_second_heads
from fashion_jax.run.session import Session
from fashion_jax.serving.outputs import Outputs, Prediction, decide, name_labels
from fashion_jax.serving.package import write_package
from fashion_jax.serving.predict import prediction_cells, prediction_columns
from fashion_jax.serving.products import name_products, number_products, pool_photos
from fashion_jax.system import files
from fashion_jax.system.progress import say
from fashion_jax.system.text import format_table
from fashion_jax.training.placement import to_host
from fashion_jax.training.state import TrainState

_SHEET_PHOTOS = 48
_HEADINGS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "micro_f1": "micro-F1", "map": "mAP"}  # of printed scores
NOT_PRODUCTS_PER_KIND = 20  # drawn photos on which the out-of-catalogue score is judged


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left."""

    workdir: Path  # the folder
    best_step: int  # the step of the best checkpoint, which was scored and packaged
    test: Evaluation | None = None  # scores of the test split; None where it is empty or the run was not to be finished

    @property
    def package(self) -> Path:
        """The model package, which a finished run has."""
        return self.workdir / "package"


@dataclass(frozen=True, slots=True)
class ValidationFit:
    """What was fitted on the validation split."""

    decision: Decision  # probabilities, thresholds and labels of the package
    pairs: list[Pair]  # attributes of which one determines the other in the training rows
    embedding: EmbeddingPlan | None  # how embeddings are made; None for the pooled features as they are


def finish_run(session: Session, state: TrainState, step: int) -> Result:
    """Fits second heads and decisions, scores the test split, and writes the package.

    Every process takes part; the first one writes.
    """
    session, state = restore_second_heads(session, state) or fit_second_heads(session, state)
    fit = fit_on_validation(session, state)
    result = Result(session.workdir, step, score_split(session, state, "test", fit))
    if jax.process_index() == 0:
        _write_package(session, state, result, fit)
    return result


def fit_on_validation(session: Session, state: TrainState) -> ValidationFit | None:
    """Fits the decision and the embedding of a network; every process takes part and gets the same.

    Returns:
        None where the validation split is empty.
    """
    if not len(session.prepared.indices("validation")):
        return None
    say("calibrating probabilities and choosing thresholds on the validation rows", show=session.progress)
    scored = session.evaluator("validation", keep_outputs=True)(state)
    assert scored.outputs is not None
    labels = _labels(session, scored.rows)
    training = session.prepared.indices("train")
    some = spread_rows(training, REFERENCE_ROWS)
    reference = session.evaluator("train", rows=some, keep_outputs=True)(state).outputs
    assert reference is not None
    config = session.config
    decision, pairs = fit_decision(
        scored.outputs,
        labels,
        _labels(session, training),
        reference.features,
        products=number_products(session.prepared.ids[scored.rows]),
        precision=config.decision.precision,
        coverage=config.decision.label_set_coverage,
        not_applicable=_not_applicable(session),
    )
    tags = {
        name: fit_tags(scored.outputs.tags[name], session.prepared.tags[name][scored.rows]) for name in session.tags
    }
    decision = dataclasses.replace(decision, tags=tags)
    embedding, sizes = session.config.embedding, {n: len(v) for n, v in session.vocabularies.items()}
    plan = fit_embedding(
        scored.outputs.own_logits,  # Embeddings are of the photos themselves, without mirror images.
        labels,
        session.prepared.groups[scored.rows],
        reference.features,
        attributes=compared_attributes(embedding.attributes, sizes, pairs, embedding.size),
        size=embedding.size,
        appearance=embedding.appearance,
    )
    return ValidationFit(decision, pairs, plan)


def _not_applicable(session: Session) -> dict[str, int]:
    """Returns attribute -> the number of its class "does not apply", for the attributes that have one by the schema."""
    named = [a.name for a in session.prepared.schema.attributes if a.not_applicable and a.name in session.attributes]
    classes = session.vocabularies
    return {
        name: classes[name].index(NOT_APPLICABLE)
        for name in named
        if NOT_APPLICABLE in classes[name] and len(classes[name]) > 1
    }


def score_split(session: Session, state: TrainState, split: str, fit: ValidationFit | None) -> Evaluation | None:
    """Scores a split and writes `evaluation/<split>`; every process takes part.

    Args:
        split: "train", "validation" or "test".
        fit: what was fitted; None takes labels and probabilities as the network gives them.

    Returns:
        None where the split is empty.
    """
    if not len(session.prepared.indices(split)):
        return None
    result = session.evaluator(split, keep_outputs=True)(state)
    scores = None if fit is None else _score_decision(session, state, result, fit)
    if scores is not None:
        result = dataclasses.replace(result, decisions=files.without_nan(scores.report))
    decision = None if fit is None else fit.decision
    outputs = package_outputs(result, decision)
    result = dataclasses.replace(result, tags=_score_tags(session, result, outputs, decision))
    result = dataclasses.replace(result, colours=files.without_nan(_score_colours(session, result, outputs)))
    result = dataclasses.replace(result, products=_score_products(session, result, outputs, decision))
    if jax.process_index() == 0:
        folder = session.workdir / "evaluation" / split
        extra = {"step": int(state.step), "colours": result.colours}
        extra |= {} if result.products is None else {"products": result.products}
        extra |= {} if result.decisions is None else {"decisions": result.decisions}
        write_evaluation(folder, result.summaries, result.confusions, session.vocabularies, extra, result.tags)
        if scores is not None:
            write_decision_scores(folder, scores, fitted_here=split == "validation")
        labels = name_labels(outputs, session.vocabularies, session.tags)
        _write_predictions(session, result, outputs, decision, folder / "predictions.csv")
        _write_sheet(session, result, labels, folder / "contact_sheet.png")
    return result


def package_outputs(result: Evaluation, decision: Decision | None) -> Outputs:
    """Returns the outputs of a package with this decision for the rows that were scored."""
    assert result.outputs is not None
    outputs = result.outputs
    return decide(decision, outputs.logits, outputs.features, outputs.energies, tags=outputs.tags)


def format_summaries(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of scores, one attribute a line: rows, accuracy, macro-F1, weighted F1, top-5 accuracy."""
    rows = [["attribute", "rows", "accuracy", "macro-F1", "weighted F1", "top-5 accuracy"]]
    for name, summary in summaries.items():
        scores = [summary[key] for key in ("accuracy", "macro_f1", "weighted_f1", "top5_accuracy")]
        rows.append([name, f"{summary['count']:,}", *("-" if score is None else f"{score:.4f}" for score in scores)])
    return format_table(*rows)


def format_scores(evaluation: Evaluation) -> str:
    """Returns tables of a split's scores: of the network's labels, and of the package's decisions."""
    lines = [*filter(None, [format_summaries(evaluation.summaries), format_tag_scores(evaluation.tags)])]
    for name, found in (evaluation.colours or {}).items():
        if found["accuracy"] is not None:
            lines.append(
                f"{name}: {found['family_accuracy']:.4f} by colour family; {found['tolerant_accuracy']:.4f} exact or "
                f"alike (CIEDE2000 of the classes' means up to {JUST_TOLERABLE:g})"
            )
    if evaluation.products is not None:
        lines.append("by product (a label from the mean of the photos' probabilities):")
        for kind, keys in (
            ("attribute", ("accuracy", "macro_f1")),
            ("several values", ("map", "micro_f1", "macro_f1")),
        ):
            chosen = {name: found for name, found in evaluation.products.items() if keys[0] in found}
            table = [[kind, "products", *(_HEADINGS[key] for key in keys)]]
            for name, found in chosen.items():
                shares = (found[key] for key in keys)
                table.append([name, f"{found['count']:,}", *("-" if s is None else f"{s:.4f}" for s in shares)])
            lines += [format_table(*table)] if chosen else []
    if evaluation.decisions is not None:
        lines.append("decisions of the package, accuracy / macro-F1 at its two operating points:")
        lines.append(format_accepted(evaluation.decisions))
    return "\n".join(lines)


def _score_colours(session: Session, result: Evaluation, outputs: Outputs) -> dict[str, dict[str, float]]:
    scores = {}
    for name in session.colours:
        labels = session.prepared.labels[result.rows, session.column(name)]
        known = labels != MISSING
        scores[name] = colour_scores(
            outputs.probabilities[name][known],
            outputs.labels[name][known],
            labels[known],
            session.vocabularies[name],
            session.colour_differences[name],
        )
    return scores


def _score_tags(
    session: Session, result: Evaluation, outputs: Outputs, decision: Decision | None
) -> dict[str, dict[str, Any]]:
    fitted = {} if decision is None else decision.tags
    return {
        name: summarize_tags(
            outputs.tag_probabilities[name],
            session.prepared.tags[name][result.rows],
            classes,
            fitted[name].thresholds if name in fitted else 0.5,
        )
        for name, classes in session.tags.items()
    }


def _labels(session: Session, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns attribute -> labels of rows, for the attributes of the model."""
    labels = session.prepared.labels[rows]
    return {name: labels[:, column] for name, column in zip(session.attributes, session.columns, strict=True)}


def _score_decision(session: Session, state: TrainState, result: Evaluation, fit: ValidationFit) -> DecisionScores:
    assert result.outputs is not None
    data = session.config.data
    outside: RowOutputs | None = None
    kinds: list[str] = []
    if fit.decision.out_of_catalogue is not None:
        images, kinds = draw_not_products(NOT_PRODUCTS_PER_KIND, data.height, data.width)
        outside = session.evaluate_images(state, images).outputs
    labels = _labels(session, result.rows)
    return score_decision(fit.decision, fit.pairs, result.outputs, labels, outside=outside, kinds=kinds, groups=KINDS)


def _score_products(
    session: Session, result: Evaluation, outputs: Outputs, decision: Decision | None
) -> dict[str, dict[str, float]] | None:
    """Scores products' labels; a product whose photos have different labels does not count. None without such products.

    A product's label comes from the mean of its photos' probabilities, at the operating point "accuracy".
    """
    products = number_products(session.prepared.ids[result.rows])
    count = int(products.max(initial=-1)) + 1
    if count == len(products):
        return None
    pooled, scores = pool_photos(outputs, products, decision), {}
    for name, labels in _labels(session, result.rows).items():
        low, high = np.full(count, np.iinfo(np.int32).max), np.full(count, MISSING)
        np.minimum.at(low, products[labels != MISSING], labels[labels != MISSING])
        np.maximum.at(high, products, labels)
        known = low == high
        found = label_scores(high[known], pooled.labels[name][known], len(session.vocabularies[name]))
        scores[name] = {"count": int(known.sum()), **found}
    fitted = {} if decision is None else decision.tags
    for name, classes in session.tags.items():
        tags = session.prepared.tags[name][result.rows]
        firsts = np.unique(products, return_index=True)[1]
        truth, differ = tags[firsts].copy(), (tags != tags[firsts][products]).any(1)
        truth[products[differ]] = MISSING
        threshold = fitted[name].thresholds if name in fitted else 0.5
        found = summarize_tags(pooled.tag_probabilities[name], truth, classes, threshold)
        scores[name] = {key: found[key] for key in ("count", "map", "micro_f1", "macro_f1")}
    return files.without_nan(scores)


def _write_predictions(
    session: Session, result: Evaluation, outputs: Outputs, decision: Decision | None, path: Path
) -> None:
    ids = session.prepared.ids[result.rows]
    products = number_products(ids)
    names = ids[np.sort(np.unique(products, return_index=True)[1])]
    rows: list[list[str | float]] = [["id", *prediction_columns(session.attributes, decision, tuple(session.tags))]]
    found = name_products(outputs, products, session.vocabularies, session.tags, decision)
    for name, prediction in zip(names, found, strict=True):
        rows.append([name, *prediction_cells(prediction)])
    files.write_text(path, files.format_csv(rows))


def _write_sheet(session: Session, result: Evaluation, labels: list[Prediction], path: Path) -> None:
    chosen, data = spread_rows(np.arange(len(result.rows)), _SHEET_PHOTOS), session.config.data
    photos = list(StreamedPhotos(session.prepared, data.height, data.width)(result.rows[chosen]))
    truths = []
    for row in result.rows[chosen].tolist():
        numbers = {name: session.prepared.labels[row, session.column(name)] for name in session.attributes}
        truths.append({n: session.vocabularies[n][number] if number >= 0 else None for n, number in numbers.items()})
    write_prediction_sheet(path, photos, truths, [labels[place] for place in chosen])


def _write_package(session: Session, state: TrainState, result: Result, fit: ValidationFit | None) -> None:
    params, batch_stats = state.scored
    flat = traverse_util.flatten_dict({"params": to_host(params), "batch_stats": to_host(batch_stats)})
    data = session.config.data
    write_package(
        result.package,
        weights={"/".join(map(str, path)): array for path, array in flat.items()},
        model=session.arguments,
        vocabularies=session.vocabularies,
        tags=session.tags,
        preprocessing={
            "height": data.height,
            "width": data.width,
            "max_side": session.prepared.max_side,
            "mean": list(data.mean),
            "std": list(data.std),
            "test_time_flip": data.test_time_flip,
        },
        extra={
            "step": result.best_step,
            "fingerprint": session.prepared.fingerprint,
            "test": result.test.scalars() if result.test else None,
            TRIED: list(session.config.model.second_heads),
        },
        decision=None if fit is None else fit.decision,
        embedding=None if fit is None else fit.embedding,
    )
