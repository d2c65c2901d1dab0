"""Decisions in packages: what a run scored is what its package says, and a forged file is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from fashion_jax.cli import main
from fashion_jax.data.photos import decode_photo
from fashion_jax.data.records import open_prepared
from fashion_jax.decision.calibration import calibration_error
from fashion_jax.decision.files import decision_from_json, decision_to_json
from fashion_jax.run.finish import format_scores, package_outputs
from fashion_jax.run.train import evaluate, train
from fashion_jax.serving.package import load_package, seal_package
from fashion_jax.serving.predict import predict_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError
from forging import GONE, forge_decision

ATTRIBUTES = ("masterCategory", "subCategory", "articleType", "gender")


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A run on drawn products whose master categories follow from their article types."""
    workdir = tmp_path_factory.mktemp("trust") / "w"
    config = tiny_config(
        data__source="synthetic:600", data__attributes=ATTRIBUTES, model__width=8, embedding__attributes=(),
        decision__precision=0.9, decision__label_set_coverage=0.8,
        **dict.fromkeys(("train__duration", "train__evaluate_every", "train__checkpoint_every"), "60 steps"),
    )  # fmt: skip
    result = train(config, workdir, progress=False)
    model, prepared = load_model(workdir), open_prepared(workdir / "records")
    images = np.stack([decode_photo(prepared.read_photo(int(row)), *model.size) for row in result.test.rows])
    labels = dict(zip(prepared.attributes, prepared.labels[result.test.rows].T, strict=True))
    where = {"workdir": workdir, "package": workdir / "package"}
    return SimpleNamespace(test=result.test, model=model, images=images, labels=labels, **where)


def test_a_run_reports_what_may_be_trusted(run):
    folder, test = run.workdir / "evaluation/test", run.test
    report = json.loads((folder / "metrics.json").read_text())["decisions"]
    assert report == test.decisions
    assert list(report["heads"]) == list(ATTRIBUTES)
    decision = run.model.package.decision  # It keeps what the configuration asked for.
    assert (decision.precision, decision.coverage, report["precision"]) == (0.9, 0.8, 0.9)
    shown = format_scores(test)
    assert "accepted automatically at 90% precision" in shown
    for name, head in report["heads"].items():
        summary, points = test.summaries[name], head["operating_points"]
        for score in ("accuracy", "macro_f1", "macro_f1_supported"):
            assert head["plain"][score] == pytest.approx(summary[score])
        assert head["nll"]["before"] == pytest.approx(summary["loss"], rel=1e-4)
        assert head["label_sets"]["asked"] == 0.8 and 0.5 < head["label_sets"]["coverage"] <= 1
        assert Image.open(folder / f"reliability/{name}.png").size[0] > 300
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{name} ") and " / " in line]
        pairs = [f"{points[p]['accuracy']:.4f} / {points[p]['macro_f1']:.4f}" for p in ("accuracy", "macro_f1")]
        assert line.split()[1:7] == " ".join(pairs).split()
    assert "articleType -> masterCategory" in report["contradictions"]["pairs"]
    assert report["contradictions"]["after (accuracy)"]["any"]["contradictions"] == 0
    assert {"all", "noise", "patterns", "other domains"} <= report["out_of_catalogue"]["others"].keys()
    evaluate(run.workdir, "validation", progress=False)
    texts = [(folder.parent / split / "decisions.md").read_text() for split in ("test", "validation")]
    assert all(f"## {title}" in texts[0] for title in ("Calibration", "Operating points", "Hierarchy", "Out of cat"))
    assert ["the figures are too good" in text for text in texts] == [False, True]


def test_the_package_says_what_the_run_scored(run):
    wanted = package_outputs(run.test, run.model.package.decision)
    found = run.model.predict_arrays(run.images)
    assert run.model.subspaces == {}  # Embeddings are the features, as the configuration asks.
    np.testing.assert_allclose(found.embeddings, run.test.outputs.features, rtol=1e-3, atol=1e-3)
    for name in ATTRIBUTES:
        assert np.allclose(found.probabilities[name], wanted.probabilities[name], atol=1e-4)
        assert np.allclose(found.probabilities[name].sum(1), 1, atol=1e-5)
        for kind in ("labels", "accepted", "label_sets"):
            assert (getattr(found, kind)[name] == getattr(wanted, kind)[name]).mean() > 0.98  # but for ties
        known = run.labels[name] >= 0
        right = (wanted.labels[name] == run.labels[name])[known]
        scores = run.test.decisions["heads"][name]
        assert right.mean() == scores["operating_points"]["accuracy"]["accuracy"]
        sure = found.probabilities[name][np.arange(len(known)), found.labels[name]][known].astype(float)
        error = calibration_error(sure, (found.labels[name] == run.labels[name])[known])
        assert error == pytest.approx(scores["ece"]["after"], abs=0.02)
    assert np.allclose(found.out_of_catalogue, wanted.out_of_catalogue, atol=1e-2)
    with (run.workdir / "evaluation/test/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        for name in ATTRIBUTES:
            assert row[name] == run.model.classes[name][wanted.labels[name][i]]
            assert row[f"{name}_accepted"] == str(int(wanted.accepted[name][i]))
        assert row["is_out_of_catalogue"] == str(int(wanted.is_out_of_catalogue[i]))


def test_both_operating_points_can_be_asked_for(run, tmp_path, capsys):
    model, out = run.model, tmp_path / "p.csv"
    best, rare = (model.predict_arrays(run.images, operating_point=point) for point in ("accuracy", "macro_f1"))
    for name in ATTRIBUTES:
        assert np.array_equal(best.probabilities[name], rare.probabilities[name])
    said = model.predict(run.images[:3], operating_point="macro_f1")
    assert [p["gender"][0] for p in said] == [model.classes["gender"][c] for c in rare.labels["gender"][:3]]
    assert set(said[0].accepted) == set(said[0].label_sets) == set(ATTRIBUTES) and said[0].label_sets["gender"]
    assert isinstance(said[0].out_of_catalogue, float) and isinstance(said[0].is_out_of_catalogue, bool)
    with pytest.raises(UserError, match="no operating point 'macro'; did you mean 'macro_f1'"):
        model.predict(run.images[:1], operating_point="macro")
    with pytest.raises(UserError, match="no operating point"):
        predict_source(model, "synthetic:20", out, progress=False, operating_point="f1")
    command = ["predict", "--model", str(run.workdir), "--source", "synthetic:100", "--out", str(out)]
    assert main([*command, "--operating-point", "macro_f1"]) == 0, capsys.readouterr().err
    header = out.read_text().splitlines()[0]
    assert header.startswith("id,masterCategory,masterCategory_confidence,masterCategory_accepted,")
    assert header.endswith(",is_out_of_catalogue,num_photos,photos_disagree,year,productDisplayName")  # two are carried


def test_the_files_hold_the_whole_decision_and_give_the_fingerprint(run):
    package = load_package(run.workdir)
    assert len(package.decision.out_of_catalogue.mean) == 64
    value = json.loads(json.dumps(decision_to_json(package.decision), allow_nan=False))
    again = decision_from_json(run.workdir, value, package.model["classes"], 64)
    assert decision_to_json(again) == value == json.loads((run.package / "decision.json").read_text())
    config = json.loads((run.package / "config.json").read_text())
    digests = {name: known["sha256"] for name, known in config["files"].items()}
    about = json.dumps([digests, config["model"], config["preprocessing"]], sort_keys=True)
    assert run.model.fingerprint == package.fingerprint == hashlib.sha256(about.encode()).hexdigest()[:32]


def test_a_package_without_a_decision_predicts_what_the_network_gives(run, tmp_path):
    folder = shutil.copytree(run.package, tmp_path / "old")
    (folder / "decision.json").unlink()
    with pytest.raises(UserError, match=r"decision\.json is missing"):
        load_package(folder)
    seal_package(folder)
    old = load_model(folder)
    assert old.package.decision is None
    assert old.fingerprint != run.model.fingerprint  # other predictions
    outputs = old.predict_arrays(run.images)
    assert outputs.accepted == outputs.label_sets == {} and outputs.out_of_catalogue is None
    for name in ATTRIBUTES:
        assert np.allclose(outputs.probabilities[name], softmax(run.test.outputs.logits[name], axis=1), atol=1e-4)
    assert np.array_equal(outputs.embeddings, run.model.predict_arrays(run.images).embeddings)
    assert old.predict(run.images[:1])[0].accepted == {}
    with pytest.raises(UserError, match="train again"):
        old.predict(run.images[:1], operating_point="macro_f1")
    (folder / "decision.json").write_text("{}")
    with pytest.raises(UserError, match="does not list"):
        load_package(folder)


COUNTS = [[0, 0, 5], [1, 1, 7]]
LINK = {"finer": "articleType", "counts": COUNTS, "pooling": "log", "weight": 0.5, "temperature": 1.0}
APPLIES = {"class": 0, "finer": "articleType", "never": [0, 1]}
GROUP = {"heads": ["gender", "subCategory"], "combinations": [[0, 0]]}


@pytest.fixture(scope="module")
def linked(run, tmp_path_factory):
    """A package with a sound link, which the head of so small a run may lack."""
    folder = shutil.copytree(run.package, tmp_path_factory.mktemp("linked") / "p")
    forge_decision(folder, "heads.subCategory.link", LINK)
    load_package(folder)
    return folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 2), ("more", 1), ("joint", GONE), ("precision", float("nan")), ("coverage", "high"), ("heads", []),
        ("heads.gender", GONE), ("heads.gender.temperature", 0), ("heads.gender.temperature", float("inf")),
        ("heads.gender.temperature", True), ("heads.gender.temperature", 10**400), ("heads.gender.class_rows.0", GONE),
        ("heads.gender.class_rows.0", -1), ("heads.gender.class_rows.0", 10**30), ("heads.gender.thresholds", []),
        ("heads.gender.strengths.macro_f1", GONE), ("heads.gender.strengths.accuracy", None),
        ("heads.gender.label_set", -0.1), ("heads.gender.link", {}), ("heads.subCategory.link.finer", "nothing"),
        ("heads.subCategory.link.finer", ["gender"]), ("heads.subCategory.link.pooling", "mean"),
        ("heads.articleType.link", {**LINK, "finer": "subCategory"}),  # a circle
        ("heads.subCategory.link.weight", 2), ("heads.subCategory.link.counts.0", [10**9, 0, 1]),
        ("heads.subCategory.link.counts.0", [0, 0]), ("heads.subCategory.link.counts.0", [0, 0, 10**50]),
        ("joint", [GROUP, GROUP]), ("joint.0", 3), ("joint.0.heads", ["gender"]), ("joint.0.heads", ["gender"] * 3),
        ("joint.0.combinations", []), ("joint.0.combinations.0", [0, 0, 999]), ("joint.0.combinations.0", [0]),
        ("tags", {"gender": {}}), ("applicability", []), ("applicability", {"nothing": APPLIES}),
        ("applicability", {"gender": {**APPLIES, "finer": "gender"}}),
        ("applicability", {"gender": {**APPLIES, "class": 5}}),
        ("applicability", {"gender": {**APPLIES, "never": [-1]}}),
        ("applicability", {"gender": {**APPLIES, "never": 3}}), ("applicability", {"gender": {}}),
        ("out_of_catalogue", []), ("out_of_catalogue.rest", 0), ("out_of_catalogue.mean.0", GONE),
        ("out_of_catalogue.directions", []), ("out_of_catalogue.directions.0.0", 1e9),
        ("out_of_catalogue.variances", [1]), ("out_of_catalogue.spreads", [0, 0]), ("out_of_catalogue.threshold", "3"),
    ],
)  # fmt: skip
def test_a_forged_decision_is_refused(linked, tmp_path, path, value):
    folder = shutil.copytree(linked, tmp_path / "forged")
    forge_decision(folder, path, value)
    with pytest.raises(UserError, match=r"decision\.json"):
        load_package(folder)


def test_no_validation_rows_no_decision(tiny_config, products_csv, tmp_path):
    shop, workdir = shutil.copytree(products_csv.parent, tmp_path / "shop"), tmp_path / "w"
    header, *lines = products_csv.read_text().splitlines()
    split = [f"{line},{('train', 'test')[number % 2]}" for number, line in enumerate(lines)]
    (shop / "products.csv").write_text("\n".join([f"{header},split", *split]))
    changes = {"data__split": "column", "data__attributes": ("kind", "colour"), "train__duration": "2 steps"}
    result = train(tiny_config(data__source=str(shop / "products.csv"), **changes), workdir, progress=False)
    assert result.test.decisions is None and load_model(workdir).package.decision is None
    assert not (workdir / "package/decision.json").exists()
    assert not (workdir / "evaluation/test/decisions.md").exists()
