"""Paths of an enumerated tree as a rollout, the form in which the policy scores states and algorithms see episodes.

Every state of a tree lies on the way to one that no other continues, so that the longest contexts are all that a model
has to read.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np

from agents.experience import microbatches
from agents.rollout import Rollout
from textgym.oracle import Tree

_NONE = -1


def rollout_of(tree: Tree, nodes: np.ndarray, actions: np.ndarray) -> Rollout:
    """Episodes along paths of a tree, each a group of its own; no log-probabilities are filled in.

    Args:
        tree: N nodes, V tokens.
        nodes: int64 [B, T], the states of each episode from a root on; -1 after its last.
        actions: int64 [B, T], the token chosen in each, 0 after the last.
    """
    mask = nodes != _NONE
    rows, steps = np.arange(len(nodes)), mask.sum(axis=1)
    last = nodes[rows, steps - 1]
    length = np.array([len(prompt.ids) for prompt in tree.prompts])[tree.prompt[last]] + tree.depth[last] + 1
    tokens = tree.histories()[last]
    tokens[rows, length - 1] = actions[rows, steps - 1]
    rewards = np.where(mask, tree.reward[nodes, actions], 0.0)
    legal = np.where(mask[:, :, None], tree.legal[nodes], True) if tree.problem.constraint is not None else None
    score = rewards.sum(axis=1)
    return Rollout(
        tokens=tokens,
        prompt_length=length - steps,
        length=length,
        actions=actions,
        mask=mask,
        log_probs=np.zeros(mask.shape),
        rewards=rewards,
        score=score,
        scores=score[:, None],
        scores_valid=np.ones((len(nodes), 1), dtype=bool),
        valid=np.ones(len(nodes), dtype=bool),
        finish_reason=tree.finish_reason[last, actions[rows, steps - 1]],
        group=rows,
        vocabulary=tree.problem.vocabulary,
        action_mask=legal,
    )


class Contexts(NamedTuple):
    """States of a tree as steps of episodes; each state is read off one of them."""

    rollout: Rollout  # C episodes
    nodes: np.ndarray  # int64 [C, T], the node that is read off this step; -1 where none is, or another episode's is

    def carrying(self, weights: np.ndarray) -> Self:
        """Those in which a node with a weight, [N, V], is read."""
        weighed = (self.nodes != _NONE) & np.any(weights, axis=1)[self.nodes]
        rows = np.flatnonzero(weighed.any(axis=1))
        return type(self)(self.rollout.select(rows), self.nodes[rows])

    def parts(self, tokens_per_pass: int) -> Iterator[tuple[Rollout, np.ndarray]]:
        """Some of the episodes at a time, with their nodes: at most so many tokens with padding, or one episode."""
        for rows in microbatches(self.rollout, tokens_per_pass):
            part = self.rollout.select(rows)
            yield part, self.nodes[rows, : part.mask.shape[1]]


def longest_contexts(tree: Tree) -> Contexts:
    """The states that no other state continues, with everything on the way to them.

    Their last actions are arbitrary: no state holds them.
    """
    deepest = np.flatnonzero(~np.any(tree.child >= 0, axis=1))
    path = _paths(tree, deepest)
    rows, steps = np.nonzero(path != _NONE)
    first = np.full(tree.num_nodes, len(deepest))
    np.minimum.at(first, path[rows, steps], rows)
    own = (path != _NONE) & (first[path] == np.arange(len(deepest))[:, None])
    actions = np.zeros(path.shape, dtype=np.int64)
    actions[:, :-1] = np.where(path[:, 1:] != _NONE, tree.action[path[:, 1:]], 0)
    return Contexts(rollout_of(tree, path, actions), np.where(own, path, _NONE))


def _paths(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """The nodes from the root to each of some nodes, int64 [C, T], -1 behind them."""
    path = np.full((len(nodes), len(tree.levels)), _NONE)
    rows = np.arange(len(nodes))
    while len(rows):
        path[rows, tree.depth[nodes]] = nodes
        nodes = tree.parent[nodes]
        rows, nodes = rows[nodes >= 0], nodes[nodes >= 0]
    return path
