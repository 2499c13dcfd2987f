"""delayed_bit: the first token decides, and the score is paid W - 1 tokens later; the prompt is empty.

Diagnoses the length of credit: W - 1 tokens without any effect stand between the cause and the reward, and their noise
is all that an estimator has to look through. `prefix_delta` pays at the first token and takes the delay away.
"""

from textgym.languages import one_of, sequence, star
from textgym.tasks.base import Task
from textgym.tasks.pieces import ALPHABET

DESCRIPTION = "only the first token counts; delayed credit"

# level: (symbols, horizon)
LEVELS = {1: (2, 4), 2: (2, 16), 3: (4, 32), 4: (4, 64)}


class FirstSymbol:
    """1 where the completion begins with the symbol, 0 elsewhere.

    >>> FirstSymbol("1")(completions=["1000", "0111", ""])
    [1.0, 0.0, 0.0]
    """

    __name__ = "first_symbol"

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions."""
        return [float(completion.startswith(self.symbol)) for completion in completions]


def make(level: int) -> Task:
    """The task at a level.

    One of V first tokens scores 1 whatever follows, so that the optimum is 1 and a uniform policy gets 1/V.
    """
    symbols, horizon = LEVELS[level]
    right = ALPHABET[symbols // 2]
    return Task(
        name="delayed_bit",
        level=level,
        tokenizer=list(ALPHABET[:symbols]),
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=horizon,
        reward=FirstSymbol(right),
        optimum=1.0,
        uniform=1.0 / symbols,
        solution=lambda prompt: right * horizon,
        automaton=sequence(right, star(one_of(ALPHABET[:symbols]))).automaton(ALPHABET[:symbols]),
    )
