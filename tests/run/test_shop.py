"""A shop's catalogue through a whole training: products with several photos, and every number on the way."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from drawn_products import make_tiny_config
from fashion_jax.cli import main
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import Attribute, MultiValued, Schema, save_schema
from fashion_jax.run.train import train
from fashion_jax.run.workdir import trained_on
from fashion_jax.search.index import Index
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.products import pool_photos
from shops import write_shop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    shop = write_shop(folder / "shop", 150)
    schema = Schema(
        "shop",
        (Attribute("colour", "Base Colour", merge=(("navy blue", "Navy Blue"),), min_rows=5), Attribute("For Whom")),
        id_column="Item No",
        image_column="Photo File",
        multi_valued=(MultiValued("Brand"),),
    )
    save_schema(schema, folder / "schema.json")
    config = make_tiny_config(shop.table, data__schema=str(folder / "schema.json"), train__duration="12 steps")
    train(config, folder / "run", progress=False)
    return shop, folder / "run"


def test_every_photo_is_trained_on_and_every_product_is_on_one_side(done):
    shop, workdir = done
    prepared = open_prepared(workdir / "records")
    assert len(prepared) == sum(map(len, shop.photos.values()))
    sides = {}
    for name, split in zip(prepared.ids.tolist(), prepared.splits.tolist(), strict=True):
        assert sides.setdefault(name, split) == split
    assert sides.keys() == shop.photos.keys() and set(sides.values()) == {0, 1, 2}
    assert trained_on(workdir) == {name for name, split in sides.items() if split == 0}


def test_scores_are_said_by_photo_and_by_product(done):
    shop, workdir = done
    prepared, folder = open_prepared(workdir / "records"), workdir / "evaluation/test"
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = prepared.indices("test")
    with (folder / "predictions.csv").open(newline="") as file:
        lines = {line["id"]: line for line in csv.DictReader(file)}
    products = sorted(set(prepared.ids[rows].tolist()))
    assert sorted(lines) == products
    assert {name: int(line["num_photos"]) for name, line in lines.items()} == {n: len(shop.photos[n]) for n in products}
    for place, name in enumerate(prepared.attributes):
        labels = prepared.labels[rows, place]
        assert metrics["attributes"][name]["count"] == (labels >= 0).sum()
        truth = {prepared.ids[row]: prepared.labels[row, place] for row in rows if prepared.labels[row, place] >= 0}
        classes = prepared.vocabularies[name]
        right = [classes[label] == lines[product][name] for product, label in truth.items()]
        assert metrics["products"][name]["count"] == len(truth)
        assert metrics["products"][name]["accuracy"] == pytest.approx(np.mean(right))
    said = {name: set(filter(None, lines[name]["Brand"].split("|"))) for name in products}
    hits = sum(shop.brands[name] in found for name, found in said.items())
    of_all = 2 * hits / (len(products) + sum(map(len, said.values())))
    assert metrics["products"]["Brand"]["count"] == len(products)
    assert metrics["products"]["Brand"]["micro_f1"] == pytest.approx(of_all)


def test_the_package_predicts_what_the_evaluation_wrote(done):
    shop, workdir = done
    model = load_model(workdir)
    with (workdir / "evaluation/test/predictions.csv").open(newline="") as file:
        lines = {line["id"]: line for line in csv.DictReader(file)}
    for name in list(lines)[:6]:
        photos = [shop.table.parent / photo for photo in shop.photos[name]]
        outputs = model.predict_arrays(np.stack([model.read(photo) for photo in photos]))
        pooled = pool_photos(outputs, np.zeros(len(photos), int), model.package.decision)
        for attribute, classes in model.classes.items():
            sure = float(lines[name][f"{attribute}_confidence"])
            assert sure == pytest.approx(float(pooled.probabilities[attribute].max()), abs=2e-3)
            assert lines[name][attribute] == classes[int(pooled.labels[attribute][0])]


@pytest.mark.slow
def test_the_guides_way_from_a_shops_export_to_search_works_as_typed(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs/your-catalogue.md").read_text()
    section = guide.split("## A shop, from start to end")[1].split("\n## ")[0]
    typed = [shlex.split(line) for line in re.findall(r"\.venv/bin/fashion-jax (.*)", section.replace("\\\n", " "))]
    assert [words[0] for words in typed] == ["schema", "train", "predict", "index", "search"]
    monkeypatch.chdir(tmp_path)
    shop = write_shop(tmp_path / "shop", 400)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    printed = []
    for words in typed:
        # Two of the eight epochs, which are enough to see that the way is right.
        extra = ["--config.train.duration=2 epochs", "--config.train.evaluate_every=1 epochs"]
        assert main([*words, *(extra if words[0] == "train" else [])]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr())
        if words[0] == "schema":
            merge = re.search(r"\{.*\"merge\".*\}", printed[0].out)[0]
            schema = json.loads((tmp_path / "schema.json").read_text())
            wanted = json.loads(merge)
            schema["attributes"] = [a | (wanted if a["name"] == wanted["name"] else {}) for a in schema["attributes"]]
            (tmp_path / "schema.json").write_text(json.dumps(schema))
    report = open_prepared(tmp_path / "runs/shop/records").report
    missing = {word: count for word, count in shop.missing.items() if count}
    assert (report["rows"], report["products"]) == (shop.rows, 400)
    assert report["photos"] == sum(map(len, shop.photos.values()))
    assert report["words"]["Base Colour"]["missing"] == missing and report["encoding"]["name"].startswith(
        "Windows-1252"
    )
    assert report["words"]["Base Colour"]["merged"] == {"navy blue": shop.spelled}
    assert report["classes"]["Base Colour"]["missing_labels"] == sum(shop.missing.values())
    assert report["quarantine_reasons"] == {"an earlier row has the same id and the same photo": 1}
    assert list(report["classes"]) == ["Category", "Base Colour", "For Whom"]
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: int(row["num_photos"]) for row in rows} == {n: len(p) for n, p in shop.photos.items()}
    assert {row["id"]: float(row["price"]) for row in rows} == shop.prices
    assert {row["id"]: float(row["stock"]) for row in rows} == shop.stock
    assert {row["id"]: row["Brand"] for row in rows} == shop.brands
    index = Index.load(tmp_path / "runs/shop/index")
    assert len(index) == 400 and set(index.ids.tolist()) == set(shop.photos)
    found = {row["id"]: row for row in index_rows(index)}
    assert {name: row["price"] for name, row in found.items()} == shop.prices
    hits = index.search(index.vectors(["FS-1400"]), 10, where="price < 50 and stock > 0")
    fitting = {name for name in shop.photos if shop.prices[name] < 50 and shop.stock[name] > 0}
    assert set(hits.ids[0].tolist()) <= fitting and len(set(hits.ids[0].tolist())) == 10
    shown = re.findall(r"FS-\d+", printed[-1].out)
    assert set(shown) - {"FS-1400"} <= fitting


def index_rows(index: Index) -> list[dict]:
    return [
        {"id": name, **row} for name, row in zip(index.ids.tolist(), index.attributes(index.ids.tolist()), strict=True)
    ]
