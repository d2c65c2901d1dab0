"""Attributes of several values, and "does not apply": how tables write them, and what the records hold."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from drawn_products import write_products
from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.catalog_report import format_report
from fashion_jax.data.prepare import PrepareOptions, prepare
from fashion_jax.data.records import open_prepared
from fashion_jax.data.schema import Attribute, MultiValued, Schema
from fashion_jax.data.tags import (
    choose_classes,
    find_separators,
    format_tags,
    offer_tags,
    read_tags,
    report_tags,
    tag_text,
    tag_vectors,
)
from fashion_jax.system.errors import UserError


def read(cells: list[str] | dict[str, list[str]], **keys) -> list[str]:
    frame = pd.DataFrame({"occasion": cells} if isinstance(cells, list) else cells, dtype=object)
    schema = Schema("shop", (), image_column="file", multi_valued=(MultiValued("occasion", **keys),))
    column = read_tags(schema, frame, Counter())["occasion"]
    choose_classes(schema.multi_valued[0], column, pd.Series(True, frame.index))
    return column.cells.tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["Casual|Summer", "Casual", "", "Party | casual "], ["Casual|Summer", "Casual", "", "Party|casual"]),
        (["Casual, Summer", "Summer", "n/a"], ["Casual|Summer", "Summer", ""]),
        (["Casual;Summer", "Summer;;Casual;Summer", "?"], ["Casual|Summer", "Casual|Summer", ""]),
        (["Casual/Summer", "Summer/Party", "-"], ["Casual|Summer", "Party|Summer", ""]),
        (["Casual|Summer", "Summer|Casual", "Party", "Casual", "Casual, Summer", "Casual; Summer"],
         ["Casual|Summer", "Casual|Summer", "Party", "Casual", "Casual|Summer", "Casual|Summer"]),  # mixed signs
        (["Casual\nSummer", "Casual"], ["Casual|Summer", "Casual"]),
        (["T-Shirt/Top", "Jeans"], ["T-Shirt/Top", "Jeans"]),  # a slash that divides nothing
        (["T-Shirt/Top, Casual", "Jeans, Casual"], ["Casual|T-Shirt/Top", "Casual|Jeans"]),
        (["Smart, warm|Summer", "Summer|Party"], ["Smart, warm|Summer", "Party|Summer"]),
        (['["Casual", "Summer"]', "[]", "", "['Party']"], ["Casual|Summer", "[]", "", "Party"]),
        (["['Casual' 'Summer']", "[Casual, Party]", "{Casual,\"It's warm\"}"],
         ["Casual|Summer", "Casual|Party", "Casual|It's warm"]),  # numpy, bare words, PostgreSQL
        (["(all year)", "Casual|(all year)"], ["(all year)", "(all year)|Casual"]),
        (["None|Casual", '["n/a"]'], ["Casual", ""]),  # a missing word beside a value, and alone
    ],
)  # fmt: skip
def test_cells_become_lists(cells, expected):
    assert read(cells) == expected


def test_a_given_separator_merged_values_and_rare_ones():
    assert read(["red & blue", "red, dark & blue"], separator="&") == ["blue|red", "blue|red, dark"]
    assert read(["sommer|casual", "Summer"], merge=(("sommer", "Summer"),)) == ["Summer|casual", "Summer"]
    assert read(["a|b", "a|c", "a", "c"], min_rows=2) == ["a", "a|c", "a", "c"]
    assert read(["a|b", "b"], classes=("a",)) == ["a", "[]"]  # b is known, and is none of the classes
    with pytest.raises(UserError, match=r"holds '\|'"):
        read(['["a|b"]'])


@pytest.mark.parametrize(
    ("casual", "summer", "expected"),
    [
        (["1", "0", "", "0"], ["1", "0", "", ""], ["Casual|Summer", "[]", "", ""]),
        (["yes", "no"], ["no", "no"], ["Casual", "[]"]),
        (["x", "", ""], ["", "x", ""], ["Casual", "Summer", ""]),  # marks: an empty cell beside one means no
        (["TRUE", "FALSE"], ["1", "1"], ["Casual|Summer", "Summer"]),
    ],
)
def test_columns_of_yes_and_no_are_one_attribute(casual, summer, expected):
    columns = (("Casual", "is_casual"), ("Summer", "is_summer"))
    assert read({"is_casual": casual, "is_summer": summer}, columns=columns) == expected


def test_a_column_of_other_words_is_no_column_of_yes_and_no():
    with pytest.raises(UserError, match="'is_casual' of 'occasion' holds 'maybe'"):
        read({"is_casual": ["yes", "maybe"]}, columns=(("Casual", "is_casual"),))


def test_the_fewest_values_decide_the_separator():
    assert find_separators({"a, b|c": 1, "c|d": 1, "a, b|d": 1}) == ("|",)
    assert find_separators({"S/M, red": 1, "S/M, blue": 1, "red": 1}) == (",",)
    assert find_separators({"navy, dark": 4, "red": 2}) == ()
    assert set(find_separators(dict.fromkeys(["a|b", "b, a", "a; c", "c", "b", "a"], 1))) == {"|", ",", ";"}


def test_similar_values_are_named_with_the_line_that_merges_them():
    schema = Schema("shop", (), image_column="file", multi_valued=(MultiValued("occasion"),))
    column = read_tags(schema, pd.DataFrame({"occasion": ["Beach|party", "Party", "Party|Beach"]}), Counter())
    choose_classes(schema.multi_valued[0], column["occasion"], pd.Series(True, range(3)))
    lines = format_tags(report_tags(column, {"occasion": tag_vectors(column["occasion"].cells, ("Beach",))}))
    assert "similar classes: 'Party' 2, 'party' 1" in lines[1]
    assert lines[2].endswith('multi_valued: {"name": "occasion", "merge": {"party": "Party"}}')


def test_vectors_and_texts_are_inverse():
    texts = ["a|c", "[]", "", "b"]
    vectors = tag_vectors(texts, ("a", "b", "c"))
    assert vectors.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]]
    assert [tag_text(vector, ("a", "b", "c")) for vector in vectors] == texts


def offers(**columns: list[str]) -> list[str]:
    frame = pd.DataFrame(columns, dtype=object)
    return offer_tags(Schema("shop", (), image_column="file"), frame, columns)


def test_several_values_are_offered_and_words_are_not():
    found = offers(occasion=["Casual|Summer", "Casual", "Summer"] * 4)
    assert "cells look like several values: 'Casual|Summer' 4 rows" in found[0]
    assert '"multi_valued": [{"name": "occasion"}]' in found[0]
    assert offers(look=["['a', 'b']", "['b']", "['a']"] * 3)
    assert offers(use_a=["0", "1"] * 3, use_b=["1", "0"] * 3)[0].count("use_") == 4
    assert not offers(kind=["T-Shirt/Top", "Jeans"] * 9, size=["36/38", "40"] * 9)
    assert not offers(name=["a, b", "c, d", "e"] * 9)
    assert not offers(only_a=["0", "1"] * 3)


def test_schema_json_reads_names_objects_and_words():
    schema = Schema.from_dict({"name": "shop", "attributes": [], "image_column": "f", "multi_valued": ["occasion"]})
    assert schema.multi_valued == (MultiValued("occasion"),) and Schema.from_dict(schema.to_dict()) == schema
    columns = {"Casual": "is_casual"}
    marks = Schema.from_dict({**schema.to_dict(), "multi_valued": [{"name": "o", "columns": columns}]})
    assert marks.multi_valued[0].used_columns() == ("is_casual",) and Schema.from_dict(marks.to_dict()) == marks
    for several, attributes, message in (
        (["kind"], [{"name": "kind"}], "twice; keep it either under"),
        ([{"name": "o", "columns": columns, "column": "o"}], [], "one for each class"),
        ([{"name": "o", "classes": ["a|b"]}], [], "stands between two classes"),
        ([{"name": "o", "seperator": ","}], [], "unknown key 'seperator'"),
    ):
        with pytest.raises(UserError, match=message):
            Schema.from_dict({"name": "s", "attributes": attributes, "image_column": "f", "multi_valued": several})


FIXED, RARE = {"classes": ("Casual", "Summer")}, {"min_rows": 3}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """60 products: tags by the product's number, some missing; a sleeve that does not apply to every third."""
    table = write_products(tmp_path_factory.mktemp("tags"), 60)
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    numbers = range(len(frame))
    frame["occasion"] = [("Casual|Summer", "Summer", "", "[]", "Party, Casual|Summer")[n % 5] for n in numbers]
    frame["sleeve"] = [("n/a", "long", "", "NA", "short", "N/A")[n % 6] for n in numbers]
    frame.to_csv(table, index=False)
    return table


def schema_of(shop, **keys) -> Schema:
    inferred = open_catalog(shop).schema
    kinds = [a for a in inferred.attributes if a.name not in ("occasion", "sleeve")]
    attributes = (*kinds, Attribute("sleeve", **keys))
    return Schema(
        "shop", attributes, inferred.id_column, inferred.image_column, multi_valued=(MultiValued("occasion"),)
    )


def test_records_hold_tags_apart_from_labels(shop, tmp_path):
    catalog = open_catalog(shop)
    assert "cells look like several values: 'Casual|Summer' 24 rows" in catalog.offers[0]
    prepared = prepare(shop, tmp_path / "out", PrepareOptions(schema_of(shop)), progress=False)
    assert prepared.tag_vocabularies == {"occasion": ("Casual", "Party, Casual", "Summer")}
    assert "occasion" not in prepared.vocabularies
    by_id = dict(zip(prepared.ids, map(tuple, prepared.tags["occasion"].tolist()), strict=True))
    frame = pd.read_csv(shop, dtype=str, keep_default_na=False)
    expected = {"Casual|Summer": (1, 0, 1), "Summer": (0, 0, 1), "": (-1, -1, -1), "[]": (0, 0, 0)}
    expected["Party, Casual|Summer"] = (0, 1, 1)
    assert {by_id[i] == expected[c] for i, c in zip(frame.iloc[:, 0], frame["occasion"], strict=True)} == {True}
    report = format_report(prepared.report)
    assert "occasion (several values, separated by '|'): 3 classes: 'Casual' 12" in report
    assert "no value 12; missing labels 12" in report
    again = open_prepared(tmp_path / "out")
    np.testing.assert_array_equal(again.tags["occasion"], prepared.tags["occasion"])

    import tensorflow_datasets as tfds

    source = tfds.builder("fashion_products", data_dir=str(tmp_path / "out")).as_data_source("train")
    numbers = [list(row["tags_occasion"]) for row in source]
    vectors = prepared.tags["occasion"][prepared.indices("train")]
    assert numbers == [[-1] if row[0] < 0 else np.flatnonzero(row).tolist() for row in vectors]


def test_a_row_takes_the_tags_of_its_product(shop, tmp_path):
    frame = pd.read_csv(shop, dtype=str, keep_default_na=False)
    frame["file"] = [str(shop.parent / name) for name in frame["file"]]
    frame["sku"] = [f"P{n // 3}" for n in range(len(frame))]  # three photos each, the tags of every fifth row missing
    frame.to_csv(tmp_path / "products.csv", index=False)
    schema = dataclasses.replace(schema_of(shop), image_root=str(shop.parent))
    catalog = open_catalog(tmp_path / "products.csv", schema)
    given = dict(zip(frame["file"], frame["occasion"], strict=True))
    for product in set(frame["sku"]):
        records = [r for r in catalog.records if r.id == product]
        cells = [given[str(shop.parent / r.photo)] for r in records]
        assert len(records) == 3 and all(r.tags[0] for r in records)
        for record, cell in zip(records, cells, strict=True):
            assert record.tags[0] == (cell or next(c for c in cells if c))
    assert catalog.differing["occasion"] == 20


def test_does_not_apply_is_a_class_apart_from_a_missing_label(shop, tmp_path):
    schema = schema_of(shop, not_applicable=("n/a",))
    catalog = open_catalog(shop, schema)
    assert catalog.vocabularies["sleeve"] == ("does not apply", "long", "short")
    assert catalog.not_applicable["sleeve"] == {"n/a": 10, "N/A": 10}
    assert catalog.missing_words["sleeve"] == {"": 10, "NA": 10}  # missing words win nothing over it
    report = prepare(shop, tmp_path / "out", PrepareOptions(schema), progress=False).report
    assert "sleeve: read as 'does not apply': 'n/a' 10, 'N/A' 10" in format_report(report)
    empty = open_catalog(shop, schema_of(shop, not_applicable=("",), classes=("long", "short")))
    assert empty.vocabularies["sleeve"] == ("does not apply", "long", "short")
    assert empty.not_applicable["sleeve"] == {"": 10}
    fixed = open_catalog(shop, schema_of(shop, not_applicable=("long",), classes=("long", "short")))
    assert fixed.not_applicable["sleeve"] == {}  # a class that the schema names stays what it is


def test_corrections_of_tags_add_and_remove(shop, tmp_path):
    schema, ids = schema_of(shop, not_applicable=("n/a",)), [r.id for r in open_catalog(shop).records]
    path = tmp_path / "corrections.csv"
    path.write_text(
        "id,attribute,given,corrected\n"
        f"{ids[0]},occasion,Casual|Summer,Summer\n"  # removes one
        f'{ids[0]},occasion,Summer|Casual,"Casual|Summer|Party, Casual"\n'  # and adds another
        f"{ids[2]},occasion,,[]\n"
        f"{ids[3]},occasion,[],NA\n"
        f"{ids[1]},sleeve,long,N/A\n"
    )
    catalog = open_catalog(shop, schema, corrections=path)
    texts = {record.id: record.tags[0] for record in catalog.records}
    assert [texts[ids[n]] for n in (0, 2, 3)] == ["Party, Casual|Summer", "[]", ""]
    assert catalog.corrected == {"occasion": 3, "sleeve": 1}
    assert next(r for r in catalog.records if r.id == ids[1]).labels[-1] == "does not apply"
    path.write_text(f"id,attribute,corrected\n{ids[0]},occasion,Casual|Sumer\n")
    with pytest.raises(UserError, match="'Sumer' is no class of occasion; did you mean 'Summer'"):
        open_catalog(shop, schema, corrections=path)


@pytest.mark.parametrize(
    ("keys", "cell", "given", "corrected", "expected"),
    [
        # The schema's classes are Casual and Summer.
        (FIXED, "Summer|Party", "Summer", "Casual", "Casual"), (FIXED, "Summer|Party", "Summer", "[]", "[]"),
        (FIXED, "Party", "[]", "Summer", "Summer"), (FIXED, "Party|Beach", "[]", "NA", ""),
        (FIXED, "Casual|Party", "Summer", "Casual", "Casual"),  # the table has been edited already
        (FIXED, "Summer|Party", "Party|Summer", "Casual", "Casual"),  # the table's own cell under given
        (FIXED, "Summer|Casual|Party", "Summer", "Casual", None), (FIXED, "Party", "Summer", "Casual", None),
        (FIXED, "", "[]", "Casual", None),
        # Party and Beach stand in one row, Casual and Summer in many.
        (RARE, "Summer|Party", "Summer", "Casual|Summer", "Casual|Summer"),
        (RARE, "Party|Beach", "[]", "Casual", "Casual"), (RARE, "Casual|Summer|Beach", "Casual", "Summer", None),
    ],
)  # fmt: skip
def test_an_audit_that_has_not_seen_values_that_are_no_classes_can_be_applied(
    tmp_path, keys, cell, given, corrected, expected
):
    table = write_products(tmp_path, 20)
    frame = pd.read_csv(table, dtype=str, keep_default_na=False)
    frame["occasion"] = [cell, *["Casual|Summer", "Casual", "Summer"] * 6, "[]"]
    frame.to_csv(table, index=False)
    schema = Schema("shop", (Attribute("kind"),), "sku", "file", multi_valued=(MultiValued("occasion", **keys),))
    ids = frame["sku"].tolist()
    path = tmp_path / "findings.csv"
    path.write_text(f"id,attribute,given,corrected\n{ids[0]},occasion,{given},{corrected}\n")
    if expected is None:
        with pytest.raises(UserError, match="made for another catalogue"):
            open_catalog(table, schema, corrections=path)
        return
    catalog = open_catalog(table, schema, corrections=path)
    assert next(record for record in catalog.records if record.id == ids[0]).tags == (expected,)
    assert catalog.corrected["occasion"] == (cell != "Casual|Party")
    if corrected != "NA":  # the others are reported still, and not removed by the correction
        rare = {tag for tag in ("Party", "Beach") if tag in cell and given != "Party|Summer"}
        assert rare <= set(catalog.tags["occasion"].no_class)
