"""The audit of attributes of several values: planted tags come first, and what is suggested can be applied."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fashion_jax.audit.audit import _one_per_label
from fashion_jax.audit.evidence import Finding, find_wrong_labels
from fashion_jax.audit.judges import group_folds, linear_probabilities
from fashion_jax.audit.tags import audited_columns, describe_change, labels_with_tags, name_tags

TAGS = ("Beach", "Party", "Winter")


def records(count: int, wrong: float):
    """Records whose tags and kind can be read from their features; a share of the tags is wrong."""
    rng = np.random.default_rng(0)
    tags = (rng.random((count, 3)) < (0.3, 0.2, 0.5)).astype(np.int8)
    kind = rng.integers(0, 2, count).astype(np.int32)
    features = np.concatenate([tags, kind[:, None]], 1) @ np.eye(4, 12) * 4 + rng.normal(0, 0.5, (count, 12))
    planted = rng.random((count, 3)) < wrong
    given = np.where(planted, 1 - tags, tags).astype(np.int8)
    given[::20], planted[::20] = -1, False
    prepared = SimpleNamespace(
        labels=kind[:, None], vocabularies={"kind": ("bag", "hat")}, tags={"occasion": given},
        tag_vocabularies={"occasion": TAGS},
    )  # fmt: skip
    return prepared, features.astype(np.float32), tags, planted


def audit(prepared, features, names):
    labels, vocabularies = labels_with_tags(prepared)
    groups = np.arange(len(labels))
    sizes = [len(classes) for classes in vocabularies.values()]
    shares = linear_probabilities(features, labels, sizes, group_folds(groups, 4))
    return name_tags(find_wrong_labels(shares, labels, groups, vocabularies, audited_columns(names, prepared)))


def test_planted_tags_are_found_first_and_the_suggestion_undoes_them():
    prepared, features, clean, planted = records(600, 0.05)
    findings = audit(prepared, features, ["occasion"])
    first = findings[: int(planted.sum())]
    hits = [f for f in first if planted[f.row, TAGS.index(f.tag)]]
    assert planted.sum() > 60 and len(hits) >= 0.95 * planted.sum()
    assert {f.attribute for f in findings} == {"occasion"} and all(f.row % 20 for f in findings)
    for finding in hits:
        given, suggested = describe_change(finding, prepared.vocabularies, prepared.tags, prepared.tag_vocabularies)
        before, after = ({} if text == "[]" else set(text.split("|")) for text in (given, suggested))
        assert set(before) ^ set(after) == {finding.tag}
        assert (finding.tag in after) == bool(clean[finding.row, TAGS.index(finding.tag)])
    assert audit(*records(300, 0.0)[:2], ["occasion", "kind"]) == []


def test_photos_of_one_product_are_one_finding_for_each_tag():
    prepared = SimpleNamespace(ids=np.array(["a", "a", "b"]))
    findings = [Finding(row, "occasion", 1, 0, 0.9, "", tag) for row, tag in [(0, "Beach"), (1, "Beach"), (0, "Party")]]
    findings += [Finding(2, "kind", 1, 0, 0.8, "")]
    assert _one_per_label(findings, prepared) == [findings[0], findings[2], findings[3]]


@pytest.mark.parametrize(("row", "tag", "suggested", "texts"), [
    ([1, 0, 0], "Beach", 0, ("Beach", "[]")), ([0, 0, 0], "Party", 1, ("[]", "Party")),
    ([1, 0, 1], "Party", 1, ("Beach|Winter", "Beach|Party|Winter")),
])  # fmt: skip
def test_a_finding_adds_or_removes_one_tag(row, tag, suggested, texts):
    finding = SimpleNamespace(row=0, attribute="occasion", tag=tag, suggested=suggested)
    vectors = {"occasion": np.array([row], np.int8)}
    assert describe_change(finding, {}, vectors, {"occasion": TAGS}) == texts
