"""Schemas: guessed for tables of users, written, read, and checked."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from fashion_jax.data.schema import DOCUMENTED, FASHION, Attribute, Schema, infer_schema, load_schema, save_schema
from fashion_jax.system.errors import UserError


def test_the_documented_classes():
    assert {name: len(classes) for name, classes in DOCUMENTED.items()} == {
        "masterCategory": 4, "subCategory": 32, "baseColour": 44, "gender": 5,
    }  # fmt: skip
    assert [a.name for a in FASHION.attributes] == [
        "masterCategory", "subCategory", "articleType", "baseColour", "gender", "season", "usage",
    ]  # fmt: skip


@pytest.mark.parametrize("schema", [FASHION, Schema("x", (Attribute("a", min_rows=3),), image_column="f")])
def test_written_and_read(tmp_path, schema):
    save_schema(schema, tmp_path / "s.json")
    assert load_schema(tmp_path / "s.json") == schema


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=object)


def test_columns_are_guessed_by_what_they_hold():
    table = frame(
        article_id=[f"A{i}" for i in range(40)],
        name=[f"Thing {i % 7}" for i in range(40)],
        picture=[f"p/{i}.jpeg" for i in range(40)],
        price=[str(i * 1.7) for i in range(40)],
        brand=["x", "y"] * 20,
        constant=["same"] * 40,
        subset=["train", "test"] * 20,
        colour=["red", "", "blue", ""] * 10,
    )
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
    ("change", "message"),
    [
        (lambda s: s.update(atributes=[]), "did you mean 'attributes'"),
        (lambda s: s.update(id_column=3), "'id_column' of a schema must be str"),
        (lambda s: s["attributes"][0].update(min_rows="3"), "'min_rows' of a attribute must be int"),
        (lambda s: s["attributes"][0].update(min_rows=True), "must be int"),
        (lambda s: s["attributes"][0].update(classes=["a", 3]), "must list texts"),
        (lambda s: s["attributes"][0].update(name="a/b"), "plain word"),
        (lambda s: s["attributes"][0].update(name="gender"), "twice"),
        (lambda s: s["attributes"][0].update(on_unknown="keep"), "'mask' or 'drop'"),
        (lambda s: s["attributes"].append("colour"), "must be a JSON object"),
        (lambda s: s.update(image_template="x.jpg"), "image_template"),
        (lambda s: s.pop("name"), "need a name"),
    ],
)
def test_nonsense_is_named(tmp_path, change, message):
    values = FASHION.to_dict()
    change(values)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_schema(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", None])
def test_files_that_are_no_schema(tmp_path, text):
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=r"s\.json"):
        load_schema(tmp_path / "s.json")


def test_column_names_that_cannot_name_attributes_get_another():
    values = ["a", "b"] * 10
    table = frame(**{"sku": [f"S{i}" for i in range(20)], "file": [f"{i}.jpg" for i in range(20)]})
    for column in ("Size/Fit", "id", "colour", "colour_confidence", "items"):
        table[column] = values
    schema = infer_schema(table)
    named = {a.name: a.columns()[0] for a in schema.attributes}
    assert named == {
        "Size_Fit": "Size/Fit", "id_label": "id", "colour": "colour", "colour_confidence_label": "colour_confidence",
        "items": "items",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema("x", (Attribute("id"),)), "cannot be used"),
        (lambda: Schema("x", (Attribute("a"), Attribute("a_confidence"))), "cannot be used"),
        (lambda: Schema("x", (Attribute("a", classes=("x", "y", "y")),)), "names the class 'y' twice"),
        (lambda: Schema("x", (Attribute("a"),), image_template="images/{id}_{view}.jpg"), "no other braces"),
        (lambda: Schema("x", (Attribute("a"),), image_template="images/{id}}.jpg"), "no other braces"),
    ],
)
def test_schemas_that_would_fail_later_fail_at_once(make, message):
    with pytest.raises(UserError, match=message):
        make()
