"""Text for a console."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(*rows: Sequence[str]) -> str:
    """Returns rows of equal length, one at least, as lines. The first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)
