"""combination_lock: write the one key, token for token; the prompt is empty and there is no stop token.

Diagnoses exploration: nothing is paid short of the whole key, and a uniform policy finds it once in V^W episodes.
"""

from textgym.languages import literal
from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET

DESCRIPTION = "the one right key; exploration, sparse reward"

# level: (symbols, key). No key is sorted, of one symbol, or the same backwards: a policy that a bug drives to such a
# text opens nothing.
LEVELS = {1: (2, "1011"), 2: (4, "2031"), 3: (6, "413052"), 4: (8, "3110375524210264")}


class Lock:
    """1 for the key, 0 for anything else, the unfinished key included.

    >>> Lock("2031")(completions=["2031", "2030", "203"])
    [1.0, 0.0, 0.0]
    """

    __name__ = "lock"

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions."""
        return [float(completion == self.key) for completion in completions]

    def solution(self, prompt: str) -> str:
        """The key, whatever the prompt."""
        return self.key


def make(level: int) -> Task:
    """The task at a level.

    One of V^W texts scores 1 and the others 0, so that the optimum is 1 and a uniform policy gets V^-W.
    """
    symbols, key = LEVELS[level]
    lock = Lock(key)
    return Task(
        name="combination_lock",
        level=level,
        tokenizer=list(ALPHABET[:symbols]),
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=len(key),
        reward=lock,
        optimum=1.0,
        uniform=float(symbols) ** -len(key),
        solution=lock.solution,
        automaton=literal(key).automaton(ALPHABET[:symbols]),
    )
