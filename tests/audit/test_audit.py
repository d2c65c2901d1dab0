"""The audit: planted errors come first, clean labels are left alone, nobody is judged by what saw him."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

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
from fashion_jax.system.errors import UserError

VOCABULARIES = {"kind": ("bag", "hat", "shoe"), "sort": ("big", "red", "tall", "wide"), "part": ("above", "below")}
SIZES = [len(v) for v in VOCABULARIES.values()]


def separable(count: int = 600, seed: int = 0):
    """Embeddings from which all labels can be read; the part follows from the kind. Two rows make a group."""
    rng = np.random.default_rng(seed)
    groups = np.arange(count) // 2 * 2
    kind = rng.integers(3, size=count)[groups]
    sort = rng.integers(4, size=count)[groups]
    labels = np.stack([kind, sort, kind // 2], 1).astype(np.int32)
    centres = np.eye(7, 16) * 4
    features = centres[kind] + centres[3 + sort] + rng.normal(0, 0.5, (count, 16))
    return features.astype(np.float32), labels, groups


def plant(labels: np.ndarray, rate: float, seed: int = 1):
    """Returns labels of which a share is wrong, and where."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(labels.shape) < rate
    moved = (labels + rng.integers(1, np.array(SIZES), labels.shape)) % np.array(SIZES)
    return np.where(wrong, moved, labels).astype(np.int32), wrong


def judge(features, labels, groups):
    return linear_probabilities(features, labels, SIZES, group_folds(groups, 5))


def test_clean_labels_yield_no_findings():
    features, labels, groups = separable()
    assert find_wrong_labels(judge(features, labels, groups), labels, groups, VOCABULARIES) == []


def test_planted_errors_are_found_first_and_in_order():
    features, clean, groups = separable()
    labels, wrong = plant(clean, 0.05)
    findings = find_wrong_labels(judge(features, labels, groups), labels, groups, VOCABULARIES)
    assert [f.score for f in findings] == sorted((f.score for f in findings), reverse=True)
    for place, name in enumerate(VOCABULARIES):
        own = [f for f in findings if f.attribute == name]
        n = int(wrong[:, place].sum())
        assert n > 20
        assert np.mean([wrong[f.row, place] for f in own[:n]]) >= 0.95, name
        right = [f for f in own[:n] if wrong[f.row, place]]
        assert np.mean([f.suggested == clean[f.row, place] for f in right]) >= 0.9, name
        assert all(f.given == labels[f.row, place] != f.suggested for f in own)
        assert len({f.row for f in own}) == len(own)


def test_missing_labels_are_no_findings_and_do_no_harm():
    features, clean, groups = separable()
    labels, wrong = plant(clean, 0.05)
    labels[::7, 0] = -1
    labels[:, 2] = -1
    findings = find_wrong_labels(judge(features, labels, groups), labels, groups, VOCABULARIES)
    assert all(labels[f.row, list(VOCABULARIES).index(f.attribute)] >= 0 for f in findings)
    n = int((wrong[:, 0] & (labels[:, 0] >= 0)).sum())
    assert np.mean([wrong[f.row, 0] for f in findings if f.attribute == "kind"][:n]) >= 0.9


def test_only_what_is_asked_for_is_audited():
    features, clean, groups = separable()
    labels, _ = plant(clean, 0.05)
    findings = find_wrong_labels(judge(features, labels, groups), labels, groups, VOCABULARIES, ["sort"])
    assert {f.attribute for f in findings} == {"sort"}


def test_folds_hold_whole_groups_and_are_of_one_size():
    groups = np.random.default_rng(0).integers(200, size=1000)
    folds = group_folds(groups, 5)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups.tolist()))
    assert np.ptp(np.bincount(folds, minlength=5)) <= np.bincount(groups).max()
    assert not np.array_equal(folds, group_folds(groups, 5, seed=1))


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
            reference = LogisticRegression(
                C=(2 if SIZES[place] == 2 else 1) / (1e-2 * fit.sum()), tol=1e-8, max_iter=2000
            )
            expected = reference.fit(features[fit], labels[fit, place]).predict_proba(features[folds == fold])
            np.testing.assert_allclose(ours[place][folds == fold], expected, atol=2e-3)


def test_confident_learning_needs_no_row_of_every_class():
    shares = np.full((60, 5), 0.02)
    labels = np.arange(60) % 3 + 1  # classes 0 and 4 have no row
    shares[np.arange(60), labels] = 0.92
    shares[7] = [0.02, 0.02, 0.02, 0.92, 0.02]
    assert labels[7] != 3
    assert np.flatnonzero(confident_learning(shares, labels)).tolist() == [7]


def test_duplicates_that_disagree_are_found_and_the_photo_decides():
    labels = np.array([0, 1, 1, 1, 2, -1])
    groups = np.array([0, 0, 2, 2, 4, 4])
    shares = np.full((6, 3), 0.05)
    shares[:, 1] = 0.9
    suspect, others = disagreeing(labels, groups, shares)
    assert suspect.tolist() == [True, False, False, False, False, False]
    assert set(others) == {0, 1} and others[0][1] == 1 and others[0][0] == 0
    suspect, _ = disagreeing(labels, groups, shares[:, [1, 0, 2]])
    assert suspect.tolist() == [False, True, False, False, False, False]


def test_the_word_of_duplicates_outweighs_a_doubtful_photo():
    kind = np.repeat([0, 1], 150)
    shares = np.where(kind[:, None] == 0, [0.8, 0.2], [0.2, 0.8]).astype(np.float32)
    kind[5], shares[5] = 1, 0.5  # in the group of rows 3, 4 and 5
    findings = find_wrong_labels(
        [shares], kind[:, None].astype(np.int32), np.arange(300) // 3, {"kind": ("bag", "hat")}
    )
    assert (findings[0].row, findings[0].suggested) == (5, 0)
    assert findings[0].score > 0.95 and "near-duplicates have bag (2)" in findings[0].reason


def test_variants_whose_photos_leave_no_doubt_may_differ():
    kind = np.arange(300) % 2
    shares = np.where(kind[:, None] == 0, [0.999, 0.001], [0.001, 0.999]).astype(np.float32)
    labels, groups = kind[:, None].astype(np.int32), np.arange(300) // 3
    assert disagreeing(kind, groups, shares)[0].sum() == 100
    assert find_wrong_labels([shares], labels, groups, {"kind": ("bag", "hat")}) == []


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
    with pytest.raises(UserError, match=r"fashion-jax\[audit\]"):
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


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A catalogue with hostile names, a broken photo, and four wrong colours: rows 8, 17, 26, 35."""
    table = write_products(tmp_path_factory.mktemp("hostile"), 120)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"red": '<b onmouseover="x">red</b>', "blue": "=cmd|'/c calc'!A1"}
    colours = ["blue", "green", "red", "yellow"]
    for i, row in enumerate(rows):
        row["sku"] = f"={row['sku']}"
        row["title"] = f"<img src=x onerror=alert({i})>"
        if i % 9 == 8 and i < 40:
            row["colour"] = colours[(colours.index(row["colour"]) + 1) % 4]
        row["colour"] = names.get(row["colour"], row["colour"])
    (table.parent / rows[3]["file"]).write_bytes(b"no photo")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory) -> Path:
    """A run on that catalogue, of 60 steps."""
    workdir = tmp_path_factory.mktemp("audit") / "w"
    changes = {
        "train__duration": "60 steps",
        "train__evaluate_every": "60 steps",
        "train__checkpoint_every": "60 steps",
    }
    train(make_tiny_config(shop, **changes), workdir, progress=False)
    return workdir


@pytest.fixture(scope="module")
def audited(shop, trained, tmp_path_factory) -> Path:
    """What the command wrote about it."""
    out = tmp_path_factory.mktemp("audit") / "out"
    assert main(["audit", "--model", str(trained), "--source", str(shop), "--out", str(out), "--folds", "4"]) == 0
    return out


def read_findings(out: Path) -> list[dict[str, str]]:
    with (out / "findings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_finds_wrong_labels_in_photos(audited):
    rows = [row for row in read_findings(audited) if row["attribute"] == "colour"]
    wrong = {f"'=S{i * 37:05}" for i in (8, 17, 26, 35)}
    assert {row["id"] for row in rows[:6]} >= wrong
    assert tuple(rows[0]) == COLUMNS
    assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_the_same_command_twice_writes_the_same(audited, shop, trained, tmp_path):
    result = audit(trained, shop, tmp_path / "again", num_folds=4, progress=False)
    for name in ("findings.csv", "findings.html", "findings.png"):
        assert (audited / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert len(result.findings) == len(read_findings(audited))
    from_records = audit(trained, tmp_path / "again" / "records", tmp_path / "third", num_folds=4, progress=False)
    assert from_records.findings == result.findings


def test_hostile_names_are_escaped_and_bad_photos_quarantined(audited):
    page = (audited / "findings.html").read_text()
    assert "<img src=x" not in page and "<b onmouseover" not in page and "&lt;img src=x onerror" in page
    with (audited / "findings.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert "=S00111" in (audited / "quarantine.csv").read_text()
    assert not list(audited.glob(".*.part"))


def test_accepted_findings_correct_the_catalogue(audited, shop, tmp_path):
    rows = read_findings(audited)
    for row in rows[:5]:
        row["decision"] = "accept"
    with (tmp_path / "edited.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    before = open_prepared(audited / "records")
    after = prepare(shop, tmp_path / "out", PrepareOptions(corrections=tmp_path / "edited.csv"), progress=False)
    places = {name: place for place, name in enumerate(after.ids.tolist())}
    labels = after.labels[[places[name] for name in before.ids.tolist()]]
    changed = {(str(before.ids[r]), before.attributes[c]) for r, c in np.argwhere(labels != before.labels)}
    assert changed == {(row["id"].removeprefix("'"), row["attribute"]) for row in rows[:5]}


def test_a_persons_decisions_are_not_written_over(audited, shop, trained, tmp_path):
    shutil.copytree(audited, tmp_path / "out")
    path = tmp_path / "out" / "findings.csv"
    audit(trained, shop, tmp_path / "out", num_folds=4, progress=False)  # there are none yet
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1] + "accept"]) + "\n")
    with pytest.raises(UserError, match="holds decisions of a person"):
        audit(trained, shop, tmp_path / "out", num_folds=4, progress=False)


def test_what_the_network_computed_is_kept(audited, shop, trained, tmp_path, monkeypatch):
    shutil.copytree(audited, tmp_path / "out")
    monkeypatch.setattr(audit_module.Predictor, "predict_batches", None)
    audit(trained, shop, tmp_path / "out", num_folds=4, progress=False)
    for shard in (tmp_path / "out" / "photos").iterdir():
        shard.write_bytes(b"torn")
    with pytest.raises(TypeError):
        audit(trained, shop, tmp_path / "out", num_folds=4, progress=False)


def test_a_photo_that_cannot_be_decoded_has_no_features(audited, trained, tmp_path, monkeypatch):
    prepared, network = open_prepared(audited / "records"), audit_module.load_model(trained)
    read = type(prepared).read_photo
    monkeypatch.setattr(type(prepared), "read_photo", lambda self, row: b"none" if row == 5 else read(self, row))
    outputs = run_network(network, prepared, np.arange(len(prepared)) < 9, tmp_path, progress=False)
    assert np.flatnonzero(np.isnan(outputs.features).any(1)).tolist() == [5]
    own = outputs.probabilities["colour"]
    assert np.flatnonzero(np.isfinite(own).all(1)).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]


def test_the_network_counts_for_products_that_are_new_to_it(audited, trained, tmp_path, monkeypatch):
    seen = []

    def keep(probabilities, *rest, **options):
        seen.append(probabilities)
        return find_wrong_labels(probabilities, *rest, **options)

    monkeypatch.setattr(audit_module, "find_wrong_labels", keep)
    for model in (trained, trained / "package"):  # The package does not know what it was trained on.
        audit(model, audited / "records", tmp_path / model.name, num_folds=4, progress=False)
    averaged, judged = seen
    prepared, network = open_prepared(audited / "records"), audit_module.load_model(trained)
    new = ~np.isin(prepared.groups, prepared.groups[np.isin(prepared.ids, sorted(trained_on(trained)))])
    assert 20 < new.sum() < 0.5 * len(prepared)
    own = network.predict_arrays(
        ResidentPhotos(prepared, np.arange(len(prepared)), *network.size, progress=False).images
    )
    for column, name in enumerate(prepared.attributes):
        np.testing.assert_allclose(averaged[column][~new], judged[column][~new], atol=1e-5)
        mean = (judged[column] + own.probabilities[name]) / 2
        np.testing.assert_allclose(averaged[column][new], mean[new], atol=1e-4)


def test_a_head_that_lacks_a_class_does_not_count(audited, trained, tmp_path):
    prepared, network = open_prepared(audited / "records"), audit_module.load_model(trained)
    (kind, sizes), (colour, _) = list(prepared.vocabularies.items())
    classes = {kind: ("another", *sizes[1:]), colour: prepared.vocabularies[colour]}
    even = [np.full((len(prepared), len(names)), 1 / len(names), np.float32) for names in classes.values()]
    strange = dataclasses.replace(prepared, vocabularies=classes)
    new = find_new_rows(strange, {str(prepared.ids[0])})
    outputs = run_network(network, strange, new, tmp_path, progress=False)
    averaged = average_with_network(even, outputs, strange, network)
    assert np.array_equal(averaged[0], even[0]) and not np.array_equal(averaged[1], even[1])
    np.testing.assert_allclose(averaged[1].sum(1), 1, atol=1e-5)


def test_without_known_ids_no_row_is_new(audited):
    prepared = open_prepared(audited / "records")
    first = {str(prepared.ids[0])}
    assert find_new_rows(prepared, first).any()
    # Without a column of ids, a product may have the number of another one.
    nameless = dataclasses.replace(prepared, schema=dataclasses.replace(prepared.schema, id_column=""))
    assert not any(find_new_rows(*given).any() for given in ((prepared, set()), (prepared, None), (nameless, first)))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"attributes": ("color",)}, "no attribute 'color'; did you mean 'colour'"),
        ({"num_folds": 1}, "--folds=1"),
        ({"num_folds": 500}, "--folds=500"),
        ({"corrections": "absent.csv"}, "prepared already"),
    ],
)
def test_what_cannot_be_is_refused(audited, trained, tmp_path, options, fault):
    with pytest.raises(UserError, match=fault):
        audit(trained, audited / "records", tmp_path, progress=False, **options)


def test_findings_are_not_written_into_the_source(audited, trained, tmp_path):
    shutil.copytree(audited / "records", tmp_path / "records")
    with pytest.raises(UserError, match="lies in the source"):
        audit(trained, tmp_path / "records", tmp_path / "records" / "out", progress=False)


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
