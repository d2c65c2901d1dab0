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
from fashion_jax.data.tags import format_tags, report_tags, tag_vectors
from fashion_jax.data.words import merge_line, notable_missing, suspect_missing
from fashion_jax.system.text import format_table

_MOST_KINDS = 8  # kinds of files that the text names; the JSON has all
_SHOWN = 5  # values


def describe_catalog(catalog: Catalog) -> dict[str, Any]:
    """Returns how a catalogue was read as JSON values; `format_understood` makes text of it. It reads no photo."""
    dropped = sum(catalog.dropped.values())
    classes, suspects = {}, {}
    fixed = {attribute.name: attribute.fixed_classes() for attribute in catalog.schema.attributes}
    for place, (name, known) in enumerate(catalog.vocabularies.items()):
        labels = [record.labels[place] for record in catalog.records]
        present = set(labels) - {None}
        suspects[name] = suspect_missing(Counter(filter(None, labels)), name, fixed[name])
        classes[name] = {"known": len(known), "present": len(present), "missing_labels": labels.count(None)}
    vectors = {
        name: tag_vectors([record.tags[place] for record in catalog.records], column.classes)
        for place, (name, column) in enumerate(catalog.tags.items())
    }
    return {
        "source": str(catalog.source),
        "rows": catalog.num_rows,
        "documented_rows": catalog.documented_rows,
        "products": catalog.num_products,
        "photos": len(catalog.records),
        "columns": _describe_columns(catalog),
        "offers": list(catalog.offers),
        "differing_labels": dict(catalog.differing),
        "dropped": dict(catalog.dropped),
        "quarantined": len(catalog.rejected) - dropped,
        "quarantine_reasons": _reasons(catalog),
        "table_repairs": dict(catalog.repairs),
        "encoding": _describe_encoding(catalog),
        "words": {
            attribute.name: _describe_words(catalog, attribute, suspects) for attribute in catalog.schema.attributes
        },
        "tags": report_tags(catalog.tags, vectors),
        "carried_columns": {name: column.how for name, column in catalog.carried.columns.items()},
        "carried_notes": catalog.carried.doubts(),
        "unused_columns": {name: why for name, why in catalog.unused.items() if name not in catalog.carried.columns},
        "corrected_labels": dict(catalog.corrected),
        "passed_over": dict(catalog.passed_over.most_common()),
        "classes": classes,
    }


def make_report(
    catalog: Catalog,
    photo_repairs: Mapping[str, int],
    *,
    vocabularies: Mapping[str, tuple[str, ...]],
    labels: Int32[np.ndarray, "n attributes"],
    products: list[str],
    groups: Int64[np.ndarray, " n"],
    shared_photos: int,
    splits: Int8[np.ndarray, " n"],
    digests: list[str],
) -> dict[str, Any]:
    """Returns the report as JSON values; `format_report` makes text of it.

    Args:
        catalog: as it was read, with records whose photo is bad among the rejected ones. The arrays and lists have a
            value for each usable record, in one order.
        photo_repairs: name of a repair -> photos that needed it.
        vocabularies: attribute -> class names.
        labels: class numbers.
        products: ids.
        groups: of near-duplicates.
        shared_photos: number of photos that many products share.
        splits: place in SPLITS.
        digests: of the photos' bytes.
    """
    names, identical = tuple(vocabularies), np.unique(digests, return_inverse=True)[1]
    # Photos of one product are near-duplicates by definition, so each product counts with its first photo.
    firsts = np.sort(np.unique(products, return_index=True)[1])
    return {
        **describe_catalog(catalog),
        "photo_repairs": dict(photo_repairs),
        "identical": _count_groups(identical[firsts], labels[firsts], names),
        "near_duplicates": _count_groups(groups[firsts], labels[firsts], names),
        "shared_photos": shared_photos,
        "splits": {name: int((splits[firsts] == number).sum()) for number, name in enumerate(SPLITS)},
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Returns a report as lines of text."""
    repairs = {**report["table_repairs"], **report["photo_repairs"]}
    lines = [
        format_understood(report),
        f"rows with a known class in every attribute that has fixed classes: {report['documented_rows']:,}",
        *(f"left out by the schema: {reason}: {count:,}" for reason, count in report["dropped"].items()),
        *(f"left out: {reason}: {count:,}" for reason, count in report["quarantine_reasons"].items()),
        *(f"repaired: {name}: {count:,}" for name, count in repairs.items()),
        *(f"corrected labels: {name}: {count:,}" for name, count in report["corrected_labels"].items()),
    ]
    for key, what in (("identical", "identical photos"), ("near_duplicates", "near-duplicates")):
        counts = report[key]
        differ = ", ".join(f"{name} {share:.1%}" for name, share in counts["disagreement"].items() if share)
        lines.append(
            f"{what}: {counts['products']:,} products in {counts['groups']:,} groups (largest {counts['largest']})"
            + (f"; share of groups whose labels differ: {differ}" if differ else "")
        )
    if report["shared_photos"]:
        lines.append(f"photos that more than 10 products share, such as size charts: {report['shared_photos']:,}")
    lines.append("splits: " + ", ".join(f"{name} {count:,}" for name, count in report["splits"].items()) + " products")
    return "\n".join(lines)


def format_understood(report: Mapping[str, Any]) -> str:
    """Returns how the catalogue was read, as tables and lines: columns, attributes, missing labels, similar classes."""
    products, photos = report["products"], report["photos"]
    several = f" with {photos:,} photos" if photos != products else ""
    lines = [f"{report['source']}: {report['rows']:,} rows, {products:,} usable products{several}"]
    rows = [["what", "how it was read"], *([what, found] for what, found in report["columns"].items())]
    lines.append(format_table(*rows, left=2))
    table = [["attribute", "column", "taken as missing", "missing labels", "classes", "present"]]
    for name, counts in report["classes"].items():
        taken = ", ".join(f"{w!r} {count:,}" for w, count in report["words"][name]["missing"].items() if w)
        column = report["words"][name]["column"]
        numbers = [f"{counts['missing_labels']:,}", str(counts["known"]), str(counts["present"])]
        table.append([name, column, taken, *numbers])
    lines.append(format_table(*table, left=3))
    lines += _format_words(report)
    lines += [
        f"{name}: {n:,} products have rows with different labels" for name, n in report["differing_labels"].items()
    ]
    others = [f"{kind} {count:,}" for kind, count in [*report["passed_over"].items()][:_MOST_KINDS]]
    if others:
        lines.append(f"files passed over: {', '.join(others)}")
    return "\n".join([*lines, *report["carried_notes"], *report["offers"]])


def _describe_columns(catalog: Catalog) -> dict[str, str]:
    """Returns what -> how it was read, for people."""
    schema = catalog.schema
    columns = ", ".join(map(repr, (schema.image_column, *schema.more_image_columns)))
    sizes = Counter(Counter(record.id for record in catalog.records).values())
    found = {
        "photos": f"column {columns}" if schema.image_column else f"files named by the id: {schema.image_template}",
        "ids": f"column {schema.id_column!r}" if schema.id_column else "the row's number, for lack of a column of ids",
    }
    if schema.product_column:
        found["ids"] = f"column {schema.product_column!r} names the product, {schema.id_column!r} the photo"
    if schema.group_by_name:
        found["photos"] += f"; grouped by name ({schema.group_by_name})"
        if schema.image_column:
            found["ids"] = "the part of the name that the product's photos share (FS-1400 for FS-1400_1.jpg)"
    if set(sizes) - {1}:
        found["photos of a product"] = ", ".join(f"{n}: {count:,} products" for n, count in sorted(sizes.items()))
    found |= {"title": f"column {schema.title_column!r}"} if schema.title_column else {}
    if schema.split_column:
        found["split"] = describe_split(schema.split_column)
    found |= {"folder of photos": schema.image_root} if schema.image_root else {}
    carried = [f"{name!r} ({column.how})" for name, column in catalog.carried.columns.items()]
    found |= {"carried along": ", ".join(carried)} if carried else {}
    text = catalog.text
    if text is not None and text.words:
        found["encoding"] = f"{text.encoding} ({'guessed' if text.is_guess else 'found'}): {', '.join(text.words)}"
    return found


def describe_split(column: str, kind: str = "") -> str:
    """Returns in words whether a table's column of splits is used.

    Args:
        column: its name.
        kind: `SplitOptions.kind`; empty: it is not known.
    """
    if not kind:
        return f"column {column!r}; to use it, add --split=column"
    if kind == "column":
        return f"column {column!r}"
    return f"column {column!r} is there and not used; to use it, add --split=column"


def _describe_encoding(catalog: Catalog) -> dict[str, Any]:
    text = catalog.text
    if text is None:
        return {}
    return {"name": text.encoding, "words": list(text.words), "is_guess": text.is_guess, "or_else": text.other}


def _describe_words(
    catalog: Catalog, attribute: Attribute, suspects: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Returns how an attribute's words were read. `suspects`: attribute -> class that may mean "missing" -> rows."""
    name = attribute.name
    missing, alike = catalog.missing_words.get(name, Counter()), catalog.look_alikes.get(name, [])
    maybe = notable_missing(missing, catalog.num_rows)
    # One line for all attributes, because the schema has one list.
    doubtful = {
        w.casefold() for words in catalog.missing_words.values() for w in notable_missing(words, catalog.num_rows)
    }
    suspected = dict.fromkeys(word for words in suspects.values() for word in words)
    more = [*catalog.schema.missing_values, *suspected]
    others = [word for word in catalog.schema.missing_values if word.casefold() not in doubtful]
    return {
        "column": attribute.columns()[0],
        "missing": dict(missing),
        "maybe_classes": maybe,
        "missing_line": f'"missing_values": {json.dumps(others, ensure_ascii=False)}' if maybe else "",
        "maybe_missing": dict(suspects.get(name, {})),
        "maybe_missing_line": f'"missing_values": {json.dumps(more, ensure_ascii=False)}' if suspects.get(name) else "",
        "no_class": dict(catalog.masked_words.get(name, {})),
        "merged": dict(catalog.merged.get(name, {})),
        "not_applicable": dict(catalog.not_applicable.get(name, {})),
        "look_alikes": alike,
        "merge_line": merge_line(name, alike, dict(attribute.merge)) if alike else "",
    }


def _format_words(report: Mapping[str, Any]) -> list[str]:
    """Returns lines about a guessed encoding, missing labels, merged and similar classes, and unused columns."""
    lines, encoding = [], report["encoding"]
    if encoding and encoding["words"] and encoding["is_guess"]:
        also = f"; it may also be {encoding['or_else']}" if encoding["or_else"] else ""
        lines.append(f'if the words under encoding are wrong, name it in the schema: "encoding": "..."{also}')
    for name, words in report["words"].items():
        if words["maybe_classes"]:
            maybe = ", ".join(f"{word!r} {count:,}" for word, count in words["maybe_classes"].items())
            lines.append(f"{name}: if {maybe} is a class, write this into the schema: {words['missing_line']}")
        if words["maybe_missing"]:
            maybe = ", ".join(f"{word!r} {count:,}" for word, count in words["maybe_missing"].items())
            lines.append(
                f"{name}: if {maybe} means that the label is missing, write this into the schema: "
                f"{words['maybe_missing_line']}"
            )
        if words["no_class"]:
            shown = ", ".join(f"{word!r} {count:,}" for word, count in list(words["no_class"].items())[:_SHOWN])
            lines.append(f"{name}: {len(words['no_class']):,} values are no classes: {shown}")
        if words["not_applicable"]:
            taken = ", ".join(f"{word!r} {count:,}" for word, count in words["not_applicable"].items())
            lines.append(f"{name}: read as {NOT_APPLICABLE!r}: {taken}")
        for word, count in words["merged"].items():
            lines.append(f"{name}: merged: {word!r} {count:,}")
        for group in words["look_alikes"]:
            lines.append(f"{name}: similar classes: " + ", ".join(f"{word!r} {n:,}" for word, n in group.items()))
        if words["merge_line"]:
            lines.append(f"  to merge them, put this into the schema's attributes: {words['merge_line']}")
    lines += format_tags(report["tags"])
    unused: dict[str, list[str]] = {}
    for column, reason in report["unused_columns"].items():
        unused.setdefault(reason, []).append(repr(column))
    lines += [f"not used: {', '.join(columns)}: {reason}" for reason, columns in unused.items()]
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
