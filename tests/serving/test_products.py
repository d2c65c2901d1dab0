"""Predictions of products: means of their photos', calibrated, whatever order the photos come in."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import scipy.special

from fashion_jax.cli import main
from fashion_jax.data.catalog import Record
from fashion_jax.data.schema import MISSING
from fashion_jax.decision.calibration import calibration_error
from fashion_jax.decision.decisions import Decision, HeadDecision, OutOfCatalogue
from fashion_jax.decision.files import decision_from_json, decision_to_json
from fashion_jax.decision.fit import fit_decision
from fashion_jax.decision.tags import TagDecision
from fashion_jax.evaluation.evaluate import RowOutputs
from fashion_jax.serving.outputs import decide
from fashion_jax.serving.predict import format_predictions, predict_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.products import name_products, number_products, pool_photos, predict_products
from shops import write_shop

CLASSES = {"kind": ("a", "b", "c", "d"), "tone": ("x", "y")}
SIZES = [1, 3, 2, 1, 4, 2, 1]


def decision(temperature: float = 1.0) -> Decision:
    points = {"accuracy": 0.0, "macro_f1": 0.4}
    heads = {
        name: HeadDecision(1.5, np.arange(1, len(c) + 1), points, dict.fromkeys(points, 0.5), 0.2, None, temperature)
        for name, c in CLASSES.items()
    }
    outside = OutOfCatalogue(np.zeros(3), np.eye(3)[:1], np.ones(1), 1.0, (0.0, 0.0), (1.0, 1.0), 0.3)
    return Decision(heads, (), outside, 0.9, 0.9)


def photos(count: int, fitted: Decision | None, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = {name: rng.normal(size=(count, len(c))).astype(np.float32) * 3 for name, c in CLASSES.items()}
    return decide(fitted, logits, rng.random((count, 3)).astype(np.float32), rng.normal(size=count).astype(np.float32))


@pytest.mark.parametrize("fitted", [None, decision(), decision(0.7)])
def test_a_products_probabilities_are_the_mean_of_its_photos(fitted):
    outputs = photos(sum(SIZES), fitted)
    products = np.random.default_rng(1).permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    pooled = pool_photos(outputs, products, fitted)
    for name in CLASSES:
        for product, size in enumerate(SIZES):
            mean = outputs.probabilities[name][products == product].astype(np.float64).mean(0)
            temperature = fitted.heads[name].product_temperature if fitted and size > 1 else 1.0
            wanted = scipy.special.softmax(np.log(mean) / temperature)
            np.testing.assert_allclose(pooled.probabilities[name][product], wanted, rtol=1e-4)
            assert pooled.labels[name][product] == wanted.argmax()
            if fitted:
                assert pooled.accepted[name][product] == (wanted.max() >= 0.5)
    if fitted:
        scores = [outputs.out_of_catalogue[products == p].mean() for p in range(len(SIZES))]
        np.testing.assert_allclose(pooled.out_of_catalogue, scores, rtol=1e-5)
        assert np.array_equal(pooled.is_out_of_catalogue, np.array(scores) > 0.3)


def test_one_photo_each_changes_nothing():
    outputs = photos(9, decision(0.5))
    pooled = pool_photos(outputs, np.arange(9), decision(0.5))
    for name in CLASSES:
        assert np.array_equal(pooled.probabilities[name], outputs.probabilities[name])
        assert np.array_equal(pooled.labels[name], outputs.labels[name])


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_order_of_photos_and_the_size_of_batches_do_not_matter(batch):
    fitted, total = decision(0.8), sum(SIZES)
    outputs = photos(total, fitted)
    ids = np.repeat([f"p{n}" for n in range(len(SIZES))], SIZES)
    records = [Record(n + 1, n + 1, name, "", (), "", "x") for n, name in enumerate(ids)]
    order = np.random.default_rng(2).permutation(total)
    batches = [order[start : start + batch] for start in range(0, total, batch)]
    given = (([records[i] for i in part], outputs.take(part)) for part in batches)
    counts = dict(zip(*np.unique(ids, return_counts=True), strict=True))
    found = {record.id: one for record, one in predict_products(given, counts, CLASSES, {}, fitted)}
    pooled = pool_photos(outputs, number_products(ids), fitted)
    assert len(found) == len(SIZES)
    for product, size in enumerate(SIZES):
        one, mine = found[f"p{product}"], ids == f"p{product}"
        assert one.num_photos == size
        differ = any(len(set(outputs.labels[name][mine].tolist())) > 1 for name in CLASSES)
        assert one.photos_disagree == differ
        for name, classes in CLASSES.items():
            number = pooled.labels[name][product]
            assert one[name] == (classes[number], pytest.approx(pooled.probabilities[name][product, number], rel=1e-5))


def test_a_photo_that_turns_out_bad_leaves_the_product_with_the_others():
    outputs = photos(2, None)
    records = [Record(n, n, "p", "", (), "", "x") for n in (1, 2)]
    ((record, one),) = predict_products([(records, outputs)], {"p": 3}, CLASSES, {}, None)
    assert record.number == 1 and one.num_photos == 2


def rows_of_products(count: int, seed: int):
    """Products of three photos that err together less than alone, so that the mean of their photos is unsure."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, count)
    logits = rng.normal(size=(count, 3, 4)) * 1.5 + 2.5 * np.eye(4)[truth][:, None]
    labels = np.repeat(truth, 3)
    flat = logits.reshape(-1, 4)
    outputs = RowOutputs({"kind": flat}, rng.normal(size=(3 * count, 5)), rng.normal(size=3 * count), {"kind": flat})
    return outputs, {"kind": labels}, np.repeat(np.arange(count), 3)


def test_products_are_calibrated_on_their_own_rows():
    outputs, labels, products = rows_of_products(400, 0)
    fitted, _ = fit_decision(outputs, labels, labels, outputs.features, products=products, precision=0.9, coverage=0.0)
    temperature = fitted.heads["kind"].product_temperature
    assert temperature < 0.9
    others, truth, numbers = rows_of_products(2000, 1)
    errors = {}
    for name, used in (("own", temperature), ("none", 1.0)):
        head = dataclasses.replace(fitted.heads["kind"], product_temperature=used)
        chosen = dataclasses.replace(fitted, heads={"kind": head})
        pooled = pool_photos(decide(chosen, others.logits, others.features, others.energies), numbers, chosen)
        right = pooled.labels["kind"] == truth["kind"][::3]
        errors[name] = calibration_error(pooled.probabilities["kind"].max(1), right)
    assert errors["own"] < 0.03 < errors["none"]
    single, _ = fit_decision(
        outputs, labels, labels, outputs.features, products=np.arange(1200), precision=0.9, coverage=0.0
    )
    assert single.heads["kind"].product_temperature == 1.0
    few = {"kind": np.where(products < 29, labels["kind"], MISSING)}
    scarce, _ = fit_decision(outputs, few, labels, outputs.features, products=products, precision=0.9, coverage=0.0)
    assert scarce.heads["kind"].product_temperature == 1.0
    stored = decision_from_json("d", decision_to_json(fitted), {"kind": 4}, 5)
    assert stored.heads["kind"].product_temperature == temperature
    assert "product_temperature" not in decision_to_json(single)["heads"]["kind"]


def test_predict_gives_a_line_for_each_product_and_for_each_photo_when_asked(tmp_path, capsys):
    shop = write_shop(tmp_path / "shop", 12)
    source, sizes = shop.table, {item: len(photos) for item, photos in shop.photos.items()}
    out = tmp_path / "p.csv"
    command = ["predict", "--model", "small", "--source", str(source), "--out", str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"12 products with {sum(sizes.values())} photos" in text and "photos" in text.splitlines()[1]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: int(row["num_photos"]) for row in rows} == sizes and [*sizes] == [row["id"] for row in rows]
    assert main([*command, "--per-photo"]) == 0
    with out.open(newline="") as file:
        single = list(csv.DictReader(file))
    assert len(single) == sum(sizes.values()) and len({row["photo"] for row in single}) == len(single)
    each = predict_source(load_model("small"), source, progress=False, per_photo=True)
    assert each.names == [row["photo"] for row in single] and len(each.to_dict()) == len(single)
    shown = format_predictions(each).splitlines()
    assert shown[0].split()[0] == "photo" and shown[1].split()[0] == each.names[0] and "more photos" in "".join(shown)
    model = load_model("small")
    found = predict_source(model, source, progress=False)
    for row, one in zip(rows, found, strict=True):
        mine = [r for r in single if r["id"] == row["id"]]
        for name, (label, _) in one.items():
            assert row[name] == label
        assert row["photos_disagree"] == str(int(any(len({r[name] for r in mine}) > 1 for name in one)))


def test_tags_of_a_product_are_chosen_from_the_mean_of_its_photos():
    rng, names = np.random.default_rng(0), ("p", "q", "r")
    numbers = TagDecision(1.3, -0.2, np.array([0.3, 0.5, 0.7]))
    fitted = dataclasses.replace(decision(), tags={"occasion": numbers})
    plain = photos(sum(SIZES), fitted)
    logits = {name: np.log(values) for name, values in plain.probabilities.items()}
    tags = {"occasion": rng.normal(size=(sum(SIZES), 3)).astype(np.float32) * 2}
    outputs = decide(fitted, logits, plain.features, np.zeros(sum(SIZES), np.float32), tags=tags)
    shares = scipy.special.expit(1.3 * tags["occasion"] - 0.2)
    np.testing.assert_allclose(outputs.tag_probabilities["occasion"], shares, rtol=1e-5)
    products = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    found = name_products(outputs, products, CLASSES, {"occasion": names}, fitted)
    for product, prediction in enumerate(found):
        mean = shares[products == product].mean(0)
        order = [n for n in np.argsort(-mean) if mean[n] >= numbers.thresholds[n]]
        assert [label for label, _ in prediction.tags["occasion"]] == [names[n] for n in order]
        assert [share for _, share in prediction.tags["occasion"]] == pytest.approx(mean[order], rel=1e-5)
