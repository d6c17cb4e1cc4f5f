"""Tables and sizes as `outboard models` prints them."""

import sys
from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need; flushed, so that a reader of a pipe sees each table at once."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def size_text(size: float) -> str:
    """2147483648 -> "2.0 GiB"; powers of two, as reservations in `model.toml` are."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.{min(unit, 1)}f} {_UNITS[unit]}"
