"""bandit: one token, each with a fixed reward; the prompt is empty.

Diagnoses baselines: nothing but the comparison of arms is left.
"""

from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET

DESCRIPTION = "the best of n arms; baselines"

# level: number of arms
LEVELS = {1: 3, 2: 10, 3: 32}


class ArmTable:
    """Score of an arm, read off a table by the first symbol of the completion.

    >>> ArmTable({"a": 0.5, "b": 1.0})(completions=["b", "a"])
    [1.0, 0.5]
    """

    __name__ = "arm_table"

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions; an empty one, which a stop string of the user's leaves, scores 0."""
        return [self.table.get(completion[:1], 0.0) for completion in completions]

    def best_arm(self, prompt: str) -> str:
        """The arm that pays most, whatever the prompt."""
        return max(self.table, key=self.table.__getitem__)


def make(level: int) -> Task:
    """The task at a level: n arms that pay 0, 1/(n-1), ..., 1.

    The optimum is the best arm, 1. A uniform policy gets the mean of the arms, 1/2.
    """
    arms = LEVELS[level]
    # The best arm stands in the middle: neither the first nor the last id, which a bug would favour, wins.
    table = {ALPHABET[arm]: (arm + arms // 2) % arms / (arms - 1) for arm in range(arms)}
    reward = ArmTable(table)
    return Task(
        name="bandit",
        level=level,
        tokenizer=list(ALPHABET[:arms]),
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=1,
        reward=reward,
        optimum=1.0,
        uniform=0.5,
        solution=reward.best_arm,
    )
