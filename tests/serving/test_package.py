"""Packages and prediction: what was trained is what predicts, and nothing else is believed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

import fashion_jax
from drawn_products import draw_product, write_products
from fashion_jax.cli import main
from fashion_jax.data.photos import decode_photo, encode_photo, normalise_photo
from fashion_jax.data.schema import Schema, save_schema
from fashion_jax.decision.embedding import EmbeddingPlan, Subspace
from fashion_jax.models.classifier import make_classifier, merge_network, split_network
from fashion_jax.serving.embed import embed_source
from fashion_jax.serving.package import load_package, write_package
from fashion_jax.serving.predict import predict_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError

VOCABULARIES = {"kind": ("round", "square", "tall"), "colour, or hue": ('"blue"', "green", "red, dark", "yellow")}
MODEL = {
    "classes": {n: len(v) for n, v in VOCABULARIES.items()}, "depth": 10, "width": 4, "stem": "small",
    "dtype": "float32",
}  # fmt: skip
PREPROCESSING = {
    "height": 32, "width": 24, "max_side": 64, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "test_time_flip": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    def build():
        _, params, batch_stats = split_network(make_classifier(MODEL, 0))
        # Heads start near zero; larger weights make predictions differ from photo to photo.
        heads = jax.tree.map(lambda w: w * 100, params["heads"])
        return {**params, "heads": heads}, batch_stats

    params, batch_stats = jax.jit(build)()
    return jax.device_get(params), jax.device_get(batch_stats)


def write(folder, network, preprocessing, extra=None, dtype="float32"):
    flat = traverse_util.flatten_dict({"params": network[0], "batch_stats": network[1]})
    write_package(
        folder,
        weights={"/".join(map(str, path)): array for path, array in flat.items()},
        model={**MODEL, "dtype": dtype},
        vocabularies=VOCABULARIES,
        preprocessing=preprocessing,
        extra=extra or {},
    )


@pytest.fixture
def package(tmp_path, network):
    write(tmp_path / "package", network, PREPROCESSING, {"note": "drawn"})
    return tmp_path / "package"


def photos(count: int) -> np.ndarray:
    kinds, colours = ("round", "square", "tall"), ("blue", "green", "red", "yellow")
    return np.stack([draw_product(kinds[i % 3], colours[i % 4], i) for i in range(count)])


def test_what_is_loaded_is_what_was_written(package, network):
    loaded = load_package(package)
    assert loaded.vocabularies == VOCABULARIES
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.extra == {"note": "drawn"}
    for a, b in zip(jax.tree.leaves(network), jax.tree.leaves((loaded.params, loaded.batch_stats)), strict=True):
        assert np.array_equal(a, b)


def test_a_package_may_ask_for_mirror_images(tmp_path, network):
    write(tmp_path / "plain", network, PREPROCESSING)
    write(tmp_path / "flip", network, {**PREPROCESSING, "test_time_flip": True})
    plain, flip, images = load_model(tmp_path / "plain"), load_model(tmp_path / "flip"), photos(5)
    once, again = plain.predict_arrays(images), plain.predict_arrays(images[:, :, ::-1])
    both, mirrored = flip.predict_arrays(images), flip.predict_arrays(images[:, :, ::-1])
    for name in VOCABULARIES:
        mean = (once.probabilities[name] + again.probabilities[name]) / 2
        assert np.allclose(both.probabilities[name], mean, atol=1e-6)
        assert np.allclose(mirrored.probabilities[name], mean, atol=1e-6)
        assert not np.allclose(once.probabilities[name], mean, atol=1e-4)
    assert np.allclose(both.embeddings, once.embeddings, atol=1e-6)
    with pytest.raises(UserError, match="impossible preprocessing"):
        write(tmp_path / "odd", network, {**PREPROCESSING, "test_time_flip": "yes"})
        load_package(tmp_path / "odd")


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
    graph = split_network(merge_network(*_parts(network)))[0]
    normal = (images / 255 - np.array(PREPROCESSING["mean"])) / np.array(PREPROCESSING["std"])
    wanted = merge_network(graph, *network)(normal.astype(np.float32), train=False)
    np.testing.assert_allclose(outputs.embeddings, wanted.features, rtol=1e-3, atol=1e-4)
    for name, logits in wanted.logits.items():
        np.testing.assert_allclose(outputs.probabilities[name], jax.nn.softmax(logits), rtol=1e-3, atol=1e-4)


def _parts(network):
    from fashion_jax.models.classifier import abstract_classifier

    return abstract_classifier(MODEL)[0], *network


def test_bfloat16_is_computed_where_it_is_faster(tmp_path, network, monkeypatch):
    images = photos(8)
    trained, twin = tmp_path / "trained", tmp_path / "twin"
    write(trained, network, PREPROCESSING, dtype="bfloat16")
    write(twin, network, PREPROCESSING)
    exact = load_model(twin).predict_arrays(images)
    monkeypatch.setattr("fashion_jax.serving.predictor.computes_bfloat16_faster", lambda *, training: False)
    assert np.array_equal(load_model(trained).predict_arrays(images).features, exact.features)
    monkeypatch.setattr("fashion_jax.serving.predictor.computes_bfloat16_faster", lambda *, training: True)
    rounded = load_model(trained).predict_arrays(images)
    difference = np.abs(rounded.features - exact.features).max()
    assert 1e-5 < difference < 0.05 * np.abs(exact.features).max()
    assert np.array_equal(load_model(twin).predict_arrays(images).features, exact.features)


def test_all_kinds_of_photos(package, tmp_path):
    model, image = load_model(package), photos(1)[0]
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    wanted = model.predict(image)
    assert list(wanted[0]) == list(VOCABULARIES)
    label, share = wanted[0]["kind"]
    assert label in VOCABULARIES["kind"]
    assert 0 < share <= 1
    for given in (Image.fromarray(image), [image], photos(1)):
        assert model.predict(given) == wanted
    for given in (path, str(path), path.read_bytes(), [path, path]):
        found = model.predict(given)
        assert found[0]["kind"][0] == label
        assert found[0]["kind"][1] == pytest.approx(share, abs=0.05)
    assert model.embed(image).shape == (1, model.embedding_size) == (1, 32)
    assert model.predict([]) == []
    assert model.embed([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("absent.jpg", "absent.jpg cannot be read"),
        (b"no photo", "not usable"),
        (np.zeros((4, 4)), "must be uint8"),
        (np.zeros((0, 5, 3), np.uint8), "must be uint8"),
    ],
)
def test_bad_photos_are_named(package, photo, message):
    with pytest.raises(UserError, match=message):
        load_model(package).predict(photo)


def test_it_predicts_with_nothing_else(package, tmp_path):
    code = (
        "import sys, fashion_jax, numpy as np\n"
        "model = fashion_jax.load_model(sys.argv[1])\n"
        "print(model.predict(np.zeros((32, 24, 3), np.uint8))[0]['kind'][0])\n"
        "assert not any(m in sys.modules for m in ('grain', 'tensorflow', 'tensorflow_datasets', 'scann'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(package)], capture_output=True, text=True, cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(fashion_jax.__path__[0]).removesuffix("fashion_jax")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in VOCABULARIES["kind"]


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_weights(package, change):
    """Changes tensors and signs them anew, so that only the tensors are wrong."""
    tensors = safetensors.numpy.load_file(package / "weights.safetensors")
    change(tensors)
    data = safetensors.numpy.save(tensors)
    (package / "weights.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_json(package / "config.json", lambda c: c["digests"].update({"weights.safetensors": digest}))


KERNEL = "params/backbone/stem/0/conv/kernel"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: (p / "labels.json").unlink(), "lacks labels.json"),
        (lambda p: (p / "config.json").write_text("{"), "not JSON"),
        (lambda p: (p / "config.json").write_text("[]"), "not hold a JSON object"),
        (lambda p: (p / "config.json").write_text("{}"), "not a model's configuration"),
        (lambda p: edit_json(p / "config.json", lambda c: c.update(format=99)), "format 99"),
        (lambda p: edit_json(p / "config.json", lambda c: c["model"].update(width=10**6)), "does not build"),
        (lambda p: edit_json(p / "config.json", lambda c: c["model"].update(depth=19)), "does not build"),
        (lambda p: edit_json(p / "config.json", lambda c: c["model"].update(width=10**9)), "does not build"),
        (lambda p: edit_json(p / "config.json", lambda c: c.update(num_features=7)), "num_features=7"),
        (lambda p: edit_json(p / "config.json", lambda c: c["preprocessing"].update(std=[0, 1, 1])), "preprocessing"),
        (lambda p: edit_json(p / "config.json", lambda c: c["preprocessing"].update(height=10**6)), "preprocessing"),
        (lambda p: edit_json(p / "labels.json", lambda c: c["kind"].reverse()), "damaged, missing or was changed"),
        (lambda p: (p / "weights.safetensors").write_bytes(b"\0" * 10), "damaged, missing or was changed"),
        (lambda p: rewrite_weights(p, lambda t: t.pop(KERNEL)), "missing or unknown"),
        (lambda p: rewrite_weights(p, lambda t: t.update(extra=np.zeros(2, np.float32))), "missing or unknown"),
        (lambda p: rewrite_weights(p, lambda t: t.update({KERNEL: t[KERNEL][..., :3].copy()})), "but the model has"),
        (lambda p: rewrite_weights(p, lambda t: t.update({KERNEL: t[KERNEL] * np.float32("nan")})), "not finite"),
        (lambda p: rewrite_weights(p, lambda t: t.update({KERNEL: t[KERNEL].astype(np.float64)})), "float64"),
    ],
)
def test_a_package_that_does_not_fit_is_refused(package, harm, message):
    harm(package)
    with pytest.raises(UserError, match=message):
        load_model(package)


def test_damaged_packages_never_crash(package):
    rng = np.random.default_rng(0)
    for name in ("config.json", "labels.json", "weights.safetensors"):
        original = (package / name).read_bytes()
        for _ in range(30):
            data = bytearray(original)
            for _ in range(int(rng.integers(1, 8))):
                data[int(rng.integers(min(len(data), 2000)))] = int(rng.integers(256))
            (package / name).write_bytes(bytes(data))
            if bytes(data) != original:
                try:
                    load_package(package)
                except UserError as error:
                    assert str(error)
        (package / name).write_bytes(original)
    load_package(package)


def sign_labels(package, change):
    """Changes labels and signs them anew, so that only the labels are wrong."""
    edit_json(package / "labels.json", change)
    digest = hashlib.sha256((package / "labels.json").read_bytes()).hexdigest()
    edit_json(package / "config.json", lambda c: c["digests"].update({"labels.json": digest}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["kind"].append("oval"), "does not fit config.json"),
        (lambda v: v.update(kind=["round", "round", "tall"]), "names a class twice"),
        (lambda v: v.update(kind=["round", "a\nb", "tall"]), "is not a line of text"),
        (lambda v: v.update(kind=["round", "\ud800", "tall"]), "is not a line of text"),
        (lambda v: v.update(kind=["round", 3, "tall"]), "not a list of texts"),
        (lambda v: v.update(kind=[]), "not a list of texts"),
        (lambda v: v.update({"../kind": v.pop("kind")}), "must be a plain word"),
        (lambda v: v.update({"id": v.pop("kind")}), "cannot be used"),
    ],
)
def test_labels_that_do_not_fit_are_refused(package, change, message):
    sign_labels(package, change)
    with pytest.raises(UserError, match=message):
        load_package(package)


def test_pillow_images_are_treated_as_files_are(package):
    model = load_model(package)
    pixels = photos(1)[0]
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
    write(tmp_path / "p", network, {**PREPROCESSING, "max_side": max_side})
    assert np.array_equal(load_model(tmp_path / "p").read(data), decode_photo(stored, 32, 24))


def test_a_whole_source_is_labelled_in_its_order(package, tmp_path, capsys):
    table = write_products(tmp_path / "shop", 40)
    (tmp_path / "shop/photos/p5.jpg").write_bytes(b"x")
    assert main(["predict", "--model", str(package), "--source", str(table), "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open() as file:
        wanted = [row for row in csv.DictReader(file) if row["file"] != "photos/p5.jpg"]
    assert [row["id"] for row in rows] == [row["sku"] for row in wanted]
    assert list(rows[0]) == ["id", "kind", "kind_confidence", "colour, or hue", "colour, or hue_confidence"]
    single = load_model(package).predict([table.parent / row["file"] for row in wanted])
    for row, labels in zip(rows, single, strict=True):
        for name, (label, share) in labels.items():
            assert row[name] == label
            assert float(row[f"{name}_confidence"]) == pytest.approx(share, abs=1e-4)
    quarantine = (tmp_path / "p.csv.quarantine.csv").read_text().splitlines()
    assert len(quarantine) == 2
    assert quarantine[1].startswith("6,S00185,")
    assert "39 products; 1 rows were left out" in capsys.readouterr().out


def test_folders_and_single_photos_need_no_table(package, tmp_path):
    table = write_products(tmp_path / "shop", 5)
    model = load_model(package)
    assert predict_source(model, table.parent / "photos", tmp_path / "a.csv", progress=False) == 5
    assert predict_source(model, table.parent / "photos/p2.jpg", tmp_path / "b.csv", progress=False) == 1
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[3].startswith("p2,")
    assert (tmp_path / "b.csv").read_text().splitlines()[1] == rows[3]


def test_embeddings_of_a_source(package, tmp_path):
    table = write_products(tmp_path / "shop", 30)
    model = load_model(package)
    assert embed_source(model, table, tmp_path / "e.npz", progress=False) == 30
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        ids, embeddings = arrays["ids"], arrays["embeddings"]
    assert ids.tolist()[:2] == ["S00000", "S00037"]
    assert embeddings.dtype == np.float32
    wanted = model.embed([table.parent / f"photos/p{i}.jpg" for i in range(30)])
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, wanted, rtol=1e-4, atol=1e-5)
    table.write_text(table.read_text().replace("\nS", "\n1"))
    embed_source(model, table, tmp_path / "e.npz", progress=False)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert arrays["ids"].dtype == np.int64


@pytest.fixture(params=["predict", "embed"])
def run(request, package):
    """Runs predict or embed on a source, and returns the exit code."""

    def call(source, out, *more) -> int:
        return main(
            [request.param, "--model", str(package), "--source", str(source), "--out", str(out), *map(str, more)]
        )

    return call


def test_bad_input_gets_a_sentence(package, tmp_path, capsys, run):
    shop = write_products(tmp_path / "shop", 6)
    gone = tmp_path / "gone.csv"
    gone.write_text("id,file\n" + "\n".join(f"{i},absent{i}.jpg" for i in range(20)))
    os.mkfifo(tmp_path / "fifo")
    out = tmp_path / "new/out"
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    for source, to, message in (
        ("absent", out, "nothing at absent"),
        (gone, out, "no row of"),
        (gone, out, "there is no photo absent0.jpg"),
        (shop, tmp_path, "is a folder"),
        (shop, shop, "is the source itself"),
        (shop.parent, shop, "lies in the source"),
        (shop.parent, shop.parent / "photos/predictions.csv", "lies in the source"),
        (shop, tmp_path / "fifo", "no regular file"),
        (shop, shop / "x.csv", "cannot be written"),
        (shop, tmp_path / ("x" * 240), "too long"),
    ):
        assert run(source, to) == 2, message
        errors = capsys.readouterr().err
        assert message in errors
        assert "Traceback" not in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    assert not out.parent.exists()
    assert main(["predict", "--model", str(tmp_path / "none"), "--source", str(shop), "--out", str(out)]) == 2
    assert "no model package" in capsys.readouterr().err


def test_a_result_stays_when_the_next_run_finds_nothing(tmp_path, run):
    table, out = write_products(tmp_path / "shop", 6), tmp_path / "out.csv"
    assert run(table, out) == 0
    before = out.read_bytes()
    for photo in (tmp_path / "shop/photos").iterdir():
        photo.write_bytes(b"x")
    assert run(table, out) == 2
    assert out.read_bytes() == before


def test_a_link_is_followed(tmp_path, run):
    table = write_products(tmp_path / "shop", 6)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert run(table, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").stat().st_size > 100


def test_a_schema_can_be_given(tmp_path, capsys, run):
    photos_ = write_products(tmp_path / "shop", 6).parent / "photos"
    for photo in list(photos_.iterdir()):
        photo.rename(photo.with_suffix(""))
    (tmp_path / "codes.csv").write_text("code,picture\n" + "\n".join(f"c{i},shop/photos/p{i}" for i in range(6)))
    assert run(tmp_path / "codes.csv", tmp_path / "out") == 2
    assert "write a schema.json that names image_column" in capsys.readouterr().err
    save_schema(Schema("codes", (), id_column="code", image_column="picture"), tmp_path / "schema.json")
    assert run(tmp_path / "codes.csv", tmp_path / "out", "--schema", tmp_path / "schema.json") == 0
    assert "6 " in capsys.readouterr().out


def test_ids_of_any_length_are_kept(package, tmp_path):
    table = write_products(tmp_path / "shop", 4)
    table.write_text(table.read_text().replace("S00000", "7" * 5000))
    assert embed_source(load_model(package), table, tmp_path / "e.npz", progress=False) == 4
    with np.load(tmp_path / "e.npz", allow_pickle=False) as arrays:
        assert arrays["ids"][0] == "7" * 5000


def embedding_plan() -> EmbeddingPlan:
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 6)))[0].astype(np.float32)
    kind, hue = "kind", "colour, or hue"
    parts = (Subspace(kind, kind, 3, 0.5, 0.7), Subspace(hue, hue, 4, 0.3), Subspace("appearance", None, 6, 0.2))
    return EmbeddingPlan(parts, directions)


def write_planned(folder, network):
    flat = traverse_util.flatten_dict({"params": network[0], "batch_stats": network[1]})
    weights = {"/".join(map(str, path)): array for path, array in flat.items()}
    preprocessing = {**PREPROCESSING, "test_time_flip": True}
    about = {"model": MODEL, "vocabularies": VOCABULARIES, "preprocessing": preprocessing, "extra": {}}
    write_package(folder, weights=weights, **about, embedding=embedding_plan())


def test_a_package_says_what_its_embeddings_are_made_of(tmp_path, network):
    write_planned(tmp_path / "planned", network)
    model = load_model(tmp_path / "planned")
    loaded, plan = model.package.embedding, embedding_plan()
    assert loaded.subspaces == plan.subspaces and np.array_equal(loaded.components, plan.components)
    assert model.embedding_size == 13 and model.num_features == 32
    assert model.subspaces == {"kind": 3, "colour, or hue": 4, "appearance": 6}
    images = photos(5)
    plain = model.predict_arrays(images, flip=False)
    logits = {name: np.log(values) for name, values in plain.probabilities.items()}
    wanted = np.asarray(plan.embed(logits, plain.features))
    for found in (model.embed(images), model.predict_arrays(images).embeddings, plain.embeddings):
        np.testing.assert_allclose(found, wanted, atol=1e-6)  # also where labels are of photos and mirror images
    np.testing.assert_allclose(model.predict_arrays(images).features, plain.features, atol=1e-5)
    assert model.embed([]).shape == (0, 13)


def test_packages_without_a_plan_embed_features(package):
    model = load_model(package)
    outputs = model.predict_arrays(photos(3))
    assert model.subspaces == {} and np.array_equal(outputs.embeddings, outputs.features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: plan.update(format=2), "format"),
        (lambda plan: plan.update(subspaces=[]), "no list"),
        (lambda plan: plan["subspaces"][0].update(size=4), "size of 'kind'"),
        (lambda plan: plan["subspaces"][0].update(attribute="shape"), "does not have"),
        (lambda plan: plan["subspaces"][0].update(share=0.9), "sum to 1"),
        (lambda plan: plan["subspaces"][0].update(share=float("nan")), "share of 'kind'"),
        (lambda plan: plan["subspaces"][0].update(name=""), "no line of text"),
        (lambda plan: plan["subspaces"][0].update(name="a\nb"), "no line of text"),
        (lambda plan: plan["subspaces"][1].update(temperature=0), "temperature of"),
        (lambda plan: plan["subspaces"][1].update(name="kind"), "twice"),
        (lambda plan: plan["subspaces"][1].pop("share"), "alone"),
        (lambda plan: plan["subspaces"].pop(), "subspaces'|sum to 1"),
        (lambda plan: plan.pop("subspaces"), "does not say"),
    ],
)
def test_a_plan_is_believed_only_when_it_fits(tmp_path, network, change, message):
    write_planned(tmp_path / "planned", network)
    where = tmp_path / "planned" / "embedding.json"
    plan = json.loads(where.read_text())
    change(plan)
    where.write_text(json.dumps(plan))
    with pytest.raises(UserError, match="was changed"):
        load_package(tmp_path / "planned")
    config = json.loads((tmp_path / "planned" / "config.json").read_text())
    config["digests"]["embedding.json"] = hashlib.sha256(where.read_bytes()).hexdigest()
    (tmp_path / "planned" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_package(tmp_path / "planned")


def test_half_a_plan_is_refused(tmp_path, network):
    write_planned(tmp_path / "planned", network)
    (tmp_path / "planned" / "embedding.safetensors").unlink()
    with pytest.raises(UserError, match="damaged, missing"):
        load_package(tmp_path / "planned")
