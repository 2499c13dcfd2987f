"""brackets: a balanced text of k kinds of brackets, nested just as deep as asked; the prompt is empty.

Diagnoses action masks: the constraint forbids every token after which the text could never be balanced again, so that
whoever samples and scores with the mask writes balanced texts alone, and whoever forgets it next to none. Every legal
text is balanced and non-empty; what is left to learn is the depth of the deepest nesting, which must be the target
itself, neither less nor more. With several kinds a uniform policy nests deeply, and the targets are shallow.
"""

import functools
from collections.abc import Sequence

import numpy as np

from textgym.tasks.base import Task

DESCRIPTION = "balanced, of one depth; action masks"

_PAIRS = ("()", "[]", "{}")
_CLOSING = {pair[0]: pair[1] for pair in _PAIRS}

# level: (kinds, horizon, target depth)
LEVELS = {1: (1, 8, 3), 2: (2, 12, 2), 3: (3, 24, 4)}


def deepest_nesting(text: str) -> int | None:
    """How deep a balanced text of brackets is nested; None where it is not balanced.

    >>> deepest_nesting("()[()]"), deepest_nesting(""), deepest_nesting("(]"), deepest_nesting("(")
    (2, 0, None, None)
    """
    opened, deepest = [], 0
    for symbol in text:
        if symbol in _CLOSING:
            opened.append(_CLOSING[symbol])
            deepest = max(deepest, len(opened))
        elif not opened or opened.pop() != symbol:
            return None
    return None if opened else deepest


class NestedTo:
    """1 for a balanced text whose deepest nesting is the target, 0 for anything else.

    >>> NestedTo(2)(completions=["(())()", "()", "((()))", "(("])
    [1.0, 0.0, 0.0, 0.0]
    """

    __name__ = "nested_to"

    def __init__(self, target: int) -> None:
        self.target = target

    def __call__(self, completions: list[str]) -> list[float]:
        """Score n completions."""
        return [float(deepest_nesting(completion) == self.target) for completion in completions]


class CanBeBalanced:
    """The constraint: a token is legal where the text can still be balanced and non-empty after it.

    Id 2i opens kind i, 2i + 1 closes it, 2k stops. Nothing is legal after a text that can no longer be balanced.

    >>> CanBeBalanced(kinds=1)("", [0, 0], 2).tolist()  # "((", two tokens left
    [False, True, False]
    """

    def __init__(self, kinds: int) -> None:
        self.kinds = kinds

    def __call__(self, prompt: str, completion_ids: Sequence[int], tokens_left: int) -> np.ndarray:
        """Which tokens are legal after a completion so far, bool [2k + 1]."""
        mask = np.zeros(2 * self.kinds + 1, dtype=bool)
        opened = self._opened(completion_ids)
        if opened is None or len(opened) > tokens_left:
            return mask
        mask[0 : 2 * self.kinds : 2] = len(opened) + 2 <= tokens_left  # the bracket itself, and one token to close each
        if opened:
            mask[2 * opened[-1] + 1] = True
        mask[-1] = not opened and len(completion_ids) > 0
        return mask

    def _opened(self, completion_ids: Sequence[int]) -> list[int] | None:
        """The kinds that are open, outermost first; None for a text that is wrong or ended already."""
        opened: list[int] = []
        for token in completion_ids:
            kind, closes = divmod(token, 2)
            if kind == self.kinds:
                return None
            if not closes:
                opened.append(kind)
            elif not opened or opened.pop() != kind:
                return None
        return opened


def uniform_return(kinds: int, horizon: int, target: int) -> float:
    """J of the policy that draws every legal token with the same probability, by recursion over the process.

    The legal tokens depend on the depth and on the tokens left, the score on the deepest nesting so far: k openings
    where there is room, one closing inside a bracket, the stop token outside of them.
    """

    @functools.cache
    def value(depth: int, deepest: int, left: int) -> float:
        if left == 0:
            return float(deepest == target)
        returns = []  # of the legal tokens
        if depth + 2 <= left:
            returns += [value(depth + 1, max(deepest, depth + 1), left - 1)] * kinds
        if depth > 0:
            returns.append(value(depth - 1, deepest, left - 1))
        elif deepest > 0:
            returns.append(float(deepest == target))
        return sum(returns) / len(returns)

    return value(0, 0, horizon)


def make(level: int) -> Task:
    """The task at a level; the optimum is 1, a text nested to its target, a uniform policy gets `uniform_return`."""
    kinds, horizon, target = LEVELS[level]
    return Task(
        name="brackets",
        level=level,
        tokenizer=[*"".join(_PAIRS[:kinds]), "<eos>"],
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=horizon,
        reward=NestedTo(target),
        constraint=CanBeBalanced(kinds),
        optimum=1.0,
        uniform=uniform_return(kinds, horizon, target),
        solution=lambda prompt: "(" * target + ")" * target,
        description=f"balanced, nested to depth {target}; action masks",
    )
