"""regex: write any text that matches a pattern, then the stop token; the prompt is empty.

Diagnoses long verifiable output: what may come next depends on all that stands, but through few states. The automaton
of the pattern folds the tree of texts, so that optimum, uniform policy and the KL-regularised optimum under an n-gram
reference are exact at any horizon, `max_new_tokens=300` for instance.
"""

import re

import numpy as np

from textgym.automata import Automaton
from textgym.languages import Language, either, one_of, repeat, sequence, star
from textgym.tasks.base import Task

DESCRIPTION = "text that matches a pattern; large horizons"

_BITS = repeat(one_of("01"), 1)  # a binary number
_WHOLE = either("0", sequence("1", star(one_of("01"))))  # one without leading zeros

# level: (symbols beside the stop token, horizon, language, a text of it, what it is)
LEVELS: dict[int, tuple[str, int, Language, str, str]] = {
    1: ("ab", 6, sequence("a", star("b"), "a"), "aa", "b between two a"),
    2: ("01.", 10, sequence(_WHOLE, ".", star(one_of("01")), "1"), "0.1", "a fraction, no needless 0"),
    3: ("xy+*", 14, sequence(one_of("xy"), repeat(sequence(one_of("+*"), one_of("xy")), 2)), "x+x*y", "three terms"),
    4: ("01,[]", 20, sequence("[", _BITS, repeat(sequence(",", _BITS), 1), "]"), "[0,1]", "a list of numbers"),
}


class Matches:
    """1 for a text that matches the whole pattern, 0 for any other.

    >>> Matches("ab*a")(completions=["aa", "abba", "ab", ""])
    [1.0, 1.0, 0.0, 0.0]
    """

    __name__ = "matches"

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions."""
        return [float(self.pattern.fullmatch(completion) is not None) for completion in completions]


def uniform_return(automaton: Automaton, horizon: int) -> float:
    """J of the policy that draws every token with the same probability, by pushing its distribution over the states.

    The stop token is the last of V.
    """
    size = automaton.num_tokens
    states, ended = np.zeros(automaton.num_states), 0.0
    states[automaton.start] = 1.0
    for _ in range(horizon):
        ended += float(states @ automaton.score) / size
        following = np.zeros_like(states)
        for token in range(size - 1):
            np.add.at(following, automaton.transitions[:, token], states / size)
        states = following
    return ended + float(states @ automaton.score)


def make(level: int) -> Task:
    """The task at a level; the optimum is 1, any text of the language, a uniform policy gets `uniform_return`."""
    symbols, horizon, language, text, description = LEVELS[level]
    tokens = [*symbols, "<eos>"]
    automaton = language.automaton(tokens)
    return Task(
        name="regex",
        level=level,
        tokenizer=tokens,
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=horizon,
        reward=Matches(language.pattern),
        optimum=1.0,
        uniform=uniform_return(automaton, horizon),
        solution=lambda prompt: text,
        description=f"{description}; large horizons",
        automaton=automaton,
    )
