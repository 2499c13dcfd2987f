"""What a built-in task declares, and the pieces that several tasks share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textgym.prompts import Rows

# Symbols for tasks whose tokens mean nothing but their order: 0..9, a..z.
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Task:
    """A task: everything that an environment needs, and what is known of its returns.

    Attributes:
        name: what `task=` calls it.
        level: its difficulty, 1 the easiest.
        tokenizer: the symbols.
        prompts: rows with a `prompt`; each is drawn with the same probability.
        max_prompt_tokens: tokens of the longest prompt.
        max_new_tokens: the horizon W.
        reward: scores whole texts, within [0, 1].
        optimum: J*, the expected score of the best policy.
        uniform: J(uniform), the expected score of the policy that draws every token with the same probability.
    """

    name: str
    level: int
    tokenizer: Sequence[str]
    prompts: Rows
    max_prompt_tokens: int
    max_new_tokens: int
    reward: Callable[..., list[float]]
    optimum: float
    uniform: float


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
