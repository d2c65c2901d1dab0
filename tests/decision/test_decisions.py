"""Decisions in packages: what a run scored is what its package says, and a forged file is refused."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from fashion_jax.cli import main
from fashion_jax.data.photos import decode_photo
from fashion_jax.decision.calibration import calibration_error
from fashion_jax.decision.files import decision_from_json, decision_to_json
from fashion_jax.decision.hierarchy import count_contradictions, measure_pairs
from fashion_jax.run.finish import format_scores, package_outputs
from fashion_jax.run.train import evaluate, train
from fashion_jax.serving.package import load_package
from fashion_jax.serving.predict import predict_source
from fashion_jax.serving.predictor import Predictor, load_model
from fashion_jax.system.errors import UserError

ATTRIBUTES = ("masterCategory", "subCategory", "articleType", "gender")


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A run on drawn products whose master categories follow from their article types."""
    config = tiny_config(
        data__source="synthetic:600",
        data__attributes=ATTRIBUTES,
        train__duration="60 steps",
        train__evaluate_every="60 steps",
        train__checkpoint_every="60 steps",
        model__width=8,
        embedding__attributes=(),
        decision__precision=0.9,
        decision__label_set_coverage=0.8,
    )
    workdir = tmp_path_factory.mktemp("trust") / "w"
    return workdir, config, train(config, workdir, progress=False)


def photos(workdir, rows):
    from fashion_jax.data.records import open_prepared

    prepared, size = open_prepared(workdir / "records"), load_model(workdir).size
    return prepared, np.stack([decode_photo(prepared.read_photo(int(row)), *size) for row in rows])


def test_a_run_reports_what_may_be_trusted(run):
    workdir, _, result = run
    folder = workdir / "evaluation/test"
    report = json.loads((folder / "metrics.json").read_text())["decisions"]
    assert report == result.test.decisions
    assert list(report["heads"]) == list(ATTRIBUTES)
    decision = load_model(workdir).package.decision  # It keeps what the configuration asked for.
    assert (decision.precision, decision.coverage, report["precision"]) == (0.9, 0.8, 0.9)
    assert {head["label_sets"]["asked"] for head in report["heads"].values()} == {0.8}
    for name, head in report["heads"].items():
        assert head["plain"]["accuracy"] == pytest.approx(result.test.summaries[name]["accuracy"])
        assert head["plain"]["macro_f1"] == pytest.approx(result.test.summaries[name]["macro_f1"])
        assert head["nll"]["before"] == pytest.approx(result.test.summaries[name]["loss"], rel=1e-4)
        assert set(head["operating_points"]) == {"accuracy", "macro_f1"}
        assert 0.5 < head["label_sets"]["coverage"] <= 1
        assert Image.open(folder / f"reliability/{name}.png").size[0] > 300
    assert "articleType -> masterCategory" in report["contradictions"]["pairs"]
    assert report["contradictions"]["after (accuracy)"]["any"]["contradictions"] == 0
    assert {"all", "noise", "patterns", "other domains"} <= report["out_of_catalogue"]["others"].keys()
    text = (folder / "decisions.md").read_text()
    assert all(f"## {title}" in text for title in ("Calibration", "Operating points", "Hierarchy", "Out of catalogue"))
    shown = format_scores(result.test)
    assert "accepted automatically at 90% precision" in shown
    for name, head in report["heads"].items():
        points = [head["operating_points"][point] for point in ("accuracy", "macro_f1")]
        pairs = [f"{point['accuracy']:.4f} / {point['macro_f1']:.4f}" for point in points]
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name} ") and " / " in line]
        assert line.split()[1:7] == " ".join(pairs).split()


def test_evaluating_again_finds_the_same_and_validation_says_that_it_flatters(run):
    workdir, _, result = run
    assert evaluate(workdir, progress=False).decisions == result.test.decisions
    evaluate(workdir, "validation", progress=False)
    assert "the figures are too good" in (workdir / "evaluation/validation/decisions.md").read_text()
    assert "the figures are too good" not in (workdir / "evaluation/test/decisions.md").read_text()


def test_the_package_says_what_the_run_scored(run):
    workdir, _, result = run
    model = load_model(workdir)
    prepared, images = photos(workdir, result.test.rows)
    wanted = package_outputs(result.test, model.package.decision)
    found = model.predict_arrays(images)
    assert model.subspaces == {}  # Embeddings are the features, as the configuration asks.
    np.testing.assert_allclose(found.embeddings, result.test.outputs.features, rtol=1e-3, atol=1e-3)
    for name in ATTRIBUTES:
        assert np.allclose(found.probabilities[name], wanted.probabilities[name], atol=1e-4)
        assert np.allclose(found.probabilities[name].sum(1), 1, atol=1e-5)
        assert (found.labels[name] == wanted.labels[name]).mean() > 0.98  # but for ties
        assert (found.accepted[name] == wanted.accepted[name]).mean() > 0.98
        assert (found.label_sets[name] == wanted.label_sets[name]).mean() > 0.98
        labels = prepared.labels[result.test.rows, prepared.attributes.index(name)]
        accuracy = np.mean(wanted.labels[name][labels >= 0] == labels[labels >= 0])
        assert accuracy == result.test.decisions["heads"][name]["operating_points"]["accuracy"]["accuracy"]
    assert np.allclose(found.out_of_catalogue, wanted.out_of_catalogue, atol=1e-2)
    with (workdir / "evaluation/test/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        for name in ATTRIBUTES:
            assert row[name] == model.classes[name][wanted.labels[name][i]]
            assert row[f"{name}_accepted"] == str(int(wanted.accepted[name][i]))
        assert row["is_out_of_catalogue"] == str(int(wanted.is_out_of_catalogue[i]))


def test_both_operating_points_can_be_asked_for(run, tmp_path, capsys):
    workdir, _, result = run
    model = load_model(workdir)
    _, images = photos(workdir, result.test.rows)
    best, rare = (model.predict_arrays(images, operating_point=point) for point in ("accuracy", "macro_f1"))
    for name in ATTRIBUTES:
        assert np.array_equal(best.probabilities[name], rare.probabilities[name])
    said = model.predict(images[:3], operating_point="macro_f1")
    assert [p["gender"][0] for p in said] == [model.classes["gender"][c] for c in rare.labels["gender"][:3]]
    assert set(said[0].accepted) == set(said[0].label_sets) == set(ATTRIBUTES)
    assert said[0].label_sets["gender"]
    assert isinstance(said[0].out_of_catalogue, float)
    assert isinstance(said[0].is_out_of_catalogue, bool)
    with pytest.raises(UserError, match="no operating point 'macro'; did you mean 'macro_f1'"):
        model.predict(images[:1], operating_point="macro")
    with pytest.raises(UserError, match="no operating point"):
        predict_source(model, "synthetic:20", tmp_path / "p.csv", progress=False, operating_point="f1")
    out = tmp_path / "p.csv"
    command = ["predict", "--model", str(workdir), "--source", "synthetic:100", "--out", str(out)]
    assert main([*command, "--operating-point", "macro_f1"]) == 0, capsys.readouterr().err
    header = out.read_text().splitlines()[0]
    assert header.startswith("id,masterCategory,masterCategory_confidence,masterCategory_accepted,")
    assert header.endswith(",out_of_catalogue,is_out_of_catalogue")


def test_predictions_of_new_photos_do_not_contradict_the_hierarchy(run):
    workdir, _, result = run
    prepared, images = photos(workdir, result.test.rows)
    training = prepared.labels[prepared.indices("train")]
    columns = {name: training[:, prepared.attributes.index(name)] for name in ATTRIBUTES}
    pairs = measure_pairs(columns, {name: len(prepared.vocabularies[name]) for name in ATTRIBUTES})
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    for point in ("accuracy", "macro_f1"):
        said = load_model(workdir).predict_arrays(noise, operating_point=point).labels
        assert count_contradictions(pairs, said)["any"]["contradictions"] == 0


def test_confidences_are_those_of_the_labels(run):
    workdir, _, result = run
    prepared, images = photos(workdir, result.test.rows)
    outputs = load_model(workdir).predict_arrays(images)
    name = "subCategory"
    labels = prepared.labels[result.test.rows, prepared.attributes.index(name)]
    sure = outputs.probabilities[name][np.arange(len(labels)), outputs.labels[name]]
    error = calibration_error(sure[labels >= 0].astype(float), (outputs.labels[name] == labels)[labels >= 0])
    assert error == pytest.approx(result.test.decisions["heads"][name]["ece"]["after"], abs=0.02)


def test_the_file_holds_the_whole_decision(run):
    package = load_package(run[0])
    features = 64
    assert len(package.decision.out_of_catalogue.mean) == features
    value = json.loads(json.dumps(decision_to_json(package.decision), allow_nan=False))
    again = decision_from_json(run[0], value, package.model["classes"], features)
    assert decision_to_json(again) == value == json.loads((run[0] / "package/decision.json").read_text())


def test_a_package_without_a_decision_predicts_what_the_network_gives(run, tmp_path):
    workdir, _, result = run
    shutil.copytree(workdir / "package", tmp_path / "old")
    (tmp_path / "old/decision.json").unlink()
    with pytest.raises(UserError, match=r"decision\.json is damaged, missing or was changed"):
        load_package(tmp_path / "old")
    path = tmp_path / "old/config.json"
    config = json.loads(path.read_text())
    del config["digests"]["decision.json"]
    path.write_text(json.dumps(config))
    old, new = load_model(tmp_path / "old"), load_model(workdir)
    assert old.package.decision is None
    assert old.fingerprint != new.fingerprint  # other predictions
    _, images = photos(workdir, result.test.rows)
    outputs = old.predict_arrays(images)
    assert outputs.accepted == outputs.label_sets == {}
    assert outputs.out_of_catalogue is None
    for name in ATTRIBUTES:
        assert np.allclose(outputs.probabilities[name], softmax(result.test.outputs.logits[name], axis=1), atol=1e-4)
    assert np.array_equal(outputs.embeddings, new.predict_arrays(images).embeddings)
    assert old.predict(images[:1])[0].accepted == {}
    with pytest.raises(UserError, match="train again"):
        old.predict(images[:1], operating_point="macro_f1")
    (tmp_path / "old/decision.json").write_text("{}")
    with pytest.raises(UserError, match="does not match"):
        load_package(tmp_path / "old")


def test_the_fingerprint_is_that_of_the_files(run):
    package = load_package(run[0])
    config = json.loads((run[0] / "package/config.json").read_text())
    about = json.dumps([config["digests"], config["model"], config["preprocessing"]], sort_keys=True)
    assert package.fingerprint == hashlib.sha256(about.encode()).hexdigest()[:32]
    assert Predictor(dataclasses.replace(package)).fingerprint == package.fingerprint


def link(v, name="subCategory", finer="articleType"):
    """A sound link, which the head of so small a run may lack."""
    v["heads"][name]["link"] = {
        "finer": finer, "counts": [[0, 0, 5], [1, 1, 7]], "pooling": "log", "weight": 0.5, "temperature": 1.0,
    }  # fmt: skip
    return v["heads"][name]["link"]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format=2),
        lambda v: v.update(more=1),
        lambda v: v.pop("joint"),
        lambda v: v.update(precision=float("nan")),
        lambda v: v.update(coverage="high"),
        lambda v: v.update(heads=[]),
        lambda v: v["heads"].pop("gender"),
        lambda v: v["heads"]["gender"].update(temperature=0),
        lambda v: v["heads"]["gender"].update(temperature=float("inf")),
        lambda v: v["heads"]["gender"].update(temperature=True),
        lambda v: v["heads"]["gender"].update(temperature=10**400),
        lambda v: v["heads"]["gender"]["class_rows"].pop(),
        lambda v: v["heads"]["gender"]["class_rows"].__setitem__(0, -1),
        lambda v: v["heads"]["gender"]["class_rows"].__setitem__(0, 10**30),
        lambda v: v["heads"]["gender"].update(strengths={"accuracy": 0}),
        lambda v: v["heads"]["gender"]["strengths"].update(accuracy=None),
        lambda v: v["heads"]["gender"].update(thresholds=[]),
        lambda v: v["heads"]["gender"].update(label_set=-0.1),
        lambda v: v["heads"]["gender"].update(link={}),
        lambda v: link(v).update(finer="nothing"),
        lambda v: link(v).update(finer=["gender"]),
        lambda v: (link(v, finer="masterCategory"), link(v, "masterCategory", "subCategory")),  # a circle
        lambda v: link(v).update(pooling="mean"),
        lambda v: link(v).update(weight=2),
        lambda v: link(v)["counts"].append([10**9, 0, 1]),
        lambda v: link(v)["counts"].append([0, 0]),
        lambda v: link(v)["counts"].append([0, 0, 10**50]),
        lambda v: v["joint"][0].update(heads=["gender"]),
        lambda v: v["joint"][0].update(heads=["gender", "gender", "gender"]),
        lambda v: v["joint"][0].update(combinations=[]),
        lambda v: v["joint"][0]["combinations"].append([0, 0, 999]),
        lambda v: v["joint"][0]["combinations"].append([0]),
        lambda v: v["joint"].append(v["joint"][0]),
        lambda v: v["joint"].append(3),
        lambda v: v["out_of_catalogue"].update(rest=0),
        lambda v: v["out_of_catalogue"]["mean"].pop(),
        lambda v: v["out_of_catalogue"].update(directions=[]),
        lambda v: v["out_of_catalogue"]["directions"][0].__setitem__(0, 1e9),
        lambda v: v["out_of_catalogue"].update(variances=[1]),
        lambda v: v["out_of_catalogue"].update(spreads=[0, 0]),
        lambda v: v["out_of_catalogue"].update(threshold="3"),
        lambda v: v.update(out_of_catalogue=[]),
    ],
)  # fmt: skip
def test_a_forged_decision_is_refused(run, tmp_path, change):
    load_package(signed(run, tmp_path / "sound", link))
    with pytest.raises(UserError, match=r"decision\.json"):
        load_package(signed(run, tmp_path / "forged", change))


def signed(run, folder, change):
    """Copies the run's package, changes its decision and signs it anew, so that only the decision is wrong."""
    shutil.copytree(run[0] / "package", folder)
    value = json.loads((folder / "decision.json").read_text())
    change(value)
    text = json.dumps(value)
    (folder / "decision.json").write_text(text)
    config = json.loads((folder / "config.json").read_text())
    config["digests"]["decision.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_no_validation_rows_no_decision(tiny_config, products_csv, tmp_path):
    table = products_csv.read_text().splitlines()
    split = ["split", *(("train", "test")[i % 2] for i in range(len(table) - 1))]
    folder = tmp_path / "shop"
    shutil.copytree(products_csv.parent / "photos", folder / "photos")
    (folder / "products.csv").write_text("\n".join(f"{a},{b}" for a, b in zip(table, split, strict=True)))
    config = tiny_config(
        data__source=str(folder / "products.csv"), data__split="column", train__duration="2 steps",
        data__attributes=("kind", "colour"),
    )  # fmt: skip
    result = train(config, tmp_path / "w", progress=False)
    assert result.test.decisions is None
    assert not (tmp_path / "w/package/decision.json").exists()
    assert not (tmp_path / "w/evaluation/test/decisions.md").exists()
    assert load_model(tmp_path / "w").package.decision is None
