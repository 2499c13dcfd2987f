"""length_trap: the first token decides; the text may stop anywhere; the prompt is empty.

Diagnoses a bias towards some length: the reward does not depend on it, so that the mean length of right answers, and of
wrong ones, must not move while the return rises. An estimator that divides by the length moves both.
"""

from textgym.languages import one_of, sequence, star
from textgym.tasks.base import Task
from textgym.tasks.delayed_bit import FirstSymbol

DESCRIPTION = "only the first token counts; length bias"

# level: horizon
LEVELS = {1: 10, 2: 20, 3: 32}
_SYMBOLS = ("0", "1", "<eos>")  # the right one is neither the first id nor the last


def make(level: int) -> Task:
    """The task at a level.

    One of three first tokens scores 1 whatever follows, so that the optimum is 1 and a uniform policy gets 1/3.
    """
    return Task(
        name="length_trap",
        level=level,
        tokenizer=list(_SYMBOLS),
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=LEVELS[level],
        reward=FirstSymbol("1"),
        optimum=1.0,
        uniform=1.0 / 3.0,
        solution=lambda prompt: "1",
        automaton=sequence("1", star(one_of("01"))).automaton(_SYMBOLS),
    )
