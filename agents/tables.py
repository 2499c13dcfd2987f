"""Tables as aligned plain text."""

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[str]) -> str:
    """The rows as columns: names and texts to the left, the columns with a heading in `numbers` to the right.

    Args:
        rows: cells, as many in each; the headings come first.
        numbers: headings of the columns that hold numbers.

    >>> print(aligned([("task", "tokens", "what"), ("sort", "8", "in order")], ["tokens"]))
    task  tokens  what
    sort       8  in order
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_number = [heading in numbers for heading in rows[0]]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
