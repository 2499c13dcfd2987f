"""What a learner minimises, as pure functions: per-token objectives, how they are summed up, and the other terms.

Rows and tokens are those of sampled episodes; nothing here samples, and no advantage carries a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def token_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """π_θ(a_t | s_t) / π_old(a_t | s_t), with gradient.

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens.
        old_log_probs: [B, T] of the policy that sampled them; a constant.
        mask: bool [B, T], True where the policy chose the token.

    Returns:
        [B, T], 1 where not mask.
    """
    assert log_probs.shape == old_log_probs.shape == mask.shape
    return (log_probs - old_log_probs.detach()).masked_fill(~mask, 0.0).exp()


def sequence_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """The geometric mean of an episode's token ratios, repeated at each of its steps (GSPO, 2507.18071).

    See `token_ratio` for the arguments and the shape.
    """
    assert log_probs.shape == old_log_probs.shape == mask.shape
    log_ratio = (log_probs - old_log_probs.detach()).masked_fill(~mask, 0.0)
    mean = log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return mean.exp().expand_as(log_probs)


def policy_gradient(
    log_probs: Tensor, ratio: Tensor, advantages: Tensor, low: float | None, high: float | None
) -> Tensor:
    """A_t log π_θ(a_t | s_t), whose gradient is the policy gradient theorem's; the ratio plays no part.

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens; carries the gradient.
        ratio: [B, T] π_θ/π_old.
        advantages: [B, T] A_t, a constant here.
        low: the least ratio that counts; None for no bound.
        high: the largest.

    Returns:
        [B, T], to be maximised.
    """
    return advantages.detach() * log_probs


def clipped(log_probs: Tensor, ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """min(ratio · A, clip(ratio) · A): PPO's pessimistic bound (Schulman et al., 1707.06347).

    Without bounds it is importance sampling. See `policy_gradient` for the arguments and the shape.
    """
    advantages = advantages.detach()
    return torch.minimum(ratio * advantages, _clamp(ratio, low, high) * advantages)


def cispo(log_probs: Tensor, ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
    """clip(ratio) A log π_θ with the clipped ratio a constant: every token keeps a gradient (CISPO, 2506.13585).

    See `policy_gradient` for the arguments and the shape.
    """
    return _clamp(ratio.detach(), low, high) * advantages.detach() * log_probs


Objective = Callable[[Tensor, Tensor, Tensor, float | None, float | None], Tensor]
OBJECTIVES: dict[str, Objective] = {"policy_gradient": policy_gradient, "clip": clipped, "cispo": cispo}
RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"token": token_ratio, "sequence": sequence_ratio}


def constant(per_token: Tensor, mask: Tensor, num_episodes: int, num_tokens: int) -> Tensor:
    """Sum over tokens, mean over episodes: the denominator does not depend on what was sampled.

    Args:
        per_token: [B, T]; what it holds where not mask counts nothing.
        mask: bool [B, T], True where the policy chose the token: the stop token True, prompt and padding False.
        num_episodes: B of the whole batch, of which the rows may be a part.
        num_tokens: the True entries of the whole batch's mask.

    Returns:
        [].
    """
    assert per_token.shape == mask.shape
    return per_token.masked_fill(~mask, 0.0).sum() / num_episodes


def sequence_mean(per_token: Tensor, mask: Tensor, num_episodes: int, num_tokens: int) -> Tensor:
    """Mean over the tokens of each episode, then over episodes: a token of a long text counts less.

    See `constant` for the arguments.
    """
    assert per_token.shape == mask.shape
    sums = per_token.masked_fill(~mask, 0.0).sum(dim=-1)
    return (sums / mask.sum(dim=-1).clamp(min=1)).sum() / num_episodes


def token_mean(per_token: Tensor, mask: Tensor, num_episodes: int, num_tokens: int) -> Tensor:
    """Mean over all tokens of the batch: where its texts happen to be long, each counts less.

    See `constant` for the arguments.
    """
    assert per_token.shape == mask.shape
    return per_token.masked_fill(~mask, 0.0).sum() / num_tokens


Aggregation = Callable[[Tensor, Tensor, int, int], Tensor]
AGGREGATIONS: dict[str, Aggregation] = {
    "constant": constant,
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
}


def entropy_bonus(entropy: Tensor, mask: Tensor, num_tokens: int | None = None) -> Tensor:
    """Mean entropy of the visited states: a mean over tokens, so that one coefficient suits every horizon.

    Its gradient holds the visited states fixed: a per-state bonus, not the gradient of the sequence's entropy.

    Args:
        entropy: [B, T] H(π_θ(· | s_t)) in nats; carries the gradient.
        mask: bool [B, T], True where the policy chose the token.
        num_tokens: the denominator, the True entries of the whole batch's mask where this is a part of it; those of
            the mask given by default.

    Returns:
        [] to be subtracted, times its coefficient, from the loss.
    """
    assert entropy.shape == mask.shape
    return entropy.masked_fill(~mask, 0.0).sum() / (num_tokens or mask.sum())


def value_loss(values: Tensor, targets: Tensor, mask: Tensor, num_tokens: int) -> Tensor:
    """Mean squared error of the critic over the tokens.

    Args:
        values: [B, T] V(s_t) of the critic; carries the gradient.
        targets: [B, T] what it should have said; a constant.
        mask: bool [B, T], True where the policy chose the token.
        num_tokens: the True entries of the whole batch's mask.

    Returns:
        [].
    """
    assert values.shape == targets.shape == mask.shape
    return (values - targets.detach()).masked_fill(~mask, 0.0).square().sum() / num_tokens


def _clamp(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    return ratio if low is None and high is None else ratio.clamp(min=low, max=high)
