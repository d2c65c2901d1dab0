"""The report on a preparation: what the catalogue holds, what was repaired, and what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32, Int64

from fashion_jax.data.catalog import Catalog
from fashion_jax.data.schema import MISSING, NOT_APPLICABLE, Attribute
from fashion_jax.data.splits import SPLITS
from fashion_jax.data.tags import format_tags, report_tags
from fashion_jax.data.words import merge_line, notable_missing
from fashion_jax.system.text import format_table

_MOST_KINDS = 8  # kinds of files that the text names; the JSON has all
_SHOWN = 5  # values


def make_report(
    catalog: Catalog,
    photo_repairs: Mapping[str, int],
    *,
    vocabularies: Mapping[str, tuple[str, ...]],
    labels: Int32[np.ndarray, "n attributes"],
    groups: Int64[np.ndarray, " n"],
    splits: Int8[np.ndarray, " n"],
    digests: list[str],
    seconds: float,
    tags: Mapping[str, Int8[np.ndarray, "n classes"]],
) -> dict[str, Any]:
    """Returns the report as JSON values; `format_report` makes text of it.

    Args:
        catalog: as it was read, with products whose photo is bad among the rejected rows.
        photo_repairs: name of a repair -> photos that needed it.
        vocabularies: attribute -> class names.
        labels: of the usable products.
        groups: of near-duplicates.
        splits: place in SPLITS.
        digests: of the photos' bytes.
        seconds: the time that the preparation took.
        tags: of the usable products.
    """
    dropped = sum(catalog.dropped.values())
    identical = np.unique(digests, return_inverse=True)[1]
    return {
        "source": str(catalog.source),
        "rows": catalog.num_rows,
        "documented_rows": catalog.documented_rows,
        "products": len(catalog.records),
        "dropped": dict(catalog.dropped),
        "quarantined": len(catalog.rejected) - dropped,
        "quarantine_reasons": _reasons(catalog),
        "table_repairs": dict(catalog.repairs),
        "encoding": _describe_encoding(catalog),
        "words": {attribute.name: _describe_words(catalog, attribute) for attribute in catalog.schema.attributes},
        "tags": report_tags(catalog.tags, tags),
        "several_values": list(catalog.several_values),
        "unused_columns": dict(catalog.unused),
        "corrected_labels": dict(catalog.corrected),
        "passed_over": dict(catalog.passed_over.most_common()),
        "photo_repairs": dict(photo_repairs),
        "classes": {
            name: {
                "known": len(classes),
                "present": len(set(labels[:, i].tolist()) - {MISSING}),
                "missing_labels": int((labels[:, i] == MISSING).sum()),
            }
            for i, (name, classes) in enumerate(vocabularies.items())
        },
        "identical": _count_groups(identical, labels, tuple(vocabularies)),
        "near_duplicates": _count_groups(groups, labels, tuple(vocabularies)),
        "splits": {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)},
        "seconds": round(seconds, 1),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Returns a report as lines of text."""
    repairs = {**report["table_repairs"], **report["photo_repairs"]}
    lines = [
        f"{report['source']}: {report['rows']:,} rows, {report['products']:,} usable products ({report['seconds']} s)",
        f"  rows with a known class in every attribute that has fixed classes: {report['documented_rows']:,}",
        *(f"  left out by the schema: {reason}: {count:,}" for reason, count in report["dropped"].items()),
        *(f"  left out: {reason}: {count:,}" for reason, count in report["quarantine_reasons"].items()),
        *(f"  repaired: {name}: {count:,}" for name, count in repairs.items()),
        *(f"  files passed over: {kind}: {count:,}" for kind, count in [*report["passed_over"].items()][:_MOST_KINDS]),
        *(f"  corrected labels: {name}: {count:,}" for name, count in report["corrected_labels"].items()),
    ]
    lines += _format_words(report)
    table = [["  attribute", "classes", "present", "missing labels"]]
    for name, counts in report["classes"].items():
        table.append([f"  {name}", str(counts["known"]), str(counts["present"]), f"{counts['missing_labels']:,}"])
    lines.append(format_table(*table))
    for key, what in (("identical", "identical photos"), ("near_duplicates", "near-duplicates")):
        counts = report[key]
        differ = ", ".join(f"{name} {share:.1%}" for name, share in counts["disagreement"].items() if share)
        lines.append(
            f"  {what}: {counts['products']:,} products in {counts['groups']:,} groups (largest {counts['largest']})"
            + (f"; share of groups whose labels differ: {differ}" if differ else "")
        )
    lines.append("  splits: " + ", ".join(f"{name} {count:,}" for name, count in report["splits"].items()))
    return "\n".join(lines)


def _describe_encoding(catalog: Catalog) -> dict[str, Any]:
    text = catalog.text
    if text is None:
        return {}
    return {"name": text.encoding, "words": list(text.words), "is_guess": text.is_guess, "or_else": text.other}


def _describe_words(catalog: Catalog, attribute: Attribute) -> dict[str, Any]:
    name = attribute.name
    missing, alike = catalog.missing_words.get(name, Counter()), catalog.look_alikes.get(name, [])
    maybe = notable_missing(missing, catalog.num_rows)
    # One line for all attributes, because the schema has one list.
    doubtful = {
        w.casefold() for words in catalog.missing_words.values() for w in notable_missing(words, catalog.num_rows)
    }
    others = [word for word in catalog.schema.missing_values if word.casefold() not in doubtful]
    return {
        "missing": dict(missing),
        "maybe_classes": maybe,
        "missing_line": f'"missing_values": {json.dumps(others, ensure_ascii=False)}' if maybe else "",
        "no_class": dict(catalog.masked_words.get(name, {})),
        "merged": dict(catalog.merged.get(name, {})),
        "not_applicable": dict(catalog.not_applicable.get(name, {})),
        "look_alikes": alike,
        "merge_line": merge_line(name, alike, dict(attribute.merge)) if alike else "",
    }


def _format_words(report: Mapping[str, Any]) -> list[str]:
    """Returns lines about the table's encoding, missing labels, merged and similar classes, and unused columns."""
    lines, encoding = [], report["encoding"]
    if encoding and encoding["words"]:
        what = "guessed" if encoding["is_guess"] else "found"
        lines.append(f"  encoding ({what}): {encoding['name']}; words: {', '.join(encoding['words'])}")
        if encoding["is_guess"]:
            also = f"; it may also be {encoding['or_else']}" if encoding["or_else"] else ""
            lines.append(f'    if these words are wrong, name the encoding in the schema: "encoding": "..."{also}')
    for name, words in report["words"].items():
        taken = ", ".join(f"{word!r} {count:,}" for word, count in words["missing"].items() if word)
        if taken:
            lines.append(f"  {name}: taken as missing: {taken}")
        if words["maybe_classes"]:
            lines.append(f"    if that is a class, write this into the schema: {words['missing_line']}")
        if words["no_class"]:
            shown = ", ".join(f"{word!r} {count:,}" for word, count in list(words["no_class"].items())[:_SHOWN])
            lines.append(f"  {name}: {len(words['no_class']):,} values are no classes: {shown}")
        if words["not_applicable"]:
            taken = ", ".join(f"{word!r} {count:,}" for word, count in words["not_applicable"].items())
            lines.append(f"  {name}: read as {NOT_APPLICABLE!r}: {taken}")
        for word, count in words["merged"].items():
            lines.append(f"  {name}: merged: {word!r} {count:,}")
        for group in words["look_alikes"]:
            lines.append(f"  {name}: similar classes: " + ", ".join(f"{word!r} {n:,}" for word, n in group.items()))
        if words["merge_line"]:
            lines.append(f"    to merge them, put this into the schema's attributes: {words['merge_line']}")
    lines += format_tags(report["tags"])
    lines += [f"  {sentence}" for sentence in report["several_values"]]
    for column, reason in report["unused_columns"].items():
        lines.append(f"  column {column!r} is not used: {reason}")
    return lines


def _reasons(catalog: Catalog) -> dict[str, int]:
    """Counts why rows were left out. Words with names or numbers are cut, so that equal reasons count together."""
    rejected = [r for r in catalog.rejected if not r.by_schema]
    return dict(Counter(r.kind or _without_names(r.reason) for r in rejected))


def _without_names(reason: str) -> str:
    return " ".join(word for word in reason.split() if not any(c in "/'0123456789" for c in word))


def _count_groups(
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
