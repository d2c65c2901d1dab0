"""Columns carried along: which ones are chosen, how they are read, and whose value counts."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pandas as pd
import pytest

from drawn_products import write_products
from fashion_jax.data.carried import MOST_CARRIED, carry_columns, name_columns
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.columns import explain_unused
from fashion_jax.data.schema import Schema, load_schema, save_schema
from fashion_jax.data.tables import one_line
from fashion_jax.system.errors import UserError

D = datetime.date
SCHEMA = Schema("shop", (), id_column="sku", image_column="file", title_column="name")
FRAME = pd.DataFrame({
    "sku": ["a", "a", "b", "c", ""],
    "file": ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"],
    "name": ["Röck\nrot", "", "B", "C", "D"],
    "price": ["1.012,40 €", "", "7 €", "n/a", "8 €"],
    "per kilo": ["12 EUR/kg", "3", "4", "5", "6"],
    "sizes": ["S", "42", "M", "L", "XL"],
    "stock": ["1", "2", "", "3", "4"],
    "sold": ["ja", "", "nein", "Ja", "ja"],
    "since": ["31.01.2026", "", "1.2.2026", "", ""],
    "seen": ["2026-01-31 10:15", "", "2026-02-01 00:00", "", ""],
    "ean": ["0001", "0001", "0002", "0003", "0004"],
    "brand": ["=HYPERLINK(1)", "=HYPERLINK(1)", " Ä  B", "None", "x"],
    "link": ["https://shop.example/a"] * 5,
    "second photo": ["b.png", "", "", "", "c.webp"],
    "text": ["<p>" + "word " * 60] * 5,
    "blob": [b"\xff\xd8"] * 5,
    "nothing": ["", "-", "", "N/A", ""],
    "Unnamed: 7": list("12345"),
})  # fmt: skip
UNUSED = [name for name in FRAME if name not in ("sku", "file", "name")]


def carry(frame, schema, unused):
    ids = frame[schema.id_column] if schema.id_column else map(str, frame.index)
    return carry_columns(frame, list(map(one_line, ids)), schema, unused)


def test_columns_are_chosen_and_read_as_what_they_hold():
    carried = carry(FRAME, SCHEMA, UNUSED)
    values = {name: column.values for name, column in carried.columns.items()}
    assert values == {
        "name": {"a": "Röck rot", "b": "B", "c": "C"},
        "price": {"a": 1012.4, "b": 7},
        "per kilo": {"a": "12 EUR/kg", "b": "4", "c": "5"},
        "sizes": {"a": "S", "b": "M", "c": "L"},
        "stock": {"a": 1, "c": 3},
        "sold": {"a": True, "b": False, "c": True},
        "since": {"a": D(2026, 1, 31), "b": D(2026, 2, 1)},
        "seen": {"a": datetime.datetime(2026, 1, 31, 10, 15), "b": datetime.datetime(2026, 2, 1)},
        "ean": {"a": "0001", "b": "0002", "c": "0003"},
        "brand": {"a": "=HYPERLINK(1)", "b": "Ä B"},
    }
    assert carried.left_out == {
        "link": "it holds addresses", "second photo": "it holds names of photos", "text": "it holds long texts",
        "blob": "it holds bytes", "nothing": "it holds nothing", "Unnamed: 7": "it has no name",
    }  # fmt: skip
    assert carried.columns["price"].of(["b", "x", "a"], "text") == ["7 €", None, "1.012,40 €"]


def test_what_a_person_should_know_is_said():
    notes = "\n".join(carry(FRAME, SCHEMA, UNUSED).notes())
    for words in (
        "price (numbers with a decimal comma, in EUR)", "since (dates (day-month-year))", "sold (yes and no)",
        "'per kilo' stays text: '12 EUR/kg' is no number", "'ean' stays text: numbers with leading zeros",
        "column 'stock': 1 products have rows with different values, such as '1' and '2' of a; the first row counts",
    ):  # fmt: skip
        assert words in notes
    assert "'sizes' stays" not in notes and "'price': 1" not in notes


def test_cells_are_values_and_names_are_free():
    carried = carry(FRAME, SCHEMA, UNUSED)
    found = dict(zip(carried.headings(["price", "sold (table)"]), carried.cells("a"), strict=True))
    assert found == {
        "name": "Röck rot", "price (table)": 1012.4, "per kilo": "12 EUR/kg", "sizes": "S", "stock": 1,
        "sold": "yes", "since": "2026-01-31", "seen": "2026-01-31 10:15:00", "ean": "0001", "brand": "=HYPERLINK(1)",
    }  # fmt: skip
    assert carried.cells("no such product") == [""] * len(found)
    assert name_columns(["a", "b", "b (table)"], ["b", "b (table)"]) == {
        "a": "a", "b": "b (table 2)", "b (table)": "b (table) (table)"
    }  # fmt: skip


def test_the_fullest_columns_are_carried_where_there_are_many():
    frame = pd.DataFrame({f"c{i}": ["x", "y" if i % 2 else "", "z" if i % 2 else ""] for i in range(2 * MOST_CARRIED)})
    carried = carry(frame, Schema("shop", (), id_column=""), list(frame))
    assert list(carried.columns) == [f"c{i}" for i in range(1, 2 * MOST_CARRIED, 2)]
    assert len(carried.left_out) == MOST_CARRIED and "name it in the schema's carry" in carried.left_out["c0"]


def test_a_schema_may_name_the_columns(tmp_path):
    schema = dataclasses.replace(SCHEMA, carry=("brand", "nothing", "link"))
    carried = carry(FRAME, schema, UNUSED)
    assert list(carried.columns) == ["brand", "nothing", "link"] and carried.columns["nothing"].kind == "nothing"
    save_schema(schema, tmp_path / "schema.json")
    assert load_schema(tmp_path / "schema.json") == schema
    for name, message in (("brnad", "did you mean 'brand'"), ("blob", "holds bytes")):
        with pytest.raises(UserError, match=message):
            carry(FRAME, dataclasses.replace(SCHEMA, carry=(name,)), UNUSED)


def test_a_catalogue_has_them_by_product_and_its_stamp_is_the_same(tmp_path):
    table = write_products(tmp_path / "shop", 30)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0] + ",Preis", *(f'{line},"{i},50 €"' for i, line in enumerate(lines[1:]))]))
    catalog = open_catalog(table)
    assert list(catalog.carried.columns) == ["Preis"] and "Preis" in catalog.unused
    assert catalog.carried.columns["Preis"].values == {r.id: place + 0.5 for place, r in enumerate(catalog.records)}
    schema = json.loads(json.dumps({**catalog.schema.to_dict(), "carry": ["Preis", "colour"]}))
    named = open_catalog(table, Schema.from_dict(schema))
    assert set(named.carried.columns) == {"Preis", "colour"} and named.stamp() == catalog.stamp()
    assert open_catalog(tmp_path / "shop/photos", labelled=False).carried.columns == {}
    assert "Preis" in explain_unused(FRAME.rename(columns={"price": "Preis"}), SCHEMA)
