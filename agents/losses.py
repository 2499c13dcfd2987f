"""Losses whose gradients are estimates of minus the policy gradient, as pure functions."""

from torch import Tensor


def policy_gradient_loss(
    log_probs: Tensor, advantages: Tensor, mask: Tensor, num_episodes: int | None = None
) -> Tensor:
    """Loss whose gradient is minus the policy gradient, E[Σ_t A_t ∇ log π_θ(a_t | s_t)].

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens; carries the gradient.
        advantages: [B, T] A_t, a constant here.
        mask: bool [B, T], True where the policy chose the token: the stop token True, prompt and padding False.
        num_episodes: the denominator, B of the whole batch where this is a part of it; the rows given by default.

    Returns:
        [] sum over tokens, mean over episodes; a mean over tokens is another objective.
    """
    assert log_probs.shape == advantages.shape == mask.shape
    weighted = (advantages.detach() * log_probs).masked_fill(~mask, 0.0)  # [B, T]
    return -weighted.sum() / (num_episodes or len(mask))


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
