"""Makes texts of values, and values of texts: numbers as shops write them, yes and no, and dates."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Value = float | bool | datetime.date | str | None  # a datetime is a date

_YES = {"yes", "y", "true", "ja", "j", "oui", "sí", "si", "sim", "да", "tak", "ano", "wahr", "vrai", "はい", "是"}
_NO = {"no", "n", "false", "nein", "non", "não", "nao", "нет", "nie", "ne", "nej", "falsch", "faux", "いいえ", "否"}
_CURRENCIES = (
    "USD EUR GBP JPY CNY RMB INR KRW CHF SEK NOK DKK PLN CZK HUF RON BGN TRY RUB UAH BRL MXN ARS CLP COP PEN CAD AUD "
    "NZD SGD HKD TWD THB VND IDR MYR PHP PKR BDT LKR AED SAR QAR KWD ILS EGP ZAR NGN KES"
).split()
_CURRENCY_WORDS = (
    "US$",
    "R$",
    "A$",
    "C$",
    "kr.",
    "kr",
    "zł",
    "Kč",
    "Ft",
    "lei",
    "Rs.",
    "Rs",
    "руб.",
    "руб",
    "Fr.",
    "元",
    "円",
)
_SAME_CURRENCY = {
    "€": "EUR",
    "$": "USD",
    "US$": "USD",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
    "₽": "RUB",
    "RS.": "RS",
    "KR.": "KR",
}
_CURRENCY = re.compile(
    r"(?<![A-Za-z])(?:" + "|".join(map(re.escape, (*_CURRENCIES, *_CURRENCY_WORDS))) + r")(?![A-Za-z])", re.IGNORECASE
)
# Other letters behind a number make a code of it, such as 1001A. Capitals right behind it do so too (4711GB): only
# behind a space are they a unit.
_UNITS = {
    unit.casefold(): unit
    for unit in (
        "% kg g mg lb lbs oz km m dm cm mm in inch ft yd l dl cl ml V W kW mA mAh Wh Hz kHz MHz GHz kB MB GB TB px "
        "dpi den dtex gsm pcs pc pce pair Stk Stck St Paar pz szt ks uds ud un кг г мг м см мм л мл шт 個 枚 点 件 足"
    ).split()
}
_LARGEST = 2**53  # from which on a float has no place for every whole number
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)(?P<body>\d[\d.,' ]*|[.,]\d+)(?P<exponent>[eE][-+]?\d{1,3})?"
    r"(?P<unit>%|[^\W\d_¹²³][^\W\d_]{0,3}\.?)?"
)
_GROUPS = re.compile(r"\d{1,3}([.,' ])\d{3}(\1\d{3})*|\d{1,2}(,\d{2})+,\d{3}")  # thousands; lakhs and crores
_DATE_FORMATS = {
    "year-month-day": ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d"),
    "day-month-year": ("%d.%m.%Y", "%d/%m/%Y", "%d-%m-%Y", "%d.%m.%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y"),
    "month-day-year": ("%m/%d/%Y", "%m-%d-%Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y"),
}
_TIME = re.compile(
    r"(?P<date>\S.*?)[T ]+(?P<time>(?:[01]?\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?)\s*"
    r"(?P<zone>Z|UTC|[+-](?:0\d|1[0-4]):?[0-5]\d)?"
)
_LONGEST_TIME = 60  # characters


@dataclass(frozen=True, slots=True)
class Values:
    """What a column of texts holds."""

    kind: str  # "number", "boolean", "date", "text", or "nothing" where every text is empty
    # float, bool, or date (datetime where one has a time; in UTC, without a zone, where they have zones). The texts
    # themselves where the kind is "text". None where there is no value.
    values: list[Value]
    how: str = ""  # what was understood, in words for people, such as "numbers with a decimal comma, in €"; or why not


def read_values(texts: Sequence[str], missing: Iterable[str] = ("",)) -> Values:
    """Reads a column of texts as numbers, as yes and no, or as dates, if every text is one; else they stay texts.

    The whole column decides how one text is read: `1,234` is 1234 beside `1,234.50`, and 1.234 beside `12,40`. A column
    that can be read in two ways, or holds two currencies, stays text, and `how` says so. So do codes: `1001A`, `10E2`,
    `00123`, and whole numbers of more digits than a float keeps.

    Args:
        texts: of the cells.
        missing: texts that stand for no value; upper and lower case are the same.
    """
    empty = {word.casefold() for word in missing} | {""}
    clean = {text: _clean(text) for text in dict.fromkeys(texts)}
    present = [word for word in dict.fromkeys(clean.values()) if word.casefold() not in empty]
    if not present:
        return Values("nothing", [None] * len(texts))
    why = ""
    readers: tuple[tuple[str, Callable[[list[str]], tuple[Mapping[str, Value], str]]], ...] = (
        ("boolean", _read_booleans), ("number", _read_numbers), ("date", _read_dates),
    )  # fmt: skip
    for kind, read in readers:
        found, how = read(present)
        if found:
            return Values(kind, [found.get(clean[text]) for text in texts], how)
        why = why or how
    kept: dict[str, Value] = {text: text if clean[text].casefold() not in empty else None for text in clean}
    return Values("text", [kept[text] for text in texts], why)


def _clean(text: str) -> str:
    """Returns a text with single spaces, and with the digits of every script as 0 to 9."""
    text = " ".join(text.split())
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)


def _read_booleans(texts: list[str]) -> tuple[Mapping[str, Value], str]:
    words = {text: text.casefold() for text in texts}
    if not all(word in _YES or word in _NO for word in words.values()):
        return {}, ""
    return {text: word in _YES for text, word in words.items()}, "yes and no"


def _read_numbers(texts: list[str]) -> tuple[Mapping[str, Value], str]:
    """Returns text -> number, or nothing and the reason if the texts look like numbers."""
    parts: dict[str, tuple[str, str, str]] = {}  # text -> sign, digits with their separators, exponent
    signs: Counter[str] = Counter()
    for text in texts:
        rest, currency = _take_currency(text.replace("\u2212", "-").replace("’", "'"))
        negative = rest.startswith("(") and rest.endswith(")")
        match = _NUMBER.fullmatch(rest[1:-1] if negative else rest)
        if not match:
            return {}, ""
        body, exponent, unit = match["body"].strip(), match["exponent"] or "", match["unit"] or ""
        if unit and not (unit := _read_unit(unit, spaced=match["body"] != body)):
            return {}, ""
        if exponent and exponent[1:].isdigit() and not re.search("[.,]", body):
            return {}, f"codes such as {text[:40]!r} stay texts"
        if re.match(r"0\d", body) and not currency and not re.search(r"[.,]", body):
            return {}, "numbers with leading zeros stay texts"
        signs[_SAME_CURRENCY.get(currency.upper(), currency.upper()) or unit] += 1
        parts[text] = ("-" if negative else match["sign"], body, exponent)
    kinds = [sign for sign in signs if sign]
    if len(kinds) > 1:
        return {}, f"numbers in several units or currencies ({', '.join(sorted(kinds)[:4])}) stay texts"
    decimals = {mark for _, body, _ in parts.values() if (mark := _decimal_mark(body))}
    unclear = [text for text, (_, body, _) in parts.items() if _is_unclear(body)]
    if len(decimals) > 1:
        if unclear:
            return (
                {},
                f"numbers with decimal commas and decimal points stay texts: {unclear[0]!r} can be read in two ways",
            )
        mark = ""
    else:
        # Without any sign of the contrary, a point is a decimal point and a comma divides thousands.
        mark = next(iter(decimals), ".")
    numbers: dict[str, Value] = {}
    for text, (sign, body, exponent) in parts.items():
        digits = _plain_digits(body, mark or _decimal_mark(body) or ".")
        if not digits:
            return {}, ""
        number = float(f"{sign}{digits}{exponent}")
        if math.isinf(number) or (not exponent and abs(number) >= _LARGEST):
            return {}, f"{text[:40]!r} has more digits than a number keeps"
        numbers[text] = number
    how = "numbers"
    if mark == "," or len(decimals) > 1:
        how += " with a decimal comma" if mark == "," else " with decimal commas and decimal points"
    elif unclear and not decimals:
        how += f" ({unclear[0]!r} is read as {numbers[unclear[0]]:g})"
    return numbers, how + (f", in {kinds[0]}" if kinds else "")


def _read_unit(text: str, *, spaced: bool) -> str:
    """Returns the usual form of a unit; "" if the text behind a number is none."""
    text = text.removesuffix(".")
    return "" if text.isupper() and not spaced else _UNITS.get(text.casefold(), "")


def _take_currency(text: str) -> tuple[str, str]:
    """Returns a text without its currency, and the currency."""
    signs = [letter for letter in text if unicodedata.category(letter) == "Sc"]
    word = _CURRENCY.search(text)
    found = (word.group() if word else "") or (signs[0] if signs else "")
    if not found or _is_code(text, found):
        return text, ""
    rest = text.replace(found, "", 1).strip()
    rest = re.sub(r"^([-+]) +", r"\1", rest)
    return (rest, found) if not rest.endswith("-") else ("-" + rest[:-1].strip(), found)


def _is_code(text: str, word: str) -> bool:
    """True where a currency's everyday word is in capitals right beside a digit: KR1001 is a code, 199kr is none."""
    own = word.isalpha() and word.isupper() and word.isascii() and word not in _CURRENCIES
    return own and bool(re.search(rf"\d{word}|{word}\d", text))


def _decimal_mark(body: str) -> str:
    """Returns the sign that can only be the decimal one in a number's text, or ""."""
    last = max(body.rfind("."), body.rfind(","))
    if last < 0:
        return ""
    mark = body[last]
    other = "." if mark == "," else ","
    if body.count(mark) > 1:
        return other
    if other in body or not _GROUPS.fullmatch(body) or body.startswith("0"):
        return mark
    return ""


def _is_unclear(body: str) -> bool:
    return not _decimal_mark(body) and len(re.findall("[.,]", body)) == 1


def _plain_digits(body: str, mark: str) -> str:
    """Returns a number's digits with a decimal point; "" if its separators do not fit."""
    whole, _, fraction = body.partition(mark)
    grouped = re.search(r"\D", whole)
    if (grouped and not _GROUPS.fullmatch(whole)) or (fraction and not fraction.isdigit()):
        return ""
    return f"{re.sub(r'[^0-9]', '', whole) or '0'}.{fraction or '0'}"


def _read_dates(texts: list[str]) -> tuple[Mapping[str, Value], str]:
    if not any(_parse_all(_split_times(texts[:1]), formats) for formats in _DATE_FORMATS.values()):
        return {}, ""  # the first text settles it for most columns
    split = _split_times(texts)
    fitting = {order: dates for order, formats in _DATE_FORMATS.items() if (dates := _parse_all(split, formats))}
    if not fitting:
        return {}, ""
    if len(fitting) > 1 and len({tuple(dates.values()) for dates in fitting.values()}) > 1:
        first = next(iter(texts))
        return {}, f"dates such as {first!r} stay texts: day and month cannot be told apart"
    order, dates = next(iter(fitting.items()))
    if len({bool(zone) for _, time, zone in split.values() if time}) > 1:
        return {}, "times with and without a time zone stay texts"
    if not any(time for _, time, _ in split.values()):
        return dates, f"dates ({order})"
    try:
        return {text: _at_time(dates[text], *split[text][1:]) for text in texts}, f"dates and times ({order})"
    except OverflowError:  # the first hour of the year 1, which some systems write for no date, in another time zone
        return {}, "times before the year 1 or after the year 9999 stay texts"


def _split_times(texts: list[str]) -> dict[str, tuple[str, str, str]]:
    """Returns text -> its date, time and time zone; the last two may be empty."""
    split = {}
    for text in texts:
        match = _TIME.fullmatch(text) if len(text) <= _LONGEST_TIME else None
        split[text] = (match["date"], match["time"], match["zone"] or "") if match else (text, "", "")
    return split


def _parse_all(split: Mapping[str, tuple[str, str, str]], formats: Sequence[str]) -> dict[str, datetime.date]:
    """Returns text -> date, or nothing where a text fits none of the formats."""
    dates = {}
    for text, (day, _, _) in split.items():
        for pattern in formats:
            try:
                dates[text] = datetime.datetime.strptime(day, pattern).date()
                break
            except ValueError:
                continue
        else:
            return {}
    return dates


def _at_time(day: datetime.date, time: str, zone: str) -> datetime.datetime:
    moment = datetime.datetime.combine(day, datetime.time())
    if time:
        hours, minutes, *seconds = time.split(":")
        moment += datetime.timedelta(
            hours=int(hours), minutes=int(minutes), seconds=float(seconds[0]) if seconds else 0.0
        )
    if zone and zone not in ("Z", "UTC"):
        shift = datetime.timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
        moment += shift if zone[0] == "-" else -shift
    return moment


def csv_cell(value: Any) -> str | float:
    """Returns a value for `files.format_csv`: numbers and texts as they are, all else as `cell_text` writes it."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if number and np.isfinite(value):
        return int(value) if value == int(value) else float(value)
    return value if isinstance(value, str) else cell_text(value)


def cell_text(value: Any) -> str:
    """Returns the text of a value from a Parquet, JSON or Excel file: as a person would type it into a table.

    None and NaN are empty, 12.0 is `12`, True is `yes`, a date is ISO (`2024-05-01`), a list's items are joined by `|`,
    and a list without items is `[]`.
    """
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            return "" if value != value else str(value)
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, decimal.Decimal):
        return "" if value.is_nan() else format(value, "f")
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ").removesuffix(" 00:00:00")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return "|".join(text for item in value if (text := cell_text(item))) or ("" if value else "[]")
    # A text may hold half a character (JSON allows it), which no file could be written with.
    return str(value).encode("utf-8", errors="replace").decode().strip()
