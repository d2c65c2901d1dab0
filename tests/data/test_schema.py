"""Schemas: guessed for tables of users, written, read, and checked."""

from __future__ import annotations

import json
import time
from collections import Counter

import pandas as pd
import pytest

from fashion_jax.data import columns as columns_module
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.columns import (
    NOT_NAMED,
    explain_unused,
    find_id_column,
    find_repeated_ids,
    infer_schema,
    offer_photo_columns,
)
from fashion_jax.data.headings import has_photo_heading
from fashion_jax.data.schema import DOCUMENTED, FASHION, Attribute, Schema, load_schema, save_schema
from fashion_jax.system.errors import UserError
from forging import GONE, set_at


def test_the_documented_classes():
    counts = {name: len(classes) for name, classes in DOCUMENTED.items()}
    assert counts == {"masterCategory": 4, "subCategory": 32, "baseColour": 44, "gender": 5}


@pytest.mark.parametrize(
    "schema",
    [
        FASHION,
        Schema("x", (Attribute("a", min_rows=3, merge=(("u", "v"), ("w", "v"))),), image_column="f", encoding="cp1251"),
    ],
)
def test_written_and_read(tmp_path, schema):
    save_schema(schema, tmp_path / "s.json")
    assert load_schema(tmp_path / "s.json") == schema


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=object)


def guess(table: pd.DataFrame, *, labelled: bool = True) -> Schema:
    """Returns the guessed schema; what comes with it is what `explain_unused` says about it."""
    schema, unused = infer_schema(table, labelled=labelled)
    assert unused == explain_unused(table, schema)
    return schema


def test_a_guess_looks_at_each_column_once(tmp_path, monkeypatch):
    lines = [f"{n},p/{n}.jpg,{('red', 'blue')[n % 2]},{n / 7:.2f}" for n in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["sku,photo,colour,price", *lines]))
    looked_at = Counter()
    why_unused = columns_module._why_unused

    def count(column, *rest):
        looked_at[column] += 1
        return why_unused(column, *rest)

    monkeypatch.setattr(columns_module, "_why_unused", count)
    catalog = open_catalog(tmp_path / "t.csv")
    assert looked_at == {"colour": 1, "price": 1} and list(catalog.unused) == ["price"]


def test_columns_are_guessed_by_what_they_hold():
    table = frame(
        article_id=[f"A{i}" for i in range(40)], name=[f"Thing {i % 7}" for i in range(40)],
        picture=[f"p/{i}.jpeg" for i in range(40)], price=[str(i * 1.7) for i in range(40)], brand=["x", "y"] * 20,
        constant=["same"] * 40, subset=["train", "test"] * 20, colour=["red", "", "blue", ""] * 10,
    )  # fmt: skip
    schema = guess(table)
    assert (schema.id_column, schema.title_column) == ("article_id", "name")
    assert (schema.image_column, schema.split_column) == ("picture", "subset")
    assert [a.name for a in schema.attributes] == ["colour"]


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("fold", "0 1 2 3 4", "fold"), ("CV split", "1 2", "fold"), ("price", "9 19 29", "price"),
        ("unitPrice", "9 19 29", "price"), ("Preis", "9,5 19,5", "price"), ("cost (EUR)", "12,40_€ 7_€", "price"),
        ("mystery", "12,40_€ 7_€", "currency"), ("mystery", "1.5 2.5", "decimals"), ("mystery", "10_cm 20_cm", "unit"),
        ("mystery", "$5 €5", "several units"), ("stock", "yes no", "count"), ("qty", "0 1 2", "count"),
        ("rating", "1 2 3 4 5", "count"), ("year", "2023 2024", "measure"), ("introduced", "2023 2024", "years"),
        ("launch", "2024-01-01 2024-05-01", "dates"), ("mystery", " ".join(map(str, range(25))), "25 different ones"),
        ("mask", "a.jpg b.jpg", "names of photos"), ("page", "http://a/1 http://a/2", "addresses"),
        ("brand", "Acme", "one value"), ("nothing", "- n/a", "nothing"), ("Unnamed: 0", "a b", "no name"),
        ("gtin", " ".join(f"400{i}" for i in range(25)), "ids"),
        ("note", " ".join(map(str, range(90))), "hardly repeat"),
        # These stay attributes.
        ("Brand Name", "Alder Birch Cedar", "brand"),
        ("label", " ".join(map(str, range(25))), None), ("size", "36 38 40", None), ("is new", "yes no", None),
        ("class_id", "0 1 2", None), ("split toe", "a b", None), ("stock type", "regular outlet", None),
    ],
)  # fmt: skip
def test_numbers_folds_and_the_like_are_no_attributes(column, values, reason):
    cells = [value.replace("_", " ") for value in values.split(" ")]
    rows = {
        "sku": [f"S{i}" for i in range(120)],
        "file": [f"{i}.jpg" for i in range(120)],
        "kind": ["a", "b"] * 60,
        column: (cells * 120)[:120],
    }
    schema = guess(frame(**rows))
    unused = explain_unused(frame(**rows), schema)
    assert [a.columns()[0] for a in schema.attributes] == ["kind", *([column] if reason is None else [])]
    assert reason is None or reason in unused[column]
    assert explain_unused(frame(**rows), Schema("x", (), image_column="file"))["kind"] == NOT_NAMED


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"sku": "A B C D E F G H I I", "file": "", "row": "0 1 2 3 4 5 6 7 8 9"}, "sku"),
        ({"Product-ID": "1 1 1 1 1 1 1 2 2 2"}, "Product-ID"), ({"ITEM_NO": "1 2 3 4 5 6 7 8 9 10"}, "ITEM_NO"),
        ({"Handle": "a a a a b b b c c c"}, "Handle"), ({"item": "Shoe Shoe Bag Bag Bag Bag Bag Bag Bag Bag"}, "item"),
        ({"code": "x x x x x x x x x x"}, ""), ({"paid": "1 2 3 4 5 6 7 8 9 10"}, ""),
        ({"userID": "1 2 3 4 5 6 7 8 9 10"}, "userID"), ({"Артикул": "1 2 3 4 5 6 7 8 9 9"}, "Артикул"),
        ({"product_id": "1 1 2 2 3 3 4 4 5 5", "sku": "a b c d e f g h i j"}, "sku"),
        ({"sku": "a b c d e f g h i j", "id": "1 2 3 4 5 6 7 8 9 10"}, "id"),
    ],
)  # fmt: skip
def test_ids_are_known_by_their_name_first(columns, expected):
    cells = {name: text.split() if text else [f"{i}.jpg" for i in range(10)] for name, text in columns.items()}
    assert find_id_column(frame(**cells), [name for name in cells if name != "file"]) == expected


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        ({"id": "B1"}, 1, "id"), ({"SKU": "NEW9"}, 2, "SKU"), ({"Product-ID": "7"}, 1, "Product-ID"),
        ({"parent_sku": "P1", "sku": "P1-red"}, 1, "sku"), ({"parent_sku": "P1"}, 3, "parent_sku"),
        ({"Артикул": "Б-5", "category": "shoe"}, 2, "Артикул"),
        ({"item": "shoe"}, 1, ""), ({"color_id": "3"}, 1, ""), ({"group_id": "1"}, 500, ""),
    ],
)  # fmt: skip
def test_a_table_of_one_product_keeps_its_id(columns, rows, expected):
    cells = {name: [cell] * rows for name, cell in columns.items()}
    table = frame(**cells, photo=[f"{i}.jpg" for i in range(rows)])
    assert guess(table, labelled=False).id_column == expected
    if expected and rows > 1:  # one row alone has the id: the others are no photos of its product
        table.loc[table.index[1:], list(columns)] = ""
        assert guess(table, labelled=False).id_column == ""


def test_tables_that_cannot_be_guessed():
    with pytest.raises(UserError, match=r"columns are: a, b"):
        guess(frame(a=["1", "1"], b=["x", "y"]))
    with pytest.raises(UserError, match="looks like an attribute"):
        guess(frame(id=["1", "2"], file=["a.jpg", "b.jpg"]))
    assert guess(frame(id=["1", "2"], file=["a.jpg", "b.jpg"]), labelled=False).attributes == ()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("atributes", [], "did you mean 'attributes'"), ("id_column", 3, "'id_column' of the schema must be str"),
        ("attributes.0.min_rows", "3", "'min_rows' of an attribute must be int"), ("name", GONE, "need a name"),
        ("attributes.0.min_rows", True, "must be int"), ("attributes.0.classes", ["a", 3], "a list of strings"),
        ("attributes.0.classes", ["x", "y", "y"], "class 'y' twice"), ("attributes.0.name", "a/b", "must not be empty"),
        ("attributes.0.name", "gender", "twice"), ("attributes.0.on_unknown", "keep", "'mask' or 'drop'"),
        ("attributes.0", "colour", "must be a JSON object"), ("attributes.0.name", "id", "cannot be used"),
        ("attributes.0.name", "gender_confidence", "cannot be used"), ("image_template", "x.jpg", "image_template"),
        ("image_template", "images/{id}_{view}.jpg", "no other braces"),
        ("image_template", "images/{id}}.jpg", "no other braces"),
        ("attributes.0.merge", [["a", "b"]], "object of strings"),
        ("attributes.0.merge", {"a": 1}, "object of strings"),
        ("attributes.0.merge", {"Shoes": "Footware"}, "'Footwear'"),
        ("attributes.5.merge", {"a": "b", "b": "c"}, "merges 'b' itself"),
        ("attributes.5.merge", {"a": ""}, "empty text"),
        ("encoding", 5, "'encoding' of the schema must be str"),
    ],
)  # fmt: skip
def test_nonsense_is_named(tmp_path, path, value, message):
    values = FASHION.to_dict()
    set_at(values, path, value)
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_schema(tmp_path / "s.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", None])
def test_files_that_are_no_schema(tmp_path, text):
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=r"s\.json"):
        load_schema(tmp_path / "s.json")


def test_column_names_that_cannot_name_attributes_get_another():
    named = {"Size/Fit": "Size_Fit", "id": "id_label", "colour": "colour", "items": "items"}
    named["colour_confidence"] = "colour_confidence_label"
    unique = {"sku": [f"S{i}" for i in range(20)], "file": [f"{i}.jpg" for i in range(20)]}
    schema = guess(frame(**unique, **{column: ["a", "b"] * 10 for column in named}))
    assert {a.columns()[0]: a.name for a in schema.attributes} == named


def shop(rows: int = 48, **columns) -> pd.DataFrame:
    """A table of unique photos with two colours, and columns of lists or of texts that are repeated."""
    base = {
        "image": [f"img/{i}.jpg" for i in range(rows)],
        "color": [("red", "blue")[i * 7 % 5 % 2] for i in range(rows)],
    }
    more = {n: (c.split(" ") * rows)[:rows] if isinstance(c, str) else c for n, c in columns.items()}
    return frame(**{**{k: v for k, v in base.items() if k not in more}, **more})


UNIQUE = [f"S{i}" for i in range(48)]
GROUPS = [f"G{i // 4}" for i in range(48)]  # 12 groups of four rows
FIRSTS = [f"V{i}" if i % 3 == 0 else "" for i in range(48)]  # only the first of three rows has one
THREES = [f"shirt-{i // 3}" for i in range(48)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"Handle": THREES, "Variant SKU": FIRSTS}, "Handle"), ({"ean": FIRSTS, "sku": THREES}, "sku"),
        ({"GTIN": FIRSTS, "Artikelnummer": THREES}, "Artikelnummer"), ({"sku": FIRSTS, "userID": UNIQUE}, "sku"),
        # A column of labels is no id because ids lack.
        ({"sku": FIRSTS, "article": "bag shoe hat belt sock coat"}, "sku"),
        ({"handle": THREES, "sku": UNIQUE}, "sku"),
        *(({name: GROUPS}, name) for name in (
            "Kod produktu", "SKU Code", "Product ID (internal)", "Código", "Réf.", "Codice articolo", "Kod",
            "N° article", "Art.-Nr.", "EAN-13", "Referencia del producto", "Style Number", "parent_sku", "modelno",
        )),
        *(({name: GROUPS}, "") for name in (
            "Código de color", "colour_id", "model", "style", "HS code", "SKU type", "image_id", "number of images",
        )),
    ],
)  # fmt: skip
def test_the_id_is_the_column_that_names_every_rows_product(columns, expected):
    assert guess(shop(**columns)).id_column == expected


@pytest.mark.parametrize(
    "column",
    [
        "item_group_id",
        "parent_sku",
        "handle",
        "model",
        "Parent ID",
        "Style-Code",
        "masterSku",
        "Modellnummer",
        "group_id",
    ],
)
def test_ids_of_groups_are_no_attributes_and_are_offered(column):
    table = shop(id=UNIQUE, **{column: GROUPS})
    schema = guess(table)
    assert [a.name for a in schema.attributes] == ["color"] and schema.id_column == "id"
    assert explain_unused(table, schema)[column] == "it holds ids"
    assert find_repeated_ids(table, schema) == {column: 12}


FILES = [f"more/{i}.png" for i in range(48)]


@pytest.mark.parametrize(
    ("columns", "image"),
    [
        ({"brand_logo": "logo/a.png logo/b.png", "photo": FILES}, "photo"),
        ({"thumbnail": FILES, "photo": FILES}, "photo"), ({"size_chart": "a.png b.png", "photo": FILES}, "photo"),
        ({"Swatch": FILES, "Bild": FILES}, "Bild"), ({"segmentation_mask": FILES, "file": FILES}, "file"),
        ({"icon": ["i.png"] * 48, "x": FILES}, "x"), ({"file": FILES, "写真": UNIQUE}, "file"),
        ({"image_back": FILES, "image_front": FILES}, "image_front"), ({"thumb": FILES}, "thumb"),
        ({"photo_url": [f"https://a/{i}" for i in range(48)], "care_icon": "a.png b.png"}, "photo_url"),
        ({"image_url": [f"https://a/{i}.jpg" for i in range(48)], "path": FILES}, "path"),
        ({"placeholder": ["none.jpg"] * 48, "datei": FILES}, "datei"),
    ],
)  # fmt: skip
def test_the_photo_is_the_products_and_no_logo(columns, image):
    table = shop(sku=UNIQUE, **columns).drop(columns="image")
    schema = guess(table)
    assert schema.image_column == image and schema.id_column == "sku"
    for column in set(columns) - {image} - set(schema.more_image_columns):
        reason = explain_unused(table, schema)[column]
        assert "names of photos too" in reason or "hardly repeat" in reason or "addresses" in reason


@pytest.mark.parametrize(
    ("columns", "more", "offered"),
    [
        ("base_image small_image=base_image thumbnail_image additional_images", "additional_images", ""),
        ("imagen_principal imagen_2", "imagen_2", ""),
        ("Image_principale Image_secondaire_1", "Image_secondaire_1", ""),
        ("Hauptbild Zusatzbild_1 Zusatzbild_2", "Zusatzbild_1 Zusatzbild_2", ""),
        ("Bild Bild_Rückseite", "Bild_Rückseite", ""),
        ("Фото Доп._фото", "Доп._фото", ""), ("Photo_A Photo_B Photo_C", "Photo_B Photo_C", ""),
        ("image image_zoom", "image_zoom", ""), ("Img_front Img_pack", "Img_pack", ""),
        ("image model_shot image_2 mask", "image_2", "model_shot"), ("Foto Studio", "", "Studio"),
        ("photo photo_thumb brand_logo", "", ""), ("photo copy=photo", "", ""),
    ],
)  # fmt: skip
def test_further_columns_of_photos_are_used_or_offered(columns, more, offered):
    names = [name.split("=")[0].replace("_", " ") for name in columns.split()]
    same = {name.split("=")[0].replace("_", " "): name.split("=")[-1].replace("_", " ") for name in columns.split()}
    table = shop(sku=UNIQUE, **{name: [f"{same[name]}/{i}.jpg" for i in range(48)] for name in names})
    table = table.drop(columns=[] if "image" in names else "image")
    schema = guess(table)
    wanted = tuple(name.replace("_", " ") for name in more.split())
    assert (schema.image_column, schema.more_image_columns) == (names[0], wanted)
    offers = offer_photo_columns(table, schema)
    assert len(offers) == bool(offered)
    if offered:
        line = json.dumps([*wanted, *(name.replace("_", " ") for name in offered.split())], ensure_ascii=False)
        assert offers[0].endswith(f'"more_image_columns": {line}')


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ["", *["train", "val", "test", "train"] * 12][:48]), ("part", "train val test"),
        ("evaluation_status", "train query gallery"),
        ("split", "train holdout"), ("usage", "Training_set Test_set"), ("is_train", "yes no"),
        ("subset", "train unlabeled"),
        ("set", "train1 train2 test"),
    ],
)  # fmt: skip
def test_parts_of_a_split_are_no_attributes(column, values):
    if isinstance(values, str):
        values = [text.replace("_", " ") for text in (values.split() * 48)[:48]]
    table = shop(sku=UNIQUE, **{column: values})
    schema = guess(table)
    assert [a.name for a in schema.attributes] == ["color"] and not schema.split_column
    assert "looks like a split" in explain_unused(table, schema)[column]
    table = shop(sku=UNIQUE, Partition="train val test")
    assert guess(table).split_column == "Partition"


@pytest.mark.parametrize(
    ("column", "values", "is_label"),
    [
        ("Lagerbestand", "0 3 7", False), ("在庫数", "1 2 9", False), ("stockqty", "1 2", False),
        ("Anzahl", "1 2", False),
        ("listprice", "19 29 39", False), ("Mindestbestellmenge", "1 5", False), ("Nb photos", "1 2 3", False),
        ("availability", "in-stock sold-out", False), ("Verfügbarkeit", "ja nein", False),
        ("Published", "TRUE FALSE", False),
        ("product_status", "active draft", False), ("Active", "1 0", False), ("Verkaufspreis", "9 19", False),
        ("количество", "1 2", False), ("Größe", "36 38 40", True), ("stocking", "yes no", True),
        ("border", "yes no", True),
        ("lightweight", "yes no", True), ("Composition", "100%-cotton 50%-wool", True), ("country", "1 2", True),
        ("style", "boho casual formal sport street", True),
        ("activewear", "yes no", True), ("Quantité", "1 2", False),
    ],
)  # fmt: skip
def test_amounts_and_states_are_known_by_their_names(column, values, is_label):
    table = shop(sku=UNIQUE, **{column: values})
    assert (column in [a.columns()[0] for a in guess(table).attributes]) == is_label


@pytest.mark.parametrize(
    ("headings", "photos"),
    [
        ("image imagepath Image_Src IMG imgurl img_1 productPhoto Pictures pic Fotos Artikelbilder Bilddatei", True),
        ("Imágenes imagem immagini afbeelding zdjęć obrázek Obraz kép Resim", True),
        ("фотографии Изображения 写真 画像URL 主图 商品圖 사진 이미지", True),
        ("sku colour url file topics epic kept skeptic model title", False),
    ],
)  # fmt: skip
def test_headings_of_photos_are_known_in_many_languages(headings, photos):
    assert [has_photo_heading(heading) for heading in headings.split()] == [photos] * len(headings.split())


def test_columns_of_predictions_are_no_labels():
    predicted = {
        "color_accepted": "yes no",
        "num_photos": "1 2",
        "is_out_of_catalogue": "yes no",
        "out_of_catalogue": "0 1",
    }
    table = shop(sku=UNIQUE, **predicted, photos_disagree="often never", fabric_accepted="yes no")
    schema = guess(table)
    assert [a.name for a in schema.attributes] == ["color", "photos_disagree_label", "fabric_accepted"]
    unused = explain_unused(table, schema)
    assert predicted.keys() <= unused.keys() and "results of" in unused["color_accepted"]
    for names in (("num_photos",), ("a", "a_accepted"), ("is_out_of_catalogue",)):
        with pytest.raises(UserError, match="cannot be used: predictions have a column of that name"):
            Schema("s", tuple(map(Attribute, names)))


def test_a_table_of_many_unique_columns_is_understood_in_a_moment():
    rows = 20_000
    table = shop(
        rows,
        sku=[f"S{i}" for i in range(rows)],
        **{f"text {c}": [f"Nice {c} {i}" for i in range(rows)] for c in range(10)},
    )
    begin = time.process_time()
    explain_unused(table, guess(table))
    assert time.process_time() - begin < 1  # about 0.3 s


def test_half_a_character_is_refused(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"name": "shop", "attributes": [{"name": "kind", "classes": ["a", "\\ud800"]}]}')
    with pytest.raises(UserError, match="half a character"):
        load_schema(path)
