"""A shop's catalogue through a whole training: products with several photos, and every number on the way."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from drawn_products import make_tiny_config
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import Attribute, Schema, save_schema
from fashion_jax.run.train import train
from fashion_jax.run.workdir import trained_on
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.products import pool_photos
from shops import write_shop


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    shop = write_shop(folder / "shop", 150)
    schema = Schema(
        "shop",
        (Attribute("colour", "Base Colour", merge=(("navy blue", "Navy Blue"),), min_rows=5), Attribute("For Whom")),
        id_column="Item No",
        image_column="Photo File",
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
