"""Reads Excel workbooks (.xlsx) with openpyxl, the extra "excel"."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

from fashion_jax.data.values import cell_text
from fashion_jax.system.errors import UserError, missing_extra

_MOST_UNPACKED = 2_000_000_000  # bytes
_SHOWN = 5


def read_workbook(name: str, data: bytes) -> tuple[list[list[str]], str]:
    """Reads the one sheet of a workbook that holds cells.

    Returns:
        The rows from the first that is not empty, as texts; and the sheet's name.

    Raises:
        UserError: the extra is not installed, the file is damaged, or several sheets hold cells.
    """
    try:
        import openpyxl
    except ImportError:
        raise missing_extra(f"reading {name}", "excel") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MOST_UNPACKED:
                raise UserError(f"{name} unpacks to more than {_MOST_UNPACKED:,} bytes; save it as CSV UTF-8")
        # Values instead of formulas, row by row.
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheets = {sheet.title: _read_sheet(sheet) for sheet in book.worksheets if sheet.sheet_state == "visible"}
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many kinds for damaged files
        raise UserError(
            f"{name} is no readable Excel workbook ({type(error).__name__}); open it in a spreadsheet, and save it as "
            "CSV UTF-8"
        ) from error
    filled = {title: rows for title, rows in sheets.items() if rows}
    if len(filled) > 1:
        names = ", ".join(repr(title) for title in list(filled)[:_SHOWN])
        raise UserError(
            f"{name} has {len(filled)} sheets with cells ({names}); save the sheet with the products as CSV UTF-8, and "
            "give that file"
        )
    return next(((rows, title) for title, rows in filled.items()), ([], ""))


def _read_sheet(sheet: Any) -> list[list[str]]:
    sheet.reset_dimensions()  # The size that a file claims may be wrong.
    rows: list[list[str]] = []
    for row in sheet.iter_rows():
        cells = [_text(cell) for cell in row]
        if any(cells) or rows:
            rows.append(cells)
    while rows and not any(rows[-1]):
        rows.pop()
    width = max((place + 1 for cells in rows for place, cell in enumerate(cells) if cell), default=0)
    return [[*cells[:width], *[""] * (width - len(cells))] for cells in rows]


def _text(cell: Any) -> str:
    value = cell.value
    if isinstance(value, int) and not isinstance(value, bool) and re.fullmatch("0+", cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))  # the format "00000" shows 123 as 00123
    return cell_text(value)
