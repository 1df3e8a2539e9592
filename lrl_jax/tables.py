"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Rows as lines whose columns are aligned; the first row may be a heading.

    Args:
        rows: cells, as many in each row; None is an empty one.
        numbers: indices of columns that are aligned to the right.
    """
    cells = [["" if x is None else str(x) for x in row] for row in rows]
    widths = [max(len(x) for x in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            x.rjust(width) if i in numbers else x.ljust(width)
            for i, (x, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def number(x: float | None, digits: int = 3) -> str | None:
    """A number for a table: whole numbers with commas, others with that many digits."""
    if x is None:
        return None
    if isinstance(x, int) or (float(x).is_integer() and abs(x) >= 1000):
        return f"{int(x):,}"
    return f"{x:.{digits}f}" if 1e-3 <= abs(x) < 1e6 or x == 0 else f"{x:.{digits}g}"
