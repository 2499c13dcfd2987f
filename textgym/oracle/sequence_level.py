"""A policy as a distribution over whole sequences: its log-probabilities, and those of best-of-n sampling from it."""

import operator
from typing import Any, NamedTuple

import numpy as np

from textgym.escape import shown, type_name
from textgym.oracle.policies import checked_policy
from textgym.oracle.ties import distinct
from textgym.oracle.tree import Tree
from textgym.tasks.base import is_integer


class BestOfN(NamedTuple):
    """The best of n sequences that a policy writes, by their return."""

    probabilities: np.ndarray  # float64 [S], in the order of `tree.sequences()`; those of a prompt sum to 1
    objective: float  # the expected return
    kl: float  # KL(best-of-n‖policy) in nats, the mean over prompts
    prompt_kl: np.ndarray  # float64 [P]


def sequence_log_probs(tree: Tree, log_probs: Any) -> np.ndarray:
    """The log-probability of every complete sequence after its prompt, float64 [S], as `tree.sequences()` has them.

    Raises:
        TypeError, ValueError: no policy on this tree.
    """
    policy = checked_policy(tree, log_probs)
    reached = np.zeros(tree.num_nodes)
    for level in tree.levels[1:]:
        parents = tree.parent[level]
        reached[level] = reached[parents] + policy[parents, tree.action[level]]
    last, final = np.nonzero(tree.ends)
    return reached[last] + policy[last, final]


def best_of_n(tree: Tree, log_probs: Any, n: int) -> BestOfN:
    """q(y) = p(y) [F(r)^n - F(r⁻)^n] / P(r): of n draws from p the one of the highest return r, ties drawn alike.

    F is the distribution function of the returns after a prompt, P their probabilities. Returns that differ by rounding
    alone, 1e-12 of the largest Σ_t |r_t| after the prompt, are ties. log n - (n - 1)/n bounds the KL from above, and is
    tight without ties.

    Args:
        tree: the sequences of P prompts.
        log_probs: float64 [N, V], log p(a given s).
        n: how many sequences are drawn, at least 1.

    Raises:
        TypeError, ValueError: no policy on this tree, or another n.
    """
    draws = _checked_draws(n)
    p = np.exp(sequence_log_probs(tree, log_probs))
    sequences = tree.sequences()
    summed = np.abs(sequences.rewards).sum(axis=1)
    q, prompt_kl = np.empty(len(p)), np.empty(len(tree.prompts))
    order = np.argsort(sequences.prompt, kind="stable")
    bounds = np.searchsorted(sequences.prompt[order], np.arange(1, len(tree.prompts)))
    for prompt, own in enumerate(np.split(order, bounds)):
        of_levels, level = distinct(sequences.returns[own], scale=summed[own].max())
        mass = np.bincount(level, weights=p[own], minlength=len(of_levels))
        mass = mass / mass.sum()
        chosen = _of_levels(mass, draws)
        ratio = np.divide(chosen, mass, out=np.ones(len(mass)), where=mass > 0)
        q[own] = p[own] * ratio[level]
        q[own] /= q[own].sum()
        taken = chosen > 0
        prompt_kl[prompt] = max(0.0, (chosen[taken] * np.log(ratio[taken])).sum())
    weights = tree.weights[sequences.prompt]
    return BestOfN(q, float((weights * q) @ sequences.returns), float(tree.weights @ prompt_kl), prompt_kl)


def _of_levels(mass: np.ndarray, draws: int) -> np.ndarray:
    """F(r)^n - F(r⁻)^n of D ascending returns with these probabilities, float64 [D], to full relative precision."""
    cumulated = np.cumsum(mass)
    above = np.append(np.cumsum(mass[::-1])[::-1][1:], 0.0)  # 1 - F, which F itself has lost where it is tiny
    with np.errstate(divide="ignore", invalid="ignore"):
        log_f = np.where(above < 0.5, np.log1p(-above), np.log(cumulated))
        share = np.minimum(mass / np.exp(log_f), 1.0)  # P / F
        # F^n (1 - (1 - P/F)^n)
        return np.where(mass > 0, np.exp(draws * log_f) * -np.expm1(draws * np.log1p(-share)), 0.0)


def _checked_draws(n: Any) -> int:
    if not is_integer(n):
        raise TypeError(f"n is {shown(n)} of type {type_name(n)}; give an integer of at least 1")
    if n < 1:
        raise ValueError(f"n={n}; give an integer of at least 1: how many sequences the best is taken of")
    return operator.index(n)
