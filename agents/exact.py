"""Exact gradients of a policy on a task that is small enough to enumerate.

The policy gradient theorem as a sum over the tree of all prefixes instead of a mean over samples:
∇J = Σ_s d(s) Σ_a π(a | s) A(s, a) ∇ log π(a | s). Two passes keep memory flat: one without gradient gives π, and so d
and A; the second takes the gradient of the weighted log-likelihood, chunk by chunk. Probabilities come from the
policy's production scoring, so that temperature, masks and truncation are its own. Does not build trees and does no
dynamic programming: that is `textgym.oracle`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.experience import microbatches
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from textgym.oracle import Tree, Values, values

TOKENS_PER_PASS = 4096
_NONE = -1


class ExactGradient(NamedTuple):
    """An expectation under the policy, and its gradient."""

    objective: float
    gradient: tuple[Tensor, ...]  # by each trained parameter, in the order of policy.parameters()
    values: Values  # V, Q, A and the visitation d of every node


def exact_gradient(policy: TransformerPolicy, tree: Tree, tokens_per_pass: int = TOKENS_PER_PASS) -> ExactGradient:
    """J(θ) = E[R(τ)] and ∇J.

    Args:
        policy: π_θ; its parameters' `.grad` stays as it is.
        tree: see `node_log_probs`, as for `tokens_per_pass`.
        tokens_per_pass: what memory grows with, and nothing else.
    """
    return _expectation(policy, tree, node_log_probs(policy, tree, tokens_per_pass), tokens_per_pass)


def kl_gradient(
    policy: TransformerPolicy, tree: Tree, ref_log_probs: np.ndarray, tokens_per_pass: int = TOKENS_PER_PASS
) -> ExactGradient:
    """KL(π‖π_ref) of whole sequences, the mean over prompts, and its gradient: that of the return Σ_t log π/π_ref.

    The derivative of that return itself is Σ_t ∇ log π, whose mean is zero.

    Args:
        policy: π_θ.
        tree: see `node_log_probs`, as for `tokens_per_pass`.
        ref_log_probs: float [N, V], log π_ref(a | s) at every node; those of another policy by `node_log_probs`.
        tokens_per_pass: see `exact_gradient`.

    Raises:
        ValueError: log-probs of another shape, or a reference that rules out what the policy does not.
    """
    _check_shape("ref_log_probs", ref_log_probs, tree)
    log_probs = node_log_probs(policy, tree, tokens_per_pass)
    possible = np.isfinite(log_probs)
    if not np.isfinite(ref_log_probs[possible]).all():
        node, action = np.argwhere(possible & ~np.isfinite(ref_log_probs))[0]
        raise ValueError(
            f"ref_log_probs[{node}, {action}] is {ref_log_probs[node, action]}, where the policy's probability is not "
            "0: KL(π‖π_ref) is infinite; give a reference without masks and truncation"
        )
    log_ratio = np.subtract(log_probs, ref_log_probs, out=np.zeros(log_probs.shape), where=possible)
    return _expectation(policy, replace(tree, reward=log_ratio), log_probs, tokens_per_pass)


def entropy_gradient(policy: TransformerPolicy, tree: Tree, tokens_per_pass: int = TOKENS_PER_PASS) -> ExactGradient:
    """H(π) of whole sequences in nats, the mean over prompts, and its gradient: that of the return -Σ_t log π.

    Args:
        policy: π_θ.
        tree: see `node_log_probs`, as for `tokens_per_pass`.
        tokens_per_pass: see `exact_gradient`.
    """
    log_probs = node_log_probs(policy, tree, tokens_per_pass)
    surprise = np.negative(log_probs, out=np.zeros(log_probs.shape), where=np.isfinite(log_probs))
    return _expectation(policy, replace(tree, reward=surprise), log_probs, tokens_per_pass)


@torch.no_grad()
def node_log_probs(policy: TransformerPolicy, tree: Tree, tokens_per_pass: int = TOKENS_PER_PASS) -> np.ndarray:
    """Log π_θ(a | s) at every node of a tree.

    The model reads the longest contexts alone; every other node lies on one of them.

    Args:
        policy: π_θ.
        tree: of a problem with the policy's tokens.
        tokens_per_pass: most tokens, padding included, in one forward pass; or one context.

    Returns:
        float64 [N, V]; -inf where the action is illegal or cut off.

    Raises:
        ValueError: the policy has another number of tokens, or does not take histories of that length.
    """
    contexts = _contexts(policy, tree)
    log_probs = np.empty((tree.num_nodes, policy.size))
    for part, nodes in _parts(contexts, tokens_per_pass):
        read = nodes != _NONE
        found = policy.action_distribution(part).log_probs.double().cpu().numpy()
        log_probs[nodes[read]] = found[read]
    if np.isnan(log_probs).any():
        raise FloatingPointError("the policy's probabilities are not finite: its weights have diverged")
    return log_probs


def score_gradient(
    policy: TransformerPolicy, tree: Tree, weights: np.ndarray, tokens_per_pass: int = TOKENS_PER_PASS
) -> tuple[Tensor, ...]:
    """Σ_{s,a} w(s, a) ∇ log π_θ(a | s): what any estimator of a gradient by scores is in expectation.

    Args:
        policy: π_θ; its parameters' `.grad` stays as it is.
        tree: see `node_log_probs`, as for `tokens_per_pass`.
        weights: float [N, V], finite, constants; contexts that carry none are not run.
        tokens_per_pass: see `exact_gradient`.

    Returns:
        One tensor a trained parameter, in the order of `policy.parameters()`, in float32 at least.

    Raises:
        ValueError: see `node_log_probs`; weights of another shape, that are not finite, or on an action that the policy
            gives probability 0.
    """
    _check_shape("weights", weights, tree)
    if not np.isfinite(weights).all():
        node, action = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(f"weights[{node}, {action}] is {weights[node, action]}; give finite weights, 0 for no weight")
    contexts = _contexts(policy, tree)
    weighed = (contexts.nodes != _NONE) & np.any(weights, axis=1)[contexts.nodes]
    rows = np.flatnonzero(weighed.any(axis=1))
    contexts = _Contexts(contexts.rollout.select(rows), contexts.nodes[rows])
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    total = tuple(torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in trained)
    for part, nodes in _parts(contexts, tokens_per_pass):
        with torch.enable_grad():
            value = _weighted_log_likelihood(policy, part, np.where((nodes != _NONE)[..., None], weights[nodes], 0.0))
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_ += gradient
    return total


class _Contexts(NamedTuple):
    """The longest contexts of a tree, those that no other context continues, as episodes to be scored."""

    rollout: Rollout  # C episodes, each with an arbitrary last action
    nodes: np.ndarray  # int64 [C, T], the node whose π is read off this step; -1 where another episode gives it


def _parts(contexts: _Contexts, tokens_per_pass: int) -> Iterator[tuple[Rollout, np.ndarray]]:
    """Some of the episodes at a time, and their nodes."""
    for rows in microbatches(contexts.rollout, tokens_per_pass):
        part = contexts.rollout.select(rows)
        yield part, contexts.nodes[rows, : part.mask.shape[1]]


def _weighted_log_likelihood(policy: TransformerPolicy, part: Rollout, weights: np.ndarray) -> Tensor:
    """Σ w log π, [], with gradient; weights are [B, T, V]."""
    log_probs = policy.action_distribution(part).log_probs
    w = torch.as_tensor(weights, dtype=log_probs.dtype, device=log_probs.device)
    if ((w != 0) & (log_probs == float("-inf"))).any():
        raise ValueError("weights are not 0 on an action that is illegal or cut off; log π has no gradient there")
    return (w * log_probs.masked_fill(w == 0, 0.0)).sum()  # -inf · 0 is NaN


def _contexts(policy: TransformerPolicy, tree: Tree) -> _Contexts:
    if policy.size != tree.size:
        raise ValueError(
            f"the policy has {policy.size} tokens and the tree {tree.size}; make the policy for the environment that "
            "was enumerated, or enumerate the one that the policy was made for"
        )
    goes_on = np.any(tree.child >= 0, axis=1)
    deepest = np.flatnonzero(~goes_on)
    path = _paths(tree, deepest)
    first = np.full(tree.num_nodes, len(deepest))
    rows, steps = np.nonzero(path != _NONE)
    np.minimum.at(first, path[rows, steps], rows)
    own = (path != _NONE) & (first[path] == np.arange(len(deepest))[:, None])
    return _Contexts(_episodes(tree, deepest, path), np.where(own, path, _NONE))


def _paths(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """The nodes from the root to each of some nodes, int64 [C, T], -1 behind them."""
    path = np.full((len(nodes), len(tree.levels)), _NONE)
    rows = np.arange(len(nodes))
    while len(rows):
        path[rows, tree.depth[nodes]] = nodes
        nodes = tree.parent[nodes]
        rows, nodes = rows[nodes >= 0], nodes[nodes >= 0]
    return path


def _episodes(tree: Tree, deepest: np.ndarray, path: np.ndarray) -> Rollout:
    """The contexts as episodes; what the scoring of states does not read is left at 0."""
    mask = path != _NONE
    count = len(deepest)
    prompt_length = np.array([len(prompt.ids) for prompt in tree.prompts])[tree.prompt[deepest]]
    length = prompt_length + mask.sum(axis=1)
    tokens = tree.histories()[deepest]
    tokens[np.arange(count), length - 1] = 0  # any last action: no state holds it
    legal = np.where(mask[:, :, None], tree.legal[path], True) if tree.problem.constraint is not None else None
    nothing, zeros = np.zeros(count), np.zeros(mask.shape)
    return Rollout(
        tokens=tokens,
        prompt_length=prompt_length,
        length=length,
        actions=zeros.astype(np.int64),
        mask=mask,
        log_probs=zeros.astype(np.float32),
        rewards=zeros,
        score=nothing,
        scores=nothing[:, None],
        scores_valid=np.ones((count, 1), dtype=bool),
        valid=np.ones(count, dtype=bool),
        finish_reason=np.zeros(count, dtype=np.int64),
        group=np.arange(count),
        vocabulary=tree.problem.vocabulary,
        action_mask=legal,
    )


def _expectation(policy: TransformerPolicy, tree: Tree, log_probs: np.ndarray, tokens_per_pass: int) -> ExactGradient:
    """E[Σ_t r_t] over the tree's rewards, held constant, and its gradient."""
    found = values(tree, log_probs)
    weights = found.visitation[:, None] * np.exp(log_probs) * found.advantage
    return ExactGradient(found.objective, score_gradient(policy, tree, weights, tokens_per_pass), found)


def _check_shape(name: str, array: np.ndarray, tree: Tree) -> None:
    if np.shape(array) != tree.legal.shape:
        raise ValueError(
            f"{name} has the shape {np.shape(array)}; give one number a node and action, {tree.legal.shape}"
        )
