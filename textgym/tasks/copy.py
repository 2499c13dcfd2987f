"""copy: write the prompt once more.

Diagnoses the use of context in its simplest form: the right token is the symbol that stands at a fixed distance, which
a policy that looks at the last token alone cannot see.
"""

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET, EveryString, share_of_right_tokens

DESCRIPTION = "the prompt once more; context, dense reward"

# level: (symbols, length)
LEVELS = {1: (4, 4), 2: (8, 8), 3: (16, 12), 4: (8, 20)}


def copied_share(prompts: list[str], completions: list[str]) -> list[float]:
    """Share of right tokens against the prompt, in [0, 1].

    >>> copied_share(prompts=["3120"], completions=["3100"])
    [0.75]
    """
    return [share_of_right_tokens(completion, prompt) for prompt, completion in zip(prompts, completions, strict=True)]


def make(level: int) -> Task:
    """The task at a level.

    The reward is the share of right tokens. A uniform policy writes each token right with probability 1/V.
    """
    symbols, length = LEVELS[level]
    vocabulary = ALPHABET[:symbols]
    return Task(
        name="copy",
        level=level,
        tokenizer=list(vocabulary),
        prompts=EveryString(vocabulary, length),
        max_prompt_tokens=length,
        max_new_tokens=length,
        reward=copied_share,
        optimum=1.0,
        uniform=1.0 / symbols,
        solution=str,
    )
