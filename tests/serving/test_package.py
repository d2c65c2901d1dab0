"""Packages, those of the library too: what was trained is what predicts, and nothing else is believed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

from drawn_products import SIZES, draw_product, write_products
from fashion_jax.cli import main
from fashion_jax.data.photos import decode_photo, encode_photo, normalise_photo
from fashion_jax.data.schema import Schema, save_schema
from fashion_jax.decision.embedding import EmbeddingPlan, Subspace
from fashion_jax.models.classifier import abstract_classifier, merge_network, split_network
from fashion_jax.serving.embed import embed_source
from fashion_jax.serving.package import ZOO, find_model, load_package, seal_package, write_package, zoo_models
from fashion_jax.serving.predict import predict_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.shards import Shards
from fashion_jax.system import stored
from fashion_jax.system.errors import UnreadableError, UserError
from forging import GONE, set_at, sign
from small_models import BASE, model_of

VOCABULARIES = {"kind": ("round", "square", "tall"), "colour, or hue": ('"blue"', "green", "red, dark", "yellow")}
MODEL = {**BASE, "classes": {name: len(classes) for name, classes in VOCABULARIES.items()}}
PREPROCESSING = {
    "height": 32, "width": 24, "max_side": 64, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "test_time_flip": False,
}  # fmt: skip
PLAN = EmbeddingPlan(
    (Subspace("kind", "kind", 3, 0.5, 0.7), Subspace("hue", "colour, or hue", 4, 0.3), Subspace("rest", None, 6, 0.2)),
    np.linalg.qr(np.random.default_rng(0).normal(size=(32, 6)))[0].astype(np.float32),
)


@pytest.fixture(scope="module")
def network():
    _, params, batch_stats = split_network(model_of(MODEL))
    # Heads start near zero; larger weights make predictions differ from photo to photo.
    heads = jax.tree.map(lambda w: w * 100, params["heads"])
    return jax.device_get(({**params, "heads": heads}, batch_stats))


def write(folder, network, *, dtype="float32", embedding=None, **preprocessing):
    flat = traverse_util.flatten_dict({"params": network[0], "batch_stats": network[1]})
    write_package(
        folder, weights={"/".join(map(str, path)): array for path, array in flat.items()},
        model={**MODEL, "dtype": dtype}, vocabularies=VOCABULARIES,
        preprocessing={**PREPROCESSING, **preprocessing}, extra={"note": "drawn"}, embedding=embedding,
    )  # fmt: skip
    return folder


@pytest.fixture
def package(tmp_path, network):
    return write(tmp_path / "package", network)


@pytest.fixture
def planned(tmp_path, network):
    return write(tmp_path / "planned", network, embedding=PLAN, test_time_flip=True)


def photos(count: int) -> np.ndarray:
    kinds, colours = SIZES.values()
    return np.stack([draw_product(kinds[i % 3], colours[i % 4], i) for i in range(count)])


def test_batches_that_are_read_ahead_are_predicted_as_alone(package):
    model, given = load_model(package), [photos(3), photos(5)[2:], photos(1)]
    found = list(model.predict_batches(iter(given)))
    for images, outputs in zip(given, found, strict=True):
        np.testing.assert_allclose(outputs.embeddings, model.predict_arrays(images).embeddings, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="photos at most"):
        list(model.predict_batches([photos(model.batch_size + 1)]))


@pytest.mark.parametrize("count", [1, 3, 8, 300])
def test_predictions_are_the_networks(package, network, count):
    model, images = load_model(package), photos(count)
    outputs = model.predict_arrays(images)
    normal = (images / 255 - np.array(PREPROCESSING["mean"])) / np.array(PREPROCESSING["std"])
    wanted = merge_network(abstract_classifier(MODEL)[0], *network)(normal.astype(np.float32), train=False)
    assert model.subspaces == {} and np.array_equal(outputs.embeddings, outputs.features)  # there is no plan
    np.testing.assert_allclose(outputs.features, wanted.features, rtol=1e-3, atol=1e-4)
    for name, logits in wanted.logits.items():
        np.testing.assert_allclose(outputs.probabilities[name], jax.nn.softmax(logits), rtol=1e-3, atol=1e-4)


def test_what_is_loaded_is_what_was_written(planned, network):
    loaded = load_package(planned)
    assert loaded.vocabularies == VOCABULARIES
    assert (loaded.preprocessing, loaded.extra) == ({**PREPROCESSING, "test_time_flip": True}, {"note": "drawn"})
    assert loaded.embedding.subspaces == PLAN.subspaces
    assert np.array_equal(loaded.embedding.components, PLAN.components)
    for a, b in zip(jax.tree.leaves(network), jax.tree.leaves(loaded.trees()), strict=True):
        assert np.array_equal(a, b)


def test_embeddings_are_the_plans_and_probabilities_of_mirror_images_too(planned):
    model, images = load_model(planned), photos(5)
    assert (model.embedding_size, model.num_features) == (13, 32)
    assert model.subspaces == {"kind": 3, "hue": 4, "rest": 6}
    plain, mirrored = (model.predict_arrays(some, flip=False) for some in (images, images[:, :, ::-1]))
    both, turned = model.predict_arrays(images), model.predict_arrays(images[:, :, ::-1])
    for name, once in plain.probabilities.items():
        mean = (once + mirrored.probabilities[name]) / 2
        assert not np.allclose(once, mean, atol=1e-4)
        for found in (both, turned):
            assert np.allclose(found.probabilities[name], mean, atol=1e-6)
    logits = {name: np.log(values) for name, values in plain.probabilities.items()}
    wanted = np.asarray(PLAN.embed(logits, plain.features))
    for found in (model.embed(images), both.embeddings, plain.embeddings):
        np.testing.assert_allclose(found, wanted, atol=1e-6)  # of the photos themselves
    np.testing.assert_allclose(both.features, plain.features, atol=1e-5)
    assert model.embed([]).shape == (0, 13)


def test_bfloat16_is_computed_where_it_is_faster(tmp_path, network, monkeypatch):
    images = photos(8)
    trained = write(tmp_path / "trained", network, dtype="bfloat16")
    twin = write(tmp_path / "twin", network)
    exact = load_model(twin, engine="jax").predict_arrays(images)
    faster = "fashion_jax.serving.jax_engine.computes_bfloat16_faster"
    monkeypatch.setattr(faster, lambda: False)
    assert np.array_equal(load_model(trained, engine="jax").predict_arrays(images).features, exact.features)
    monkeypatch.setattr(faster, lambda: True)
    rounded = load_model(trained, engine="jax").predict_arrays(images)
    difference = np.abs(rounded.features - exact.features).max()
    assert 1e-5 < difference < 0.05 * np.abs(exact.features).max()
    assert np.array_equal(load_model(twin, engine="jax").predict_arrays(images).features, exact.features)


def test_all_kinds_of_photos(package, tmp_path):
    model, image = load_model(package), photos(1)[0]
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    wanted = model.predict(image)
    assert list(wanted[0]) == list(VOCABULARIES)
    label, share = wanted[0]["kind"]
    assert label in VOCABULARIES["kind"] and 0 < share <= 1
    for given in (Image.fromarray(image), [image], photos(1)):
        assert model.predict(given) == wanted
    for given in (path, str(path), path.read_bytes(), [path, path]):
        assert model.predict(given)[0]["kind"] == (label, pytest.approx(share, abs=0.05))
    assert model.embed(image).shape == (1, model.embedding_size) == (1, 32)
    assert model.predict([]) == [] and model.embed([]).shape == (0, 32)
    for bad, message in (
        ("absent.jpg", "nothing at absent.jpg"), (b"no photo", "not usable"),
        (np.zeros((4, 4)), "must be uint8"), (np.zeros((0, 5, 3), np.uint8), "must be uint8"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            model.predict(bad)


def test_it_predicts_with_nothing_else(package):
    code = (
        "import sys, fashion_jax, numpy as np\n"
        "label, _ = fashion_jax.load_model(sys.argv[1]).predict(np.zeros((32, 24, 3), np.uint8))[0]['kind']\n"
        "assert label in ('round', 'square', 'tall')\n"
        "assert not {'grain', 'tensorflow', 'tensorflow_datasets', 'scann'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(package)], check=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", None, "lacks labels.json"), ("embedding.safetensors", None, "is missing"),
        ("config.json", b"{", "is damaged"), ("config.json", b"[]", "holds no JSON object"),
        ("config.json", b"[" * 100_000, "is damaged"), ("weights.safetensors", bytes(10), "was changed after"),
    ],
)  # fmt: skip
def test_a_file_that_is_absent_or_another_is_refused(planned, name, content, message):
    (planned / name).unlink()
    if content is not None:
        (planned / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(planned)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("config.format", 99, "format 99"), ("config.model", GONE, "is damaged"), ("config.files", [], "not list"),
        ("config.files", {}, "does not list weights"), ("config.num_features", GONE, "damaged"),
        ("config.extra", 3, "extra is no"), ("config.model.classes", [1], "damaged"), ("config.model.mean", {}, "can"),
        ("config.model.width", 10**9, "cannot build"), ("config.model.depth", 19, "cannot build"),
        ("config.num_features", 7, "num_features=7"), ("config.preprocessing.std", [0, 1, 1], "impossible preproc"),
        ("config.preprocessing.height", 10**6, "impossible preproc"),
        ("config.preprocessing.test_time_flip", "yes", "impossible preproc"),
        ("labels.kind", [*"abcd"], "does not fit config.json"), ("labels.kind.1", "round", "names a class twice"),
        ("labels.kind.1", "a\nb", "without line breaks"), ("labels.kind.1", "\ud800", "without line breaks"),
        ("labels.kind.1", 3, "not a list of texts"), ("labels.kind", [], "not a list of texts"),
        ("labels./kind", ["a"], "must not be empty"), ("labels.id", ["a"], "cannot be used"),
        ("embedding.format", 2, "format"), ("embedding.subspaces", [], "no list"),
        ("embedding.subspaces.0.size", 4, "size of 'kind'"), ("embedding.subspaces.0.attribute", "a", "does not have"),
        ("embedding.subspaces.0.share", 0.9, "sum to 1"), ("embedding.subspaces.0.share", float("nan"), "share of"),
        ("embedding.subspaces.0.name", "", "no line of"), ("embedding.subspaces.0.name", "a\nb", "no line of"),
        ("embedding.subspaces.1.temperature", 0, "temperature of"), ("embedding.subspaces.1.name", "kind", "twice"),
        ("embedding.subspaces.1.share", GONE, "alone"), ("embedding.subspaces.2", GONE, "sum to 1"),
        ("embedding.subspaces.2", {}, "alone"), ("embedding.subspaces", GONE, "damaged"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(planned, place, value, message):
    stem, _, path = place.partition(".")
    file = planned / f"{stem}.json"
    content = json.loads(file.read_text())
    set_at(content, path, value)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"damaged.*seal_package"):
        load_package(planned)
    if path != "files":
        sign(planned)
    else:
        del content["sha256"]
        stored.write_document(file, content)
    with pytest.raises(UserError, match=message):
        load_package(planned)


def test_a_model_whose_attributes_all_have_several_values_is_refused(package):
    content = json.loads((package / "config.json").read_text())
    content["model"] |= {"classes": {}, "tags": content["model"]["classes"]}
    (package / "config.json").write_text(json.dumps(content))
    sign(package)
    with pytest.raises(UserError, match="cannot build"):
        load_package(package)


def test_weights_that_do_not_fit_are_refused(package):
    file, name = package / "weights.safetensors", "params/backbone/stem/0/conv/kernel"
    sound = safetensors.numpy.load_file(file)
    kernel = sound[name]
    for change, message in (
        ({name: None}, "missing or unknown"), ({"extra": kernel}, "missing or unknown"),
        ({name: kernel[..., :3].copy()}, "but the model has"), ({name: kernel.astype(np.float64)}, "float64"),
        ({name: kernel * np.float32("nan")}, "NaN or infinity"),
    ):  # fmt: skip
        tensors = {key: tensor for key, tensor in {**sound, **change}.items() if tensor is not None}
        file.write_bytes(safetensors.numpy.save(tensors))
        sign(package)
        with pytest.raises(UserError, match=message):
            load_package(package)
    file.write_bytes(bytes(10))
    sign(package)
    with pytest.raises(UserError, match=r"weights.safetensors is damaged"):
        load_package(package)


def test_any_change_of_a_package_is_refused(package):
    """Flips of single bits, cut and emptied files, and settings that a person edits."""
    rng = np.random.default_rng(0)
    fingerprint = load_package(package).fingerprint
    for name in ("config.json", "labels.json", "weights.safetensors"):
        original = (package / name).read_bytes()
        places = rng.integers(0, len(original), 60)
        changes = [original[:p] + bytes([original[p] ^ 1 << int(rng.integers(8))]) + original[p + 1 :] for p in places]
        for data in [*changes, b"", original[: len(original) // 2], original[:-2]]:
            (package / name).write_bytes(data)
            with contextlib.suppress(UserError):
                assert load_package(package).fingerprint == fingerprint  # a space that became another one
                assert name == "config.json"
        (package / name).write_bytes(original)
    for old, new in ((b"0.4", b"0.5"), (b'"height": 32', b'"height": 40'), (b'flip": false', b'flip": true')):
        original = (package / "config.json").read_bytes()
        assert original.count(old) == 1
        (package / "config.json").write_bytes(original.replace(old, new))
        with pytest.raises(
            UserError, match=r"config.json is damaged .*; only if you changed .* purpose: python -c .*seal_package\("
        ):
            load_package(package)
        (package / "config.json").write_bytes(original)


def test_a_setting_is_changed_on_purpose(package):
    before = load_package(package)
    config = json.loads((package / "config.json").read_text())
    config["preprocessing"]["test_time_flip"] = True
    (package / "config.json").write_text(json.dumps(config))
    seal_package(package)
    after = load_package(package)
    assert after.preprocessing["test_time_flip"] and after.fingerprint != before.fingerprint
    (package / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        seal_package(package)


def test_files_that_a_package_does_not_list_are_not_read(package):
    (package / "LICENSE").write_text("free")
    sign(package)
    load_package(package)
    (package / "decision.json").write_text("{}")  # but one that would change predictions is no bystander
    with pytest.raises(UserError, match=r"does not list decision.json"):
        load_package(package)


def test_pillow_images_are_treated_as_files_are(package):
    model, pixels = load_model(package), photos(1)[0]
    alpha = Image.fromarray(pixels).convert("RGBA")
    alpha.putalpha(Image.fromarray((pixels.mean(-1) < 200).astype(np.uint8) * 255))
    sideways = Image.fromarray(np.repeat(np.repeat(pixels, 4, 0), 4, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, kind, options in ((alpha, "PNG", {}), (sideways, "PNG", {"exif": exif})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        opened = model.read(Image.open(io.BytesIO(buffer.getvalue())))
        assert np.abs(opened.astype(int) - model.read(buffer.getvalue())).mean() < 3
    with pytest.raises(UserError, match="the photo is not usable"):
        model.read(Image.open(io.BytesIO(buffer.getvalue()[:200])))


@pytest.mark.parametrize("max_side", [48, 64, 256])
def test_a_large_photo_is_read_as_training_read_it(tmp_path, network, max_side):
    rng = np.random.default_rng(0)
    data = encode_photo(np.repeat(np.repeat(rng.integers(0, 255, (90, 70, 3), dtype=np.uint8), 6, 0), 6, 1))
    stored, _ = normalise_photo(data, max_side)
    model = load_model(write(tmp_path / "p", network, max_side=max_side))
    assert np.array_equal(model.read(data), decode_photo(stored, 32, 24))


def test_a_whole_source_is_labelled_in_its_order(package, tmp_path, capsys):
    table = write_products(tmp_path / "shop", 40)
    (tmp_path / "shop/photos/p5.jpg").write_bytes(b"x")
    assert main(["predict", "--model", str(package), "--source", str(table), "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open() as file:
        wanted = [row for row in csv.DictReader(file) if row["file"] != "photos/p5.jpg"]
    assert [row["id"] for row in rows] == [row["sku"] for row in wanted]
    names = ["id", "kind", "kind_confidence", "colour, or hue", "colour, or hue_confidence"]
    assert list(rows[0]) == [*names, "num_photos", "photos_disagree"]
    single = load_model(package).predict([table.parent / row["file"] for row in wanted])
    for row, labels in zip(rows, single, strict=True):
        for name, (label, share) in labels.items():
            assert (row[name], float(row[f"{name}_confidence"])) == (label, pytest.approx(share, abs=1e-4))
    (_, left_out) = (tmp_path / "p.csv.quarantine.csv").read_text().splitlines()
    assert left_out.startswith("6,S00185,")
    assert "39 products; 1 rows were left out" in capsys.readouterr().out


def test_columns_of_the_table_are_carried_to_the_predictions(package, tmp_path, capsys):
    table = write_products(tmp_path / "shop", 12)
    lines = table.read_text().splitlines()
    extra = [f'{"=cmd" if i == 3 else f"B{i}"},"{i},40 €",kind {i},1' for i in range(12)]
    header = lines[0].replace("kind", "sort") + ",brand,price,kind,id"
    table.write_text("\n".join([header, *map(",".join, zip(lines[1:], extra, strict=True))]))
    schema = Schema("shop", (), id_column="sku", image_column="file", carry=("brand", "price", "kind", "id"))
    predict_source(load_model(package), table, tmp_path / "p.csv", schema=schema)
    assert "along: brand (text); price (numbers with a decimal comma, in EUR)" in capsys.readouterr().out
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["id", "kind", "kind_confidence"]
    assert list(rows[0])[-4:] == ["brand", "price", "kind (table)", "id (table)"]
    assert [row["price"] for row in rows] == [f"{i}.4" for i in range(12)]
    assert rows[3]["brand"] == "'=cmd" and rows[3]["kind (table)"] == "kind 3" and rows[3]["id"] == "S00111"


def test_folders_and_single_photos_need_no_table(package, tmp_path):
    folder, model = write_products(tmp_path / "shop", 5).parent / "photos", load_model(package)
    lines = []
    for source, count in ((folder, 5), (folder / "p2.jpg", 1)):
        assert len(predict_source(model, source, tmp_path / "p.csv", progress=False)) == count
        lines.append((tmp_path / "p.csv").read_text().splitlines())
    assert lines[0][3] == lines[1][1] and lines[1][1].startswith("p2,")


def test_predictions_are_a_table_a_dictionary_and_lines_for_people(package, planned, tmp_path, capsys):
    """The same values as predictions.csv has; with and without a file, and where more rows are there than are shown."""
    table = write_products(tmp_path / "shop", 23)
    (tmp_path / "shop/photos/p5.jpg").write_bytes(b"x")
    for folder in (package, planned):
        model = load_model(folder)
        found = predict_source(model, table, tmp_path / "p.csv", progress=False)
        written = pd.read_csv(tmp_path / "p.csv", dtype={"id": str}, index_col="id")
        frame = found.to_frame()
        assert list(frame.columns) == list(written.columns) and list(frame.index) == list(written.index)
        for name in frame:
            if frame[name].dtype.kind in "fb":
                np.testing.assert_allclose(written[name], frame[name].astype(float), atol=1e-4)
            else:
                assert list(written[name]) == list(frame[name])
        assert found.to_dict() == {name: dict(frame.loc[name]) for name in frame.index}
    capsys.readouterr()
    assert main(["predict", "--model", str(planned), "--source", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "1 rows were left out: row 6 (id 'S00185')" in lines[0]
        and not (tmp_path / "shop/products.csv.quarantine.csv").exists()
    )
    assert lines[1].split()[0] == "id" and len(lines) >= 1 + 1 + 20 + 1 and "... and 2 more products" in lines
    label, share = found[0]["kind"]
    assert lines[2].split()[0] == found.names[0] and f"{label} {share:.0%}" in lines[2]
    few = predict_source(load_model(package), tmp_path / "shop/photos/p1.jpg", progress=False)
    assert few.names == ["p1"] and few.to_frame().shape == (1, 6)


def test_arrays_of_predictions_have_names(package, tmp_path):
    table, model = write_products(tmp_path / "shop", 3), load_model(package)
    photos = [tmp_path / f"shop/photos/p{i}.jpg" for i in range(3)]
    shares, vectors = model.predict_proba(photos), model.embed([*photos[:2], photos[2].read_bytes()])
    for name, classes in model.classes.items():
        np.testing.assert_allclose(shares[name].sum(1), 1, rtol=1e-5)
        assert [classes[n] for n in shares[name].argmax(1)] == [one[name][0] for one in model.predict(photos)]
    assert vectors.names == ["p0.jpg", "p1.jpg", "2"] and list(vectors.to_frame().index) == vectors.names
    assert vectors.to_dict()["p1.jpg"] == vectors[1].tolist() and (vectors / 2).to_frame().shape == vectors.shape
    assert model.predict(photos[0]).names == ["p0.jpg"] and table.exists()
    found = model.predict(iter(photos))  # read once, as Path.glob gives them
    assert found.names == ["p0.jpg", "p1.jpg", "p2.jpg"] and list(found[1:].to_frame().index) == found.names[1:]
    assert model.embed(iter(photos)).names == found.names


def test_embeddings_of_a_source(package, tmp_path):
    table, model = write_products(tmp_path / "shop", 30), load_model(package)

    def embedded():
        assert embed_source(model, table, tmp_path / "e.npz", progress=False) == 30
        with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
            return arrays["ids"], arrays["embeddings"]

    ids, embeddings = embedded()
    assert ids.tolist()[:2] == ["S00000", "S00037"]
    assert embeddings.dtype == np.float32
    wanted = model.embed([table.parent / f"photos/p{i}.jpg" for i in range(30)])
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, wanted, rtol=1e-4, atol=1e-5)
    table.write_text(table.read_text().replace("\nS", "\n1"))
    assert embedded()[0].dtype == np.int64
    table.write_text(table.read_text().replace("100000", "7" * 5000))
    assert embedded()[0][0] == "7" * 5000


@pytest.fixture(params=["predict", "embed"])
def run(request, package):
    """Runs predict or embed on a source, and returns the exit code."""
    begin = [request.param, "--model", str(package)]
    return lambda source, out, *more: main([*begin, "--source", str(source), "--out", str(out), *map(str, more)])


def test_bad_input_gets_a_sentence(tmp_path, capsys, run):
    shop = write_products(tmp_path / "shop", 6)
    gone, out = tmp_path / "gone.csv", tmp_path / "new/out"
    gone.write_text("id,file\n" + "\n".join(f"{i},absent{i}.jpg" for i in range(20)))
    os.mkfifo(tmp_path / "fifo")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for source, to, message in (
        ("absent", out, "nothing at absent"), (gone, out, "no row of"), (gone, out, "there is no photo absent0.jpg"),
        (shop, tmp_path, "is a folder"), (shop, shop, "is the source itself"),
        (shop.parent, shop, "lies in the source"), (shop.parent, shop.parent / "photos/p.csv", "lies in the source"),
        (shop, tmp_path / "fifo", "a device or a pipe"), (shop, shop / "x.csv", "cannot be written"),
        (shop, tmp_path / ("x" * 240), "too long"),
    ):  # fmt: skip
        assert run(source, to) == 2, message
        errors = capsys.readouterr().err
        assert message in errors and "Traceback" not in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not out.parent.exists()


def test_a_result_stays_when_the_next_run_finds_nothing(tmp_path, run):
    table, link = write_products(tmp_path / "shop", 6), tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    assert run(table, link) == 0
    assert link.is_symlink() and (tmp_path / "target").stat().st_size > 100  # a link is followed
    before = link.read_bytes()
    for photo in (tmp_path / "shop/photos").iterdir():
        photo.write_bytes(b"x")
    assert run(table, link) == 2
    assert link.read_bytes() == before


def test_a_schema_can_be_given(tmp_path, capsys, run):
    for photo in list((write_products(tmp_path / "shop", 6).parent / "photos").iterdir()):
        photo.rename(photo.with_suffix(""))
    table, schema = tmp_path / "codes.csv", tmp_path / "schema.json"
    table.write_text("code,picture\n" + "\n".join(f"c{i},shop/photos/p{i}" for i in range(6)))
    assert run(table, tmp_path / "out") == 2
    assert "write a schema.json that names image_column" in capsys.readouterr().err
    save_schema(Schema("codes", (), id_column="code", image_column="picture"), schema)
    assert run(table, tmp_path / "out", "--schema", schema) == 0
    assert "6 " in capsys.readouterr().out


def test_names_stand_for_the_librarys_own(tmp_path, monkeypatch):
    assert "small" in zoo_models()  # of the quick start
    shutil.copytree(ZOO / "small", tmp_path / "zoo" / "drawn")
    monkeypatch.setattr("fashion_jax.serving.package.ZOO", tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    assert zoo_models() == ("drawn",)
    assert find_model("drawn") == load_model("drawn").package.folder == tmp_path / "zoo" / "drawn"
    assert find_model("./elsewhere/drawn") == Path("elsewhere/drawn")
    (tmp_path / "drawn").mkdir()  # a path that is there is the user's
    assert find_model("drawn") == Path("drawn")
    with pytest.raises(UserError, match="no model package"):
        load_model("nothing")


@pytest.mark.parametrize("name", zoo_models())
def test_models_of_the_library_are_sound_and_small(name):
    folder = ZOO / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Command", "Data", "Scores", "Limits"))
    model = load_model(name)
    photo = np.full((80, 60, 3), 200, np.uint8)
    (prediction,) = model.predict([photo])
    assert prediction.keys() == model.classes.keys()
    assert model.embed([photo]).shape == (1, model.embedding_size)
    assert model.package.extra["test"] and model.package.decision is not None and model.embedding_size <= 256


def test_a_shard_that_the_system_cannot_read_stays(tmp_path, monkeypatch):
    shards = Shards(tmp_path, "key")
    shards.write({"rows": np.arange(5)})
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(UnreadableError, match="Too many open files"):
        list(shards.read())
    monkeypatch.undo()
    assert len(list(shards.read())) == 1


def test_only_whole_files_of_the_same_key_are_read(tmp_path, capsys):
    shards = Shards(tmp_path / "s", ["model", 3])
    assert list(shards.read()) == []
    for start in (0, 5):
        shards.write({"rows": np.arange(start, start + 5), "vectors": np.full((5, 100), start, np.float32)})
    again = list(Shards(tmp_path / "s", ["model", 3]).read())
    assert [found["rows"].tolist() for found in again] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert all(np.array_equal(found["vectors"], np.full((5, 100), found["rows"][0])) for found in again)
    first, second = sorted((tmp_path / "s").iterdir())
    whole = first.read_bytes()
    flips = [whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :] for place in range(0, len(whole), 7)]
    for damaged in (*flips, b"", whole[:-1], whole[:70], whole + b"x", whole[64:]):
        first.write_bytes(damaged)
        assert [found["rows"][0] for found in shards.read()] == [5] and not first.exists()
        assert f"{first} is damaged" in (told := capsys.readouterr().err) and "computed again" in told
    shards.write({"rows": np.arange(3)})
    assert list(Shards(tmp_path / "s", ["another", 3]).read()) == [] and not second.exists()
    assert not capsys.readouterr().err  # work that nobody goes on with
    shards.remove()
    assert not (tmp_path / "s").exists()


def test_a_package_names_no_file_outside_of_it(tmp_path):
    shutil.copytree(ZOO / "small", tmp_path / "package")
    (tmp_path / "outside.txt").write_text("secret")
    config = json.loads((tmp_path / "package/config.json").read_text())
    for name in ("../outside.txt", str(tmp_path / "outside.txt"), "/proc/self/pagemap"):
        known = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
        changed = {**config, "files": {**config["files"], name: known}}
        changed.pop("sha256")
        stored.write_document(tmp_path / "package/config.json", changed)
        with pytest.raises(UserError, match="no file of a package"):
            load_package(tmp_path / "package")


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="Linux has files without an end in /proc")
def test_a_file_without_an_end_is_not_read(tmp_path):
    shutil.copytree(ZOO / "small", tmp_path / "package")
    path = tmp_path / "package/labels.json"
    path.unlink()
    path.symlink_to("/proc/self/pagemap")
    config = json.loads((tmp_path / "package/config.json").read_text())
    config["files"]["labels.json"]["bytes"] = 0
    config.pop("sha256")
    stored.write_document(tmp_path / "package/config.json", config)
    with pytest.raises(UserError, match=r"labels\.json"):
        load_package(tmp_path / "package")
