"""Schemas: guessed for tables of users, written, read, and checked."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from fashion_jax.data.schema import (
    DOCUMENTED,
    FASHION,
    NOT_NAMED,
    Attribute,
    Schema,
    explain_unused,
    find_id_column,
    infer_schema,
    load_schema,
    save_schema,
)
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


def test_columns_are_guessed_by_what_they_hold():
    table = frame(
        article_id=[f"A{i}" for i in range(40)], name=[f"Thing {i % 7}" for i in range(40)],
        picture=[f"p/{i}.jpeg" for i in range(40)], price=[str(i * 1.7) for i in range(40)], brand=["x", "y"] * 20,
        constant=["same"] * 40, subset=["train", "test"] * 20, colour=["red", "", "blue", ""] * 10,
    )  # fmt: skip
    schema = infer_schema(table)
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
    schema = infer_schema(frame(**rows))
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


def test_tables_that_cannot_be_guessed():
    with pytest.raises(UserError, match=r"columns are: a, b"):
        infer_schema(frame(a=["1", "1"], b=["x", "y"]))
    with pytest.raises(UserError, match="looks like an attribute"):
        infer_schema(frame(id=["1", "2"], file=["a.jpg", "b.jpg"]))
    assert infer_schema(frame(id=["1", "2"], file=["a.jpg", "b.jpg"]), labelled=False).attributes == ()


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
    schema = infer_schema(frame(**unique, **{column: ["a", "b"] * 10 for column in named}))
    assert {a.columns()[0]: a.name for a in schema.attributes} == named
