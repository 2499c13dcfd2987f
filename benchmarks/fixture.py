"""What estimators are measured on: a policy on a task small enough to enumerate, and what enumeration gives."""

from typing import NamedTuple

import numpy as np

from agents.exact import ExactGradient, exact_gradient, node_log_probs, node_scores
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from agents.tree_rollouts import rollout_of
from textgym.oracle import Tree


class Fixture(NamedTuple):
    """A task small enough to enumerate, a policy on it, and what enumeration gives."""

    policy: TransformerPolicy
    tree: Tree
    scores: np.ndarray  # float64 [N·V, D], ∇ log π(a | s)
    gram: np.ndarray  # float64 [N·V, N·V], their inner products
    exact: ExactGradient
    rollout: Rollout  # every complete episode, S of them, with log π and the critic's values
    cells: np.ndarray  # int64 [S, T], the row of `scores` of each step, 0 where there is none
    probs: np.ndarray  # float64 [S]
    prompt: np.ndarray  # int64 [S]


def make_fixture(policy: TransformerPolicy, tree: Tree, critic: np.ndarray | None = None) -> Fixture:
    """Enumerate everything.

    Args:
        policy: in float64, with one trained parameter at least.
        tree: of the task.
        critic: float64 [N], what a critic says of each state; none where no estimator asks for one.
    """
    scores = node_scores(policy, tree).reshape(tree.legal.size, -1)
    return _enumerated(policy, tree, scores, scores @ scores.T, critic)


def with_rewards(fixture: Fixture, tree: Tree) -> Fixture:
    """The same policy on a tree that differs in its rewards alone."""
    return _enumerated(fixture.policy, tree, fixture.scores, fixture.gram, None)


def _enumerated(
    policy: TransformerPolicy, tree: Tree, scores: np.ndarray, gram: np.ndarray, critic: np.ndarray | None
) -> Fixture:
    sequences = tree.sequences()
    nodes, actions, mask = (
        array[:, : len(tree.levels)] for array in (sequences.nodes, sequences.actions, sequences.mask)
    )
    cells = np.where(mask, nodes * tree.size + actions, 0)
    log_probs = np.where(mask, node_log_probs(policy, tree).ravel()[cells], 0.0)
    values = None if critic is None else np.where(mask, critic[nodes], 0.0)
    return Fixture(
        policy=policy,
        tree=tree,
        scores=scores,
        gram=gram,
        exact=exact_gradient(policy, tree),
        rollout=rollout_of(tree, nodes, actions)._replace(log_probs=log_probs, values=values),
        cells=cells,
        probs=tree.weights[sequences.prompt] * np.exp(log_probs.sum(axis=1)),
        prompt=sequences.prompt,
    )
