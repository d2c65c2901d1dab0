"""The audit: planted errors come first, clean labels are left alone, nobody is judged by what saw him."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from drawn_products import make_tiny_config, write_products
from fashion_jax.audit import audit as audit_module
from fashion_jax.audit import judges
from fashion_jax.audit.audit import COLUMNS, audit
from fashion_jax.audit.evidence import confident_learning, disagreeing, find_wrong_labels, weigh_evidence
from fashion_jax.audit.judges import group_folds, linear_probabilities
from fashion_jax.audit.page import Card, write_page
from fashion_jax.audit.photos import average_with_network, find_new_rows, run_network
from fashion_jax.cli import main
from fashion_jax.data.loader import ResidentPhotos
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.run.train import train
from fashion_jax.run.workdir import trained_on
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError

VOCABULARIES = {"kind": ("bag", "hat", "shoe"), "sort": ("big", "red", "tall", "wide"), "part": ("above", "below")}
SIZES = [len(v) for v in VOCABULARIES.values()]
audit_quietly = partial(audit, num_folds=4, progress=False)


def separable(count: int = 600):
    """Embeddings from which all labels can be read; the part follows from the kind. Two rows make a group."""
    rng = np.random.default_rng(0)
    groups = np.arange(count) // 2 * 2
    kind = rng.integers(3, size=count)[groups]
    sort = rng.integers(4, size=count)[groups]
    labels = np.stack([kind, sort, kind // 2], 1).astype(np.int32)
    centres = np.eye(7, 16) * 4
    features = centres[kind] + centres[3 + sort] + rng.normal(0, 0.5, (count, 16))
    return features.astype(np.float32), labels, groups


def plant(labels: np.ndarray, rate: float):
    """Returns labels of which a share is wrong, and where."""
    rng = np.random.default_rng(1)
    wrong = rng.random(labels.shape) < rate
    moved = (labels + rng.integers(1, np.array(SIZES), labels.shape)) % np.array(SIZES)
    return np.where(wrong, moved, labels).astype(np.int32), wrong


def judge(features, labels, groups):
    return linear_probabilities(features, labels, SIZES, group_folds(groups, 5))


def test_planted_errors_are_found_first_and_in_order():
    features, clean, groups = separable()
    assert find_wrong_labels(judge(features, clean, groups), clean, groups, VOCABULARIES) == []
    labels, wrong = plant(clean, 0.05)
    shares = judge(features, labels, groups)
    findings = find_wrong_labels(shares, labels, groups, VOCABULARIES)
    assert [f.score for f in findings] == sorted((f.score for f in findings), reverse=True)
    for place, name in enumerate(VOCABULARIES):
        own = [f for f in findings if f.attribute == name]
        n = int(wrong[:, place].sum())
        assert n > 20
        right = [f for f in own[:n] if wrong[f.row, place]]
        assert len(right) >= 0.95 * n, name
        assert np.mean([f.suggested == clean[f.row, place] for f in right]) >= 0.9, name
        assert all(f.given == labels[f.row, place] != f.suggested for f in own)
        assert len({f.row for f in own}) == len(own)
    asked = find_wrong_labels(shares, labels, groups, VOCABULARIES, ["sort"])
    assert {f.attribute for f in asked} == {"sort"}
    # Missing labels are no findings and do no harm.
    labels[::7, 0] = -1
    labels[:, 2] = -1
    findings = find_wrong_labels(judge(features, labels, groups), labels, groups, VOCABULARIES)
    assert all(labels[f.row, list(VOCABULARIES).index(f.attribute)] >= 0 for f in findings)
    n = int((wrong[:, 0] & (labels[:, 0] >= 0)).sum())
    assert np.mean([wrong[f.row, 0] for f in findings if f.attribute == "kind"][:n]) >= 0.9


def test_folds_hold_whole_groups_and_are_of_one_size():
    groups = np.random.default_rng(0).integers(200, size=1000)
    folds = group_folds(groups, 5)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups.tolist()))
    assert np.ptp(np.bincount(folds, minlength=5)) <= np.bincount(groups).max()


def test_nobody_is_judged_by_his_own_label_or_his_twins(monkeypatch):
    monkeypatch.setattr(judges, "PENALTIES", (1e-2,))  # a choice among several looks at the first fold's labels
    features, labels, groups = separable(200)
    changed = labels.copy()
    changed[[10, 11]] = (labels[[10, 11]] + 1) % np.array(SIZES)
    before, after = judge(features, labels, groups), judge(features, changed, groups)
    for place in range(3):
        assert np.array_equal(before[place][[10, 11]], after[place][[10, 11]])
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))  # others do see it


def test_linear_judges_are_logistic_regressions(monkeypatch):
    monkeypatch.setattr(judges, "PENALTIES", (1e-2,))
    features, clean, groups = separable(400)
    labels, _ = plant(clean, 0.1)
    labels[::9, 1] = -1
    folds = group_folds(groups, 4)
    ours = linear_probabilities(features, labels, SIZES, folds)
    features = (features - features.mean(0)) / features.std(0)
    for place in range(3):
        for fold in range(4):
            fit = (folds != fold) & (labels[:, place] >= 0)
            # With two classes the reference has one vector of weights, and ours halves it between two.
            strength = (2 if SIZES[place] == 2 else 1) / (1e-2 * fit.sum())
            reference = LogisticRegression(C=strength, tol=1e-8, max_iter=2000).fit(features[fit], labels[fit, place])
            expected = reference.predict_proba(features[folds == fold])
            np.testing.assert_allclose(ours[place][folds == fold], expected, atol=2e-3)


def test_confident_learning_needs_no_row_of_every_class():
    shares = np.full((60, 5), 0.02)
    labels = np.arange(60) % 3 + 1  # classes 0 and 4 have no row
    shares[np.arange(60), labels] = 0.92
    shares[7] = [0.02, 0.02, 0.02, 0.92, 0.02]
    assert np.flatnonzero(confident_learning(shares, labels)).tolist() == [7]


def test_duplicates_that_disagree_are_found_and_the_photo_decides():
    labels, groups = np.array([0, 1, 1, 1, 2, -1]), np.array([0, 0, 2, 2, 4, 4])
    shares = np.full((6, 3), 0.05)
    shares[:, 1] = 0.9
    suspect, others = disagreeing(labels, groups, shares)
    assert np.flatnonzero(suspect).tolist() == [0]
    assert set(others) == {0, 1} and others[0][1] == 1 and others[0][0] == 0
    assert np.flatnonzero(disagreeing(labels, groups, shares[:, [1, 0, 2]])[0]).tolist() == [1]


def test_the_word_of_duplicates_outweighs_a_doubtful_photo_alone():
    def find(kind, shares):
        labels, groups = kind[:, None].astype(np.int32), np.arange(300) // 3
        return find_wrong_labels([shares.astype(np.float32)], labels, groups, {"kind": ("bag", "hat")})

    kind = np.repeat([0, 1], 150)
    shares = np.where(kind[:, None] == 0, [0.8, 0.2], [0.2, 0.8])
    kind[5], shares[5] = 1, 0.5  # in the group of rows 3, 4 and 5
    first, *_ = find(kind, shares)
    assert (first.row, first.suggested) == (5, 0)
    assert first.score > 0.95 and "near-duplicates have bag (2)" in first.reason
    kind = np.arange(300) % 2  # variants whose photos leave no doubt may differ
    shares = np.where(kind[:, None] == 0, [0.999, 0.001], [0.001, 0.999])
    assert disagreeing(kind, np.arange(300) // 3, shares)[0].sum() == 100 and find(kind, shares) == []


def test_a_rows_own_label_is_no_evidence_for_itself():
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=600).astype(np.int32)
    other = kind.copy()
    kind[:20], other[:20] = 2, 2
    kind[20:][kind[20:] == 2] = 1  # of the third class there are these twenty rows
    other[0] = 3  # and a label that this row alone has
    photos = [np.full((600, 3), 1 / 3, np.float32), np.full((600, 4), 1 / 4, np.float32)]
    groups = np.arange(600)
    np.testing.assert_allclose(weigh_evidence(photos, np.stack([kind, other], 1), groups)[0][0], 1 / 3, atol=1e-6)
    judged = []
    for own in range(3):  # whatever the row's own label is, its other label says the same of it
        kind[1] = own
        judged.append(weigh_evidence(photos, np.stack([kind, other], 1), groups)[0][1])
    np.testing.assert_allclose(judged[1:], judged[:-1], atol=0.02)


def test_without_cleanlab_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "cleanlab", None)
    with pytest.raises(UserError, match=r"\[audit\]"):
        audit("absent", "absent", tmp_path)


def test_texts_of_a_catalogue_do_nothing_on_the_page(tmp_path):
    hostile = "<script>alert(1)</script>\"'& \ud800" + "x" * 1000
    card = Card(hostile, hostile, hostile, hostile, hostile, 0.5, hostile, np.zeros((8, 6, 3), np.uint8))
    write_page(tmp_path / "p.html", [card, card], total=2, products=9)
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)") == 12
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert "http:" not in page and "https:" not in page
    assert "default-src 'none'" in page


def test_a_class_of_one_row_does_no_harm():
    features, labels, groups = separable(200)
    labels[:, 2] = 0
    labels[0, 0], labels[1, 1] = 2, -1
    vocabularies = {"kind": ("bag", "hat", "shoe", "lone"), "sort": VOCABULARIES["sort"], "part": ("above", "below")}
    labels[5, 0] = 3
    shares = linear_probabilities(features, labels, [4, 4, 2], group_folds(groups, 5))
    findings = find_wrong_labels(shares, labels, groups, vocabularies)
    assert (findings[0].row, findings[0].attribute) == (5, "kind")
    assert all(np.isfinite(f.score) for f in findings) and not any(f.attribute == "part" for f in findings)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> SimpleNamespace:
    """An audit of a catalogue with hostile names, a broken photo, and four wrong colours: rows 8, 17, 26, 35."""
    folder = tmp_path_factory.mktemp("audit")
    shop, workdir, out = write_products(folder / "shop", 120), folder / "w", folder / "out"
    rows = read_table(shop)
    names = {"red": '<b onmouseover="x">red</b>', "blue": "=cmd|'/c calc'!A1"}
    colours = ["blue", "green", "red", "yellow"]
    for i, row in enumerate(rows):
        row["sku"] = f"={row['sku']}"
        row["title"] = f"<img src=x onerror=alert({i})>"
        if i % 9 == 8 and i < 40:
            row["colour"] = colours[(colours.index(row["colour"]) + 1) % 4]
        row["colour"] = names.get(row["colour"], row["colour"])
    (shop.parent / rows[3]["file"]).write_bytes(b"no photo")
    write_table(shop, rows)
    steps = dict.fromkeys(("train__duration", "train__evaluate_every", "train__checkpoint_every"), "60 steps")
    train(make_tiny_config(shop, **steps), workdir, progress=False)
    assert main(["audit", "--model", str(workdir), "--source", str(shop), "--out", str(out), "--folds", "4"]) == 0
    prepared, network = open_prepared(out / "records"), load_model(workdir)
    return SimpleNamespace(shop=shop, workdir=workdir, out=out, prepared=prepared, network=network)


def test_wrong_labels_are_found_names_escaped_and_bad_photos_quarantined(done):
    every = read_table(done.out / "findings.csv")
    rows = [row for row in every if row["attribute"] == "colour"]
    assert {row["id"] for row in rows[:6]} >= {f"'=S{i * 37:05}" for i in (8, 17, 26, 35)}
    assert tuple(rows[0]) == COLUMNS and all(0 <= float(row["score"]) <= 1 for row in rows)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in every for cell in row.values())
    page = (done.out / "findings.html").read_text()
    assert "<img src=x" not in page and "<b onmouseover" not in page and "&lt;img src=x onerror" in page
    assert "=S00111" in (done.out / "quarantine.csv").read_text()
    assert not list(done.out.glob(".*.part"))


def test_the_same_command_twice_writes_the_same(done, tmp_path):
    result = audit_quietly(done.workdir, done.shop, tmp_path / "again")
    for name in ("findings.csv", "findings.html"):
        assert (done.out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert len(result.findings) == len(read_table(done.out / "findings.csv"))
    from_records = audit_quietly(done.workdir, tmp_path / "again" / "records", tmp_path / "third")
    assert from_records.findings == result.findings
    with pytest.raises(UserError, match="lies in the source"):
        audit_quietly(done.workdir, tmp_path / "again" / "records", tmp_path / "again" / "records" / "out")


def test_accepted_findings_correct_the_catalogue(done, tmp_path):
    rows, before = read_table(done.out / "findings.csv"), done.prepared
    for row in rows[:5]:
        row["decision"] = "accept"
    write_table(tmp_path / "edited.csv", rows)
    after = prepare(done.shop, tmp_path / "out", PrepareOptions(corrections=tmp_path / "edited.csv"), progress=False)
    places = {name: place for place, name in enumerate(after.ids.tolist())}
    labels = after.labels[[places[name] for name in before.ids.tolist()]]
    changed = {(str(before.ids[r]), before.attributes[c]) for r, c in np.argwhere(labels != before.labels)}
    assert changed == {(row["id"].removeprefix("'"), row["attribute"]) for row in rows[:5]}


def test_what_was_computed_is_kept_and_decisions_are_not_written_over(done, tmp_path, monkeypatch):
    out = shutil.copytree(done.out, tmp_path / "out")
    monkeypatch.setattr(audit_module.Predictor, "predict_batches", None)
    audit_quietly(done.workdir, done.shop, out)  # nothing is computed again, and nothing is decided yet
    for shard in (out / "photos.shards").iterdir():
        shard.write_bytes(b"torn")
    with pytest.raises(TypeError):
        audit_quietly(done.workdir, done.shop, out)
    header, first, *_ = (out / "findings.csv").read_text().splitlines()
    (out / "findings.csv").write_text(f"{header}\n{first}accept\n")
    with pytest.raises(UserError, match="holds your decisions"):
        audit_quietly(done.workdir, done.shop, out)


def test_a_photo_that_cannot_be_decoded_has_no_features(done, tmp_path, monkeypatch):
    prepared, network = done.prepared, done.network
    read = type(prepared).read_photo
    monkeypatch.setattr(type(prepared), "read_photo", lambda self, row: b"none" if row == 5 else read(self, row))
    outputs = run_network(network, prepared, np.arange(len(prepared)) < 9, tmp_path, progress=False)
    assert np.flatnonzero(np.isnan(outputs.features).any(1)).tolist() == [5]
    own = outputs.probabilities["colour"]
    assert np.flatnonzero(np.isfinite(own).all(1)).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_the_network_counts_for_products_that_are_new_to_it(done, tmp_path, monkeypatch):
    prepared, network = done.prepared, done.network
    spy = Mock(wraps=find_wrong_labels)
    monkeypatch.setattr(audit_module, "find_wrong_labels", spy)
    for model in (done.workdir, done.workdir / "package"):  # The package does not know what it was trained on.
        audit_quietly(model, prepared.folder, tmp_path / model.name)
    averaged, judged = (call.args[0] for call in spy.call_args_list)
    trained = trained_on(done.workdir)
    new = find_new_rows(prepared, trained)
    known = np.isin(prepared.ids, sorted(trained))
    assert np.array_equal(new, ~np.isin(prepared.groups, prepared.groups[known]))
    assert 20 < new.sum() < 0.5 * len(prepared)
    photos = ResidentPhotos(prepared, np.arange(len(prepared)), *network.size, progress=False).images
    own = network.predict_arrays(photos)
    for column, name in enumerate(prepared.attributes):
        np.testing.assert_allclose(averaged[column][~new], judged[column][~new], atol=1e-5)
        mean = (judged[column] + own.probabilities[name]) / 2
        np.testing.assert_allclose(averaged[column][new], mean[new], atol=1e-4)
    # Without a column of ids, a product may have the number of another one.
    nameless = dataclasses.replace(prepared, schema=dataclasses.replace(prepared.schema, id_column=""))
    for given in ((prepared, set()), (prepared, None), (nameless, trained)):
        assert not find_new_rows(*given).any()


def test_a_head_that_lacks_a_class_does_not_count(done, tmp_path):
    prepared, network = done.prepared, done.network
    (kind, names), (colour, colours) = prepared.vocabularies.items()
    classes = {kind: ("another", *names[1:]), colour: colours}
    even = [np.full((len(prepared), len(names)), 1 / len(names), np.float32) for names in classes.values()]
    strange = dataclasses.replace(prepared, vocabularies=classes)
    new = find_new_rows(strange, {str(prepared.ids[0])})
    outputs = run_network(network, strange, new, tmp_path, progress=False)
    averaged = average_with_network(even, outputs, strange, network)
    assert np.array_equal(averaged[0], even[0]) and not np.array_equal(averaged[1], even[1])
    np.testing.assert_allclose(averaged[1].sum(1), 1, atol=1e-5)


def test_what_cannot_be_is_refused(done, tmp_path):
    for options, fault in (
        ({"attributes": ("color",)}, "no attribute 'color'; did you mean 'colour'"), ({"num_folds": 1}, "--folds=1"),
        ({"num_folds": 500}, "--folds=500"), ({"corrections": "absent.csv"}, "prepared already"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            audit(done.workdir, done.prepared.folder, tmp_path, progress=False, **options)
