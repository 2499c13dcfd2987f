"""Every state and every complete sequence of a small task, as arrays.

The state is a node, the action an edge; what an edge pays and whether it ends the episode comes from the environment's
own transition. What follows for a policy is left to the other files of this package; they take a policy as an array of
log-probabilities, float64 [N, V], -inf where an action is illegal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from textgym.oracle.expansion import expand
from textgym.oracle.problems import check_listed, problem_of, prompt_weights
from textgym.oracle.size import SizeGuard
from textgym.problem import Problem
from textgym.prompt_rows import Prompt


class Sequences(NamedTuple):
    """Every complete episode, S of them, in the order of `np.nonzero(tree.ends)`: by its last node, then its token."""

    prompt: np.ndarray  # int64 [S]
    nodes: np.ndarray  # int64 [S, W], the states in which its actions are taken; -1 after the end
    actions: np.ndarray  # int64 [S, W], 0 after the end
    mask: np.ndarray  # bool [S, W], True up to the last action
    rewards: np.ndarray  # float64 [S, W], 0 after the end
    returns: np.ndarray  # float64 [S], the sum of its rewards
    length: np.ndarray  # int64 [S], its actions
    finish_reason: np.ndarray  # int64 [S], a `FinishReason`


@dataclass(frozen=True, eq=False)
class Tree:
    """A forest, one tree a prompt: N nodes in one numbering, ordered by depth, over V tokens.

    Attributes:
        problem: what was enumerated.
        prompts: P of them; node p is the root of prompt p.
        weights: float64 [P], the probability of each prompt; they sum to 1.
        levels: nodes of depth t are levels[t]; as many as the longest episode has steps, W at most.
        prompt: int64 [N], the prompt of each node.
        parent: int64 [N], -1 at roots.
        action: int64 [N], the token that led here, -1 at roots.
        legal: bool [N, V].
        child: int64 [N, V], the node after the action; -1 where it ends the episode or is illegal.
        reward: float64 [N, V], what the step pays; 0 where the action is illegal.
        finish_reason: int64 [N, V], how the action ends the episode; 0 where there is a child or it is illegal.
    """

    problem: Problem
    prompts: tuple[Prompt, ...]
    weights: np.ndarray
    levels: tuple[slice, ...]
    prompt: np.ndarray
    parent: np.ndarray
    action: np.ndarray
    legal: np.ndarray
    child: np.ndarray
    reward: np.ndarray
    finish_reason: np.ndarray

    @property
    def num_nodes(self) -> int:
        """N, the states in which an action is taken."""
        return len(self.parent)

    @property
    def size(self) -> int:
        """V, the tokens."""
        return self.legal.shape[1]

    @cached_property
    def num_sequences(self) -> int:
        """S, the complete episodes."""
        return int(self.ends.sum())

    @cached_property
    def depth(self) -> np.ndarray:
        """The tokens written before each node, int64 [N]."""
        counts = [level.stop - level.start for level in self.levels]
        return _fixed(np.repeat(np.arange(len(self.levels)), counts))

    @cached_property
    def ends(self) -> np.ndarray:
        """Where an action ends the episode, bool [N, V]."""
        return _fixed(self.legal & (self.child < 0))

    def completions(self) -> np.ndarray:
        """The tokens written before each node, int64 [N, W], PAD after them."""
        return self._completions

    def histories(self) -> np.ndarray:
        """What the environment shows in each node, int64 [N, L]: the prompt, the tokens written, then PAD."""
        pad = self.problem.vocabulary.pad_id
        begun = np.full((len(self.prompts), self.problem.max_length), pad, dtype=np.int64)
        for row, prompt in enumerate(self.prompts):
            begun[row, : len(prompt.ids)] = prompt.ids
        histories = begun[self.prompt]
        lengths = np.array([len(prompt.ids) for prompt in self.prompts])[self.prompt]
        places = lengths[:, None] + np.arange(self._completions.shape[1])
        np.put_along_axis(histories, places, self._completions, axis=1)
        return histories

    def uniform(self) -> np.ndarray:
        """The policy that draws every legal token alike, log-probabilities float64 [N, V]."""
        counts = self.legal.sum(axis=1, keepdims=True)
        return np.where(self.legal, -np.log(counts), -np.inf)

    def sequences(self) -> Sequences:
        """Every complete episode; some S × W numbers, worked out anew at each call."""
        last, final = np.nonzero(self.ends)
        length = self.depth[last] + 1
        nodes = np.full((len(last), self.problem.max_new_tokens), -1)
        actions = np.zeros(nodes.shape, dtype=np.int64)
        node, action = last, final
        rows = np.arange(len(last))
        for back in range(1, len(self.levels) + 1):
            rows = rows[length[rows] >= back]
            place = (rows, length[rows] - back)
            nodes[place], actions[place] = node[rows], action[rows]
            node, action = np.where(node < 0, node, self.parent[node]), np.where(node < 0, action, self.action[node])
        mask = nodes >= 0
        rewards = np.where(mask, self.reward[nodes, actions], 0.0)
        return Sequences(
            prompt=self.prompt[last],
            nodes=nodes,
            actions=actions,
            mask=mask,
            rewards=rewards,
            returns=rewards.sum(axis=1),
            length=length,
            finish_reason=self.finish_reason[last, final],
        )

    @cached_property
    def _completions(self) -> np.ndarray:
        pad = self.problem.vocabulary.pad_id
        completions = np.full((self.num_nodes, self.problem.max_new_tokens), pad, dtype=np.int64)
        for depth, level in enumerate(self.levels[1:], start=1):
            completions[level] = completions[self.parent[level]]
            completions[level, depth - 1] = self.action[level]
        return _fixed(completions)


def enumerate_tree(env: Any, weights: Any = None, limit: int = 1_000_000, places: Sequence[int] | None = None) -> Tree:
    """Every state and every complete sequence of a small task.

    Args:
        env: a TextGen-v0 environment, scalar or vector; a `Problem`, a `Task` or a task's name. What a wrapper of the
            environment changes is not seen.
        weights: how likely each prompt is, P numbers that need not sum to 1; all alike by default, as the environment
            draws them.
        limit: the most complete sequences, over all prompts. Where a constraint or a stop string ends some early, they
            are counted while the tree grows.
        places: which prompts of the environment, by their number; all by default.

    Each complete sequence is scored once, some thousand in a call; a reward's time limit holds for the call.

    Raises:
        TypeError, ValueError: no environment or task; prompts from a function; a reward that draws or drops an
            episode; malformed weights; more sequences than the limit.
        textgym.RewardError: a reward function failed.

    >>> tree = enumerate_tree("combination_lock")  # V = 2, W = 4
    >>> tree.num_nodes, tree.num_sequences, tree.sequences().returns.sum()
    (15, 16, np.float64(1.0))
    """
    problem = problem_of(env)
    check_listed(problem)
    places = range(len(problem.prompts)) if places is None else places
    guard = SizeGuard(problem, limit, len(places))
    guard.check_before()
    checked = prompt_weights(weights, len(places))
    prompts = tuple(problem.prompts[place] for place in places)
    levels = list(expand(problem, prompts, guard))
    bounds = np.cumsum([0, *(len(level.prompt) for level in levels)]).tolist()
    above = [0, *bounds]  # where the level of the parents begins
    shifted = [
        level._replace(
            parent=np.where(level.parent >= 0, level.parent + above[place], -1),
            child=np.where(level.child >= 0, level.child + bounds[place + 1], -1),
        )
        for place, level in enumerate(levels)
    ]
    joined = [_fixed(np.concatenate(parts)) for parts in zip(*shifted, strict=True)]
    slices = tuple(slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False))
    prompt, parent, action, legal, child, reward, finish_reason = joined
    return Tree(
        problem=problem,
        prompts=prompts,
        weights=_fixed(checked),
        levels=slices,
        prompt=prompt,
        parent=parent,
        action=action,
        legal=legal,
        child=child,
        reward=reward,
        finish_reason=finish_reason,
    )


def _fixed(array: np.ndarray) -> np.ndarray:
    """The array, read-only: a tree is shared by everything that is worked out from it."""
    array.flags.writeable = False
    return array
