"""Columns beside the vectors: what is read, joined, written and refused."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from fashion_jax.search.attributes import AttributeTable, make_table
from fashion_jax.system.errors import UserError

COLUMNS = {"colour": ["Red", None, "Blue", "Red"], "price": [10, 2.5, float("nan"), True]}


def test_cells_come_back_as_they_were():
    table = make_table(COLUMNS, 4)
    assert table.to_lists() == {"colour": ["Red", None, "Blue", "Red"], "price": [10, 2.5, None, 1]}
    assert table.row(1) == {"colour": None, "price": 2.5}
    assert make_table(pd.DataFrame(COLUMNS), 4).to_lists() == table.to_lists()
    taken = table.take(np.array([2, -1, 0]))  # -1 is missing
    assert taken.to_lists() == {"colour": ["Blue", None, "Red"], "price": [None, None, 10]}
    arrays, about = table.to_arrays()
    assert AttributeTable.from_arrays(arrays, about, 4).to_lists() == table.to_lists()
    for damaged in ({**arrays, "column0": np.array([0, 1, 7, 0], np.int32)}, {"column0": arrays["column0"]}):
        with pytest.raises(UserError, match="damaged"):
            AttributeTable.from_arrays(damaged, about, 4)


def test_every_way_to_say_missing():
    frame = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": ["x", pd.NaT], "c": ["", np.nan]})
    assert make_table(frame, 2).to_lists() == {"a": [1, None], "b": ["x", None], "c": [None, None]}


def test_dates_and_truths_come_back_as_such():
    day, moment = datetime.date(2026, 1, 31), datetime.datetime(2026, 1, 31, 9, 30, 0, 250_000)
    there = datetime.timezone(datetime.timedelta(hours=2))
    columns = {
        "sold": [True, None, np.bool_(False), True],
        "day": [day, None, datetime.date(1, 1, 1), pd.Timestamp(day)],
        "moment": [moment, day, pd.NaT, datetime.datetime(2026, 1, 31, 11, 30, tzinfo=there)],
        "numpy": [np.datetime64("2026-01-31"), np.datetime64("NaT"), np.datetime64("9999-12-31T23:59:59.999999"), None],
    }
    wanted = {
        "sold": [True, None, False, True],
        "day": ["2026-01-31", None, "0001-01-01", "2026-01-31"],
        "moment": ["2026-01-31 09:30:00.250000", "2026-01-31", None, "2026-01-31 09:30:00"],
        "numpy": ["2026-01-31", None, "9999-12-31 23:59:59", None],
    }
    table = make_table(columns, 4)
    assert table.to_lists() == wanted and type(table.row(0)["sold"]) is bool
    arrays, about = table.to_arrays()
    assert AttributeTable.from_arrays(arrays, about, 4).to_lists() == wanted
    # What is written to the journal, and read from it, are the texts.
    assert table.conform(make_table(wanted, 4)).to_lists() == wanted
    for harm in ({"kind": "boolean"}, {"kind": "money"}, {"kind": "date"}):
        with pytest.raises(UserError, match=r"damaged|unknown kind"):
            AttributeTable.from_arrays({"column0": np.array([1e300])}, [{"name": "a", **harm}], 1)


@pytest.mark.parametrize(("ours", "theirs", "result"), [
    ([1.5], [True, None], [1, None]), ([True], [0, 1, None], [False, True, None]),
    ([True], ["ja", "no"], [True, False]),
    ([True], [2], "holds yes and no, not numbers such as 2"), (["x"], [3], "holds texts, not numbers"),
    ([1.5], ["3"], "holds numbers, not texts such as '3'"),
    ([datetime.date(2026, 1, 1)], ["31.01.2026"], ["2026-01-31"]),
    ([datetime.date(2026, 1, 1)], ["03/04/2026"], "dates, not texts such as '03/04/2026'"),
    ([datetime.date(2026, 1, 1)], [20260101], "dates, not numbers"), ([1], [datetime.date(2026, 1, 1)], "not dates"),
    (["x"], [datetime.date(2026, 1, 1)], "not dates"),
])  # fmt: skip
def test_values_become_what_the_column_holds_or_are_refused(ours, theirs, result):
    table = make_table({"a": ours}, 1)
    given = make_table({"a": theirs}, len(theirs))
    if isinstance(result, str):
        with pytest.raises(UserError, match=result):
            table.conform(given)
    else:
        assert table.conform(given).to_lists() == {"a": result}


def test_groups_are_equal_values_and_missing_ones_stand_alone():
    table = make_table({"t": ["a", None, "a", None, "b"], "n": [1.0, None, 1.0, None, 2.0]}, 5)
    for name in ("t", "n"):
        groups = table.groups(name)
        assert groups[0] == groups[2]
        assert len(set(groups.tolist())) == 4


def test_conforming_refuses_what_does_not_fit():
    table = make_table(COLUMNS, 4)
    for column, message in (({"color": ["Red"]}, "did you mean 'colour'"), ({"price": ["cheap"]}, "not texts")):
        with pytest.raises(UserError, match=message):
            table.conform(make_table(column, 1))
    assert table.conform(make_table({"price": [None]}, 1)).to_lists() == {"colour": [None], "price": [None]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"a": [1, 2, 3]}, "has 3 rows and there are 4"), ({"a": [1, "x", 2, 3]}, "mixes"), ([1, 2], "must map names")],
)
def test_what_is_no_table_is_refused(columns, message):
    with pytest.raises(UserError, match=message):
        make_table(columns, 4)
