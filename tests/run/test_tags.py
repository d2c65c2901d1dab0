"""Runs with attributes of several values: trained, scored, packaged, predicted, found by filters, and audited."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special

from drawn_products import make_tiny_config
from fashion_jax.audit.audit import audit
from fashion_jax.config.files import load_config
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.drawn.tagged import plan_tagged
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.tags import split_tags
from fashion_jax.decision.tags import best_threshold, choose_tags, fit_tags
from fashion_jax.run.resolve import resolve
from fashion_jax.run.train import evaluate, format_scores, train
from fashion_jax.search.gallery import build_index
from fashion_jax.serving.package import find_model, load_package
from fashion_jax.serving.predict import format_predictions, predict_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError
from forging import forge_decision
from stepping import run, session_on

NAMES = ("category", "colour", "sleeve", "pattern", "occasion")
TWICE = {"train__duration": "24 steps", "train__evaluate_every": "12 steps", "train__checkpoint_every": "24 steps"}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """The records of 240 drawn products with tags."""
    return prepare("synthetic-tags:240", tmp_path_factory.mktemp("tagged") / "records", progress=False)


@pytest.fixture(scope="module")
def finished(tagged, tmp_path_factory):
    """A short run on them, with photos that are mixed and mirrored."""
    workdir = tmp_path_factory.mktemp("tags") / "w"
    config = make_tiny_config(tagged.folder, data__test_time_flip=True, **TWICE)
    config.train.mix.mixup_alpha, config.model.colour_heads = 0.4, ("auto",)
    result = train(config, workdir, progress=False)
    model = load_model(workdir)
    rows = result.test.rows
    images = np.stack([decode_photo(tagged.read_photo(int(row)), *model.size) for row in rows])
    return SimpleNamespace(
        workdir=workdir, package=workdir / "package", test=result.test, model=model, images=images, config=config
    )


def test_the_drawn_catalogue_holds_what_its_schema_says(tagged):
    specs = {spec.id: spec for spec in plan_tagged(240, 0)}
    assert tagged.attributes == NAMES[:3] and tuple(tagged.tags) == NAMES[3:]
    assert "does not apply" in tagged.vocabularies["sleeve"]
    for name, vectors in tagged.tags.items():
        assert 0 < (vectors[:, 0] < 0).mean() < 0.12
        for row in np.flatnonzero(vectors[:, 0] >= 0).tolist():
            spec = specs[str(tagged.ids[row])]
            truth = {"pattern": spec.patterns or ("Plain",), "occasion": spec.occasions}[name]
            assert {c for c, v in zip(tagged.tag_vocabularies[name], vectors[row], strict=True) if v} == set(truth)
    assert len({photo for photo in map(tagged.read_photo, range(40))}) == 40
    assert open_catalog("synthetic-tags:100:1").stamp() == open_catalog("synthetic-tags:100:1").stamp()
    assert open_catalog("synthetic:100").schema.multi_valued == ()
    with pytest.raises(UserError, match=r"synthetic-tags\[:COUNT"):
        open_catalog("synthetic-tags:few")


@pytest.mark.parametrize("mixed", [0.0, 0.4])
def test_one_device_is_eight_devices(tagged, tmp_path, mixed):
    config = make_tiny_config(tagged.folder, train__accumulation_steps=1)
    config.train.mix.mixup_alpha = mixed
    losses = [run(session_on(config, tagged, tmp_path, devices), 3)[1] for devices in (1, 8)]
    for one, eight in zip(*losses, strict=True):
        assert {"loss/pattern", "loss/occasion", "accuracy/occasion"} <= one.keys()
        for name in ("loss", "loss/pattern", "loss/occasion"):
            assert one[name] == pytest.approx(eight[name], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(eight["gradient_norm"], rel=1e-4)


def test_attributes_of_several_values_can_be_left_out_and_are_checked(tagged, tmp_path):
    def resolved(**changes):
        return resolve(make_tiny_config(tagged.folder, **changes), tagged)

    assert resolved().data.attributes == NAMES
    session = session_on(make_tiny_config(tagged.folder, data__attributes=NAMES[:2]), tagged, tmp_path, 1)
    assert not session.tags and "tags" not in session.arguments
    assert resolved(train__best_metric="occasion/map").train.best_metric == "occasion/map"
    coloured = resolved(model__colour_heads=("colour", "pattern"), model__second_heads=("auto",)).model
    assert coloured.second_heads == NAMES[:3] and coloured.colour_heads == ("colour", "pattern")
    for changes, message in (
        ({"data__attributes": ("pattern",)}, "also needs an attribute of one value, such as category"),
        ({"model__second_heads": ("pattern",), "model__colour_heads": ("colour",)}, "which has several values"),
        ({"embedding__attributes": ("occasion",)}, "which has several values"),
        ({"data__attributes": ("occassion",)}, "did you mean 'occasion'"),
        ({"train__best_metric": "occasion/accuracy"}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            resolved(**changes)


def test_a_run_scores_and_writes_tags(finished, tagged):
    folder = finished.workdir / "evaluation/test"
    report = json.loads((folder / "metrics.json").read_text())["multi_valued"]
    assert report == finished.test.tags and set(report) == set(NAMES[3:])
    assert "several values" in format_scores(finished.test) and "mAP" in format_scores(finished.test)
    assert (folder / "per_class/occasion.csv").read_text().startswith("class,ap,precision,recall,f1,threshold,support")
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, classes in tagged.tag_vocabularies.items():
        truth = tagged.tags[name][finished.test.rows]
        predicted = np.array([[c in row[name].split("|") for c in classes] for row in rows])
        known = truth[:, 0] >= 0
        hits = (predicted & (truth == 1))[known].sum()
        f1 = 2 * hits / (predicted[known].sum() + (truth == 1)[known].sum())
        assert report[name]["micro_f1"] == pytest.approx(f1)
        assert report[name]["count"] == known.sum()
        assert all(row[name].count("|") == row[f"{name}_confidence"].count("|") for row in rows)
    again = evaluate(finished.workdir, "test", progress=False)
    assert again.tags == finished.test.tags


def test_the_package_predicts_what_the_run_scored(finished, tagged):
    model, decision = finished.model, finished.model.package.decision
    assert model.tags == tagged.tag_vocabularies and set(model.classes) == set(NAMES[:3])
    outputs, predictions = model.predict_arrays(finished.images), model.predict(finished.images)
    for name, classes in model.tags.items():
        thresholds = decision.tags[name].thresholds
        assert outputs.tag_probabilities[name].shape == (len(finished.images), len(classes))
        np.testing.assert_array_equal(outputs.tags[name], outputs.tag_probabilities[name] >= thresholds)
        summary = finished.test.tags[name]["per_class"]
        assert [summary[c]["threshold"] for c in classes] == pytest.approx(thresholds)
        mean = {name: outputs.tag_probabilities[name].mean(0, keepdims=True)}
        assert choose_tags(decision.tags, mean)[name].tolist() == [(mean[name][0] >= thresholds).tolist()]
        for row, prediction in enumerate(predictions):
            found = prediction.tags[name]
            assert {label for label, _ in found} == {classes[i] for i in np.flatnonzero(outputs.tags[name][row])}
            assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    frame, shares = predictions.to_frame(), model.predict_proba(finished.images)
    assert frame["pattern"].tolist() == [[label for label, _ in p.tags["pattern"]] for p in predictions]
    assert predictions.to_dict()["0"]["occasion_confidence"] == [p for _, p in predictions[0].tags["occasion"]]
    np.testing.assert_array_equal(shares["occasion"], outputs.tag_probabilities["occasion"])
    # The mean of a photo and its mirror image, and no mean for the mirror image alone.
    mirrored = model.predict_arrays(finished.images[:, :, ::-1]).tag_probabilities["pattern"]
    np.testing.assert_allclose(mirrored, outputs.tag_probabilities["pattern"], atol=2e-5)


def test_a_source_is_predicted_and_can_be_filtered(finished, tmp_path, capsys):
    found = predict_source(finished.model, "synthetic-tags:100:5", tmp_path / "p.csv", progress=False)
    header, first = (tmp_path / "p.csv").read_text().splitlines()[:2]
    assert ",pattern,pattern_confidence,occasion,occasion_confidence,out_of_catalogue," in header
    assert "|".join(label for label, _ in found[0].tags["pattern"]) in first.split(",")
    assert "occasion" in format_predictions(found).splitlines()[0]
    index = build_index(finished.model, "synthetic-tags:100:5", tmp_path / "index", progress=False)
    records = open_catalog("synthetic-tags:100:5").records
    wanted = {r.id for r in records if "Striped" in (split_tags(r.tags[0]) or ())}
    unknown = {r.id for r in records if not r.tags[0]}  # these have predicted values
    query = np.ones((1, finished.model.embedding_size), np.float32)
    hits = index.search(query, 100, where="pattern has 'Striped'")
    assert wanted <= {str(i) for i in hits.ids[0] if str(i) != "-1" and str(i)} <= wanted | unknown


def test_packages_without_tags_have_no_trace_of_them_and_forged_ones_are_refused(finished, tmp_path):
    small = find_model("small")
    assert "tags" not in json.loads((small / "config.json").read_text())["model"] and load_package(small).tags == {}
    for place, value in (
        ("tags", {}), ("tags.pattern", None), ("tags.pattern.scale", 0), ("tags.pattern.shift", float("nan")),
        ("tags.pattern.thresholds", [0.5]), ("tags.pattern.thresholds.0", 1.5),
    ):  # fmt: skip
        folder = shutil.copytree(finished.package, tmp_path / "forged", dirs_exist_ok=True)
        forge_decision(folder, place, value)
        with pytest.raises(UserError, match=r"decision\.json"):
            load_package(folder)


def test_findings_are_corrections(finished, tagged, tmp_path):
    pytest.importorskip("cleanlab")
    result = audit(finished.workdir, "synthetic-tags:240", tmp_path / "a", attributes=("pattern",), progress=False)
    assert result.findings and all(f.tag in tagged.tag_vocabularies["pattern"] for f in result.findings)
    with (tmp_path / "a/findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_row: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_row.setdefault(row["id"], []).append(row)
    accepted = sorted(by_row.values(), key=len)[-1]  # several tags of one product
    path = tmp_path / "accepted.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "decision": "accept"} for row in accepted)
    options = PrepareOptions(corrections=path)
    again = prepare("synthetic-tags:240", tmp_path / "r", options, progress=False)
    own = [f for f in result.findings if str(result.prepared.ids[f.row]) == accepted[0]["id"]]
    before = result.prepared.tags["pattern"][own[0].row]
    after = again.tags["pattern"][again.ids.tolist().index(accepted[0]["id"])]
    changed = {c for c, a, b in zip(again.tag_vocabularies["pattern"], before, after, strict=True) if a != b}
    assert changed == {finding.tag for finding in own}


def test_thresholds_have_the_best_f1_and_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    true = rng.normal(-1.5, 2, (6000, 3))
    labels = (rng.random((6000, 3)) < scipy.special.expit(true)).astype(np.int8)
    decision = fit_tags(((true - 1) / 3).astype(np.float32), labels)  # too unsure, and too low
    assert decision.scale == pytest.approx(3, rel=0.1) and decision.shift == pytest.approx(1, abs=0.15)
    shares = scipy.special.expit(true)

    def f1(threshold: float, place: int) -> float:
        chosen = shares[:, place] >= threshold
        return 2 * (chosen & (labels[:, place] == 1)).sum() / (chosen.sum() + labels[:, place].sum())

    for place in range(3):
        best = max(f1(t, place) for t in np.linspace(0, 1, 101))
        assert f1(best_threshold(shares[:, place], labels[:, place] == 1), place) >= best
        assert f1(decision.thresholds[place], place) >= best - 0.01
    rare = labels.copy()
    rare[:, 0] = 0
    rare[:4, 0] = 1  # too few for a threshold of its own
    fitted = fit_tags(true.astype(np.float32), rare).thresholds
    assert fitted[0] not in (fitted[1], fitted[2])
    nothing = fit_tags(true.astype(np.float32), np.full_like(labels, -1))
    assert (nothing.scale, nothing.shift, nothing.thresholds.tolist()) == (1, 0, [0.5] * 3)


@pytest.mark.slow
def test_drawn_tags_are_learnt(tmp_path):
    """The command of docs/your-catalogue.md."""
    config = load_config(__file__.rsplit("/tests/", 1)[0] + "/configs/demo.py")
    config.data.source, config.data.attributes = "synthetic-tags", ()
    test = train(config, tmp_path / "w", progress=False).test
    assert np.mean([scores["map"] for scores in test.tags.values()]) >= 0.9
    assert min(scores["map"] for scores in test.tags.values()) >= 0.9
    assert test.summaries["sleeve"]["per_class"]["does not apply"]["f1"] >= 0.9
    model = load_model(tmp_path / "w")
    found = model.package.decision.applicability["sleeve"]
    never = {model.classes["category"][number] for number in np.flatnonzero(found.never)}
    assert (found.finer, never) == ("category", {"Topwear", "Dress", "Loungewear and Nightwear"})
