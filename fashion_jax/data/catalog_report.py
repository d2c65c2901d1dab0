"""What a catalogue holds, what was wrong with it, and what became of it, in numbers and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.catalog import Catalog
from fashion_jax.data.schema import MISSING
from fashion_jax.data.splits import SPLITS


def make_report(
    catalog: Catalog,
    photo_repairs: Mapping[str, int],
    *,
    vocabularies: Mapping[str, tuple[str, ...]],
    labels: Int32[np.ndarray, "n attributes"],
    groups: Int64[np.ndarray, " n"],
    sides: Int8[np.ndarray, " n"],
    digests: list[str],
    seconds: float,
) -> dict[str, Any]:
    """Returns JSON values that `format_report` prints.

    Args:
        catalog: as read, bad photos moved to its rejected rows.
        photo_repairs: repair -> photos.
        vocabularies: attribute -> class names.
        labels: of the usable products.
        groups: of near-duplicates.
        sides: place in SPLITS.
        digests: of the photos' bytes.
        seconds: that the preparation took.
    """
    dropped = sum(catalog.dropped.values())
    identical = np.unique(digests, return_inverse=True)[1]
    return {
        "source": str(catalog.source),
        "rows": catalog.num_rows,
        "documented_rows": catalog.documented_rows,
        "products": len(catalog.products),
        "dropped": dict(catalog.dropped),
        "quarantined": len(catalog.rejected) - dropped,
        "quarantine_reasons": _reasons(catalog),
        "table_repairs": dict(catalog.repairs),
        "corrected_labels": dict(catalog.corrected),
        "photo_repairs": dict(photo_repairs),
        "classes": {
            name: {
                "known": len(classes),
                "present": len(set(labels[:, i].tolist()) - {MISSING}),
                "missing_labels": int((labels[:, i] == MISSING).sum()),
            }
            for i, (name, classes) in enumerate(vocabularies.items())
        },
        "identical": _group_facts(identical, labels, tuple(vocabularies)),
        "near_duplicates": _group_facts(groups, labels, tuple(vocabularies)),
        "splits": {name: int((sides == number).sum()) for number, name in enumerate(SPLITS)},
        "seconds": round(seconds, 1),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Returns a report as lines of text."""
    lines = [
        f"{report['source']}: {report['rows']:,} rows, {report['products']:,} usable products ({report['seconds']} s)",
        f"  rows of the documented classes: {report['documented_rows']:,}",
    ]
    lines += [f"  left out, {reason}: {count:,}" for reason, count in report["dropped"].items()]
    lines += [f"  quarantined, {reason}: {count:,}" for reason, count in report["quarantine_reasons"].items()]
    lines += [
        f"  repaired, {name}: {n:,}" for name, n in {**report["table_repairs"], **report["photo_repairs"]}.items()
    ]
    # Records of an earlier version do not count corrections.
    lines += [f"  corrected labels, {name}: {count:,}" for name, count in report.get("corrected_labels", {}).items()]
    lines.append("  attribute         classes  present  missing labels")
    for name, facts in report["classes"].items():
        lines.append(f"    {name:<16}{facts['known']:>7}{facts['present']:>9}{facts['missing_labels']:>16,}")
    for key, what in (("identical", "identical photos"), ("near_duplicates", "near-duplicates")):
        facts = report[key]
        apart = ", ".join(f"{n} {share:.1%}" for n, share in facts["disagreement"].items() if share)
        lines.append(
            f"  {what}: {facts['products']:,} products in {facts['groups']:,} groups (largest {facts['largest']})"
            + (f"; labels disagree in: {apart}" if apart else "")
        )
    lines.append("  splits: " + ", ".join(f"{name} {count:,}" for name, count in report["splits"].items()))
    return "\n".join(lines)


def _reasons(catalog: Catalog) -> dict[str, int]:
    """Counts the reasons of quarantine, names and numbers in them left out."""
    reasons = [r.reason for r in catalog.rejected if not r.by_schema]
    return dict(Counter(" ".join(w for w in r.split() if not any(c in "/'0123456789" for c in w)) for r in reasons))


def _group_facts(
    groups: Int64[np.ndarray, " n"], labels: Int32[np.ndarray, "n attributes"], names: tuple[str, ...]
) -> dict[str, Any]:
    """Counts groups of two products or more, and the share of them in which an attribute's labels differ."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    several = sizes >= 2
    disagreement = {}
    for i, name in enumerate(names):
        known = labels[:, i] != MISSING
        low = np.full(len(sizes), np.iinfo(np.int32).max)
        high = np.full(len(sizes), -1)
        np.minimum.at(low, number[known], labels[known, i])
        np.maximum.at(high, number[known], labels[known, i])
        differ = several & (low < high)
        disagreement[name] = round(float(differ.sum() / max(several.sum(), 1)), 4)
    return {
        "groups": int(several.sum()),
        "products": int(sizes[several].sum()),
        "largest": int(sizes.max(initial=0)),
        "disagreement": disagreement,
    }
