"""Reads tables: CSV with common faults, TSV and Parquet. All become columns of text."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fashion_jax.system.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_LONGEST_RECORD = 1000  # lines; a quoted cell may hold line ends


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


def one_line(text: object) -> str:
    """Returns a text in which every run of spaces and line ends is one space."""
    return " ".join(str(text).split())


def read_table(name: str, data: bytes) -> Table:
    """Reads a table whose name ends in .csv, .tsv or .parquet; UserError says what is wrong with it."""
    if name.lower().endswith(".parquet"):
        return _read_parquet(name, data)
    return _read_csv(name, data)


def join_tables(tables: list[Table]) -> Table:
    """Joins the parts of a table that came in several files, one below the other."""
    frames, rejected, repairs, offset = [], [], Counter[str](), 0
    for table in tables:
        frames.append(table.frame.set_axis(table.frame.index + offset))
        rejected += [(row + offset, first, reason) for row, first, reason in table.rejected]
        repairs += table.repairs
        offset += table.num_rows
    # A column that only some parts have is empty in the others.
    return Table(pd.concat(frames).fillna(""), repairs, rejected, offset)


def _read_parquet(name: str, data: bytes) -> Table:
    try:
        arrow = pq.read_table(io.BytesIO(data))
        columns = {}
        for column in arrow.column_names:
            values = arrow.column(column)
            kind = values.type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # Hugging Face's image type
                kind = kind.field("bytes").type
                values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks], kind)
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                columns[column] = [value or b"" for value in values.to_pylist()]
            elif not pa.types.is_nested(kind):
                columns[column] = ["" if value is None else _text(value) for value in values.to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name} is no readable Parquet file: {str(error).splitlines()[0]}") from error
    frame = pd.DataFrame(columns, dtype=object, index=np.arange(1, len(arrow) + 1))
    return Table(frame, num_rows=len(frame))


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else (str(int(value)) if value.is_integer() else str(value))
    return str(value).strip()


def _read_csv(name: str, data: bytes) -> Table:
    repairs: Counter[str] = Counter()
    text = _decode(data, repairs)
    if "\0" in text:
        repairs["NUL characters removed"] = text.count("\0")
        text = text.replace("\0", "")
    lines = io.StringIO(text, newline=None).readlines()  # splitlines would split at characters that CSV does not
    if not lines or not lines[0].strip():
        raise UserError(f"{name} is empty, or its first line, which holds the names of the columns, is empty")
    delimiter = "\t" if name.lower().endswith(".tsv") else max(",;\t|", key=lines[0].count)
    records = _split(lines, delimiter, repairs)
    header = [cell.strip() for cell in records[0]]
    if len(set(header)) < len(header):
        double = next(cell for cell in header if header.count(cell) > 1)
        raise UserError(f"{name} has two columns named {double!r}; rename one")
    rows, numbers, rejected = [], [], []
    number = 0
    for cells in records[1:]:
        if not cells or cells == [""]:
            continue
        number += 1
        if len(cells) > len(header):
            repairs["surplus commas in the last column"] += 1
            cells = [*cells[: len(header) - 1], delimiter.join(cells[len(header) - 1 :])]
        elif len(cells) < len(header):
            rejected.append((number, cells[0].strip(), f"the row has {len(cells)} of {len(header)} columns"))
            continue
        rows.append([cell.strip() for cell in cells])
        numbers.append(number)
    frame = pd.DataFrame(rows, columns=header, dtype=object, index=numbers)
    return Table(frame, repairs, rejected, number)


def _decode(data: bytes, repairs: Counter[str]) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            repairs["byte-order mark"] = 1
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        repairs["not UTF-8, read as Windows-1252"] = 1
        return data.decode("cp1252", errors="replace")


def _split(lines: list[str], delimiter: str, repairs: Counter[str]) -> list[list[str]]:
    """Splits lines into records by the rules of CSV. A line with a stray quote is split at its delimiters."""
    try:
        records = list(csv.reader(lines, delimiter=delimiter, strict=True))
        if not any("\n" in cell for cells in records for cell in cells):
            return records
    except csv.Error:
        pass
    # A cell holds a line end or a stray quote, so every record is checked.
    records, place = [_record(lines[:1], delimiter)], 1
    width = len(records[0])
    while place < len(lines):
        found = _first_record(lines[place : place + _LONGEST_RECORD], delimiter, width)
        if found is None:
            repairs["stray quotes, read as text"] += 1
            found = lines[place].rstrip("\n").split(delimiter), 1
        records.append(found[0])
        place += found[1]
    return records


def _record(lines: list[str], delimiter: str, *, strict: bool = False) -> list[str]:
    return next(csv.reader(lines, delimiter=delimiter, strict=strict), [])


def _first_record(lines: list[str], delimiter: str, width: int) -> tuple[list[str], int] | None:
    """Returns the first record and the number of its lines; None where it has a stray quote.

    A cell holds line ends only if the record then has every column, its quotes stand next to delimiters, and the lines
    inside are not records themselves. Lines inside are records if an inch sign in one row and an inch sign in a later
    row look like the quotes of one cell.
    """
    with contextlib.suppress(csv.Error):
        return _record(lines[:1], delimiter, strict=True), 1
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    with contextlib.suppress(csv.Error, StopIteration):
        cells, used = next(reader), reader.line_num
        inside = [line.count(delimiter) + 1 for line in lines[1 : used - 1]]
        swallowed = width > 2 and inside and all(count == width for count in inside)
        if len(cells) == width and not swallowed:
            return cells, used
    with contextlib.suppress(csv.Error):
        cells = _record(lines[:1], delimiter)
        # If the parser is not strict, an unclosed quote takes the line's end into its cell.
        if not any(cell.endswith("\n") for cell in cells) and len(cells) == width:
            return cells, 1
    return None
