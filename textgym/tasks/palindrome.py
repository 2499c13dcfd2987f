"""palindrome: write any text of W tokens that reads the same backwards; the prompt is empty, there is no stop token.

Diagnoses diversity: V^⌈W/2⌉ texts are right, and a policy that has sunk to one of them has the same return as one that
writes them all. The first half is free; the second must look back at ever more distant tokens.
"""

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET

DESCRIPTION = "any palindrome; diversity, pass@k"

# level: (symbols, length)
LEVELS = {1: (2, 4), 2: (4, 5), 3: (4, 8), 4: (8, 12)}


class Palindrome:
    """1 for a palindrome of the length, 0 for anything else, shorter palindromes included.

    >>> Palindrome(4)(completions=["0110", "0111", "00"])
    [1.0, 0.0, 0.0]
    """

    __name__ = "palindrome"

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions."""
        return [float(len(completion) == self.length and completion == completion[::-1]) for completion in completions]


def make(level: int) -> Task:
    """The task at a level.

    The ⌊W/2⌋ tokens of the second half must each be one of V, so that a uniform policy gets V^-⌊W/2⌋.
    """
    symbols, length = LEVELS[level]
    return Task(
        name="palindrome",
        level=level,
        tokenizer=list(ALPHABET[:symbols]),
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=length,
        reward=Palindrome(length),
        optimum=1.0,
        uniform=float(symbols) ** -(length // 2),
        solution=lambda prompt: "1" * length,
    )
