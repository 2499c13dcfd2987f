"""Exact gradients of a policy on a task that is small enough to enumerate.

The policy gradient theorem as a sum over the tree of all prefixes instead of a mean over samples:
∇J = Σ_s d(s) Σ_a π(a | s) A(s, a) ∇ log π(a | s). Two passes keep memory flat: one without gradient gives π, and so d
and A; the second takes the gradient of the weighted log-likelihood, chunk by chunk. Probabilities come from the
policy's production scoring, so that temperature, masks and truncation are its own. Does not build trees and does no
dynamic programming: that is `textgym.oracle`.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.checks import check_same_tokens
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from agents.tree_rollouts import longest_contexts
from textgym.oracle import Tree, Values, values

TOKENS_PER_PASS = 4096


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
    _check_tokens(policy, tree)
    log_probs = np.empty(tree.legal.shape)
    for part, nodes in longest_contexts(tree).parts(tokens_per_pass):
        read = nodes >= 0
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
    _check_tokens(policy, tree)
    trained = _trained(policy)
    total = tuple(torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in trained)
    for part, nodes in longest_contexts(tree).carrying(weights).parts(tokens_per_pass):
        with torch.enable_grad():
            value = _weighted_log_likelihood(policy, part, np.where((nodes >= 0)[..., None], weights[nodes], 0.0))
            gradients = torch.autograd.grad(value, trained, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
    return total


def node_scores(policy: TransformerPolicy, tree: Tree) -> np.ndarray:
    """∇ log π_θ(a | s) of every node and action by itself, one backward pass each: for the smallest of trees.

    What `score_gradient` sums up; with it, variances are exact too.

    Args:
        policy: π_θ with D trained parameters; their `.grad` stays as it is.
        tree: see `node_log_probs`.

    Returns:
        float64 [N, V, D], the parameters in order, each flat; 0 where the action is illegal or cut off.
    """
    _check_tokens(policy, tree)
    trained = _trained(policy)
    scores = np.zeros((*tree.legal.shape, sum(parameter.numel() for parameter in trained)))
    for part, [nodes] in longest_contexts(tree).parts(tokens_per_pass=1):
        with torch.enable_grad():
            [log_probs] = policy.action_distribution(part).log_probs
            for step in np.flatnonzero(nodes >= 0):
                for action in torch.isfinite(log_probs[step]).nonzero().flatten().tolist():
                    gradients = torch.autograd.grad(
                        log_probs[step, action], trained, retain_graph=True, materialize_grads=True
                    )
                    flat = torch.cat([gradient.flatten() for gradient in gradients])
                    scores[nodes[step], action] = flat.double().cpu().numpy()
    return scores


def _weighted_log_likelihood(policy: TransformerPolicy, part: Rollout, weights: np.ndarray) -> Tensor:
    """Σ w log π, [], with gradient; weights are [B, T, V]."""
    log_probs = policy.action_distribution(part).log_probs
    w = torch.as_tensor(weights, dtype=log_probs.dtype, device=log_probs.device)
    if ((w != 0) & (log_probs == float("-inf"))).any():
        raise ValueError("weights are not 0 on an action that is illegal or cut off; log π has no gradient there")
    return (w * log_probs.masked_fill(w == 0, 0.0)).sum()  # -inf · 0 is NaN


def _expectation(policy: TransformerPolicy, tree: Tree, log_probs: np.ndarray, tokens_per_pass: int) -> ExactGradient:
    """E[Σ_t r_t] over the tree's rewards, held constant, and its gradient."""
    found = values(tree, log_probs)
    weights = found.visitation[:, None] * np.exp(log_probs) * found.advantage
    return ExactGradient(found.objective, score_gradient(policy, tree, weights, tokens_per_pass), found)


def _trained(policy: TransformerPolicy) -> list[Tensor]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def _check_tokens(policy: TransformerPolicy, tree: Tree) -> None:
    if policy.size != tree.size:
        raise ValueError(
            f"the policy has {policy.size} tokens and the tree {tree.size}; make the policy for the environment that "
            "was enumerated, or enumerate the one that the policy was made for"
        )
    check_same_tokens(policy.vocabulary, tree.problem.vocabulary, "the policy", "the tree")


def _check_shape(name: str, array: np.ndarray, tree: Tree) -> None:
    if np.shape(array) != tree.legal.shape:
        raise ValueError(
            f"{name} has the shape {np.shape(array)}; give one number a node and action, {tree.legal.shape}"
        )
