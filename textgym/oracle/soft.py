"""The KL-regularised problem, J(π) - β KL(π‖π_ref): its optimum, what a policy gets; KL and entropy by chain rules."""

from typing import Any, NamedTuple

import numpy as np

from textgym.oracle.policies import after, checked_beta, checked_policy, product, visitation
from textgym.oracle.policy_values import values
from textgym.oracle.soft_backup import log_partition, soft_backup
from textgym.oracle.tree import Tree


class SoftOptimum(NamedTuple):
    """The best of J(π) - β KL(π‖π_ref), KL between distributions over whole sequences."""

    objective: float  # J_β*
    log_partition: np.ndarray  # float64 [P], log Z = log Σ_y π_ref(y) e^{R(y)/β} of each prompt, V_β(root) / β
    v: np.ndarray  # float64 [N], V_β(s)
    q: np.ndarray  # float64 [N, V], Q_β(s, a); 0 where the action is illegal
    log_probs: np.ndarray  # float64 [N, V], π*, in every sequence π_ref(y) e^{R(y)/β} / Z


def soft_optimum(tree: Tree, reference: Any, beta: float) -> SoftOptimum:
    """V_β(s) = β log Σ_a π_ref(a given s) e^{Q_β(s, a)/β}, π* = π_ref e^{(Q_β - V_β)/β}.

    Where the reference never writes a token (-inf), neither does π*: such a token would cost an infinite KL.

    Args:
        tree: N nodes, V tokens, P prompts.
        reference: float64 [N, V], log π_ref(a given s); probabilities that rounding keeps from 1 are divided by their
            sum.
        beta: β > 0, in units of reward per nat.

    Raises:
        TypeError, ValueError: no policy on this tree, another β, or one so small that log Z overflows.
    """
    log_ref, temperature = checked_policy(tree, reference, "reference"), checked_beta(beta)
    v, q = np.empty(tree.num_nodes), np.zeros(tree.legal.shape)
    log_probs = np.empty(tree.legal.shape)
    for level in reversed(tree.levels):
        q[level] = tree.reward[level] + after(tree, v, level)
        v[level], log_probs[level] = soft_backup(log_ref[level], q[level], temperature)
    roots = v[tree.levels[0]]
    return SoftOptimum(float(tree.weights @ roots), log_partition(roots, temperature), v, q, log_probs)


def regularised_objective(tree: Tree, log_probs: Any, reference: Any, beta: float) -> float:
    """J(π) - β KL(π‖π_ref), -inf where the KL is infinite; J_β* minus this is β KL(π‖π*).

    Raises:
        TypeError, ValueError: no policies on this tree, or a β that is no finite number above 0.
    """
    temperature = checked_beta(beta)
    return values(tree, log_probs).objective - temperature * kl(tree, log_probs, reference)


def kl(tree: Tree, log_probs: Any, reference: Any) -> float:
    """KL(π‖ρ) = Σ_s d_π(s) Σ_a π(a given s) log (π / ρ)(a given s), in nats per sequence, the mean over prompts.

    Infinite where π writes what the reference ρ never does.

    Raises:
        TypeError, ValueError: no policies on this tree.
    """
    policy, log_ref = checked_policy(tree, log_probs), checked_policy(tree, reference, "reference")
    with np.errstate(invalid="ignore"):  # -inf - -inf, where π is 0
        of_nodes = product(np.exp(policy), policy - log_ref).sum(axis=1)
    return float(product(visitation(tree, policy), of_nodes).sum())


def entropy(tree: Tree, log_probs: Any) -> float:
    """H = Σ_s d(s) H(π at s), in nats per sequence, the mean over prompts.

    Raises:
        TypeError, ValueError: no policy on this tree.
    """
    policy = checked_policy(tree, log_probs)
    return float(visitation(tree, policy) @ -product(np.exp(policy), policy).sum(axis=1))
