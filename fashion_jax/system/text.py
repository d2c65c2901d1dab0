"""Text for a console."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(*rows: Sequence[str], left: int = 1) -> str:
    """Returns rows of equal length, one at least, as lines.

    Args:
        left: number of columns that are aligned left, from the first; the others are aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def align(row: Sequence[str]) -> str:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        return "  ".join([*cells, *map(str.rjust, row[left:], widths[left:])]).rstrip()

    return "\n".join(map(align, rows))
