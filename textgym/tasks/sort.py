"""sort: write the symbols of the prompt in ascending order.

Diagnoses conditional computation: the right token depends on the whole prompt and on the position.
"""

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET, EveryString, share_of_right_tokens

DESCRIPTION = "the prompt in order; conditional computation"

# level: (symbols, length)
LEVELS = {1: (8, 4), 2: (8, 6), 3: (10, 8), 4: (10, 10)}


def in_order(prompt: str) -> str:
    """The symbols of the prompt in ascending order.

    >>> in_order("3120")
    '0123'
    """
    return "".join(sorted(prompt))


def sorted_share(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of right tokens against the sorted prompt, in [0, 1].

    >>> sorted_share(prompts=["3120"], completions=["0133"])
    [0.75]
    """
    return [
        share_of_right_tokens(completion, in_order(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def make(level: int) -> Task:
    """The task at a level.

    The reward is the share of right tokens. A uniform policy writes each token right with probability 1/V.
    """
    symbols, length = LEVELS[level]
    vocabulary = ALPHABET[:symbols]
    return Task(
        name="sort",
        level=level,
        tokenizer=list(vocabulary),
        prompts=EveryString(vocabulary, length),
        max_prompt_tokens=length,
        max_new_tokens=length,
        reward=sorted_share,
        optimum=1.0,
        uniform=1.0 / symbols,
        solution=in_order,
    )
