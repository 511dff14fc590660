"""Tables that a person reads on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Return a line for each row, its cells in columns.

    Args:
        table: rows of equally many cells.
        numbers: all columns but the first hold numbers, which stand at the right.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rest = str.rjust if numbers else str.ljust
    return ["  ".join([row[0].ljust(widths[0]), *map(rest, row[1:], widths[1:])]).rstrip() for row in table]
