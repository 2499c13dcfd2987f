"""Tables as Markdown that is aligned as plain text too."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = ()) -> str:
    """A table whose first column is aligned to the left and the others to the right.

    Args:
        header: the names of the columns.
        rows: their cells.
        words: the names of further columns that are aligned to the left.

    >>> print(markdown_table(["scheme", "score", "is"], [["terminal", "0.5", "fair"]], words=["is"]), end="")
    | scheme   | score | is   |
    | -------- | ----: | ---- |
    | terminal |   0.5 | fair |
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    left = [column == 0 or name in words for column, name in enumerate(header)]
    rule = ["-" * width if at_left else "-" * (width - 1) + ":" for width, at_left in zip(widths, left, strict=True)]
    lines = [
        [
            cell.ljust(width) if at_left else cell.rjust(width)
            for cell, width, at_left in zip(line, widths, left, strict=True)
        ]
        for line in (header, rule, *rows)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
