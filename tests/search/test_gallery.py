"""From a catalogue to an index and its answers, by the command line and by the functions under it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drawn_products import draw_product, make_tiny_config, write_products
from fashion_jax.cli import main
from fashion_jax.data.carried import Carried, read_carried
from fashion_jax.data.catalog import Catalog, Record, open_catalog
from fashion_jax.data.schema import Attribute, MultiValued, Schema
from fashion_jax.run.train import train
from fashion_jax.search import gallery
from fashion_jax.search.columns import ExtraTable, table_columns, update_columns
from fashion_jax.search.index import Index
from fashion_jax.search.recommend import by_attributes, explain, keep_and_change, one_query, similar
from fashion_jax.serving import embed as embed_module
from fashion_jax.serving import source as source_module
from fashion_jax.serving.embed import embed_source, open_shards
from fashion_jax.serving.predictor import load_model
from fashion_jax.serving.source import SourceRun
from fashion_jax.system.errors import UserError

COUNT = 150


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A catalogue with prices, a model trained on it, and an index."""
    folder = tmp_path_factory.mktemp("gallery")
    table = write_products(folder / "shop", COUNT, seed=3, missing=0.1)
    prices = [f"S{i * 37:05},{i},{i % 2 == 0},style {i // 3}\n" for i in range(COUNT)]
    (folder / "prices.csv").write_text("id,price,in_stock,style\n" + "".join(prices))
    train(make_tiny_config(table, train__duration="60 steps"), folder / "run", progress=False)
    build = ("index", "build", "--model", folder / "run", "--source", table, "--out", folder / "index")
    assert main([str(part) for part in (*build, "--table", folder / "prices.csv")]) == 0
    return folder


@pytest.fixture(scope="module")
def index(shop):
    """The index, which tests only read."""
    return Index.load(shop / "index")


@pytest.fixture
def run(shop, capsys):
    """Runs a command and returns its output and errors."""

    def call(*arguments, code=0):
        assert main([str(a) for a in arguments]) == code, arguments
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output

    return call


@pytest.fixture
def search(shop, run):
    """Searches and returns the answers."""
    return lambda *arguments: json.loads(run("search", "--index", shop / "index", "--json", *arguments).out)


def test_the_index_knows_its_catalogue(shop, run, index):
    assert len(index) == COUNT
    assert set(index.columns) == {
        "title", "photo", "kind", "colour", "kind confidence", "colour confidence", "price", "in_stock", "style",
    }  # fmt: skip
    row = index.attributes(["S00037"])[0]
    assert (row["price"], row["in_stock"], row["style"]) == (1, 0, "style 0")
    assert index.model == load_model(shop / "run").fingerprint
    # A label that the catalogue lacks is the model's.
    assert all(a["kind"] in ("round", "square", "tall") for a in index.attributes(index.ids))
    out = run("index", "info", "--index", shop / "index").out
    assert "products   150" in out and "no rebuild is due" in out
    assert not (shop / "index/products.shards").exists()


def test_search_by_photo_id_and_description(shop, run, search, index, tmp_path):
    hit = search("--image", shop / "shop/photos/p7.jpg", "-k", 3)[0]["hits"][0]
    assert hit["id"] == "S00259"
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    photos = [shop / f"shop/photos/p{i}.jpg" for i in (7, 8)]
    (answer,) = search("--image", *photos, "-k", 2)  # several photos are one query
    mean = one_query(load_model(shop / "run").embed(photos))
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in similar(index, mean, {}, 2)]
    output = run("search", "--index", shop / "index", "--id", "S00000", "--where", "colour == 'redd'")
    assert "nothing was found" in output.out
    assert "no product has the colour 'redd'; did you mean 'red'?" in output.err
    where = "in_stock == true and price < 100"
    answers = search("--id", "S00259", "S00000", "-k", 4, "--where", where, "--group-by", "style")
    assert len(answers) == 2
    for answer in answers:
        rows = [hit["attributes"] for hit in answer["hits"]]
        assert all(row["in_stock"] == 1 and row["price"] < 100 for row in rows)
        assert len(rows) == len({row["style"] for row in rows}) == 4
        assert answer["query"] not in [hit["id"] for hit in answer["hits"]]
    sheet = tmp_path / "sheet.png"
    words = ("--attribute", "colour=red", "kind=tall", "-k", 5, "--contact-sheet", sheet)
    assert run("search", "--index", shop / "index", *words).out.count("\n") == 7
    with Image.open(sheet) as picture:
        assert picture.width > 500
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((pixels[:, 0] > 180) & (pixels[:, 1] < 80)).sum() > 500  # red things are on it


def test_the_same_in_another_colour(search, index):
    name = next(n for n, a in zip(index.ids, index.attributes(index.ids), strict=True) if a["colour"] == "blue")
    labels = index.attributes([name])[0]
    hits = keep_and_change(index, index.vectors([name]), labels, ["kind"], {"colour": "red"}, 5)
    assert hits and all(hit.attributes["kind"] == labels["kind"] and hit.attributes["colour"] == "red" for hit in hits)
    assert all({"kind", "colour"} <= set(hit.agrees) for hit in hits)
    # It is the nearest among them that come first, seen from where the red ones of its like are.
    assert hits == sorted(hits, key=lambda hit: -hit.score)
    answers = search("--id", name, "--keep", "kind", "--change", "colour=red", "-k", 5)
    assert [hit["id"] for hit in answers[0]["hits"]] == [hit.id for hit in hits]


def test_descriptions_rank_by_probability_and_likeness(index):
    hits = by_attributes(index, {"colour": "red"}, 100)
    rows = [hit.attributes for hit in hits]
    everything = [n for n, a in zip(index.ids, index.attributes(index.ids), strict=True) if a["colour"] == "red"]
    assert sorted(hit.id for hit in hits) == sorted(everything)
    prototype = index.vectors(everything).mean(0)
    likeness = index.vectors([hit.id for hit in hits]) @ prototype / np.linalg.norm(prototype)
    confidence = np.array([row["colour confidence"] for row in rows])
    assert np.allclose([hit.score for hit in hits], (confidence + likeness) / 2, atol=1e-4)
    assert by_attributes(index, {"colour": "red"}, 3, where="price < 0") == []
    one_each = by_attributes(index, {"colour": "red"}, 50, group_by="kind")
    assert len(one_each) == len({row["kind"] for row in rows})


def test_why_a_hit_is_one_by_the_version_that_was_searched(index):
    hits = index.search(index.vectors(["S00000"]), 4)
    rows = index.attributes(hits.ids[0])
    memory = Index(index.snapshot, {"model": "", "subspaces": {}, "backend": "exact", "batch": 1, "about": {}})
    memory.delete(hits.ids[0].tolist())  # beside the one who searched
    for hit, row in zip(explain(hits, {"colour": "blue", "kind": None, "absent": 1}), rows, strict=True):
        assert hit.attributes == row
        assert hit.agrees == (("colour",) if row["colour"] == "blue" else ())
        assert hit.differs == ({} if row["colour"] == "blue" else {"colour": row["colour"]})


def test_a_filter_of_the_users_cannot_escape_from_its_place(index):
    labels, escape = index.attributes(["S00000"])[0], {"where": "price < 0) or (colour == 'blue'"}
    with pytest.raises(UserError, match="not understood"):
        by_attributes(index, {"colour": "red"}, 5, **escape)
    with pytest.raises(UserError, match="not understood"):
        keep_and_change(index, index.vectors(["S00000"]), labels, ["kind"], {}, 5, **escape)


def test_confidences_are_of_the_labels_that_are_kept(shop, index):
    model = load_model(shop / "run")
    outputs = model.predict_arrays(np.stack([model.read(shop / f"shop/photos/p{i}.jpg") for i in range(COUNT)]))
    with (shop / "shop/products.csv").open() as file:
        given = [row["kind"] for row in csv.DictReader(file)]
    rows, differing = index.attributes(index.ids), 0
    for row, label, probabilities in zip(rows, given, outputs.probabilities["kind"], strict=True):
        likeliest = model.classes["kind"][probabilities.argmax()]
        assert row["kind"] == (label or likeliest)
        wanted = probabilities[model.classes["kind"].index(row["kind"])]
        assert row["kind confidence"] == pytest.approx(wanted, abs=1e-3)
        differing += bool(label) and label != likeliest
    assert differing > 0


def test_products_are_added_replaced_and_removed(shop, run, tmp_path):
    extra, place = write_products(tmp_path / "new", 4, seed=9), shutil.copytree(shop / "index", tmp_path / "index")
    drawn = extra.read_text()
    extra.write_text(drawn.replace("S00000", "NEW-0").replace("S00037", "NEW-1"))
    (tmp_path / "more.csv").write_text("id,price\nNEW-0,999\nNEW-1,998\n")
    out = run("index", "add", "--index", place, "--source", extra, "--table", tmp_path / "more.csv").out
    assert "4 products added or replaced, 152 in all" in out
    index = Index.load(place)
    assert index.attributes(["NEW-0"])[0]["price"] == 999
    assert index.attributes(["S00074"])[0]["price"] == 2  # replaced, and its price kept
    assert "150 products left" in run("index", "delete", "--index", place, "--id", "NEW-0", "NEW-1").out
    run("index", "rebuild", "--index", place)
    assert "nothing is damaged" in run("verify", place).out
    extra.write_text(drawn.replace("S00", "1"))  # 1000, 1037 and so on: integers here, texts in the index
    assert "154 in all" in run("index", "add", "--index", place, "--source", extra).out
    assert "1037" in Index.load(place)


def test_products_are_added_under_their_own_ids(shop, run, tmp_path, monkeypatch):
    """Few new products are read as the index's catalogue was, and never named by numbers of rows."""
    table, number = write_products(tmp_path / "new", 2, seed=9), tmp_path / "numbers"
    for header, rows, added in (
        ("sku,file,kind,colour", ["B1,photos/p0.jpg,tall,red"], {"B1"}),
        ("sku,file,kind,colour", ["NEW9,photos/p0.jpg,tall,red", "NEW9,photos/p1.jpg,tall,red"], {"NEW9"}),
        ("colour,Größe,file,sku", ["red,M,photos/p0.jpg,7", "red,L,photos/p1.jpg,8"], {"7", "8"}),
    ):
        place = shutil.copytree(shop / "index", tmp_path / "-".join(added))
        table.write_text("\n".join([header, *rows]))
        out = run("index", "add", "--index", place, "--source", table).out
        after = Index.load(place)
        assert set(after.ids.tolist()) == {*Index.load(shop / "index").ids.tolist(), *added} and "(table)" not in out
        assert all(row["colour"] == "red" for row in after.attributes(sorted(added)))
    monkeypatch.setattr(gallery, "run_embedding", lambda *_: pytest.fail("it was embedded"))
    table.write_text("file,colour\nphotos/p0.jpg,red\nphotos/p1.jpg,red")
    assert "no column of product ids" in run("index", "add", "--index", place, "--source", table, code=2).err
    with Index.load(shop / "index") as old:
        whole = Index.build(old.vectors(old.ids), range(len(old)), model=old.model, subspaces=old.subspaces)
        whole.about.update(old.about)
        whole.save(number)
        whole.close()
    table.write_text("sku,file,kind,colour\nB1,photos/p0.jpg,tall,red")
    err = run("index", "add", "--index", number, "--source", table, code=2).err
    assert "such as 'B1'; build the index again" in err


BAD_INPUT = {
    "{build} --backend scan": "did you mean 'scann'", "{build} --target-recall 1.5": "target_recall",
    "{build} --batch 0": "batch must be", "{build} --table {tmp}/nobody": "none of the catalogue's products",
    "{build} --out {tmp}": "holds other files", "{add} --table {tmp}/prise": "did you mean 'price'",
    "{add} --table {tmp}/no_id": "no column of product ids",
    "{build} --table {tmp}/twice": "the id 'S00000' twice, with '3'",
    "{build} --table {tmp}/only": "no columns besides 'sku'",
    "{add} --table {tmp}/texts": "holds numbers, not texts such as 'ask'",
    "index update --index {index} --table {tmp}/nobody": "none of the index's products",
    "index update --index {index} --table {tmp}/texts": "holds numbers, not texts such as 'ask'",
    "index update --index {index} --table {tmp}/gone": "there is nothing at",
    "{search} --id S00000 --where kind>'a'": "compares numbers and dates only",
    "{add} --source {tmp}/gone": "nothing at", "{add} --model small": "another model",
    "index delete --index {index} --id " + "9" * 5_000: "no product", "{search} --id S99999": "no product 'S99999'",
    "{search} --id S00000 --where color=='red'": "did you mean 'colour'", "{search} --image none": "there is nothing",
    "{search} --id S00000 --keep kid": "did you mean 'kind'", "{search} --image {tmp}/twice": "not usable",
    "{search} --id S00000 --change colour=redd": "did you mean 'red'", "{search} --attribute price=3": "holds numbers",
    "{search} --id S00000 --change colour": "COLUMN=VALUE", "{search} --id S00000 --weigh colour=much": "PART=FACTOR",
    "{search} --image {photo} --model small": "made by another model",
}  # fmt: skip


def test_bad_input_gets_a_sentence_before_anything_is_embedded(shop, run, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "run_embedding", lambda *_: pytest.fail("it was embedded"))
    tables = {
        "nobody": "id,price\nx,3", "prise": "id,prise\nS00000,3", "no_id": "price\n1", "only": "sku\nS00000",
        "twice": "id,price\nS00000,3\nS00000,\nS00000,4", "texts": "id,price\nS00000,ask\nS00037,3",
    }  # fmt: skip
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    index, source = shop / "index", shop / "shop/products.csv"
    words = {
        "build": f"index build --model {shop / 'run'} --source {source} --out {tmp_path / 'i'}",
        "add": f"index add --index {index} --source {source}", "search": f"search --index {index}",
        "index": index, "photo": shop / "shop/photos/p7.jpg", "tmp": tmp_path,
    }  # fmt: skip
    for arguments, message in BAD_INPUT.items():
        assert message in run(*arguments.format(**words).split(), code=2).err
    assert not (tmp_path / "i").exists()


def test_colour_above_all(search, index):
    assert list(index.subspaces) == ["kind", "colour", "appearance"]
    answers = search("--id", "S00037", "--weigh", "kind=0", "colour=9")
    found, query = [hit["id"] for hit in answers[0]["hits"]], index.vectors(["S00037"])
    plain = index.search(query, len(found), exclude=["S00037"])
    weighted = index.search(query, len(found), exclude=["S00037"], weights={"kind": 0, "colour": 9})
    assert found == weighted.ids[0].tolist() != plain.ids[0].tolist()


@pytest.mark.parametrize("damaged", [False, True])
def test_an_embedding_run_that_was_stopped_goes_on(shop, tmp_path, monkeypatch, capsys, damaged):
    model, table = load_model(shop / "run"), shop / "shop/products.csv"
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 40)
    monkeypatch.setattr(type(model), "batch_size", 32)
    embed_source(model, table, tmp_path / "whole.npz", progress=False)
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
    (shard,) = (tmp_path / "e.npz.shards").iterdir()
    calls.append(0)  # no longer the fourth
    if damaged:
        shard.write_bytes(shard.read_bytes()[:-9])
    embed_source(model, table, tmp_path / "e.npz", progress=False)
    assert sum(calls[5:]) == COUNT - (0 if damaged else 64)
    assert ("computed again" in capsys.readouterr().err) == damaged
    assert not (tmp_path / "e.npz.shards").exists()
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "e.npz") as resumed:
        assert whole.files == resumed.files
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole.files)


@pytest.mark.parametrize("arrays", [
    {"numbers": np.arange(3)}, {"numbers": np.array([10**9])}, {"rows": np.arange(3)}, {"numbers": np.array(["a"])},
    {"numbers": np.arange(1, 4), "embeddings": np.zeros((3, 5)), "labels": np.zeros((3, 2))},
])  # fmt: skip
def test_whole_shards_that_no_run_wrote_are_refused(shop, tmp_path, arrays):
    model, table, out = load_model(shop / "run"), shop / "shop/products.csv", tmp_path / "e.npz"
    open_shards(model, SourceRun(model, table, out, progress=False)).write(arrays)
    with pytest.raises(UserError, match=r"e.npz.shards is damaged .*; delete the .shard files in .*, not your photos"):
        embed_source(model, table, out, progress=False)


def test_shards_of_another_model_are_not_used(shop, tmp_path, monkeypatch):
    model, table, out = load_model(shop / "run"), shop / "shop/products.csv", tmp_path / "e.npz"
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "fingerprint", "another")
        shards = open_shards(model, SourceRun(model, table, out, progress=False))
        zeros = {"labels": np.zeros((COUNT, 2)), "confidences": np.zeros((COUNT, 2))}
        shards.write({"rows": np.arange(1, COUNT + 1), "embeddings": np.zeros((COUNT, 32), np.float32), **zeros})
    assert embed_source(model, table, out, dtype="float16", progress=False) == COUNT
    with np.load(out) as arrays:
        assert arrays["embeddings"].dtype == np.float16
        assert np.allclose(np.linalg.norm(arrays["embeddings"].astype(np.float32), axis=1), 1, atol=1e-2)
    with pytest.raises(UserError, match="float32 or float16"):
        embed_source(model, table, out, dtype="int8", progress=False)


def test_a_draw_is_found_among_its_like(shop, index):
    """The trained model's neighbours of a photo that it never saw are of its colour, well above chance."""
    model, hits = load_model(shop / "run"), 0
    for seed, colour in enumerate(["red", "blue", "green", "yellow"] * 5):
        photo = draw_product("round", colour, 900_000 + seed)
        found = index.search(model.embed(photo), 5)
        hits += sum(row["colour"] == colour for row in index.attributes(found.ids[0].tolist()))
    assert hits / 100 > 0.5


@pytest.fixture
def several_photos(monkeypatch):
    """Makes products of three photos each of any catalogue: the rows S00000, S00037 and S00074 become S00000."""

    def open_several(*arguments, **options):
        catalog = open_catalog(*arguments, **options)
        firsts = {record.number: catalog.records[place // 3 * 3].id for place, record in enumerate(catalog.records)}
        catalog.records = [dataclasses.replace(r, id=firsts[r.number]) for r in catalog.records]
        return catalog

    monkeypatch.setattr(source_module, "open_catalog", open_several)
    monkeypatch.setattr(gallery, "open_catalog", open_several)


def test_a_product_is_found_by_any_of_its_photos(shop, tmp_path, run, several_photos):
    place, model = tmp_path / "index", load_model(shop / "run")
    build = ("index", "build", "--model", shop / "run", "--source", shop / "shop/products.csv", "--out", place)
    assert "50 products (150 photos)" in run(*build).out
    index = Index.load(place)
    assert len(index) == 50 and index.num_photos == 150
    for row in range(0, COUNT, 7):  # each photo finds its product, and itself
        hits = index.search(model.embed(shop / f"shop/photos/p{row}.jpg"), 5)
        assert hits.ids[0, 0] == f"S{row // 3 * 3 * 37:05}" and len(set(hits.ids[0].tolist())) == 5
        assert hits.attributes()[0]["photo"] == f"photos/p{row}.jpg"
    out = run("search", "--index", place, "--id", "S00111", "-k", 49, "--contact-sheet", tmp_path / "sheet.png").out
    assert out.count("\n") == 51 and "  S00111  " not in out and out.count(".jpg") == 49
    assert "photos     150" in run("index", "info", "--index", place).out
    add = ("index", "add", "--index", place, "--source", write_products(tmp_path / "new", 5, seed=8))
    assert "2 products (5 photos) added or replaced, 50 (149 photos) in all" in run(*add).out
    changed = Index.load(place)
    assert changed.attributes(["S00111"])[0]["photo"] == "photos/p3.jpg" and len(changed) == 50
    assert changed.search(model.embed(tmp_path / "new/photos/p4.jpg"), 1).ids.tolist() == [["S00111"]]
    assert "49 products left" in run("index", "delete", "--index", place, "--id", "S00111").out
    assert Index.load(place).num_photos == 147


def test_the_picture_shows_the_photo_that_matched(shop, several_photos):
    model, catalog = load_model(shop / "run"), gallery.open_catalog(shop / "shop/products.csv")
    wanted = [("S00000", "photos/p2.jpg"), ("S00000", None), ("S00000", "moved/p1.jpg"), ("none", "photos/p1.jpg")]
    found = gallery.read_photos(catalog, wanted, model)
    for key, row in zip(wanted, (2, 0, 1), strict=False):
        assert np.array_equal(found[key], model.read(shop / f"shop/photos/p{row}.jpg"))
    assert found["none", "photos/p1.jpg"] is None


def test_photos_without_a_file_are_named_by_their_row():
    def record(number, row, photo):
        return Record(number, row, "P", "", (), "", photo)

    records = [record(1, 1, b"a"), record(2, 1, b"b"), record(3, 2, "x/y.jpg"), record(4, 4, b"c")]
    catalog = Catalog("shop", Schema("shop", ()), None, "", {}, records)
    assert catalog.name_photos() == {1: "row 1", 2: "row 1, photo 2", 3: "x/y.jpg", 4: "row 4"}


def test_a_product_without_a_label_gets_the_label_of_most_probability():
    ids, given = ["a", "a", "a", "b", "c", "c"], [None, None, None, "red", "blue", "blue"]
    labels, sure = gallery._label_products(
        ids, given, ["red", "blue", "blue", "red", "blue", "green"], np.array([0.9, 0.5, 0.6, 0.4, 0.3, 0.8])
    )
    assert labels == ["blue", "blue", "blue", "red", "blue", "blue"]
    assert np.allclose(sure, [1.1 / 3] * 3 + [0.4, 0.3, np.nan], equal_nan=True)


SHOP = """Artikel;Datei;kind;colour;Preis;Lager;Marke;Neu;Seit;Title;Name;Notiz
"""


@pytest.fixture(scope="module")
def german(shop, tmp_path_factory):
    """An index of a shop's table that carries price, stock, brand, and more."""
    folder = tmp_path_factory.mktemp("german")
    table = write_products(folder / "shop", 12, seed=5)
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    lines = [
        f"{sku};{file};{kind};{colour};{i}.{i:03},50 €;{'n/a' if i == 4 else i};{'Löwe' if i % 2 else '=SUM(A1)'};"
        f"{'ja' if i % 3 else 'nein'};{i + 1:02}.01.2026;Title {i};Name {i};{'12 EUR/kg' if i == 2 else i}"
        for i, (sku, file, kind, colour) in enumerate(rows)
    ]
    table.write_text(SHOP + "\n".join(lines), encoding="cp1252")
    schema = {"name": "shop", "id_column": "Artikel", "image_column": "Datei", "title_column": "Name",
              "attributes": [{"name": "kind"}, {"name": "colour"}]}  # fmt: skip
    (folder / "schema.json").write_text(json.dumps(schema))
    build = ("index", "build", "--model", shop / "run", "--source", table, "--schema", folder / "schema.json")
    assert main([str(part) for part in (*build, "--out", folder / "index")]) == 0
    return folder


def test_columns_of_the_catalogue_are_carried_along_as_what_they_are(german, run, tmp_path):
    index = Index.load(german / "index")
    row = index.attributes(["S00148"])[0]  # the fifth
    wanted = {"Preis": 4004.5, "Lager": None, "Marke": "=SUM(A1)", "Neu": True, "Seit": "2026-01-05", "Notiz": "4"}
    assert wanted.items() <= row.items()
    assert row["title"] == "Name 4" and row["title"] != row.get("Title") == "Title 4"
    info = run("index", "info", "--index", german / "index").out
    assert "Preis (numbers)" in info and "Seit (dates)" in info and "Neu (yes and no)" in info
    search = ("search", "--index", german / "index", "--id", "S00000")
    for where, found in (
        ("Preis < 3000 and Lager > 0", {1, 2}), ("Neu == no", {3, 6, 9}), ("Seit >= '2026-01-11'", {10, 11}),
        ("Seit in ['02.01.2026', '4 Jan 2026']", {1, 3}), ("Marke == 'Löwe' and Neu == true", {1, 5, 7, 11}),
        ("Lager == none", {4}),
    ):  # fmt: skip
        (answer,) = json.loads(run(*search, "--json", "-k", 11, "--where", where).out)
        assert {hit["id"] for hit in answer["hits"]} == {f"S{i * 37:05}" for i in found}
    assert "'Notiz' holds texts such as '12 EUR/kg'" in run(*search, "--where", "Notiz < 5", code=2).err
    out = run(*search, "-k", 11, "--csv", tmp_path / "hits.csv").out
    assert "  Name 4  Preis 4004.5, Marke =SUM(A1), Neu yes, Seit 2026-01-05, Title Title 4, Notiz 4" in out
    assert "differs: Preis" not in out and "kind" in out
    with (tmp_path / "hits.csv").open() as file:
        rows = {line["id"]: line for line in csv.DictReader(file)}
    assert len(rows) == 11 and rows["S00148"]["Marke"] == "'=SUM(A1)" and rows["S00148"]["Neu"] == "yes"
    assert rows["S00148"]["query"] == "S00000" and rows["S00148"]["photo"] == "photos/p4.jpg"
    kept = json.loads(run(*search, "--json", "--keep", "Marke").out)[0]["hits"]
    assert kept and all(hit["attributes"]["Marke"] == "=SUM(A1)" for hit in kept)


def test_attributes_of_an_index_change_by_a_table(german, run, tmp_path):
    place = shutil.copytree(german / "index", tmp_path / "index")
    # Not the first column with a name of ids is that of the products, but the one that has them.
    lines = ("id;Artikel;Preis;Neu;Brand;kind;photo", "1;S00037;$1,234.50;no;Acme;;x.jpg", "2;S00074;;;;tall;y.jpg")
    (tmp_path / "new.csv").write_text("\n".join([*lines, "3;GONE;$3.10;yes;;;"]))
    before = Index.load(place)
    out = run("index", "update", "--index", place, "--table", tmp_path / "new.csv").out
    for words in (
        "2 products changed: id (new), Preis, Neu, Brand (new)\n", "in USD", "such as GONE",
        "column 'kind' is left out: its labels are read", "column 'photo' is left out: it holds names of photos",
        "3 cells are empty", "10 products of the index are not in",
    ):  # fmt: skip
        assert words in out
    after = Index.load(place)
    kinds = [row["kind"] for row in before.attributes(["S00037", "S00074", "S00111"])]
    rows = after.attributes(["S00037", "S00074", "S00111"])
    for name, values in {
        "Preis": [1234.5, None, 3003.5], "Neu": [False, None, False], "Brand": ["Acme", None, None],
        "kind": kinds, "photo": ["photos/p1.jpg", "photos/p2.jpg", "photos/p3.jpg"],
    }.items():  # fmt: skip
        assert [row[name] for row in rows] == values
    assert np.array_equal(before.vectors(before.ids), after.vectors(before.ids))
    # A table of all products with clean cells makes numbers of a column of texts.
    lines = "".join(f"{name},{row}\n" for row, name in enumerate(after.ids))
    (tmp_path / "clean.csv").write_text("sku,Notiz\n" + lines)
    run("index", "update", "--index", place, "--table", tmp_path / "clean.csv")
    assert Index.load(place).search(after.vectors(["S00000"]), 12, where="Notiz < 3").ids[0, 3] == ""


def test_a_column_with_the_name_of_another_gets_its_own(german, shop, run, tmp_path):
    lines = "".join(f"S{i * 37:05},Head {i},{i % 2 == 0},{i},crimson,\n" for i in range(12))
    (tmp_path / "more.csv").write_text("SKU,title,colour confidence,Preis,colour,empty\n" + lines)
    source = ("--source", german / "shop/products.csv", "--schema", german / "schema.json")
    build = ("index", "build", "--model", shop / "run", *source, "--table", tmp_path / "more.csv")
    out = run(*build, "--out", tmp_path / "index").out
    index = Index.load(tmp_path / "index")
    row = index.attributes(["S00148"])[0]
    assert row["title"] == "Name 4" and row["title (table)"] == "Head 4" and row["Preis"] == 4
    assert row["colour"] in ("blue", "green", "red", "yellow") and "colour (table)" not in row
    assert 0 <= row["colour confidence"] <= 1 and row["colour confidence (table)"] is True
    for words in (
        "column 'title' is called 'title (table)'",
        "column 'colour' is left out: its labels are read", "'Preis' takes the place of the catalogue's own", "EUR",
        "column 'empty' is left out: it holds nothing",
    ):  # fmt: skip
        assert words in out
    add = ("index", "add", "--index", tmp_path / "index", *source)
    (tmp_path / "some.csv").write_text("sku,title,Preis\nS00148,Other,40\n")
    assert "12 products added or replaced, 12 in all" in run(*add, "--table", tmp_path / "some.csv").out
    changed = Index.load(tmp_path / "index")
    rows = changed.attributes(["S00148", "S00185"])
    assert [row["title (table)"] for row in rows] == ["Other", "Head 5"] and [row["Preis"] for row in rows] == [40, 5]
    assert [row["Seit"] for row in rows] == ["2026-01-05", "2026-01-06"]


UPDATES = {  # cells of a table with these headings for the products a and b -> the index's rows after the update
    # The shop's own table: labels and tags stay as the catalogue gave them; a row per photo differs in photos only.
    ("photo,side,Farbe,occ,price", "p/1.png,p/1b.png,rot ,x; y,3", "p/2.png,p/2b.png,?,,4"): [{"price": 3}],
    ("colour,occasion,link", "rot,x,https://e.org/1", "blau,y,https://e.org/2"): "column 'colour' is left out",
    # Labels stay texts, and numbers stay numbers.
    ("size", "36", "38"): "column 'size' is left out",
    ("price", "3", "ask"): "holds numbers, not texts such as 'ask'",
    ("price", "ask", "tba"): "holds numbers, not texts such as 'ask'",
    ("sold", "yes", "perhaps"): "holds yes and no, not texts such as 'perhaps'",
    ("note", "3", "4"): [{"note": 3, "size": "36"}, {"note": 4}],
    ("note", "3"): [{"note": 3}, {"note": 6}],  # it mends the last text
    ("memo", "3"): "column 'memo' stays text in the index: 1 product of the index is not in",
    ("note", "2026-01-05"): "becomes dates",
    ("Name", "12", "13"): [{"title": "12"}, {"title": "13"}],
    ("guess", "1", "2"): [{"guess": "tall", "guess (table)": 1}],
}  # fmt: skip


@pytest.mark.parametrize(("table", "wanted"), UPDATES.items())
def test_a_shops_own_table_changes_columns_and_no_labels(table, wanted, tmp_path, capsys):
    index = Index.build(np.eye(3)[:2], ["a", "b"], {
        "colour": ["red", "blue"], "occasion": ["x|y", "y"], "size": ["36", "38"], "guess": ["tall", "round"],
        "price": [1, 2], "sold": [True, False], "note": ["5 EUR/kg", "6"],
        "memo": ["7", "ask"], "title": ["A", "B"],
    })  # fmt: skip
    single, several = (Attribute("colour", "Farbe"), Attribute("size")), (MultiValued("occasion", "occ"),)
    schema = Schema(
        "s", single, "sku", "photo", more_image_columns=("side",), title_column="Name", multi_valued=several
    )
    index.about.update(schema=schema.to_dict(), labels=["colour", "size", "guess"])
    header, *cells = table
    lines = [f"sku,{header}", *(f"{name},{row}" for name, row in zip("ab", cells, strict=False))]
    if "side" in header:  # another photo of each product
        lines += [
            line.replace("1.png", "7.png").replace("1b.png", "8.png").replace("rot", "rosso") for line in lines[1:]
        ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    before = index.attributes(["a", "b"])
    try:
        update_columns(index, tmp_path / "t.csv")
        said = capsys.readouterr().out
    except UserError as error:
        said = str(error)
    after = index.attributes(["a", "b"])
    if isinstance(wanted, str):
        assert wanted in said
    for place, row in enumerate(wanted if isinstance(wanted, list) else []):
        assert row.items() <= after[place].items()
    labels = ("colour", "occasion", "size", "guess")
    assert [[row[name] for name in labels] for row in after] == [[row[name] for name in labels] for row in before]


@pytest.mark.parametrize(("column", "wanted"), [("note", 3), ("view", "3")])
def test_mended_texts_become_numbers_where_the_photos_of_a_product_agree(column, wanted, tmp_path):
    index = Index.build(np.eye(5), ["a", "b", "b", "c", "c"], {
        "note": ["ask", "6", "6", None, None], "view": ["side", "1", "2", None, None],
    })  # fmt: skip
    (tmp_path / "t.csv").write_text(f"id,{column}\na,3\n")
    update_columns(index, tmp_path / "t.csv", progress=False)
    assert index.attributes(["a"])[0][column] == wanted
    assert index.snapshot.attributes.to_lists()["view"][1:3] == ["1", "2"]


def test_columns_with_the_names_of_tags_get_their_own(shop):
    """Tags, of the catalogue and of the model's heads, are not replaced by a table's raw cells."""
    model = SimpleNamespace(attributes=("kind",), tags={"occasion": ("x", "y")})
    schema = Schema("s", (Attribute("colour"),), multi_valued=(MultiValued("season"),))
    frame = pd.DataFrame({name: ["1", "2"] for name in ("occasion", "season", "kind", "colour", "price")})
    extra = ExtraTable("t.csv", ("a", "b"), read_carried(frame, ["a", "b"], list(frame)))
    catalog = SimpleNamespace(schema=schema, carried=Carried())
    names = ["occasion (table)", "season (table)", "kind (table)", "colour (table)", "price"]
    assert list(table_columns(model, catalog, extra)) == names


@pytest.mark.parametrize(("schema", "labels", "tags", "wanted"), [
    (Schema("s", (Attribute("occasion"),)), [(None,), ("y",)], [(), ()], ["x|y", "y"]),  # a catalogue of one value each
    (Schema("s", (), multi_valued=(MultiValued("occasion"),)), [(), ()], [("",), ("[]",)], ["x|y", None]),
    (Schema("s", ()), [(), ()], [(), ()], ["x|y", "x|y"]),
])  # fmt: skip
def test_a_head_of_tags_fills_in_what_is_not_known(schema, labels, tags, wanted):
    records = [Record(i, i, f"P{i}", "", labels[i], "", f"{i}.jpg", tags[i]) for i in range(2)]
    catalog = Catalog("s", schema, None, "", {}, records)
    package = SimpleNamespace(decision=None)
    model = SimpleNamespace(attributes=(), tags={"occasion": ("x", "y")}, classes={}, package=package)
    shares = np.full((2, 2), 0.9, np.float32)
    embedded = embed_module.Embedded(records, np.eye(2), {}, {}, catalog, {"occasion": shares})
    assert gallery.describe(model, embedded, {})["occasion"] == wanted


def test_photos_that_lie_elsewhere_are_found_again(tmp_path, shop, capsys):
    """`--photos` is kept in the index, and a repair of a photo's path is told."""
    table = write_products(tmp_path / "shop", 12)
    photos = (tmp_path / "shop/photos").rename(tmp_path / "elsewhere")
    (photos / "p3.jpg").rename(photos / "p3.JPG")
    (photos / "note.txt").write_text("not a photo")
    build = ("index", "build", "--model", shop / "run", "--source", table, "--photos", photos, "--out", tmp_path / "i")
    assert main([str(part) for part in build]) == 0
    note = capsys.readouterr().out
    assert "12 products; no row was left out; repaired: photos found by their name in another folder: 12" in note
    assert "repaired: photo names in another case: 1; files passed over: 1 .txt" in note
    catalog = gallery.open_gallery(Index.load(tmp_path / "i"))
    assert all(isinstance(data, bytes) for _, data in catalog.iter_photos(catalog.records))
    assert len(catalog.records) == 12
