"""Tables as Markdown that is aligned as plain text too."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left and the others to the right.

    >>> print(markdown_table(["scheme", "score"], [["terminal", "0.5"]]), end="")
    | scheme   | score |
    | -------- | ----: |
    | terminal |   0.5 |
    """
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in (header, rule, *rows)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
