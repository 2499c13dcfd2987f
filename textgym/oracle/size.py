"""How large a tree is, before and while it is built, and the refusal of one that is too large."""

import operator
from typing import Any

from textgym.escape import shown, type_name
from textgym.problem import Problem
from textgym.tasks.base import is_integer

_CELLS_PER_SEQUENCE = 64  # of nodes × V: where masks forbid most tokens, tables are larger than what they hold
HUGE = 10**30  # no larger number is worked out


class SizeGuard:
    """Refuses a tree of more complete sequences than `limit`.

    Args:
        problem: what is to be enumerated.
        limit: the most complete sequences, over all prompts.
        num_prompts: how many prompts; by default all of the problem.

    Attributes:
        exact: whether the number of sequences is known beforehand: nothing is masked, no stop string ends a text early.

    Raises:
        TypeError, ValueError: no integer of at least 1.
    """

    def __init__(self, problem: Problem, limit: Any, num_prompts: int | None = None) -> None:
        if not is_integer(limit):
            raise TypeError(f"limit is {shown(limit)} of type {type_name(limit)}; give an integer of at least 1")
        if limit < 1:
            raise ValueError(f"limit={limit}; give an integer of at least 1")
        self._problem, self._limit = problem, operator.index(limit)
        self._num_prompts = len(problem.prompts) if num_prompts is None else num_prompts
        self.exact = problem.constraint is None and not problem.stop

    def check_before(self) -> None:
        """Refuse what is known to be too large before a single step is taken.

        Raises:
            ValueError: the tree has more sequences than the limit, and nothing but the horizon and stop tokens ends
                one; or there are more prompts than that.
        """
        problem = self._problem
        prompts = self._num_prompts
        sequences, nodes = full_tree(
            problem.vocabulary.size, len(set(problem.vocabulary.stop_ids)), problem.max_new_tokens
        )
        if not self.exact:
            sequences, nodes = 1, 1  # of each prompt there is one at least
        self.check(prompts * sequences, prompts * nodes, at_least=not self.exact)

    def check(self, sequences: int, nodes: int, at_least: bool = True) -> None:
        """Refuse a tree of this size.

        Args:
            sequences: complete sequences, over all prompts.
            nodes: states in which an action is taken.
            at_least: whether these are what has been counted so far.

        Raises:
            ValueError: it is too large; the message names the number, the limit and how to mend it.
        """
        problem = self._problem
        width = max(problem.vocabulary.size, problem.max_new_tokens)
        most = "at least " if at_least else ""
        if sequences > self._limit:
            size = f"{most}{told_number(sequences)} complete sequences"
            needed = sequences
        elif nodes * width > _CELLS_PER_SEQUENCE * self._limit:
            size = f"{most}{told_number(nodes)} states with tables of {width} numbers each"
            needed = -(-nodes * width // _CELLS_PER_SEQUENCE)
        else:
            return
        more = "a larger limit" if at_least or needed > HUGE else f"limit={needed}"
        raise ValueError(
            f"the tree is too large to enumerate: {size} ({told_number(self._num_prompts)} prompts, "
            f"V={problem.vocabulary.size}, max_new_tokens={problem.max_new_tokens}), and limit={self._limit}. Lower "
            f"max_new_tokens, or give fewer prompts or tokens; with the memory and the time for it, give {more}"
        )


def full_tree(size: int, num_stops: int, horizon: int) -> tuple[int, int]:
    """Complete sequences and inner nodes of the tree of one prompt, where nothing is masked.

    Numbers above 10^30 are not worked out: the first such one is returned.

    >>> full_tree(size=4, num_stops=1, horizon=3)  # 1 + 3 + 9 stopped, 27 at the horizon
    (40, 13)
    """
    sequences, nodes, running = 0, 0, 1
    for _ in range(horizon):
        nodes += running
        sequences += running * num_stops
        running *= size - num_stops
        if running == 0 or sequences + running > HUGE:
            break
    return sequences + running, nodes


def told_number(count: int) -> str:
    """A count for a message, not written out above 10^30."""
    return f"{count:,}" if count <= HUGE else "more than 10^30"
