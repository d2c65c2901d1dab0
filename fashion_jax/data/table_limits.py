"""How large a table may be, so that a file that was made for it fills neither the memory nor the day."""

from __future__ import annotations

from fashion_jax.system.errors import UserError

MAX_TABLE_BYTES = 2_000_000_000  # of a table's file, which may hold photos; and of a packed one that is unpacked
MAX_TEXT_BYTES = 1_000_000_000  # of a table without photos
MAX_COLUMNS, MAX_CELLS = 5_000, 300_000_000


def check_bytes(name: str, size: int, most: int, what: str = "it") -> None:
    """Raises UserError where a table has more than `most` bytes."""
    if size > most:
        raise UserError(f"{name} is too large: {what} has more than {most:,} bytes; divide it into several tables")


def check_shape(name: str, rows: int, columns: int) -> None:
    """Raises UserError where a table has too many columns or cells."""
    if columns > MAX_COLUMNS:
        raise UserError(
            f"{name} has more than {MAX_COLUMNS:,} columns; leave out those that are no ids, photos or labels"
        )
    if rows * columns > MAX_CELLS:
        raise UserError(
            f"{name} has more than {MAX_CELLS:,} cells ({rows:,} rows of {columns:,} columns); leave out columns, or "
            "divide it into several tables"
        )
