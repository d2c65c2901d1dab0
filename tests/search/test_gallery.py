"""From a catalogue to an index and its answers, by the command line and by the functions under it."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from drawn_products import draw_product, write_products
from fashion_jax.cli import main
from fashion_jax.run.train import train
from fashion_jax.search import gallery
from fashion_jax.search.gallery import read_columns
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import by_attributes, explain, keep_and_change, one_query, similar
from fashion_jax.serving import embed as embed_module
from fashion_jax.serving.embed import embed_source
from fashion_jax.serving.predictor import load_model
from fashion_jax.system.errors import UserError

COUNT = 150


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalogue with prices, a model trained on it, and an index."""
    folder = tmp_path_factory.mktemp("gallery")
    table = write_products(folder / "shop", COUNT, seed=3, missing=0.1)
    with (folder / "prices.csv").open("w", newline="") as file:
        rows = [[f"S{i * 37:05}", i, i % 2 == 0, f"style {i // 3}"] for i in range(COUNT)]
        csv.writer(file).writerows([["id", "price", "in_stock", "style"], *rows])
    from drawn_products import make_tiny_config

    train(make_tiny_config(table, train__duration="60 steps"), folder / "run", progress=False)
    build = [
        "index", "build", "--model", folder / "run", "--source", table, "--out", folder / "index", "--table",
        folder / "prices.csv",
    ]  # fmt: skip
    assert main([str(part) for part in build]) == 0
    return folder


@pytest.fixture
def run(shop, capsys):
    """Runs a command with the index, and returns exit code, output and errors."""

    def call(*arguments):
        code = main([str(a) for a in arguments])
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err

    return call


def test_the_index_knows_its_catalogue(shop, run):
    with Index.load(shop / "index") as index:
        assert len(index) == COUNT
        assert set(index.columns) == {
            "title", "kind", "colour", "kind confidence", "colour confidence", "price", "in_stock", "style",
        }  # fmt: skip
        row = index.attributes(["S00037"])[0]
        assert row["price"] == 1
        assert row["in_stock"] == 0
        assert row["style"] == "style 0"
        assert index.model == load_model(shop / "run").fingerprint
        # A label that the catalogue lacks is the model's.
        assert all(a["kind"] in ("round", "square", "tall") for a in index.attributes(index.ids))
    code, out, _ = run("index", "info", "--index", shop / "index")
    assert code == 0
    assert "products   150" in out
    assert "no rebuild is due" in out
    assert not (shop / "index/products.shards").exists()


def test_search_by_photo_id_and_description(shop, run, tmp_path):
    photo = shop / "shop/photos/p7.jpg"
    code, out, _ = run("search", "--index", shop / "index", "--image", photo, "-k", 3, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer[0]["hits"][0]["id"] == "S00259"
    assert answer[0]["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    code, out, _ = run(
        "search", "--index", shop / "index", "--id", "S00259", "S00000", "-k", 4, "--where",
        "in_stock == true and price < 100", "--group-by", "style", "--json",
    )  # fmt: skip
    answers = json.loads(out)
    assert len(answers) == 2
    for answer in answers:
        rows = [hit["attributes"] for hit in answer["hits"]]
        assert len(rows) == 4
        assert all(row["in_stock"] == 1 and row["price"] < 100 for row in rows)
        assert len({row["style"] for row in rows}) == 4
        assert answer["query"] not in [hit["id"] for hit in answer["hits"]]
    sheet = tmp_path / "sheet.png"
    code, out, _ = run(
        "search", "--index", shop / "index", "--attribute", "colour=red", "kind=tall", "-k", 5, "--contact-sheet", sheet
    )
    assert code == 0
    assert out.count("\n") == 7
    with Image.open(sheet) as picture:
        assert picture.width > 500
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((pixels[:, 0] > 180) & (pixels[:, 1] < 80)).sum() > 500  # red things are on it


def test_several_photos_are_one_query(shop, run):
    photos = [shop / f"shop/photos/p{i}.jpg" for i in (7, 8)]
    code, out, _ = run("search", "--index", shop / "index", "--image", *photos, "-k", 2, "--json")
    assert code == 0
    assert len(json.loads(out)) == 1
    model, index = load_model(shop / "run"), Index.load(shop / "index")
    mean = one_query(model.embed(photos))
    assert [h.id for h in similar(index, mean, {}, 2)] == [hit["id"] for hit in json.loads(out)[0]["hits"]]


def test_the_same_in_another_colour(shop, run):
    index = Index.load(shop / "index")
    name = next(n for n, a in zip(index.ids, index.attributes(index.ids), strict=True) if a["colour"] == "blue")
    labels = index.attributes([name])[0]
    hits = keep_and_change(index, index.vectors([name]), labels, ["kind"], {"colour": "red"}, 5)
    rows = index.attributes([hit.id for hit in hits])
    assert rows
    assert all(row["kind"] == labels["kind"] and row["colour"] == "red" for row in rows)
    assert all({"kind", "colour"} <= set(hit.agrees) for hit in hits)
    # It is the nearest among them that come first, seen from where the red ones of its like are.
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    code, out, _ = run(
        "search", "--index", shop / "index", "--id", name, "--keep", "kind", "--change", "colour=red", "-k", 5, "--json"
    )
    assert code == 0
    assert [hit["id"] for hit in json.loads(out)[0]["hits"]] == [hit.id for hit in hits]


def test_descriptions_rank_by_probability_and_likeness(shop):
    index = Index.load(shop / "index")
    hits = by_attributes(index, {"colour": "red"}, 100)
    rows = index.attributes([hit.id for hit in hits])
    assert all(row["colour"] == "red" for row in rows)
    vectors = index.vectors([hit.id for hit in hits])
    everything = [n for n, a in zip(index.ids, index.attributes(index.ids), strict=True) if a["colour"] == "red"]
    assert len(hits) == len(everything)
    prototype = index.vectors(everything).mean(0)
    likeness = vectors @ prototype / np.linalg.norm(prototype)
    confidence = np.array([row["colour confidence"] for row in rows])
    assert np.allclose([hit.score for hit in hits], (confidence + likeness) / 2, atol=1e-4)
    assert by_attributes(index, {"colour": "red"}, 3, where="price < 0") == []
    one_each = by_attributes(index, {"colour": "red"}, 50, group_by="kind")
    assert len(one_each) == len({row["kind"] for row in rows})


def test_why_a_hit_is_one(shop):
    index = Index.load(shop / "index")
    hits = explain(index.search(index.vectors(["S00000"]), 4), {"colour": "blue", "kind": None, "absent": 1})
    for hit in hits:
        row = index.attributes([hit.id])[0]
        assert hit.agrees == (("colour",) if row["colour"] == "blue" else ())
        assert hit.differs == ({} if row["colour"] == "blue" else {"colour": row["colour"]})


def test_a_filter_of_the_users_cannot_escape_from_its_place(shop):
    index = Index.load(shop / "index")
    with pytest.raises(UserError, match="not understood"):
        by_attributes(index, {"colour": "red"}, 5, where="price < 0) or (colour == 'blue'")
    labels = index.attributes(["S00000"])[0]
    with pytest.raises(UserError, match="not understood"):
        keep_and_change(index, index.vectors(["S00000"]), labels, ["kind"], {}, 5, where="price < 0) or (price > 0")


def test_hits_are_explained_by_the_version_that_was_searched(shop):
    index = Index.load(shop / "index")
    hits = index.search(index.vectors(["S00000"]), 4)
    before = index.attributes(hits.ids[0])
    memory = Index(index.snapshot, {"model": "", "subspaces": {}, "backend": "exact", "batch": 1, "about": {}})
    memory.delete(hits.ids[0].tolist())  # beside the one who searched
    assert [hit.attributes for hit in explain(hits, {"colour": "red"})] == before


def test_confidences_are_of_the_labels_that_are_kept(shop):
    model, index = load_model(shop / "run"), Index.load(shop / "index")
    outputs = model.predict_arrays(np.stack([model.read(shop / f"shop/photos/p{i}.jpg") for i in range(COUNT)]))
    with (shop / "shop/products.csv").open() as file:
        given = [row["kind"] for row in csv.DictReader(file)]
    differing = 0
    for row, label, probabilities in zip(
        index.attributes(index.ids), given, outputs.probabilities["kind"], strict=True
    ):
        likeliest = model.classes["kind"][probabilities.argmax()]
        assert row["kind"] == (label or likeliest)
        wanted = probabilities[model.classes["kind"].index(row["kind"])]
        assert row["kind confidence"] == pytest.approx(wanted, abs=1e-3)
        differing += bool(label) and label != likeliest
    assert differing > 0


def test_ids_are_of_the_indexs_kind(shop, run, tmp_path):
    extra = write_products(tmp_path / "new", 3, seed=9)
    extra.write_text(extra.read_text().replace("S00", "1"))  # 1000, 1037, 1074: integers here, texts in the index
    shutil.copytree(shop / "index", tmp_path / "index")
    code, out, _ = run("index", "add", "--index", tmp_path / "index", "--source", extra)
    assert code == 0
    assert "153 in all" in out
    assert "1037" in Index.load(tmp_path / "index")


def test_products_are_added_replaced_and_removed(shop, run, tmp_path):
    extra = write_products(tmp_path / "new", 4, seed=9)
    extra.write_text(extra.read_text().replace("S00000", "NEW-0").replace("S00037", "NEW-1"))
    with (tmp_path / "more.csv").open("w") as file:
        file.write("id,price\nNEW-0,999\nNEW-1,998\n")
    shutil.copytree(shop / "index", tmp_path / "index")
    code, out, _ = run(
        "index", "add", "--index", tmp_path / "index", "--source", extra, "--table", tmp_path / "more.csv"
    )
    assert code == 0
    assert "4 products added or replaced, 152 in all" in out
    code, out, _ = run("search", "--index", tmp_path / "index", "--attribute", "kind=tall", "--where", "price > 900")
    assert code == 0
    with Index.load(tmp_path / "index") as index:
        assert index.attributes(["NEW-0"])[0]["price"] == 999
        assert index.attributes(["S00074"])[0]["price"] == 2  # replaced, and its price kept
    code, out, _ = run("index", "delete", "--index", tmp_path / "index", "--id", "NEW-0", "NEW-1")
    assert code == 0
    assert "150 products left" in out
    assert run("index", "rebuild", "--index", tmp_path / "index")[0] == 0
    code, out, _ = run("index", "verify", "--index", tmp_path / "index")
    assert code == 0
    assert "every byte" in out


def test_options_are_checked_before_anything_is_embedded(shop, run, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "run_embedding", lambda *_: pytest.fail("it was embedded"))
    table = tmp_path / "prices.csv"
    build = ("index", "build", "--model", shop / "run", "--source", shop / "shop/products.csv", "--out", tmp_path / "i")
    for flags, message in (
        (("--backend", "scan"), "did you mean 'scann'"),
        (("--target-recall", "1.5"), "target_recall"),
        (("--batch", "0"), "batch must be"),
        (("--table", table), "none of the catalogue's products"),
    ):
        table.write_text("id,price\nnobody,3\n")
        code, _, errors = run(*build, *flags)
        assert code == 2, flags
        assert message in errors
    assert not (tmp_path / "i").exists()
    table.write_text("id,prise\nS00000,3\n")
    add = ("index", "add", "--index", shop / "index", "--source", shop / "shop/products.csv", "--table", table)
    code, _, errors = run(*add)
    assert code == 2
    assert "did you mean 'price'" in errors
    code, _, errors = run("index", "delete", "--index", shop / "index", "--id", "9" * 5_000)
    assert code == 2
    assert "no product" in errors


BAD_SEARCHES = {
    "": "give one of --image, --id and --attribute",
    "--id S00000 --attribute colour=red": "give one of",
    "--id S99999": "no product 'S99999'",
    "--id S00000 -k 0": "at least 1",
    "--id S00000 --where colour='red'": "write ==",
    "--id S00000 --where color=='red'": "did you mean 'colour'",
    "--id S00000 --group-by styl": "did you mean 'style'",
    "--id S00000 --keep kid": "did you mean 'kind'",
    "--id S00000 --change colour=redd": "did you mean 'red'",
    "--id S00000 --change colour": "COLUMN=VALUE",
    "--id S00000 --weigh colour=much": "PART=FACTOR",
    "--id S00000 --weigh colr=2": "did you mean 'colour'",
    "--attribute price=3": "holds numbers",
    "--attribute colour=red --keep kind": "need a product",
    "--attribute colour=red --min-score 0.5": "need a product",
    "--attribute colour=red --weigh colour=2": "need a product",
    "--image no/such.jpg": "cannot be read",
    "--image {photo} --model small": "made by another model",
}


@pytest.mark.parametrize("arguments", BAD_SEARCHES)
def test_bad_searches_get_a_sentence(shop, run, arguments):
    arguments, message = arguments.format(photo=shop / "shop/photos/p7.jpg"), BAD_SEARCHES[arguments]
    code, _, errors = run("search", "--index", shop / "index", *arguments.split())
    assert code == 2
    assert message in errors


def test_colour_above_all(shop, run):
    index = Index.load(shop / "index")
    assert list(index.subspaces) == ["kind", "colour", "appearance"]
    code, output, _ = run(
        "search", "--index", shop / "index", "--id", "S00037", "--weigh", "kind=0", "colour=9", "--json"
    )
    assert code == 0
    found = [hit["id"] for hit in json.loads(output)[0]["hits"]]
    options = {"exclude": ["S00037"], "weights": {"kind": 0, "colour": 9}}
    assert found == index.search(index.vectors(["S00037"]), len(found), **options).ids[0].tolist()
    assert found != index.search(index.vectors(["S00037"]), len(found), exclude=["S00037"]).ids[0].tolist()


def test_a_filter_that_nothing_passes_is_hinted_at(shop, run):
    code, out, errors = run("search", "--index", shop / "index", "--id", "S00000", "--where", "colour == 'redd'")
    assert code == 0
    assert "nothing was found" in out
    assert "no product has the colour 'redd'; did you mean 'red'?" in errors


def test_other_bad_input(shop, run, tmp_path):
    (tmp_path / "note.jpg").write_text("not a photo")
    for arguments, message in (
        (["search", "--index", tmp_path, "--id", "1"], "no index"),
        (["search", "--index", shop / "index", "--image", tmp_path / "note.jpg"], "not usable"),
        (["index", "info", "--index", tmp_path / "none"], "no index"),
        (["index", "delete", "--index", shop / "index", "--id", "X"], "no product 'X'"),
        (
            ["index", "build", "--model", shop / "run", "--source", shop / "shop/products.csv", "--out", tmp_path],
            "other",
        ),
        (["index", "add", "--index", shop / "index", "--source", tmp_path / "gone"], "nothing at"),
        (["index", "add", "--index", shop / "index", "--source", tmp_path, "--model", "small"], "another model"),
    ):
        code, _, errors = run(*arguments)
        assert code == 2, arguments
        assert message in errors
    (tmp_path / "t.csv").write_text("sku,price\n1,2\n")
    with pytest.raises(UserError, match="no column 'id'"):
        read_columns(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("id,price\n1,2\n1,3\n")
    with pytest.raises(UserError, match="'1' twice"):
        read_columns(tmp_path / "t.csv")


def test_an_embedding_run_that_was_stopped_goes_on(shop, tmp_path, monkeypatch):
    model, table = load_model(shop / "run"), shop / "shop/products.csv"
    embed_source(model, table, tmp_path / "whole.npz", progress=False)
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 40)
    monkeypatch.setattr(type(model), "batch_size", 32)
    real, calls = type(model).predict_batches, []

    def stopped(self, batches, **options):
        for outputs in real(self, batches, **options):
            calls.append(len(outputs.features))
            if len(calls) == 4:
                raise KeyboardInterrupt
            yield outputs

    monkeypatch.setattr(type(model), "predict_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed_source(model, table, tmp_path / "e.npz", progress=False)
    assert not (tmp_path / "e.npz").exists()
    assert len(list((tmp_path / "e.npz.shards").iterdir())) == 1
    calls.append(0)  # no longer the fourth
    embed_source(model, table, tmp_path / "e.npz", progress=False)
    assert sum(calls[5:]) == COUNT - 64
    assert not (tmp_path / "e.npz.shards").exists()
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "e.npz") as resumed:
        assert np.array_equal(whole["ids"], resumed["ids"])
        assert np.allclose(whole["embeddings"], resumed["embeddings"], atol=1e-5)


def test_shards_of_another_model_are_not_used(shop, tmp_path):
    model, table = load_model(shop / "run"), shop / "shop/products.csv"
    (tmp_path / "e.npz.shards").mkdir()
    np.savez(
        tmp_path / "e.npz.shards/000000.npz", stamp=np.array("other"), rows=np.arange(1, COUNT + 1),
        embeddings=np.zeros((COUNT, 32), np.float32), labels=np.zeros((COUNT, 2)), confidences=np.zeros((COUNT, 2)),
    )  # fmt: skip
    (tmp_path / "e.npz.shards/000001.npz").write_bytes(b"PK half of one")
    assert embed_source(model, table, tmp_path / "e.npz", dtype="float16", progress=False) == COUNT
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["embeddings"].dtype == np.float16
        assert np.allclose(np.linalg.norm(arrays["embeddings"].astype(np.float32), axis=1), 1, atol=1e-2)
    with pytest.raises(UserError, match="float32 or float16"):
        embed_source(model, table, tmp_path / "e.npz", dtype="int8", progress=False)


def test_a_draw_is_found_among_its_like(shop):
    """The trained model's neighbours of a photo that it never saw are of its colour, well above chance."""
    model, index = load_model(shop / "run"), Index.load(shop / "index")
    hits = 0
    for seed, colour in enumerate(["red", "blue", "green", "yellow"] * 5):
        photo = draw_product("round", colour, 900_000 + seed)
        found = index.search(model.embed(photo), 5)
        hits += sum(row["colour"] == colour for row in index.attributes(found.ids[0].tolist()))
    assert hits / 100 > 0.5
