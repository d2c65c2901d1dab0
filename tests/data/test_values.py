"""Numbers, yes and no, and dates are read as shops write them, and never in a way that may be wrong."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_jax.data.values import cell_text, read_values

D = datetime.date


@pytest.mark.parametrize(
    ("texts", "numbers", "how"),
    [
        (["12,40 €", "7 €", "", "1.234,50 €"], [12.4, 7, None, 1234.5], "decimal comma, in EUR"),
        (["€1.234,50", "€2,00"], [1234.5, 2], "EUR"), (["1,234.50", "12"], [1234.5, 12], "numbers"),
        (["USD 12", "$13.5", "usd 1"], [12, 13.5, 1], "USD"),
        (["1,234", "2,345"], [1234, 2345], "'1,234' is read as 1234"),
        (["1,234", "12,40"], [1.234, 12.4], "decimal comma"), (["1.234", "2.5"], [1.234, 2.5], "numbers"),
        (["1\u00a0234,50", "1\u202f000"], [1234.5, 1000], "decimal comma"),
        (["1'234.50", "1’000"], [1234.5, 1000], "numbers"),
        (["₹1,23,456.00", "₹ 5"], [123456, 5], "INR"), (["(5.00)", "−3", "+2"], [-5, -3, 2], "numbers"),
        (["12,40 Kč", "1 200 Kč"], [12.4, 1200], "KČ"), (["1.000.000", "5"], [1e6, 5], "decimal comma"),
        (["12 %", "5%"], [12, 5], "in %"), (["10 cm", "12cm"], [10, 12], "in cm"), (["１２", "٣"], [12, 3], "numbers"),
        (["1e+5", "2.5E-3", "1.5e3"], [1e5, 0.0025, 1500], "numbers"),
        ([".5", "0,5"], [0.5, 0.5], "commas and decimal points"),
        (["0", "10"], [0, 10], "numbers"), (["60 W", "5 w"], [60, 5], "in W"), (["500g", "250 G"], [500, 250], "in g"),
        (["2500mAh"], [2500], "in mAh"), (["3 Stk.", "1 stk"], [3, 1], "in Stk"), (["10 см"], [10], "in см"),
        (["199kr", "99 KR"], [199, 99], "in KR"), (["9007199254740991", "1.5e+20"], [2**53 - 1, 1.5e20], "numbers"),
    ],
)  # fmt: skip
def test_numbers(texts, numbers, how):
    found = read_values(texts)
    assert (found.kind, found.values) == ("number", pytest.approx(numbers))
    assert how in found.how


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["1,234", "1,5", "1.5"], "'1,234' can be read in two ways"), (["$5", "€5"], "EUR, USD"),
        (["10 cm", "12 kg"], "cm, kg"),
        (["00123", "4"], "leading zeros"), (["01/02/2024", "03/04/2024"], "day and month"), (["36-38", "40"], ""),
        (["2024-01-01T10:00", "2024-01-01T10:00Z"], "time zone"), (["42", "red"], ""), (["1,2,3"], ""), (["inf"], ""),
        (["0001-01-01T00:00:00+01:00", "2024-01-01T10:00:00+01:00"], "before the year 1"),
        (["9999-12-31 23:59-14:00"], "after the year 9999"), (["2024-01-01 99:99"], ""), (["2024-01-01 24:00"], ""),
        (["2024-01-01T10:60"], ""), (["2024-01-01T10:00+99:00"], ""), (["T " * 20_000], ""),
        (["2024-01-01" + "T " * 50_000 + "1"], ""),
        (["1²"], ""), (["2024-02-30"], ""), (["1..2"], ""), (["yes", "maybe"], ""),
    ],
)  # fmt: skip
def test_doubtful_texts_stay_texts(texts, why):
    found = read_values(texts)
    assert (found.kind, found.values) == ("text", [*texts])
    assert why.casefold() in found.how.casefold() and bool(why) == bool(found.how)


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ("1001A 1002A", ""), ("4711DE 4712DE", ""), ("75B 80B", ""), ("10E2 5031", "codes"), ("3e7 4", "codes"),
        ("4711GB 4712GB", ""), ("36W 38W", ""), ("1001KG", ""), ("12XL", ""), ("2T 3T", ""), ("5y 6y", ""),
        ("KR1001 KR1002", ""), ("1001RS 1002RS", ""), ("12345678901234567890 1", "digits"),
        ("9007199254740993", "digits"),
        ("-99999999999999999", "digits"), ("9" * 5000, "digits"), ("１００１Ａ", ""),
    ],
)  # fmt: skip
def test_codes_come_out_as_they_went_in(codes, why):
    found = read_values(codes.split())
    assert (found.kind, found.values) == ("text", codes.split())
    assert why in found.how and bool(why) == bool(found.how)


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["ja", "Nein", ""], "boolean", [True, False, None]), (["TRUE", "false"], "boolean", [True, False]),
        (["Sí", "no"], "boolean", [True, False]), (["да", "нет"], "boolean", [True, False]),
        (["2024-01-02", "2023/12/31"], "date", [D(2024, 1, 2), D(2023, 12, 31)]),
        (["13/02/2024", "03/04/2024"], "date", [D(2024, 2, 13), D(2024, 4, 3)]),
        (["02/13/2024", "03/04/2024"], "date", [D(2024, 2, 13), D(2024, 3, 4)]),
        (["31.12.2024", "1.2.2024"], "date", [D(2024, 12, 31), D(2024, 2, 1)]),
        (["3 Jan 2024", ""], "date", [D(2024, 1, 3), None]),
        (["2024-01-02T10:00:00Z", "2024-01-02 10:00:00+02:00"], "date",
         [datetime.datetime(2024, 1, 2, 10), datetime.datetime(2024, 1, 2, 8)]),
        (["", "-", "N/A"], "nothing", [None, None, None]), (["a", "-"], "text", ["a", None]), ([], "nothing", []),
    ],
)  # fmt: skip
def test_yes_and_no_dates_and_nothing(texts, kind, values):
    found = read_values(texts, ["", "-", "n/a"])
    assert (found.kind, found.values) == (kind, values)


@given(
    st.lists(st.decimals(-(10**7), 10**7, places=2), min_size=1, max_size=6), st.sampled_from(["{:,.2f}", "{:.2f} €"])
)
def test_written_numbers_are_read_back(numbers, pattern):
    plain = [pattern.format(number) for number in numbers]
    swapped = [text.translate(str.maketrans(",.", ".,")) for text in plain]
    for texts in (plain, swapped):
        assert read_values(texts).values == [float(number) for number in numbers]


@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_texts_can_be_read(texts):
    assert len(read_values(texts).values) == len(texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (float("nan"), ""), (12.0, "12"), (np.float32(0.1), "0.1"), (True, "yes"),
        (decimal.Decimal("12.40"), "12.40"),
        (decimal.Decimal("1E+3"), "1000"), (datetime.datetime(2024, 5, 1), "2024-05-01"), (D(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 9, 30), "2024-05-01 09:30:00"), (["a", None, " b"], "a|b"), ("\ud800", "?"),
        (10**18, "1" + "0" * 18),
    ],
)  # fmt: skip
def test_texts_of_values(value, text):
    assert cell_text(value) == text
