"""Tasks that fold: what is still to be had depends on an automaton's state and on the tokens left alone.

A policy that sees no more than the step, the state and the last n - 1 tokens is a table of one row for each, whatever
the horizon. What such tables are worth, and which are best, is left to `textgym.oracle.automaton`; whether an automaton
says what its task's reward does, to `textgym.oracle.automaton_check`.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from textgym.automata import Automaton
from textgym.escape import shown
from textgym.oracle.automaton_check import check_automaton
from textgym.oracle.ngram import Contexts, NGram
from textgym.oracle.problems import problem_of
from textgym.problem import Problem
from textgym.tasks import TASKS, make_task
from textgym.tasks.base import is_integer

_MOST_NUMBERS = 2**27  # of a table of log-probabilities: one gigabyte


@dataclass(frozen=True, eq=False)
class Folded:
    """A process over states and tokens left: a token moves the state, a stop token or the horizon pays its score.

    Attributes:
        automaton: S states, V tokens.
        horizon: W, the most tokens of a text, the stop token included.
        stop_ids: the tokens that end a text.
    """

    automaton: Automaton
    horizon: int
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not is_integer(self.horizon) or self.horizon < 1:
            raise ValueError(f"horizon is {shown(self.horizon)}; give an integer of at least 1")
        outside = [token for token in self.stop_ids if not 0 <= token < self.automaton.num_tokens]
        if outside:
            raise ValueError(f"stop_ids holds {outside[0]}; tokens are 0 to {self.automaton.num_tokens - 1}")
        object.__setattr__(self, "horizon", operator.index(self.horizon))

    def policy(self, reference: NGram) -> "FoldedPolicy":
        """An n-gram model as a policy of this process.

        Raises:
            TypeError, ValueError: no n-gram model, or one of other tokens or too many contexts.
        """
        if not isinstance(reference, NGram):
            raise TypeError(f"{shown(reference)} is no n-gram model; give a textgym.oracle.NGram")
        self.check_contexts(reference.contexts)
        shape = (self.horizon, self.automaton.num_states, *reference.log_probs.shape)
        return FoldedPolicy(self, reference.contexts, np.broadcast_to(reference.log_probs, shape))

    def check_contexts(self, contexts: Contexts) -> None:
        """Refuse contexts of other tokens, and a table that is too large.

        Raises:
            ValueError: it is one of these.
        """
        states, size = self.automaton.transitions.shape
        if contexts.size != size:
            raise ValueError(f"the n-gram model has {contexts.size} tokens, and the task {size}; give one of {size}")
        numbers = self.horizon * states * contexts.count * size
        if numbers > _MOST_NUMBERS:
            raise ValueError(
                f"a table of {self.horizon} steps × {states} states × {contexts.count} contexts × {size} tokens has "
                f"{numbers:,} numbers, more than {_MOST_NUMBERS:,}; lower the order n={contexts.order} or the horizon"
            )


@dataclass(frozen=True, eq=False)
class FoldedPolicy:
    """A policy that sees the tokens written so far as their number t, the state they lead to and the last n - 1.

    Attributes:
        folded: the process, S states, V tokens, horizon W.
        contexts: n; one context where the last tokens do not matter.
        table: float64 [W, S, C, V], log π(a given t, state, context).
    """

    folded: Folded
    contexts: Contexts
    table: np.ndarray

    def log_probs(self, completions: Any) -> np.ndarray:
        """The next token's log-probabilities after unfinished texts.

        Args:
            completions: int64 [T] the tokens of a text, or [n, T] those of many, PAD = V after the tokens of each, such
                as `tree.completions()`; of a task without prompts also observations.

        Returns:
            float64 [V], or [n, V].

        Raises:
            ValueError: not token ids, a token after PAD, or a text that has ended.
        """
        tokens = self._checked(np.atleast_1d(np.asarray(completions)))
        rows = np.atleast_2d(tokens)
        states = np.full(len(rows), self.folded.automaton.start)
        contexts = np.full(len(rows), self.contexts.start)
        for column in rows.T:
            here = np.flatnonzero(column < self.contexts.size)
            states[here] = self.folded.automaton.transitions[states[here], column[here]]
            contexts[here] = self.contexts.following[contexts[here], column[here]]
        written = (rows < self.contexts.size).sum(axis=1)
        return self.table[written, states, contexts].reshape(*tokens.shape[:-1], self.contexts.size)

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Whole texts drawn from the policy, int64 [count, W]: the stop token included, PAD = V after it."""
        size = self.contexts.size
        texts = np.full((count, self.folded.horizon), size)
        rows = np.arange(count)  # that are running
        states, contexts = np.full(count, self.folded.automaton.start), np.full(count, self.contexts.start)
        for step in range(self.folded.horizon):
            cumulative = np.exp(self.table[step, states, contexts]).cumsum(axis=1)
            drawn = generator.random((len(rows), 1))
            # The first share above the draw, so that a token of probability 0 is never taken.
            tokens = (cumulative / cumulative[:, -1:] <= drawn).sum(axis=1)
            texts[rows, step] = tokens
            states = self.folded.automaton.transitions[states, tokens]
            contexts = self.contexts.following[contexts, tokens]
            on = ~np.isin(tokens, self.folded.stop_ids)
            rows, states, contexts = rows[on], states[on], contexts[on]
        return texts

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        size, horizon = self.contexts.size, self.folded.horizon
        if tokens.size == 0:  # of an empty list, which has no dtype of its own
            tokens = tokens.astype(np.int64)
        if tokens.ndim > 2 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"completions are {tokens.dtype} {tokens.shape}; give token ids, integers [T] or [n, T]")
        if ((tokens < 0) | (tokens > size)).any():
            raise ValueError(f"completions hold an id outside of 0 to {size - 1}, and PAD = {size}")
        written = tokens < size
        if (written[..., 1:] & ~written[..., :-1]).any():
            raise ValueError(f"completions hold a token after PAD = {size}; give PAD after the tokens of a text alone")
        if np.isin(tokens, self.folded.stop_ids).any() or (written.sum(axis=-1) >= horizon).any():
            raise ValueError(
                f"completions hold a text that has ended, by a stop token {list(self.folded.stop_ids)} or at the "
                f"horizon of {horizon} tokens: no token comes next"
            )
        return tokens


def fold(env: Any, horizon: int | None = None) -> Folded:
    """The process of a task with an automaton, over its states and the tokens left.

    The automaton is compared with the reward on some hundred texts, always the same, and believed on all others.

    Args:
        env: a TextGen-v0 environment, scalar or vector, wrapped or not; a `Problem`, a `Task` or a task's name. Its
            prompts may come from a function.
        horizon: W instead of its own, hundreds for instance.

    Raises:
        TypeError, ValueError: no environment or task; one without an automaton, with stop strings, with a reward
            that draws, with a scheme that pays something else than the score, or with an automaton that differs from
            the reward on a text that is tried.
        textgym.RewardError: the reward failed on one.

    >>> folded = fold("regex", horizon=300)
    >>> folded.automaton.num_states, folded.horizon, folded.stop_ids
    (4, 300, (2,))
    """
    problem = problem_of(env)
    if problem.automaton is None:
        raise ValueError(_no_automaton(problem))
    if not problem.scheme.pays_score:
        raise ValueError(
            "the scheme pays something else than the score, which the automaton does not know; leave it out"
        )
    if problem.stop:
        raise ValueError(f"stop={list(problem.stop.strings)}: the automaton does not know stop strings; leave them out")
    folded = Folded(
        problem.automaton, problem.max_new_tokens if horizon is None else horizon, tuple(problem.vocabulary.stop_ids)
    )
    check_automaton(problem, folded.automaton, folded.horizon)
    return folded


def _no_automaton(problem: Problem) -> str:
    task = problem.task
    if task is not None and task.automaton is not None:
        return (
            f"the automaton of task {task.name!r} knows its own tokens, stop tokens and reward alone; leave out "
            "tokenizer=, stop_ids= and reward="
        )
    folding = [
        name
        for name, family in sorted(TASKS.items())
        if family.make.__module__.startswith("textgym.") and make_task(name).automaton is not None
    ]
    which = "your own problem" if task is None else f"task {task.name!r}"
    return (
        f"{which} has no automaton to fold into; {', '.join(folding)} have one, and so has a textgym.Task with "
        "automaton=. A small task can be enumerated: textgym.oracle.enumerate_tree"
    )
