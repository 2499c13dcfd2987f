"""Exact dynamic programming for tasks that fold, at any horizon: values, the optimum, the KL-regularised optimum.

The recursions of the tree, over (step, state, context) in place of nodes: V at step t follows from V at t + 1. Each
takes time and memory O(W S C V), W steps, S states, C contexts of an n-gram model, V tokens; the tree has V^W leaves.
"""

from typing import Any, NamedTuple

import numpy as np

from textgym.oracle.folding import Folded, FoldedPolicy
from textgym.oracle.ngram import Contexts, NGram
from textgym.oracle.policies import checked_beta, product
from textgym.oracle.soft_backup import log_partition, soft_backup


class FoldedValues(NamedTuple):
    """A policy's values."""

    objective: float  # J
    v: np.ndarray  # float64 [W, S, C], V after t tokens


class FoldedOptimum(NamedTuple):
    """The best that any policy gets."""

    objective: float  # J*
    v: np.ndarray  # float64 [W, S, 1]
    policy: FoldedPolicy  # one that gets it: the lowest of the best tokens


class FoldedSoftOptimum(NamedTuple):
    """The best of J(π) - β KL(π‖π_ref), KL between distributions over whole texts."""

    objective: float  # J_β*
    log_partition: float  # log Z = log Σ_y π_ref(y) e^{R(y)/β} = J_β* / β
    v: np.ndarray  # float64 [W, S, C], V_β
    policy: FoldedPolicy  # π*, of every text π_ref(y) e^{R(y)/β} / Z


def folded_values(folded: Folded, policy: NGram | FoldedPolicy) -> FoldedValues:
    """V(t, s) = Σ_a π(a given t, s) Q(t, s, a), Q the score where a ends the text, else V of what it leads to.

    Args:
        folded: W steps, S states, V tokens.
        policy: an n-gram model, or a policy of this process.

    Raises:
        TypeError, ValueError: another policy, or one of too many contexts.
    """
    table, contexts = _table(folded, policy)
    v = np.empty(table.shape[:-1])
    later = _at_horizon(folded, contexts)
    for step in reversed(range(folded.horizon)):
        later = v[step] = (np.exp(table[step]) * _ahead(folded, contexts, later)).sum(axis=-1)
    return FoldedValues(_at_start(folded, contexts, v), v)


def folded_optimum(folded: Folded) -> FoldedOptimum:
    """The same recursion with the best token in place of the mean.

    >>> from textgym.oracle.folding import fold
    >>> folded_optimum(fold("regex", horizon=300)).objective
    1.0
    """
    contexts = Contexts(1, folded.automaton.num_tokens)
    folded.check_contexts(contexts)
    v = np.empty((folded.horizon, folded.automaton.num_states, 1))
    table = np.full((*v.shape, contexts.size), -np.inf)
    later = _at_horizon(folded, contexts)
    for step in reversed(range(folded.horizon)):
        q = _ahead(folded, contexts, later)
        later = v[step] = q.max(axis=-1)
        np.put_along_axis(table[step], q.argmax(axis=-1)[..., None], 0.0, axis=-1)
    return FoldedOptimum(_at_start(folded, contexts, v), v, FoldedPolicy(folded, contexts, table))


def folded_soft_optimum(folded: Folded, reference: NGram, beta: float) -> FoldedSoftOptimum:
    """V_β = β log Σ_a π_ref(a) e^{Q_β/β}, π*(a) = π_ref(a) e^{(Q_β - V_β)/β}, at every step, state and context.

    Where the reference never writes a token (-inf), neither does π*: such a token would cost an infinite KL.

    Args:
        folded: W steps, S states, V tokens.
        reference: π_ref, an n-gram model.
        beta: β > 0, in units of reward per nat.

    Raises:
        TypeError, ValueError: no n-gram model of these tokens, one of too many contexts, another β, or one so small
            that log Z overflows.
    """
    log_ref, contexts = _table(folded, folded.policy(reference))
    temperature = checked_beta(beta)
    v, table = np.empty(log_ref.shape[:-1]), np.empty(log_ref.shape)
    later = _at_horizon(folded, contexts)
    for step in reversed(range(folded.horizon)):
        q = _ahead(folded, contexts, later)
        v[step], table[step] = soft_backup(log_ref[step], q, temperature)
        later = v[step]
    objective = _at_start(folded, contexts, v)
    partition = float(log_partition(np.array(objective), temperature))
    return FoldedSoftOptimum(objective, partition, v, FoldedPolicy(folded, contexts, table))


def folded_kl(policy: FoldedPolicy, reference: NGram) -> float:
    """KL(π‖π_ref) over whole texts, in nats: the sum over the steps of what each adds; infinite where π_ref lacks one.

    Args:
        policy: π, such as `folded_soft_optimum(...).policy`, which sees as many last tokens as the reference.
        reference: π_ref, an n-gram model.

    Raises:
        TypeError, ValueError: no n-gram model, or one of another order or other tokens.
    """
    folded, contexts = policy.folded, policy.contexts
    log_ref, others = _table(folded, folded.policy(reference))
    if others != contexts:
        raise ValueError(f"the policy sees contexts of order {contexts.order}, the reference of {others.order}")
    v = np.empty(policy.table.shape[:-1])
    later, nothing = np.zeros(v.shape[1:]), np.zeros(folded.automaton.num_states)
    for step in reversed(range(folded.horizon)):
        with np.errstate(invalid="ignore"):  # -inf - -inf, where π is 0
            added = policy.table[step] - log_ref[step] + _ahead(folded, contexts, later, nothing)
        later = v[step] = product(np.exp(policy.table[step]), added).sum(axis=-1)
    return _at_start(folded, contexts, v)


def _table(folded: Folded, policy: Any) -> tuple[np.ndarray, Contexts]:
    if not isinstance(policy, FoldedPolicy):
        policy = folded.policy(policy)
    if policy.folded is not folded:
        raise ValueError("the policy belongs to another task or horizon; give one of this very `Folded`")
    return policy.table, policy.contexts


def _at_horizon(folded: Folded, contexts: Contexts) -> np.ndarray:
    """What is paid where W tokens are written, float64 [S, C]."""
    return np.repeat(folded.automaton.score[:, None], contexts.count, axis=1)


def _at_start(folded: Folded, contexts: Contexts, v: np.ndarray) -> float:
    return float(v[0, folded.automaton.start, contexts.start])


def _ahead(folded: Folded, contexts: Contexts, later: np.ndarray, paid: np.ndarray | None = None) -> np.ndarray:
    """What each token leads to, float64 [S, C, V].

    Args:
        folded: S states, V tokens.
        contexts: C of them.
        later: float64 [S, C], the value one step later.
        paid: float64 [S], the value of the end by a stop token; the score by default.
    """
    ahead = later[folded.automaton.transitions[:, None, :], contexts.following]
    ends = folded.automaton.score if paid is None else paid
    ahead[..., list(folded.stop_ids)] = ends[:, None, None]
    return ahead
