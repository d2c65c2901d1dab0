"""The audit of attributes of several values: each of their classes is audited as an attribute of its own, yes or no."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int8, Int32

from fashion_jax.audit.evidence import Finding
from fashion_jax.data.records import Prepared
from fashion_jax.data.tags import tag_text

_BETWEEN = "\n"  # between an attribute and its class; neither holds it


def labels_with_tags(prepared: Prepared) -> tuple[Int32[np.ndarray, "n columns"], dict[str, tuple[str, ...]]]:
    """Returns the labels of all attributes, with a column of 0, 1 or MISSING for each class of multi-valued ones.

    The second result maps each column's name to the names of its classes.
    """
    vocabularies, columns = dict(prepared.vocabularies), [prepared.labels]
    for name, classes in prepared.tag_vocabularies.items():
        columns.append(prepared.tags[name].astype(np.int32))
        vocabularies |= {f"{name}{_BETWEEN}{tag}": (f"no {tag}", tag) for tag in classes}
    return np.concatenate(columns, 1), vocabularies


def audited_columns(names: Iterable[str], prepared: Prepared) -> list[str]:
    """Returns the columns of `labels_with_tags` that belong to attributes."""
    columns = []
    for name in names:
        tags = prepared.tag_vocabularies.get(name)
        columns += [name] if tags is None else [f"{name}{_BETWEEN}{tag}" for tag in tags]
    return columns


def name_tags(findings: Iterable[Finding]) -> list[Finding]:
    """Returns findings in which the columns of multi-valued attributes are named by attribute and class."""
    named = []
    for finding in findings:
        name, _, tag = finding.attribute.partition(_BETWEEN)
        named.append(dataclasses.replace(finding, attribute=name, tag=tag))
    return named


def describe_change(
    finding: Finding,
    vocabularies: Mapping[str, Sequence[str]],
    tags: Mapping[str, Int8[np.ndarray, "n classes"]],
    tag_vocabularies: Mapping[str, Sequence[str]],
) -> tuple[str, str]:
    """Returns the given label and the suggested one, as a table of corrections has them.

    Those of a multi-valued attribute are all values of the row, as the module `data.tags` writes them; one value is
    added or removed.
    """
    if not finding.tag:
        classes = vocabularies[finding.attribute]
        return classes[finding.given], classes[finding.suggested]
    classes, vector = tag_vocabularies[finding.attribute], tags[finding.attribute][finding.row]
    changed = vector.copy()
    changed[classes.index(finding.tag)] = finding.suggested
    return tag_text(vector, classes), tag_text(changed, classes)
