"""Labels: cleaned alike whatever the keyboard, compared, and never merged unasked."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_jax.data.catalog import open_catalog
from fashion_jax.data.catalog_report import describe_catalog, format_understood
from fashion_jax.data.schema import Schema
from fashion_jax.data.words import (
    clean_column,
    clean_label,
    find_look_alikes,
    find_missing,
    merge_line,
    notable_missing,
    suspect_missing,
)


@pytest.mark.parametrize(
    ("text", "label", "repair"),
    [
        ("Navy Blue", "Navy Blue", ""), ("Navy\u00a0Blue", "Navy Blue", "spaces"),
        (" Navy \t Blue\n", "Navy Blue", "spaces"),
        ("Navy\u3000Blue", "Navy Blue", "spaces"), ("Navy\u200bBlue", "NavyBlue", "invisible"),
        ("\ufeffNavy", "Navy", "invisible"), ("Na\u00advy", "Navy", "invisible"),
        ("\u202aNavy\u202c", "Navy", "invisible"),
        ("T\u2013Shirt", "T-Shirt", "dash"), ("T\u2011Shirt", "T-Shirt", "dash"), ("\u2014", "-", "dash"),
        ("cafe\u0301", "café", "NFC"), ("NAVY-blue", "NAVY-blue", ""), ("می\u200cخواهم", "می\u200cخواهم", ""),
    ],
)  # fmt: skip
def test_labels_are_cleaned_and_the_repair_is_named(text, label, repair):
    cleaned, repairs = clean_label(text)
    assert cleaned == label
    assert bool(repair) == bool(repairs) and all(repair in name for name in repairs)


@given(st.text(max_size=20))
def test_a_clean_label_stays_as_it_is(text):
    label = clean_label(text)[0]
    assert clean_label(label) == (label, ())
    assert clean_label(unicodedata.normalize("NFD", text))[0] == label


def test_repairs_count_rows():
    repairs: Counter[str] = Counter()
    column = clean_column(pd.Series(["a\u00a0b"] * 3 + ["a b", "a\u2013b"]), repairs)
    assert column.tolist() == ["a b"] * 4 + ["a-b"]
    assert sorted(repairs.values()) == [1, 3]


def test_missing_words_are_counted_as_they_are_written():
    column = pd.Series(["None", "none", "", "red", "-", "NONE", "n/a"])
    assert find_missing(column, ["None", "-"]) == {"None": 1, "none": 1, "NONE": 1, "": 1, "-": 1}
    assert find_missing(column, ["None", "-"], classes=["None"]) == {"none": 1, "NONE": 1, "": 1, "-": 1}
    assert find_missing(column, ["red", "\u2014"]) == {"red": 1, "": 1, "-": 1}
    assert notable_missing({"None": 30, "-": 40, "": 40, "NA": 2}, 100) == {"None": 30}
    assert notable_missing({"None": 30}, 10_000) == {}


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ({"Navy Blue": 5, "navy blue": 9, "Navy-Blue": 1, "NavyBlue": 2, "Red": 3}, [["navy blue", "Navy Blue",
        "NavyBlue", "Navy-Blue"]]),
        ({"Women's": 2, "womens": 1, "Women’s": 1}, [["Women's", "Women’s", "womens"]]),
        ({"T_shirt": 1, "T-SHIRT": 2}, [["T-SHIRT", "T_shirt"]]), ({"Ｒｅｄ": 1, "Red": 4}, [["Red", "Ｒｅｄ"]]),
        ({"STRASSE": 1, "Straße": 2}, [["Straße", "STRASSE"]]),
        ({"36-38": 1, "3638": 2, "1.5": 1, "15": 1, "C": 1, "C+": 1, "A/B": 1, "AB": 1,
          "1/2": 1, "1 & 2": 1, "かき": 1, "がき": 1, "Sand": 1, "S": 1, "D": 1}, []),
        ({"Bleu foncé": 3, "Bleu fonce": 1, "Rosé": 1, "Rose": 2}, [["Bleu foncé", "Bleu fonce"], ["Rose", "Rosé"]]),
        ({"Black": 3, "\u0412lack": 1}, [["Black", "\u0412lack"]]),
        ({"\u0421\u043ere": 1, "Core": 2}, [["Core", "\u0421\u043ere"]]),
        ({"\u0391lpha": 1, "Alpha": 2}, [["Alpha", "\u0391lpha"]]),
        ({"Black & White": 4, "Black and White": 3, "Black/White": 2, "black+white": 1, "Blackwhite": 1},
         [["Black & White", "Black and White", "Black/White", "black+white"]]),
        ({"Weiß und Blau": 1, "Weiss / Blau": 2}, [["Weiss / Blau", "Weiß und Blau"]]),
    ],
)  # fmt: skip
def test_look_alikes(counts, groups):
    found = find_look_alikes(counts)
    assert [list(group) for group in found] == groups
    assert all(group[name] == counts[name] for group in found for name in group)


def test_a_fixed_class_is_what_others_are_merged_into():
    found = find_look_alikes({"navy blue": 9, "Navy Blue": 1}, ["Navy Blue", "Red", "RED"])
    assert found == [{"Navy Blue": 1, "navy blue": 9}]  # the schema names Red and RED on purpose


def test_the_offered_line_merges_into_final_classes():
    line = merge_line("colour", [{"Navy": 5, "navy": 1}], {"marine": "navy", "x": "y"})
    assert json.loads(line) == {"name": "colour", "merge": {"marine": "Navy", "x": "y", "navy": "Navy"}}


@pytest.mark.parametrize("word", ["#REF!", "#N/A", "#DIV/0!", "#NAME?", "#BEZUG!", "#WERT!", "#¡VALOR!", "#NV", "#Н/Д"])
def test_failed_formulas_are_missing(word):
    assert find_missing(pd.Series([word, "red", "#red", "#SALE!", "#1"]), []) == {word: 1}
    assert notable_missing({word: 50}, 100) == {}


@pytest.mark.parametrize(
    "word",
    [
        "keine Angabe", "k.A.", "unknown", "Unbekannt", "нет данных", "未知", "なし", "Not specified", "n/d",
        "sin color", "TBD", ".", "0", "...", "(none)", "[blank]", "***", "NON RENSEIGNÉ", "ohne Color", "없음",
        "- unknown -",
    ],
)  # fmt: skip
def test_words_that_may_be_missing_labels_are_suspected(word):
    counts = {word: 4, "red": 9, "Unknown Pleasures": 2, "no sleeve": 1, "N1": 1, "😀x": 1}
    assert suspect_missing(counts, "color") == {word: 4}
    assert suspect_missing(counts, "color", [word]) == {}


def test_zero_is_a_class_beside_other_numbers():
    assert suspect_missing({"0": 4, "1": 5}, "kind") == {}


def test_suspected_words_are_reported_with_the_line_for_the_schema(tmp_path):
    rows = [f"S{i},{i}.jpg,{('red', 'unbekannt', 'blue')[i % 3]},{('a', 'b', '...')[i % 3]}" for i in range(30)]
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    (tmp_path / "t.csv").write_text("\n".join(["sku,image,color,kind", *rows]))
    report = describe_catalog(open_catalog(tmp_path / "t.csv"))
    words = report["words"]
    assert (words["color"]["maybe_missing"], words["kind"]["maybe_missing"]) == ({"unbekannt": 10}, {"...": 10})
    line = words["color"]["maybe_missing_line"]
    assert line == words["kind"]["maybe_missing_line"]
    assert f"color: if 'unbekannt' 10 means that the label is missing, write this into the schema: {line}" in (
        format_understood(report)
    )
    schema = open_catalog(tmp_path / "t.csv").schema.to_dict()
    again = open_catalog(tmp_path / "t.csv", Schema.from_dict({**schema, **json.loads("{" + line + "}")}))
    assert again.vocabularies == {"color": ("blue", "red"), "kind": ("a", "b")}
    assert not any(item["maybe_missing"] for item in describe_catalog(again)["words"].values())
