"""reverse: write the prompt backwards.

Diagnoses the use of context: the right token is a copy of one symbol, at a distance that shrinks at every step.
"""

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET, EveryString, share_of_right_tokens

DESCRIPTION = "the prompt backwards; context"

# level: (symbols, length)
LEVELS = {1: (4, 4), 2: (8, 6), 3: (12, 10), 4: (16, 12)}


def backwards(prompt: str) -> str:
    """The prompt from its end to its beginning.

    >>> backwards("3120")
    '0213'
    """
    return prompt[::-1]


def reversed_share(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of right tokens against the reversed prompt, in [0, 1].

    >>> reversed_share(prompts=["3120"], completions=["0233"])
    [0.75]
    """
    return [
        share_of_right_tokens(completion, backwards(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def make(level: int) -> Task:
    """The task at a level.

    The reward is the share of right tokens. A uniform policy writes each token right with probability 1/V.
    """
    symbols, length = LEVELS[level]
    vocabulary = ALPHABET[:symbols]
    return Task(
        name="reverse",
        level=level,
        tokenizer=list(vocabulary),
        prompts=EveryString(vocabulary, length),
        max_prompt_tokens=length,
        max_new_tokens=length,
        reward=reversed_share,
        optimum=1.0,
        uniform=1.0 / symbols,
        solution=backwards,
    )
