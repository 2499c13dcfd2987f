"""Pieces that several built-in tasks share."""

# Symbols for tasks whose tokens mean nothing but their order: 0..9, a..z.
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class EveryString:
    """All strings of a length over some symbols, as prompts; row i is i written in base `len(symbols)`.

    >>> EveryString("abc", 2)[5]
    'bc'
    """

    def __init__(self, symbols: str, length: int) -> None:
        self.symbols, self.length = symbols, length

    def __len__(self) -> int:
        return len(self.symbols) ** self.length

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        digits = []
        for _ in range(self.length):
            index, digit = divmod(index, len(self.symbols))
            digits.append(self.symbols[digit])
        return "".join(reversed(digits))


def share_of_right_tokens(completion: str, answer: str) -> float:
    """Share of the answer's characters that stand at their place in the completion.

    Args:
        completion: a text, complete or not.
        answer: the right text.

    Returns:
        A share in [0, 1]; what an unfinished text has not written yet counts as wrong, an empty answer as right.

    >>> share_of_right_tokens("12", "1233")
    0.5
    """
    right = sum(written == correct for written, correct in zip(completion, answer, strict=False))
    return right / len(answer) if answer else 1.0
