"""Reads tables: delimited text with common faults, JSON, Parquet and Excel. All become columns of text."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from fashion_jax.data.encodings import Text, decode_text
from fashion_jax.data.excel import read_workbook
from fashion_jax.data.foreign_json import json_parser
from fashion_jax.data.hub_parquet import read_parquet
from fashion_jax.data.photo_names import is_address, names_photo
from fashion_jax.data.table_limits import MAX_TABLE_BYTES, MAX_TEXT_BYTES, check_bytes, check_shape
from fashion_jax.data.values import cell_text
from fashion_jax.data.words import clean_label
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError

_PACKED: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
# Files that are tables wherever they are found, and those that are tables only if a user names one: the .txt and .json
# of a folder mostly hold something else.
TABLE_SUFFIXES = (
    *_TEXT_SUFFIXES, ".parquet", ".xlsx", *(suffix + packed for suffix in _TEXT_SUFFIXES for packed in _PACKED)
)  # fmt: skip
NAMED_SUFFIXES = (
    *TABLE_SUFFIXES, ".txt", ".tab", ".psv", ".json", ".xlsm", ".txt.gz", ".json.gz",
    ".xls", ".xlsb", ".ods", ".numbers", ".feather", ".arrow", ".html",  # which are named for what they are
)  # fmt: skip
_LONGEST_RECORD = 100_000  # lines; a quoted cell may hold line ends
_CHECKED_LINES, _CHECKED_SIGNS = 1000, 65536  # lines and signs that decide what divides the cells
_QUOTED = re.compile(r'(?:^|(?<=[\t;|,\n]))"(?:[^"]|"")*+(?:"(?=[\t;|,\n])|"?\Z)')
_HEADER_ROWS = 20  # rows in which the header is looked for
_LONGEST_HEADING = 60  # characters
_FEW = 3  # rows
_PATH_KEYS = ("src", "url", "path", "file", "file_name", "image", "href", "uri")  # of photos in JSON
_MOST_PARTS = 100  # columns that an object in JSON becomes; its keys are values above it
_SHOWN = 5  # columns
_SPLIT_NAME = re.compile(r"(?:^|[-_./])(train|training|validation|valid|val|dev|test|testing)(?=[-_./])")
_SPLITS = "rows whose split is read from the name of their file into the column 'split'"
_ABOVE = "rows above the header, left out"
# Words of usual headings, by which a header is known.
_HEADINGS = set(
    re.findall(
        r"\w+",
        "sku id ean gtin asin upc handle article artikel artikelnummer artikelnr product produkt producto produit "
        "artículo articolo артикул 商品番号 货号 image images img photo photos picture foto fotos bild bilder imagen "
        "immagine фото 画像 图片 이미지 file filename datei fichier title name titel titre titolo título nombre nom "
        "bezeichnung название 名称 description beschreibung color colour farbe couleur colore cor kleur цвет kolor 色 "
        "颜色 색상 category kategorie categoría categoria catégorie kategoria категория カテゴリ 分类 type typ gender "
        "geschlecht brand marke marca marque price preis precio prix prezzo цена size größe talla taille material",
    )
)
_CSV_UTF8 = 'open it in a spreadsheet, and save it as "CSV UTF-8"'
# First bytes -> what such a file is, and what to do. A suffix may lie.
_NO_TABLES: tuple[tuple[bytes, str, str], ...] = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook of the old kind (.xls), or a locked one", _CSV_UTF8),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet"),
    (b"%PDF", "a PDF document", "give the table that it was made of"),
    (b"version https://git-lfs", "a pointer of Git LFS, in place of the file", "run `git lfs pull`"),
    (b"SQLite format 3", "a SQLite database", "export the table as CSV"),
    (b"<!doctype html", "a web page", f"{_CSV_UTF8}; if it is a download, the site may want a login"),
    (b"<html", "a web page", f"{_CSV_UTF8}; if it is a download, the site may want a login"),
    (b"<?xml", "an XML file", _CSV_UTF8),
    (b"{\\rtf", "a text document (RTF)", "save the table as CSV"),
)


@dataclass(slots=True)
class Table:
    """A table that has been read."""

    # columns of text, or of photos' bytes; missing values are empty. The index is a row's number in the file, from 1,
    # without the header.
    frame: pd.DataFrame
    repairs: Counter[str] = field(default_factory=Counter)  # name of a repair -> rows that needed it
    # (row, first cell, reason) of rows that could not be read
    rejected: list[tuple[int, str, str]] = field(default_factory=list)
    num_rows: int = 0  # the rows of the file, rejected ones included
    text: Text | None = None  # how the bytes became text, without the text itself; None for Parquet and Excel


def one_line(text: object) -> str:
    """Returns a text in which every run of spaces and line ends is one space."""
    return " ".join(str(text).split())


def read_table(name: str, data: bytes, encoding: str = "") -> Table:
    """Reads a table.

    Args:
        name: of the file. Its ending says what the file is: one of NAMED_SUFFIXES. First bytes that say otherwise win.
        data: the file's bytes.
        encoding: of a text file; empty: it is found.

    Raises:
        UserError: the file is of another kind, damaged, or its encoding cannot be told. Or it is too large: more than 2
            GB, 1 GB of text (unpacked too), 5,000 columns or 300 million cells.
    """
    check_bytes(name, len(data), MAX_TABLE_BYTES)
    with stored.reading(Path(name), _CSV_UTF8):
        return _read_table(name, data, encoding)


def _read_table(name: str, data: bytes, encoding: str) -> Table:
    kind = name.lower()
    packed = next((suffix for suffix in _PACKED if kind.endswith(suffix)), "")
    if packed or data.startswith(b"\x1f\x8b"):
        data = _unpack(name, data, packed or ".gz")
        kind = kind.removesuffix(packed)
    if data.startswith(b"PAR1"):
        return _read_parquet(name, data)
    if data.startswith(b"PK\x03\x04"):
        return _read_zipped(name, data)
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what, todo in _NO_TABLES:
        if data.startswith(mark) or start.startswith(mark.lower()):
            raise UserError(f"{name} is {what}, which cannot be read as a table; {todo}")
    if kind.endswith(".parquet"):
        return _read_parquet(name, data)
    if kind.endswith((".xlsx", ".xlsm", ".xlsb", ".ods", ".numbers", ".feather", ".arrow")):
        raise UserError(f"{name} is not what its ending says, or it is damaged; {_CSV_UTF8}")
    check_bytes(name, len(data), MAX_TEXT_BYTES)
    text = decode_text(name, data, encoding)
    if kind.endswith((".jsonl", ".ndjson", ".json")):
        table = _read_json(name, text.text)
    else:
        table = _read_csv(name, text.text, kind)
    table.repairs.update(dict(text.repairs))
    table.text = Text("", text.encoding, text.words, text.is_guess, text.other)
    return table


def join_tables(tables: list[Table], names: list[str]) -> Table:
    """Joins the parts of a table that came in several files, one below the other.

    Files that are named after a split, such as `train-00000-of-00001.parquet` and `test/0.parquet`, give the column
    `split`, if no part has one.

    Args:
        tables: the parts.
        names: of their files.

    Raises:
        UserError: the files hold different tables.
    """
    frames, rejected, repairs, offset = [], [], Counter[str](), 0
    splits = [name_split(name) for name in names]
    is_split = len(set(splits)) > 1 and all(splits) and all("split" not in table.frame for table in tables)
    first = set(tables[0].frame.columns)
    for table, name, split in zip(tables, names, splits, strict=True):
        own = set(table.frame.columns)
        if 2 * len(own & first) < max(len(own), len(first)):
            raise UserError(
                f"{names[0]} and {name} hold different columns ({', '.join(sorted(first)[:_SHOWN])}; "
                f"{', '.join(sorted(own)[:_SHOWN])}), so they are no parts of one table; give the path of one of them"
            )
        frame = table.frame.set_axis(table.frame.index + offset)
        if is_split:
            frame = frame.assign(split=split)
            repairs[_SPLITS] += table.num_rows
        frames.append(frame)
        rejected += [(row + offset, cell, reason) for row, cell, reason in table.rejected]
        repairs += table.repairs
        offset += table.num_rows
    # A column that only some parts have is empty in the others.
    return Table(pd.concat(frames).fillna(""), repairs, rejected, offset, tables[0].text)


def name_split(name: str) -> str:
    """Returns the split in the name of a file or its folder, such as "train" in `train-0.parquet`; or ""."""
    found = _SPLIT_NAME.findall(name.lower())
    return found[-1] if found else ""


def _unpack(name: str, data: bytes, suffix: str) -> bytes:
    with stored.reading(Path(name), "download or export it again"), _PACKED[suffix](io.BytesIO(data)) as file:
        unpacked: bytes = file.read(MAX_TABLE_BYTES + 1)
    check_bytes(name, len(unpacked), MAX_TABLE_BYTES, "unpacked, it")
    return unpacked


def _read_parquet(name: str, data: bytes) -> Table:
    columns, rows, repairs = read_parquet(name, data)
    frame = pd.DataFrame(columns, dtype=object, index=np.arange(1, rows + 1))
    return Table(frame, repairs, num_rows=rows)


def _read_zipped(name: str, data: bytes) -> Table:
    """Reads an Excel workbook; other zips are named for what they are."""
    if b"mimetypeapplication/vnd.oasis" in data[:100]:
        raise UserError(f"{name} is an OpenDocument file (.ods), which cannot be read as a table; {_CSV_UTF8}")
    if name.lower().endswith(".numbers"):
        raise UserError(f"{name} is a file of Apple Numbers, which cannot be read as a table; {_CSV_UTF8}")
    if name.lower().endswith(".xlsb"):
        raise UserError(f"{name} is a binary Excel workbook (.xlsb), which cannot be read as a table; {_CSV_UTF8}")
    rows, sheet = read_workbook(name, data)
    if not rows:
        raise UserError(f"{name} has no sheet with cells")
    check_shape(name, len(rows), len(rows[0]))
    place = _find_header(name, rows[:_HEADER_ROWS])
    repairs = Counter({f"read the sheet {sheet!r}": 1}) + Counter({_ABOVE: sum(map(any, rows[:place]))})
    header, keep = _make_header(name, rows[place], rows[place + 1 :])
    cells = [[row[column] for column in keep] for row in rows[place + 1 :]]
    numbers = [number for number, row in enumerate(cells, 1) if any(row)]
    frame = pd.DataFrame([row for row in cells if any(row)], columns=header, dtype=object, index=numbers)
    return Table(frame, repairs, num_rows=len(cells))


def _read_json(name: str, text: str) -> Table:
    """Reads a list of objects, also inside of an object, or an object a line.

    Lists become texts with `|`. The part `color` of an object `attrs` becomes the column `attrs.color`. Of a list of
    objects, the photos' addresses or paths are read.
    """
    records: list[Any] = []
    rejected: list[tuple[int, str, str]] = []
    repairs: Counter[str] = Counter()
    in_whole: Counter[str] = Counter()
    try:
        whole = json_parser(text, in_whole)(text)
        repairs += in_whole
    except ValueError:
        whole = None
    if isinstance(whole, dict):
        lists = list(_find_lists(whole))
        if len(lists) != 1 and any(isinstance(value, (dict, list)) for value in whole.values()):
            several = f" (it holds the lists {', '.join(key for key, _ in lists[:_SHOWN])})" if lists else ""
            raise UserError(
                f"{name} is an object with parts, no list of rows{several}; write it as a list of objects, or as CSV "
                "(pandas: to_csv, or to_json with orient='records')"
            )
        records = lists[0][1] if lists else [whole]
    elif isinstance(whole, list):
        records = whole
    else:
        parse = json_parser(text, repairs)
        for line in text.split("\n"):
            if line.strip():
                try:
                    records.append(parse(line))
                except ValueError as error:
                    records.append(None)
                    rejected.append((len(records), line[:40], f"the line is no JSON ({error})"))
    rejected += [
        (i, "", "it is no JSON object")
        for i, item in enumerate(records, 1)
        if item is not None and not isinstance(item, dict)
    ]
    good = {number: item for number, item in enumerate(records, 1) if isinstance(item, dict)}
    if not good:
        why = f" ({rejected[0][2]})" if rejected else ""
        raise UserError(f"{name} holds no JSON objects{why}; a table is a list of objects, or an object in each line")
    columns: dict[str, dict[int, str]] = {}
    parts: Counter[str] = Counter()  # columns of an object
    for number, item in good.items():
        for key, cell in _flatten(item, repairs):
            if key not in columns:
                part, dot, _ = key.partition(".")
                if dot and parts[part] > _MOST_PARTS:
                    repairs[f"cells of {part!r} that hold objects, not read"] += 1
                    continue
                parts[part] += 1
                check_shape(name, 0, len(parts))
                columns[key] = {}
            if number in columns[key]:
                repairs[f"cells of {key!r} that come twice, the first is read"] += 1
            else:
                columns[key][number] = cell
    for key in [key for key in columns if parts[key.partition(".")[0]] > _MOST_PARTS and "." in key]:
        repairs[f"cells of {key.partition('.')[0]!r} that hold objects, not read"] += len(columns.pop(key))
    check_shape(name, len(good), len(columns))
    if not columns:
        raise UserError(f"{name} holds nested objects only ({', '.join(repairs)}); write it as CSV (pandas: to_csv)")
    frame = pd.DataFrame(
        {key: [cells.get(number, "") for number in good] for key, cells in columns.items()},
        dtype=object, index=list(good),
    )  # fmt: skip
    return Table(frame, repairs, sorted(rejected), len(records))


def _find_lists(item: dict[str, Any], depth: int = 3) -> Iterator[tuple[str, list[Any]]]:
    """Yields (key, list) for the lists of objects in an object and in its parts."""
    for key, value in item.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield key, value
        elif isinstance(value, dict) and depth > 1:
            yield from _find_lists(value, depth - 1)


def _flatten(item: dict[str, Any], repairs: Counter[str], before: str = "") -> Iterator[tuple[str, str]]:
    """Yields (column, text) for the values of an object and of the objects in it."""
    for key, value in item.items():
        column = f"{before}{cell_text(key)}"
        if isinstance(value, dict) and column.count(".") < 2:
            yield from _flatten(value, repairs, f"{column}.")
            continue
        if isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
            # The objects of a list are photos if each has a path.
            found = [next((part[k] for k in _PATH_KEYS if k in part), 0) for part in value if isinstance(part, dict)]
            value = found if len(found) == len(value) and all(isinstance(part, str) for part in found) else {}
        if isinstance(value, dict):
            repairs[f"cells of {column!r} that hold objects, not read"] += 1
        else:
            yield column, cell_text(value)


def _find_header(name: str, rows: list[list[str]]) -> int:
    """Returns the place of the row that holds the names of the columns: titles and comments may stand above it.

    Args:
        name: of the file, for messages.
        rows: the first ones of the table.
    """
    filled = [sum(map(bool, map(str.strip, row))) for row in rows]
    usual = statistics.median([count for count in filled[1:] if count] or [0])
    if filled[0] >= usual and _are_headings(rows[0]):
        return 0
    known = [_count_headings(row) for row in rows]
    best = max(range(len(rows)), key=lambda place: (known[place], place))
    is_title = 2 * filled[0] < usual
    if known[best] >= 2 and known[best] > known[0] and (is_title or 2 * known[best] >= filled[best]):
        return best
    if not is_title or (filled[0] > 1 and _are_headings(rows[0])):
        return 0
    place = next(place for place, count in enumerate(filled) if 2 * count >= usual)
    if not _are_headings(rows[place]):
        raise UserError(
            f"the first row of {name} ({one_line(' '.join(rows[0]))[:60]!r}) does not look like a header: most rows "
            f"have {usual:g} cells, and this row has another number; remove the rows above the header, or add a header"
        )
    return place


def _are_headings(row: list[str]) -> bool:
    """False where a cell is a number, a photo or an address, or where two cells are equal."""
    cells = [cell.strip() for cell in row if cell.strip()]
    return len(set(cells)) == len(cells) and not any(
        names_photo(cell) or is_address(cell) or not re.search(r"[^\W\d_]", cell) for cell in cells
    )


def _count_headings(row: list[str]) -> int:
    """Returns the number of usual headings in a row; 0 for a row of values."""
    if not _are_headings(row):
        return 0
    words = [re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", cell) for cell in row if len(cell) < _LONGEST_HEADING]
    return sum(len(own) <= 3 and any(word.casefold() in _HEADINGS for word in own) for own in words)


def _make_header(name: str, cells: list[str], rows: list[list[str]]) -> tuple[list[str], list[int]]:
    """Returns clean names of columns and their places. Columns without name and cells are left out."""
    names = [clean_label(cell)[0] for cell in cells]
    keep = [i for i, cell in enumerate(names) if cell or any(len(row) > i and row[i].strip() for row in rows)]
    header = [names[i] or f"column {i + 1}" for i in keep]
    if len(set(header)) < len(header):
        double = Counter(header).most_common(1)[0][0]
        raise UserError(f"{name} has two columns named {double!r}; rename one")
    return header, keep


def _read_csv(name: str, text: str, kind: str) -> Table:
    repairs: Counter[str] = Counter()
    if "\0" in text:
        repairs["NUL characters removed"] = text.count("\0")
        text = text.replace("\0", "")
    lines = io.StringIO(text, newline=None).readlines()  # splitlines would split at characters that CSV does not
    delimiter = ""
    if lines and (match := re.fullmatch(r'"?sep=(.)"?[,;\t]*\n?', lines[0], re.IGNORECASE)):  # Excel's own first line
        delimiter = match[1]
        lines = lines[1:]
    if not any(line.strip() for line in lines):
        raise UserError(f"{name} is empty")
    delimiter = delimiter or ("\t" if kind.endswith((".tsv", ".tab")) else _find_delimiter(lines))
    usual_limit = csv.field_size_limit(len(text) + 1)  # a description may be long
    try:
        above, lines = _cut_titles(name, lines, delimiter)
        records = _split(lines, delimiter, repairs)
    finally:
        csv.field_size_limit(usual_limit)
    repairs += Counter({_ABOVE: above})
    if '="' in text:
        records = [[_unwrap(cell, repairs) for cell in cells] for cells in records]
    width = len(records[0])
    check_shape(name, len(records), width)
    header, keep = _make_header(name, records[0], records[1:])
    records = [cells for cells in records[1:] if cells and cells != [""]]
    short = _find_cut(list(map(len, records)), width)
    rows, numbers, rejected = [], [], []
    for number, cells in enumerate(records, 1):
        if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
            repairs["surplus empty cells"] += 1
            cells = cells[:width]
        elif len(cells) > width:
            repairs["surplus commas in the last column"] += 1
            cells = [*cells[: width - 1], delimiter.join(cells[width - 1 :])]
        elif number - 1 in short:
            repairs["rows without the empty cells at their end"] += 1
            cells = [*cells, *[""] * (width - len(cells))]
        elif len(cells) < width:
            rejected.append((number, cells[0].strip(), f"the row has {len(cells)} of {width} columns"))
            continue
        rows.append([cell.strip() for cell in cells])
        numbers.append(number)
    if len(keep) < width:
        repairs["columns without name and cells, left out"] = width - len(keep)
        rows = [[cells[place] for place in keep] for cells in rows]
    frame = pd.DataFrame(rows, columns=header, dtype=object, index=numbers)
    return Table(frame, repairs, rejected, len(records))


def _unwrap(cell: str, repairs: Counter[str]) -> str:
    """Returns `001` for the cell `="001"`, which keeps a spreadsheet from reading a number."""
    match = re.fullmatch(r'\s*="([^"]*)"\s*', cell)
    if not match:
        return cell
    repairs['cells such as ="001", read as 001'] += 1
    return match[1]


def _find_cut(counts: list[int], width: int) -> set[int]:
    """Returns the places of rows whose empty cells at the end have been left out, as Excel does it.

    Such rows have a length that others have too. Two short rows in turn that have the cells of one row are the parts
    of a row that a line end without quotes has broken. Three of one length in turn are no such parts.

    Args:
        counts: number of cells of every row.
        width: number of columns.
    """
    usual = {count for count, rows in Counter(counts).items() if 1 < count < width and rows >= _FEW}
    if not usual:
        return set()
    cut = {place for place, count in enumerate(counts) if count in usual}
    padded = [width, width, *counts, width, width]

    def is_part(place: int) -> bool:
        near = padded[place : place + 5]
        if any(near[start : start + _FEW] == [near[2]] * _FEW for start in range(3)):
            return False
        return any(other < width and near[2] + other - 1 == width for other in (near[1], near[3]))

    return {place for place in cut if not is_part(place)}


def _find_delimiter(lines: list[str]) -> str:
    """Returns the sign that divides the header into most cells, in as many as most other lines have.

    A title may stand above the header. Then a sign that divides a line into usual headings is taken.
    """
    start = "".join(lines[:_CHECKED_LINES])[:_CHECKED_SIGNS].rstrip("\n")
    head = [line for line in _QUOTED.sub("", start).split("\n") if line.strip()]
    plain = [line.replace('"', "") for line in lines[:_HEADER_ROWS]]

    def fit(sign: str) -> tuple[bool, bool, bool, bool, int]:
        counts = [line.count(sign) for line in head]
        first, usual = counts[0], statistics.median_low(counts)
        share = sum(count >= first for count in counts) / len(head) if first else 0
        known = usual > 0 and max(_count_headings(line.split(sign)) for line in plain) >= 2
        return known, share > 0.5, share > 0.9, usual > 0, first or usual

    return max("\t;|,", key=fit)


def _cut_titles(name: str, lines: list[str], delimiter: str) -> tuple[int, list[str]]:
    """Returns the number of rows above the header, and the lines from the header on."""
    rows: list[list[str]] = []
    starts = [0]
    reader = csv.reader(lines[:_CHECKED_LINES], delimiter=delimiter)
    with contextlib.suppress(csv.Error, StopIteration):
        while len(rows) < _HEADER_ROWS:
            rows.append(next(reader))
            starts.append(reader.line_num)
    empty = next((place for place, row in enumerate(rows) if any(row)), len(rows))
    if empty == len(rows):
        return 0, lines
    place = empty + _find_header(name, rows[empty:])
    return sum(map(any, rows[:place])), lines[starts[place] :]


def _split(lines: list[str], delimiter: str, repairs: Counter[str]) -> list[list[str]]:
    """Splits lines into records by the rules of CSV. A line with a stray quote is split at its delimiters."""
    records: list[list[str]]
    try:
        records = list(csv.reader(lines, delimiter=delimiter, strict=True))
        if not any("\n" in cell for cells in records for cell in cells):
            return records
    except csv.Error:
        pass
    # A cell holds a line end or a stray quote, so every record is checked.
    records, place = [_record(lines[:1], delimiter)], 1
    with contextlib.suppress(csv.Error):
        reader = csv.reader(lines[:_HEADER_ROWS], delimiter=delimiter, strict=True)
        records, place = [next(reader)], reader.line_num
    width = len(records[0])
    while place < len(lines):
        found = _first_record(lines, place, delimiter, width)
        if found is None:
            repairs["stray quotes, read as text"] += 1
            found = lines[place].rstrip("\n").split(delimiter), 1
        records.append(found[0])
        place += found[1]
    return records


def _record(lines: Iterable[str], delimiter: str, *, strict: bool = False) -> list[str]:
    return next(csv.reader(lines, delimiter=delimiter, strict=strict), [])


def _first_record(lines: list[str], place: int, delimiter: str, width: int) -> tuple[list[str], int] | None:
    """Returns the record at a place and the number of its lines; None where it has a stray quote.

    A cell holds line ends only if the record then has every column, its quotes stand next to delimiters, and the lines
    inside are not records themselves. Lines inside are records if an inch sign in one row and an inch sign in a later
    row look like the quotes of one cell.
    """
    line = [lines[place]]
    with contextlib.suppress(csv.Error):
        return _record(line, delimiter, strict=True), 1
    following = (lines[i] for i in range(place, min(place + _LONGEST_RECORD, len(lines))))
    reader = csv.reader(following, delimiter=delimiter, strict=True)
    with contextlib.suppress(csv.Error, StopIteration):
        cells, used = next(reader), reader.line_num
        inside = [line.count(delimiter) + 1 for line in lines[place + 1 : place + used - 1]]
        swallowed = width > 2 and inside and all(count == width for count in inside)
        if len(cells) == width and not swallowed:
            return cells, used
    with contextlib.suppress(csv.Error):
        cells = _record(line, delimiter)
        # If the parser is not strict, an unclosed quote takes the line's end into its cell.
        if not any(cell.endswith("\n") for cell in cells) and len(cells) == width:
            return cells, 1
    return None
