"""The language of filters: what it means, against pandas, and what it refuses."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_jax.search.attributes import make_table
from fashion_jax.search.where import parse_where
from fashion_jax.system.errors import UserError

FRAME = pd.DataFrame(
    {
        "gender": ["Women", "Men", None, "Women", "Boys", "Men"],
        "baseColour": ["Red", "Blue", "Red", "Navy Blue", "It's", ""],
        "year": [2012, 2015, 2011, np.nan, 2012, 2010],
        "in stock": [True, False, True, True, False, True],
        "price": ["5", "12 EUR/kg", "", "7", "ask", "9"],
        "added": pd.to_datetime(
            ["2026-01-01", "2026-01-01 10:15", "2025-12-31 23:59:59", None, "2026-02-03", "2024-02-29"], format="mixed"
        ),
        "tags": ["Casual|Summer", "Summer", None, "Summer dress|Casual", "Party", "Summer|Party"],
    }
)
TABLE = make_table(FRAME, len(FRAME))


def passing(text: str) -> list[int]:
    return np.flatnonzero(parse_where(text).evaluate(TABLE)).tolist()


@pytest.mark.parametrize(("text", "rows"), [
    ("gender in ['Men', \"Boys\"]", [1, 4, 5]), ("gender not in ['Men']", [0, 2, 3, 4]),
    ("gender == none", [2]), ("baseColour == none", [5]), ("year != none", [0, 1, 2, 4, 5]),
    ("year < 2.012e3", [2, 5]), ("`in stock` == true", [0, 2, 3, 5]), ("`in stock` == FALSE", [1, 4]),
    (r"baseColour == 'It\'s'", [4]), ('baseColour == "It\'s"', [4]),
    ("`in stock` == yes", [0, 2, 3, 5]), ("`in stock` != No", [0, 2, 3, 5]),
    ("`in stock` in ['ja', 'Yes']", [0, 2, 3, 5]),
    ("`in stock` == 0", [1, 4]), ("`in stock` > 0 and year == 2012", [0]), ("price == '5' or price == none", [0, 2]),
    ("added == '2026-01-01'", [0, 1]), ("added != '2026-01-01'", [2, 3, 4, 5]), ("added <= '2026-01-01'", [0, 1, 2, 5]),
    ("added > '2026-01-01'", [4]), ("added >= '2026-01-01'", [0, 1, 4]), ("added < '2026-01-01'", [2, 5]),
    ("added == '1.1.2026'", [0, 1]), ("added in ['1 Jan 2026', '2026/02/03']", [0, 1, 4]),
    ("added == '29.02.2024'", [5]),
    ("added == '2026-01-01 10:15'", [1]), ("added > '2026-01-01 10:14' and added <= '2026-01-01T10:15:00'", [1]),
    ("added == '2026-01'", [0, 1]), ("added in ['2025-12', '2024']", [2, 5]), ("added > '2025'", [0, 1, 4]),
    ("added <= '9999-12-31'", [0, 1, 2, 4, 5]), ("added < '9999-12'", [0, 1, 2, 4, 5]), ("added == '9999'", []),
    ("added == none", [3]), ("not added < '2026'", [0, 1, 3, 4]),
    ("gender == 'Women' and baseColour == 'Red' or year == 2010", [0, 5]),
    ("gender == 'Women' and (baseColour == 'Red' or year == 2010)", [0]),
    ("tags has 'Summer'", [0, 1, 5]), ("tags not has 'Summer'", [2, 3, 4]), ("not (tags has 'Party')", [0, 1, 2, 3]),
    ("tags has 'Casual' and not tags has 'Summer'", [3]), ("tags has 'Summer|Party'", []),
    ("tags HAS 'Party' or gender == 'Women'", [0, 3, 4, 5]), ("tags == 'Casual|Summer'", [0]), ("tags == none", [2]),
    ("not not (gender == 'Men')", [1, 5]), ("not gender == 'Men' and year == 2012", [0, 4]),
])  # fmt: skip
def test_meaning(text, rows):
    assert passing(text) == rows


@pytest.mark.parametrize(("text", "message"), [
    ("", "at character 1, the end: the name of a column"), ("2012 <= year", "the name of a column"),
    ("gendr == 'Men'", "no column 'gendr'; did you mean 'gender'"), ("gender = 'Men'", "write =="),
    ("gender == Men", "a text in quotes"), ("gender == 'Men", "never closed"), ("gender", "one of == !="),
    ("gender == 'Men' 'Women'", "'and', 'or' or the end"), ("(gender == 'Men'", "')' is expected"),
    ("gender in 'Men'", "'[' is expected"), ("gender in ['Men' 'Women']", "',' is expected"),
    ("gender == 3", "holds texts"), ("year == '2012'", "holds numbers"),
    ("price < 20", "the column 'price' holds texts such as '12 EUR/kg', and < compares numbers and dates only"),
    ("price >= '20'", "index update --table"), ("gender > 'Men'", "use == or in"), ("`in stock` == 3", "true or false"),
    ("`in stock` == 'maybe'", "holds yes and no"), ("added > 2025", "holds dates"),
    ("added < '03/04/2026'", "such as '2026-01-31'"),
    ("added == 'soon'", "holds dates"), ("added == ''", "holds dates"), ("added == '2026-13'", "holds dates"),
    ("added == true", "holds dates"), ("year < none", "no meaning"),
    ("tags has Summer", "a text in quotes"), ("tags has ['Summer', 'Party']", "write: tags has 'A' and tags has 'B'"),
    ("year has 'x'", "does not hold texts"),
    ("__import__('os').system('true')", "'.' has no meaning"), ("year == 12abc", "not understood"),
    ("not " * 200 + "year == 1", "nested"), ("(" * 5000 + "year == 1" + ")" * 5000, "nested"),
    ("year == " + "1" * 30_000, "characters"), (3, "is a text"),
])  # fmt: skip
def test_what_is_not_understood_is_said(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_where(text).evaluate(TABLE)


def test_lists_of_texts_are_columns_of_several_values():
    table = make_table({"tags": [["Summer", "Casual"], [], None, ("Party",)], "has": ["a", "b", "a", "b"]}, 4)
    assert table.to_lists()["tags"] == ["Casual|Summer", None, None, "Party"]
    assert np.flatnonzero(parse_where("tags has 'Casual' and has == 'a'").evaluate(table)).tolist() == [0]
    assert parse_where("tags has 'Sumer'").hints(table) == [
        "no product has 'Sumer' in its column tags; did you mean 'Summer'?"
    ]
    assert parse_where("tags has 'Summer'").hints(table) == []
    with pytest.raises(UserError, match=r"'a\|b'; it must hold texts without"):
        make_table({"tags": [["a|b"]]}, 1)


def test_words_that_no_product_has_are_named():
    hints = parse_where("gender == 'Womem' or gender in ['Men'] and baseColour != 'Blu'").hints(TABLE)
    assert hints == [
        "no product has the gender 'Womem'; did you mean 'Women'?",
        "no product has the baseColour 'Blu'; did you mean 'Blue'?",
    ]


@st.composite
def filters(draw, depth=3):
    """A filter and the same thing computed with pandas."""
    kind = draw(st.sampled_from(["compare", "in"] if depth == 0 else ["compare", "in", "not", "and", "or"]))
    if kind == "not":
        text, mask = draw(filters(depth=depth - 1))
        return f"not ({text})", ~mask
    if kind in ("and", "or"):
        (left, a), (right, b) = draw(filters(depth=depth - 1)), draw(filters(depth=depth - 1))
        return f"({left}) {kind} ({right})", a & b if kind == "and" else a | b
    column = draw(st.sampled_from(["gender", "year"]))
    values = ["Men", "Women", "Boys", "Girls"] if column == "gender" else [2010, 2011, 2012, 2013]
    series = FRAME[column]
    if kind == "in":
        chosen = draw(st.lists(st.sampled_from(values), max_size=3))
        return f"{column} in {chosen!r}", series.isin(chosen)
    # Texts are not smaller or larger than others.
    marks = ["==", "!="] if column == "gender" else ["==", "!=", "<", "<=", ">", ">="]
    mark, value = draw(st.sampled_from(marks)), draw(st.sampled_from(values))
    rows = series if mark in ("==", "!=") else series.dropna()
    passing_rows = {"==": rows.eq, "!=": rows.ne, "<": rows.lt, "<=": rows.le, ">": rows.gt, ">=": rows.ge}[mark](value)
    return f"{column} {mark} {value!r}", passing_rows.reindex(series.index, fill_value=False)


@given(filters())
def test_any_filter_means_what_pandas_computes(pair):
    text, mask = pair
    assert passing(text) == np.flatnonzero(mask.to_numpy(bool)).tolist()


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_a_user_error(text):
    with contextlib.suppress(UserError):
        parse_where(text).evaluate(TABLE)
