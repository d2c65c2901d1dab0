"""Reads Excel workbooks (.xlsx) with openpyxl, the extra "excel"."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

from fashion_jax.data.table_limits import MAX_TEXT_BYTES, check_bytes, check_shape
from fashion_jax.data.values import cell_text
from fashion_jax.system import stored
from fashion_jax.system.errors import UserError, missing_extra

# Unpacked over packed size, and the unpacked size up to which the ratio is not checked.
_MAX_RATIO, _FREE_BYTES = 100, 100_000_000
_MOST_ROWS, _MOST_CELLS = 1_048_576, 20_000_000  # rows that Excel has, and cells that are read in half a minute
_ZEROS = re.compile("0{1,40}")  # the format of a number with leading zeros
_SHOWN = 5


def read_workbook(name: str, data: bytes) -> tuple[list[list[str]], str]:
    """Reads the one sheet of a workbook that holds cells.

    Returns:
        The rows from the first that is not empty, as texts; and the sheet's name.

    Raises:
        UserError: the extra is not installed, the file is damaged or too large, or several sheets hold cells.
    """
    try:
        import openpyxl
    except ImportError:
        raise missing_extra(f"reading {name}", "excel") from None
    with stored.reading(Path(name), "open it in a spreadsheet, and save it as CSV UTF-8"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        check_bytes(name, unpacked, MAX_TEXT_BYTES, "unpacked, it")
        check_bytes(name, unpacked, max(_MAX_RATIO * len(data), _FREE_BYTES), "unpacked, it")
        # Values instead of formulas, row by row.
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        sheets = {sheet.title: _read_sheet(name, sheet) for sheet in visible}
    filled = {title: rows for title, rows in sheets.items() if rows}
    if len(filled) > 1:
        names = ", ".join(repr(title) for title in list(filled)[:_SHOWN])
        raise UserError(
            f"{name} has {len(filled)} sheets with cells ({names}); save the sheet with the products as CSV UTF-8, and "
            "give that file"
        )
    return next(((rows, title) for title, rows in filled.items()), ([], ""))


def _read_sheet(name: str, sheet: Any) -> list[list[str]]:
    sheet.reset_dimensions()  # The size that a file claims may be wrong.
    rows: list[list[str]] = []
    read = 0
    for number, row in enumerate(sheet.iter_rows(), 1):
        read += len(row)
        if number > _MOST_ROWS or read > _MOST_CELLS:
            raise UserError(f"{name} has more than {_MOST_ROWS:,} rows or {_MOST_CELLS:,} cells; save it as CSV UTF-8")
        cells = [_text(cell) for cell in row]
        if any(cells) or rows:
            rows.append(cells)
    while rows and not any(rows[-1]):
        rows.pop()
    width = max((place + 1 for cells in rows for place, cell in enumerate(cells) if cell), default=0)
    check_shape(name, len(rows), width)
    return [[*cells[:width], *[""] * (width - len(cells))] for cells in rows]


def _text(cell: Any) -> str:
    value = cell.value
    if isinstance(value, int) and not isinstance(value, bool) and re.fullmatch(_ZEROS, cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))  # the format "00000" shows 123 as 00123
    return cell_text(value)
