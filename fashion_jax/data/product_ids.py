"""Ids of products as a table has them: cleaned, and refused where a spreadsheet has changed them."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from fashion_jax.data.tables import one_line
from fashion_jax.data.words import clean_label
from fashion_jax.system.errors import UserError

# 1.23457E+12 and 8.9E+9; without a plus only if there are decimals, because 4E12 may be a shop's own number.
_ROUNDED = re.compile(r"\d([.,]\d+)?[eE]\+\d{1,3}|\d[.,]\d+[eE]\d{1,3}")
_DIGITS = 15  # of a number that a spreadsheet keeps; it makes the others 0
_LONG = re.compile(rf"\d{{{_DIGITS + 1},}}")
_LEAST_LONG = 3  # rows with such zeros, from which on they are no chance
_MANY_EMPTY = 0.2  # share of rows without an id that looks like merged cells
_MONTH = re.compile(
    "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|sept|mrz|mär|mai|okt|dez|janv|févr|mars|avr|juin|juil|août|déc|"
    "ene|abr|ago|dic|gen|mag|giu|lug|set|ott|mrt|mei|fev|out|sty|lut|kwi|maj|cze|lip|sie|wrz|paź|lis|gru",
    re.IGNORECASE,
)
# 01-Jan, 1. Jan and Mar-04, as spreadsheets write them, and words in their place.
_DAY_AND_WORD = re.compile(r"(?P<day>\d{1,2})(?:-|\. ?)(?P<word>[^\W\d_]{3,4})\.?|(?P<other>[^\W\d_]{3,4})\.?-\d{2}")
_DATE = re.compile(r"\d{1,2}([./])\d{1,2}\1(19|20)\d\d|(19|20)\d\d-\d\d-\d\d( 00:00:00)?")
_FLOAT = re.compile(r"\d+\.0")


def clean_ids(cells: pd.Series, repairs: Counter[str] | None = None) -> pd.Series:
    """Returns the ids of a column of texts, in their usual form: see `words.clean_label`.

    Ids such as `1001.0` lose their `.0` if all ids have it: a program has read them as numbers.

    Args:
        cells: as the table has them.
        repairs: name of a repair -> rows that needed it; is added to.
    """
    texts = [str(cell) for cell in cells]
    changed = {text: clean_label(text)[0] for text in dict.fromkeys(texts)}
    floats = all(_FLOAT.fullmatch(text) for text in changed.values() if text) and any(changed.values())
    if floats:
        changed = {text: clean.removesuffix(".0") for text, clean in changed.items()}
    if repairs is not None:
        if floats:
            repairs["ids that were written as numbers with .0"] += sum(bool(text.strip()) for text in texts)
        elif count := sum(changed[text] != one_line(text) for text in texts):
            repairs["ids with invisible signs, other dashes, or letters in two parts"] += count
    return pd.Series([changed[text] for text in texts], cells.index, dtype=object)


def check_ids(source: str, column: str, ids: pd.Series) -> None:
    """Raises UserError where a spreadsheet has changed ids, so that several products may have the same.

    It rounds long numbers (1.23457E+12, 610000000000000000), and makes dates of texts such as 1-1 (01-Jan).

    Args:
        source: the catalogue, for the message.
        column: its name.
        ids: as `clean_ids` returns them.
    """
    for found, what in (
        (ids[ids.str.fullmatch(_ROUNDED)], "a number that a spreadsheet has rounded"),
        (_with_zeros(ids), f"a number of which a spreadsheet has kept {_DIGITS} digits at most"),
        (_dates(ids), "a date that a spreadsheet has made of an id such as 1-1"),
    ):
        if len(found):
            raise UserError(
                f"the id {found.iloc[0]!r} in row {found.index[0]} of {source} (column {column!r}, {len(found):,} such "
                f"rows) is {what}; format the column as text in the spreadsheet, put in the ids again from where they "
                "came, and save the table again"
            )


def explain_no_id(ids: pd.Series) -> str:
    """Returns why a row without an id is left out, with what to do where many rows lack theirs below another row's."""
    empty = (ids == "").to_numpy()
    if empty[:1].any() or empty.sum() <= _MANY_EMPTY * len(ids):
        return "the row has no id"
    return (
        "the row has no id; if it belongs to the product above it, as in merged cells, fill the ids down in the "
        "spreadsheet"
    )


def _with_zeros(ids: pd.Series) -> pd.Series:
    """Returns the ids of more digits than a spreadsheet keeps, if most of them have zeros in place of the others."""
    long = ids[ids.str.fullmatch(_LONG)]
    zeros = long[[not text[_DIGITS:].strip("0") for text in long]]
    return zeros if len(zeros) >= _LEAST_LONG and len(zeros) > len(long) / 2 else zeros[:0]


def _dates(ids: pd.Series) -> pd.Series:
    """Returns the ids that are a day and a month, or a date beside ids that are none.

    They are a shop's own if they are in capitals, or if other ids have words in the place of the months: `12-red`
    beside `12-mar`.
    """
    names = [text for text in ids.unique() if text]
    words = {text: m["word"] or m["other"] for text in names if (m := _DAY_AND_WORD.fullmatch(text))}
    dates = [text for text, word in words.items() if _MONTH.fullmatch(word) and not word.isupper()]
    others = {words[text].istitle() for text in words if text not in dates and not words[text].isupper()}
    dates = [text for text in dates if words[text].istitle() not in others]
    whole = [text for text in names if _DATE.fullmatch(text)]
    return ids[ids.isin([*dates, *(whole if len(whole) < len(names) else [])])]
