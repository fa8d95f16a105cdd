"""Tables of text, as commands and benchmarks print them."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> list[str]:
    """Lines with aligned columns: the first to the left, the others to the right where they are
    `numbers`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i and numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
