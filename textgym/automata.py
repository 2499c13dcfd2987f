"""Deterministic automata over tokens: the state that the tokens of a text lead to tells what the text scores.

A task that scores its texts so folds: what a completion can still get depends on the state and on the tokens left, not
on the rest of the history, and `textgym.oracle` solves it at any horizon. Where an automaton comes from is left to its
maker; `textgym.languages` makes those of regular languages.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from textgym.escape import shown, type_name


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over the tokens of a vocabulary.

    Attributes:
        transitions: int64 [S, V], the state after each token. A stop token ends the text before it: its column is not
            followed.
        score: float64 [S], what a text that ends in the state scores.
        start: the state of the empty text.

    Raises:
        TypeError, ValueError: arrays of a wrong dtype, shape or range.

    >>> odd = Automaton([[0, 1], [1, 0]], score=[0, 1])  # an odd number of tokens 1
    >>> odd.score_of([1, 0, 1, 1]), odd.score_of([0, 1, 1])
    (1.0, 0.0)
    """

    transitions: np.ndarray
    score: np.ndarray
    start: int = 0

    def __post_init__(self) -> None:
        transitions, score = _integers(self.transitions), _numbers(self.score)
        states = len(transitions)
        if score.shape != (states,):
            raise ValueError(
                f"score of an automaton has shape {score.shape}; give one number for each of its {states} states"
            )
        _check_states("transitions", transitions, states)
        if isinstance(self.start, bool) or not hasattr(self.start, "__index__"):
            raise TypeError(f"start of an automaton is {shown(self.start)}; give the number of a state")
        _check_states("start", np.array([self.start]), states)
        for array in (transitions, score):
            array.flags.writeable = False  # tasks are cached: nobody may change a part of one
        object.__setattr__(self, "transitions", transitions)
        object.__setattr__(self, "score", score)
        object.__setattr__(self, "start", int(self.start))

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.transitions)

    @property
    def num_tokens(self) -> int:
        """V."""
        return self.transitions.shape[1]

    def state_after(self, ids: Iterable[int]) -> int:
        """The state that the tokens of a text lead to; the stop token is none of them.

        Raises:
            ValueError: an id outside of 0 to V-1.
        """
        state = self.start
        for token in ids:
            if not 0 <= token < self.num_tokens:
                raise ValueError(f"there is no token {token}; the automaton reads 0 to {self.num_tokens - 1}")
            state = int(self.transitions[state, token])
        return state

    def score_of(self, ids: Iterable[int]) -> float:
        """What the text of these tokens scores; the stop token is none of them."""
        return float(self.score[self.state_after(ids)])

    def minimal(self) -> "Automaton":
        """The smallest automaton with the same scores, its states in the order in which the tokens reach them.

        >>> Automaton([[1, 2], [2, 1], [1, 2], [3, 3]], score=[1, 0, 1, 5]).minimal().transitions.tolist()
        [[1, 0], [0, 1]]
        """
        kinds, classes = 0, np.unique(self.score, return_inverse=True)[1].reshape(-1)
        while classes.max() + 1 > kinds:  # Moore: states part where one token leads them into two classes
            kinds = classes.max() + 1
            signatures = np.column_stack([classes, classes[self.transitions]])
            classes = np.unique(signatures, axis=0, return_inverse=True)[1].reshape(-1)
        number = {int(classes[self.start]): 0}  # class -> state
        members, queue = [self.start], deque([self.start])  # one old state of each new one
        while queue:
            for state in self.transitions[queue.popleft()].tolist():
                if int(classes[state]) not in number:
                    number[int(classes[state])] = len(number)
                    members.append(state)
                    queue.append(state)
        renumbered = [[number[int(classes[state])] for state in self.transitions[member]] for member in members]
        return Automaton(np.array(renumbered), self.score[members])


def _integers(transitions: Any) -> np.ndarray:
    try:
        array = np.array(transitions)
    except ValueError:  # rows of several lengths
        raise ValueError("transitions of an automaton are no table; give [states, tokens], equally long rows") from None
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"transitions of an automaton have shape {array.shape}; give [states, tokens], neither 0")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"transitions of an automaton have dtype {array.dtype}; give integers, the numbers of states")
    return array.astype(np.int64)


def _numbers(score: Any) -> np.ndarray:
    try:
        array = np.array(score, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"score of an automaton is {shown(score)} of type {type_name(score)}; give a number for each state"
        ) from None
    if not np.isfinite(array).all():
        raise ValueError("score of an automaton holds NaN or an infinity; give finite numbers")
    return array


def _check_states(what: str, numbers: np.ndarray, states: int) -> None:
    outside = numbers[(numbers < 0) | (numbers >= states)]
    if len(outside):
        raise ValueError(f"{what} of an automaton: there is no state {outside[0]}; states are 0 to {states - 1}")
