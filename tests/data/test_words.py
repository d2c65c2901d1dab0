"""Labels: cleaned alike whatever the keyboard, compared, and never merged unasked."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_jax.data.words import (
    clean_column,
    clean_label,
    find_look_alikes,
    find_missing,
    merge_line,
    notable_missing,
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
        ({"36-38": 1, "3638": 2, "1.5": 1, "15": 1, "Rosé": 1, "Rose": 1, "C": 1, "C+": 1, "A/B": 1, "AB": 1}, []),
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
