"""noisy_verifier: addition, judged by a verifier whose verdict is wrong with probability ε.

Diagnoses robustness: the expected score of a text is ε + (1 - 2ε) of the true one, so that the gradient keeps its
direction, shrinks to 1 - 2ε of its length and gains variance. The true score is reported beside it and never paid.
"""

import numpy as np

from textgym.tasks.addition import SYMBOLS, Sums, exact_sum, sum_of, uniform_success
from textgym.tasks.base import Task

DESCRIPTION = "sums, some verdicts flipped; robustness"

# level: (digits of a summand, ε)
LEVELS = {1: (1, 0.1), 2: (1, 0.3), 3: (2, 0.1), 4: (2, 0.3)}


class FlippedVerdict:
    """`exact_sum`, each verdict turned round with probability ε by the generator of its row.

    >>> generators = [np.random.default_rng(0), np.random.default_rng(0)]
    >>> FlippedVerdict(1.0)(prompts=["9+8=", "9+8="], completions=["17", "18"], rng=generators)
    [0.0, 1.0]
    """

    __name__ = "flipped_verdict"

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, prompts: list[str], completions: list[str], rng: list[np.random.Generator]) -> list[float]:
        """Score n completions; one draw of each row's generator."""
        verdicts = exact_sum(prompts, completions)
        flips = [generator.random() < self.epsilon for generator in rng]
        return [1.0 - verdict if flip else verdict for verdict, flip in zip(verdicts, flips, strict=True)]


def make(level: int) -> Task:
    """The task at a level.

    A policy that is right with probability p gets ε + (1 - 2ε) p: the optimum is 1 - ε.
    """
    digits, epsilon = LEVELS[level]
    return Task(
        name="noisy_verifier",
        level=level,
        tokenizer=list(SYMBOLS),
        prompts=Sums(10**digits),
        max_prompt_tokens=2 * digits + 2,
        max_new_tokens=digits + 2,
        reward=FlippedVerdict(epsilon),
        true_reward=exact_sum,
        optimum=1.0 - epsilon,
        uniform=epsilon + (1.0 - 2.0 * epsilon) * uniform_success(digits),
        solution=sum_of,
        description=f"sums, verdicts flipped with probability {epsilon:g}",
    )
