"""What a policy gets from every state on, and the best that any policy gets."""

from typing import Any, NamedTuple

import numpy as np

from textgym.escape import shown, type_name
from textgym.oracle.policies import after, checked_policy, visitation
from textgym.oracle.tree import Tree


class Values(NamedTuple):
    """A policy's values on a tree."""

    objective: float  # J, the mean of `prompt_objective` over the prompts' weights
    prompt_objective: np.ndarray  # float64 [P], the expected return after each prompt
    v: np.ndarray  # float64 [N], V(s)
    q: np.ndarray  # float64 [N, V], Q(s, a); 0 where the action is illegal
    advantage: np.ndarray  # float64 [N, V], Q(s, a) - V(s); 0 where the action is illegal
    visitation: np.ndarray  # float64 [N], how likely an episode is to pass the node; not discounted


class Optimum(NamedTuple):
    """The best that any policy gets."""

    objective: float  # J*
    prompt_objective: np.ndarray  # float64 [P]
    v: np.ndarray  # float64 [N]
    q: np.ndarray  # float64 [N, V]; 0 where the action is illegal
    log_probs: np.ndarray  # float64 [N, V], a policy that gets it: the lowest of the best tokens in every node


def values(tree: Tree, log_probs: Any, gamma: float = 1.0) -> Values:
    """Q(s, a) = r(s, a) + γ V(s·a), V(s) = Σ_a π(a given s) Q(s, a), and what follows from them.

    Args:
        tree: N nodes, V tokens, P prompts.
        log_probs: float64 [N, V], log π(a given s).
        gamma: γ in [0, 1], a step's discount; J is then the expected discounted return.

    Raises:
        TypeError, ValueError: no policy on this tree, or another γ.
    """
    policy = checked_policy(tree, log_probs)
    discount = _checked_gamma(gamma)
    probabilities = np.exp(policy)
    v, q = np.empty(tree.num_nodes), np.zeros(tree.legal.shape)
    for level in reversed(tree.levels):
        q[level] = tree.reward[level] + discount * after(tree, v, level)
        v[level] = (probabilities[level] * q[level]).sum(axis=1)
    roots = v[tree.levels[0]]
    return Values(
        objective=float(tree.weights @ roots),
        prompt_objective=roots.copy(),
        v=v,
        q=q,
        advantage=np.where(tree.legal, q - v[:, None], 0.0),
        visitation=visitation(tree, policy),
    )


def optimum(tree: Tree) -> Optimum:
    """The same recursion with the best legal action in place of the mean.

    >>> from textgym.oracle.tree import enumerate_tree
    >>> optimum(enumerate_tree("palindrome")).objective
    1.0
    """
    v, q = np.empty(tree.num_nodes), np.zeros(tree.legal.shape)
    log_probs = np.full(tree.legal.shape, -np.inf)
    for level in reversed(tree.levels):
        q[level] = tree.reward[level] + after(tree, v, level)
        best = np.where(tree.legal[level], q[level], -np.inf).argmax(axis=1)
        nodes = np.arange(level.start, level.stop)
        v[level] = q[nodes, best]
        log_probs[nodes, best] = 0.0
    roots = v[tree.levels[0]]
    return Optimum(float(tree.weights @ roots), roots.copy(), v, q, log_probs)


def _checked_gamma(gamma: Any) -> float:
    if isinstance(gamma, bool | np.bool_) or not isinstance(gamma, int | float | np.integer | np.floating):
        raise TypeError(f"gamma is {shown(gamma)} of type {type_name(gamma)}; give a number from 0 to 1")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma}; give a number from 0 to 1")
    return float(gamma)
