"""A policy on a tree, as log-probabilities: what it must be, and the sums over tokens and paths that all share."""

from typing import Any

import numpy as np

from textgym.escape import excerpt, shown, type_name
from textgym.oracle.tree import Tree

_TOLERANCE = 1e-6  # of the sum of a state's probabilities: float32 models keep it


def checked_policy(tree: Tree, log_probs: Any, name: str = "log_probs") -> np.ndarray:
    """The log-probabilities of a policy, float64 [N, V].

    Args:
        tree: N nodes, V tokens.
        log_probs: [N, V], -inf where an action is illegal or never taken; the probabilities of each node sum to 1.
        name: what errors call them.

    Raises:
        TypeError, ValueError: another shape, not a number, an illegal action that has probability, or a node whose
            probabilities do not sum to 1 within 1e-6.
    """
    try:
        given = np.asarray(log_probs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is {shown(log_probs)} of type {type_name(log_probs)}; give an array of log-probabilities, float64 "
            f"({tree.num_nodes}, {tree.size})"
        ) from error
    if given.shape != tree.legal.shape:
        raise ValueError(
            f"{name} has the shape {given.shape}; give log-probabilities of {tree.num_nodes} nodes × {tree.size} "
            f"tokens, {tree.legal.shape}"
        )
    bad = np.isnan(given) | (given == np.inf)
    if bad.any():
        node, token = (int(place[0]) for place in np.nonzero(bad))
        raise ValueError(
            f"{name}[{node}, {token}] is {given[node, token]} {_place(tree, node)}; give log-probabilities, at most 0"
        )
    illegal = ~tree.legal & (given > -np.inf)
    if illegal.any():
        node, token = (int(place[0]) for place in np.nonzero(illegal))
        raise ValueError(
            f"{name}[{node}, {token}] is {given[node, token]:g}, and the token is illegal {_place(tree, node)}; give "
            "-inf where tree.legal is False"
        )
    with np.errstate(over="ignore"):
        sums = np.exp(given).sum(axis=1)
    wrong = ~(np.abs(sums - 1) <= _TOLERANCE)
    if wrong.any():
        node = int(wrong.argmax())
        raise ValueError(
            f"the probabilities exp({name}) sum to {sums[node]:g} {_place(tree, node)}, and a policy's to 1 in every "
            f"node; give log-probabilities, for instance logits - logsumexp(logits) over the legal tokens"
        )
    return given


def checked_beta(beta: Any) -> float:
    """The temperature β of the KL-regularised problem.

    Raises:
        TypeError, ValueError: no finite number above 0.
    """
    if isinstance(beta, bool | np.bool_) or not isinstance(beta, int | float | np.integer | np.floating):
        raise TypeError(f"beta is {shown(beta)} of type {type_name(beta)}; give a number above 0")
    if not (np.isfinite(beta) and beta > 0):
        raise ValueError(f"beta={beta}; give a finite number above 0: reward per nat of KL")
    return float(beta)


def visitation(tree: Tree, policy: np.ndarray) -> np.ndarray:
    """The probability that an episode passes each node, float64 [N]; the roots have those of their prompts."""
    visits = np.empty(tree.num_nodes)
    visits[tree.levels[0]] = tree.weights
    probabilities = np.exp(policy)
    for level in tree.levels[1:]:
        parents = tree.parent[level]
        visits[level] = visits[parents] * probabilities[parents, tree.action[level]]
    return visits


def after(tree: Tree, v: np.ndarray, level: slice) -> np.ndarray:
    """V of the state that each action of a level leads to, float64 [n, V]; 0 where there is none.

    Args:
        tree: N nodes, V tokens.
        v: float64 [N], filled in below the level.
        level: n nodes.
    """
    child = tree.child[level]
    return np.where(child >= 0, v[child], 0.0)


def product(probabilities: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Their product, of one shape; 0 where a probability is 0, whatever the value, an infinity or NaN too."""
    return np.multiply(probabilities, values, out=np.zeros(values.shape), where=probabilities > 0)


def _place(tree: Tree, node: int) -> str:
    written = tree.completions()[node][: tree.depth[node]].tolist()
    return f"in node {node} (prompt {excerpt(tree.prompts[tree.prompt[node]].text)}, tokens written {written})"
