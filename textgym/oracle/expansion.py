"""The levels of a tree, one after the other: every legal action of every state, taken by the environment's transition.

Each edge is one step of `textgym.transition.Transition`, begun in the state that the step before it reached; nothing of
the process is written a second time. Numbers the nodes of a level alone; `textgym.oracle.tree` joins the levels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from textgym.escape import excerpt
from textgym.finish import FinishReason
from textgym.oracle.size import SizeGuard
from textgym.problem import Problem
from textgym.prompt_rows import Prompt
from textgym.starts import Start
from textgym.transition import StartPlan, Transition

_ROWS = 4096  # steps that are taken together
_CELLS = 2**22  # of the arrays of these rows


class Level(NamedTuple):
    """The n nodes of one depth, in the order of their parents and, of one parent, of the tokens."""

    prompt: np.ndarray  # int64 [n]
    parent: np.ndarray  # int64 [n], the place in the level above; -1 at roots
    action: np.ndarray  # int64 [n], -1 at roots
    legal: np.ndarray  # bool [n, V]
    child: np.ndarray  # int64 [n, V], the place in the level below; -1 where the action ends the episode or is illegal
    reward: np.ndarray  # float64 [n, V]
    finish_reason: np.ndarray  # int64 [n, V]


class _States(NamedTuple):
    """n running episodes, as far as the transition needs them to go on."""

    prompt: np.ndarray  # int64 [n]
    ids: np.ndarray  # int64 [n, t], the completions
    masks: np.ndarray  # bool [n, V]; [n, 0] without a constraint
    prefix_score: np.ndarray  # float64 [n]
    potentials: np.ndarray  # float64 [n, P]


def expand(problem: Problem, prompts: Sequence[Prompt], guard: SizeGuard) -> Iterator[Level]:
    """Each level of the forest whose roots are the prompts, the roots first.

    Raises:
        ValueError: the tree grows past the guard's limit, a reward drops an episode, or a prompt allows no token.
        textgym.RewardError: a reward function failed.
    """
    expansion = _Expansion(problem, prompts, guard)
    states = expansion.roots()
    parent = action = np.full(len(prompts), -1)
    while len(states.prompt):
        level, states = expansion.step(states, parent, action)
        yield level
        parent, action = np.nonzero(level.child >= 0)


class _Expansion:
    """Steps of the transition over whole levels, `_ROWS` at a time."""

    def __init__(self, problem: Problem, prompts: Sequence[Prompt], guard: SizeGuard) -> None:
        self._problem, self._prompts, self._guard = problem, prompts, guard
        self._size = problem.vocabulary.size
        generator = np.random.default_rng(0)  # nobody draws from it: such rewards are refused
        self._num_rows = max(1, min(_ROWS, _CELLS // max(self._size, problem.max_length)))
        self._transition = Transition(problem, self._num_rows, lambda row: generator)
        self._ended = self._nodes = 0  # counted so far

    def roots(self) -> _States:
        """The prompts themselves."""
        plans = []
        for chunk in self._chunks(len(self._prompts)):
            starts = [Start(self._prompts[place]) for place in range(chunk.start, chunk.stop)]
            plan = self._transition.plan(np.arange(len(starts)), starts)
            self._check_kept(plan.kept, starts)
            plans.append(plan)
        return _States(
            prompt=np.arange(len(self._prompts)),
            ids=np.zeros((len(self._prompts), 0), dtype=np.int64),
            masks=np.concatenate([plan.legal for plan in plans]),
            prefix_score=np.concatenate([plan.prefix_score for plan in plans]),
            potentials=np.concatenate([plan.potentials for plan in plans]),
        )

    def step(self, states: _States, parent: np.ndarray, action: np.ndarray) -> tuple[Level, _States]:
        """The level of these states, and the states that its actions lead to."""
        count = len(states.prompt)
        self._nodes += count
        legal = states.masks if states.masks.shape[1] else np.ones((count, self._size), dtype=bool)
        reward, finish_reason = np.zeros(legal.shape), np.zeros(legal.shape, dtype=np.int64)
        nodes, actions = np.nonzero(legal)
        reached = []
        found = 0  # children so far
        for chunk in self._chunks(len(nodes)):
            here, taken = nodes[chunk], actions[chunk]
            edges = (here, taken)
            following, reward[edges], finish_reason[edges] = self._take(states, here, taken)
            reached.append(following)
            found += len(following.prompt)
            self._ended += len(here) - len(following.prompt)
            self._guard.check(self._ended + found, self._nodes + found)
        going_on = legal & (finish_reason == FinishReason.RUNNING)
        child = np.full(legal.shape, -1)
        child[going_on] = np.arange(found)
        level = Level(states.prompt, parent, action, legal, child, reward, finish_reason)
        return level, _States(*(np.concatenate(parts) for parts in zip(*reached, strict=True)))

    def _take(self, states: _States, nodes: np.ndarray, actions: np.ndarray) -> tuple[_States, np.ndarray, np.ndarray]:
        """Take an action in each of n nodes: the states of those that go on, the rewards and the ends of all."""
        transition, rows = self._transition, np.arange(len(nodes))
        which = states.prompt[nodes]
        starts = [
            Start(self._prompts[place], ids) for place, ids in zip(which.tolist(), states.ids[nodes], strict=True)
        ]
        transition.begin(
            StartPlan(
                rows=rows,
                starts=starts,
                legal=states.masks[nodes],
                prefix_score=states.prefix_score[nodes],
                potentials=states.potentials[nodes],
                kept=np.ones(len(nodes), dtype=bool),
            )
        )
        transition.step(actions, rows)
        self._check_kept(transition.valid[rows], starts, actions)
        finish_reason = transition.finish_reason[rows]
        on = finish_reason == FinishReason.RUNNING
        following = _States(
            prompt=which[on],
            ids=np.column_stack([states.ids[nodes[on]], actions[on]]),
            masks=transition.legal[rows[on]],
            prefix_score=transition.prefix_score[rows[on]],
            potentials=transition.potentials[rows[on]],
        )
        return following, transition.reward[rows], finish_reason

    def _chunks(self, count: int) -> Iterator[slice]:
        for first in range(0, count, self._num_rows):
            yield slice(first, min(first + self._num_rows, count))

    def _check_kept(self, kept: np.ndarray, starts: Sequence[Start], actions: np.ndarray | None = None) -> None:
        if kept.all():
            return
        place = int(kept.argmin())
        ids = starts[place].completion_ids.tolist() + ([] if actions is None else [int(actions[place])])
        raise ValueError(
            f"an episode is dropped: a function that scores it failed on the prompt "
            f"{excerpt(starts[place].prompt.text)} and the completion {excerpt(self._problem.vocabulary.decode(ids))} "
            "(its failure is in the warning of on_reward_error='drop'). What is left out has no exact value; mend the "
            "function"
        )
