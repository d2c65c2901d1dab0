"""Schemas: guessed for tables of users, written, read, and checked."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from fashion_jax.data.schema import DOCUMENTED, FASHION, Attribute, Schema, infer_schema, load_schema, save_schema
from fashion_jax.system.errors import UserError
from forging import GONE, set_at


def test_the_documented_classes():
    counts = {name: len(classes) for name, classes in DOCUMENTED.items()}
    assert counts == {"masterCategory": 4, "subCategory": 32, "baseColour": 44, "gender": 5}


@pytest.mark.parametrize("schema", [FASHION, Schema("x", (Attribute("a", min_rows=3),), image_column="f")])
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
    assert [a.name for a in schema.attributes] == ["brand", "colour"]


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
