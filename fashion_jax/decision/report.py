"""Shows the scores of a decision: tables in decisions.md, and a reliability diagram for each head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fashion_jax.decision.calibration import BINS, calibration_error, reliability_bins
from fashion_jax.decision.decisions import OPERATING_POINTS
from fashion_jax.decision.fit import DecisionScores
from fashion_jax.system import files
from fashion_jax.system.pictures import RIGHT, UNKNOWN, render_png

_FEWEST = 5  # A bin with fewer rows is not drawn.


def write_decision_scores(folder: Path, scores: DecisionScores, *, fitted_here: bool) -> None:
    """Writes decisions.md and `reliability/<attribute>.png`.

    Args:
        fitted_here: whether the decision was fitted on this split.
    """
    files.write_text(folder / "decisions.md", format_report(scores.report, fitted_here=fitted_here))
    for name, curves in scores.confidences.items():
        files.write_bytes(folder / "reliability" / f"{name}.png", draw_reliability(name, curves))


def format_accepted(report: Mapping[str, Any]) -> str:
    """Returns a table for the console, one attribute a line.

    It shows accuracy / macro-F1 at both operating points, the expected calibration error of the network and of the
    package, and the share of labels that are accepted automatically at the operating point "accuracy".
    """
    lines = [
        f"{'attribute':<16}{'for accuracy':>17}{'for macro-F1':>17}{'ECE before':>12}{'after':>8}"
        f"   accepted automatically at {report['precision']:.0%} precision"
    ]
    for name, head in report["heads"].items():
        points = [head["operating_points"][point] for point in OPERATING_POINTS]
        pairs = [f"{_number(p['accuracy'], 4)} / {_number(p['macro_f1'], 4)}" for p in points]
        taken = points[0]["accepted"]
        share = (
            "no threshold reaches it"
            if taken["threshold"] is None
            else f"{_percent(taken['coverage'])} of products, {_percent(taken['precision'])} of them right"
        )
        lines.append(
            f"{name:<16}{pairs[0]:>17}{pairs[1]:>17}"
            f"{head['ece']['before']:>12.4f}{head['ece']['after']:>8.4f}   {share}"
        )
    found = report.get("contradictions")
    if found:
        before, after = found["before"]["any"]["share"], found["after (accuracy)"]["any"]["share"]
        lines.append(
            f"predictions that contradict the hierarchy: {before:.2%} of the network's, {after:.2%} of the package's"
        )
    others = report.get("out_of_catalogue", {}).get("others")
    if others:
        scores = ", ".join(f"{kind} {others[kind]['auroc']:.3f}" for kind in others if kind in _GROUPS)
        lines.append(f"AUROC of photos that show no product: {scores}")
    return "\n".join(lines)


_GROUPS = ("all", "noise", "patterns", "other domains")


def format_report(report: Mapping[str, Any], *, fitted_here: bool) -> str:
    """Returns the whole report as Markdown."""
    rows = "these rows, so the figures are too good" if fitted_here else "the validation split, scored on other rows"
    heads = report["heads"]
    parts = [f"# Decisions\n\nFitted on {rows}. Precision asked for: {report['precision']:.1%}."]
    parts.append(
        "## Calibration\n\nExpected calibration error (ECE, 15 bins) and mean negative log-likelihood (NLL, "
        "nats) of the network, of its scaled probabilities, and of the package, which also uses the hierarchy.\n\n"
        + _table(
            ["attribute", "rows", "temperature", "ECE", "scaled", "predicted", "NLL", "scaled", "predicted"],
            [
                [name, f"{h['rows']:,}", f"{h['temperature']:.3f}"]
                + [f"{h[kind][key]:.4f}" for kind in ("ece", "nll") for key in ("before", "temperature", "after")]
                for name, h in heads.items()
            ],
        )
    )
    parts.append(
        "## Operating points\n\nStrength of the post-hoc logit adjustment; macro-F1 over all classes of the rows, "
        "and over the classes with 10 rows or more (supported).\n\n"
        + _table(
            ["attribute", "for", "strength", "accuracy", "macro-F1", "supported"],
            [
                [name, point, "" if values is head["plain"] else f"{values['strength']:.2f}"]
                + [_number(values[key], 4) for key in ("accuracy", "macro_f1", "macro_f1_supported")]
                for name, head in heads.items()
                for point, values in [("the network", head["plain"]), *head["operating_points"].items()]
            ],
        )
    )
    for point in OPERATING_POINTS:
        parts.append(
            f"## Accepted automatically at {report['precision']:.1%} precision (operating point {point})\n\n"
            + _table(
                ["attribute", "confidence from", "accepted", "precision reached"],
                [
                    [name, _number(taken["threshold"], 4), _percent(taken["coverage"]), _percent(taken["precision"])]
                    for name, head in heads.items()
                    for taken in [head["operating_points"][point]["accepted"]]
                ],
            )
        )
    if any("label_sets" in head for head in heads.values()):
        rows_ = [
            [name, _percent(sets["asked"]), _percent(sets["coverage"]), f"{sets['mean_size']:.2f}"]
            for name, head in heads.items()
            for sets in ([head["label_sets"]] if "label_sets" in head else [])
        ]
        parts.append("## Label sets\n\n" + _table(["attribute", "coverage asked for", "coverage", "mean size"], rows_))
    if "contradictions" in report:
        parts.append(_hierarchy(report))
    if "out_of_catalogue" in report:
        parts.append(_outside(report["out_of_catalogue"]))
    return "\n\n".join(parts) + "\n"


def _hierarchy(report: Mapping[str, Any]) -> str:
    found = report["contradictions"]
    pairs = "; ".join(f"{pair} in {share:.2%} of training rows" for pair, share in found["pairs"].items())
    steps = [key for key in found if key != "pairs"]
    table = _table(
        ["rows that contradict", *found["pairs"], "any"],
        [[step, *(f"{found[step][p]['share']:.3%}" for p in (*found["pairs"], "any"))] for step in steps],
    )
    links = [
        [name, link["finer"], link["pooling"], f"{link['weight']:.2f}"]
        for name, head in report["heads"].items()
        for link in [head["hierarchy"]]
        if link
    ]
    mixed = "\n\n" + _table(["attribute", "also from", "pooling", "weight"], links) if links else ""
    return f"## Hierarchy\n\nDetermined: {pairs}.\n\n{table}{mixed}"


def _outside(found: Mapping[str, Any]) -> str:
    table = _table(
        ["photos", "AUROC", "above the threshold"],
        [[name, f"{v['auroc']:.4f}", f"{v['above_threshold']:.1%}"] for name, v in found["others"].items()],
    )
    share = _percent(found["products_above_threshold"])
    return f"## Out of catalogue\n\nProducts judged to be out of catalogue: {share}.\n\n{table}"


def draw_reliability(title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Draws accuracy by confidence, before and after, and the number of rows in each bin, as PNG.

    Args:
        curves: "before" and "after" -> confidences in [0, 1], and whether they were right.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    middles = (np.arange(BINS) + 0.5) / BINS
    for (name, (confidence, right)), colour in zip(curves.items(), (UNKNOWN, RIGHT), strict=False):
        rows, hits, sums = reliability_bins(confidence, right)
        drawn = rows >= _FEWEST
        error = calibration_error(confidence, right)
        axes.plot(
            sums[drawn] / rows[drawn], hits[drawn] / rows[drawn], marker="o", markersize=4, color=colour,
            label=f"{name}: error {error:.3f}",
        )  # fmt: skip
        counts.step(middles, rows, where="mid", color=colour)
    axes.set_title(f"{title}: accuracy by confidence", parse_math=False)
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1)
    axes.legend(loc="upper left")
    counts.set_ylabel("rows")
    counts.set_xlabel("confidence")
    return render_png(figure)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
