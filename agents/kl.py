"""KL(π‖π_ref), estimated from the sampled tokens: per-token terms as pure functions, and how a coefficient adapts.

What a term is worth and where its gradient leads are two things (2506.09477, 2512.21852): each function says both. The
gradients hold for tokens sampled from π, with terms summed over tokens and averaged over episodes.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Log π/π_ref: its mean is the KL. As a loss its gradient has mean zero; as a cost in the reward it is exact.

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens.
        ref_log_probs: [B, T] log π_ref(a_t | s_t).

    Returns:
        [B, T], in nats.
    """
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """½ (log π/π_ref)²: as a loss, the gradient of KL(π‖π_ref) with the visited states held fixed.

    See `k1` for the arguments and the shape.
    """
    return k1(log_probs, ref_log_probs).square() / 2


def k2_sequence(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """½ (Σ_t log π/π_ref)², shared out over the tokens: as a loss, the exact gradient of the sequences' KL(π‖π_ref).

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens.
        ref_log_probs: [B, T] log π_ref(a_t | s_t).
        mask: bool [B, T], True where the policy chose the token.

    Returns:
        [B, T], in nats squared; 0 where not mask. It must be summed over the tokens of an episode.
    """
    terms = k1(log_probs, ref_log_probs).masked_fill(~mask, 0.0)
    return terms * terms.sum(dim=-1, keepdim=True) / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """π_ref/π - 1 - log π_ref/π: its mean is the KL, and it is never negative (Schulman 2020).

    Its mean is less where masks or truncation keep π from tokens of π_ref: by the probability that π_ref gives them.

    As a loss, GRPO's of 2402.03300, its gradient is that of the other direction, KL(π_ref‖π), at the visited states.
    Its variance is small only where π is close to π_ref.

    See `k1` for the arguments and the shape.
    """
    gap = ref_log_probs - log_probs
    return torch.expm1(gap) - gap


def frozen(log_probs: Tensor, ref_log_probs: Tensor, ratio: Tensor) -> Tensor:
    """k3 times the importance ratio: as a loss, exactly the gradient of KL(π‖π_ref) with the visited states held fixed.

    What TRL 1.16 does by default.

    Args:
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens.
        ref_log_probs: [B, T] log π_ref(a_t | s_t).
        ratio: [B, T] π_θ/π_old of the tokens, with gradient.

    Returns:
        [B, T], in nats.
    """
    return ratio * k3(log_probs, ref_log_probs)


Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# The forms of the loss: of log_probs, ref_log_probs, mask and ratio, [B, T] each.
FORMS: dict[str, Form] = {
    "k1": lambda log_probs, ref_log_probs, mask, ratio: k1(log_probs, ref_log_probs),
    "k2": lambda log_probs, ref_log_probs, mask, ratio: k2(log_probs, ref_log_probs),
    "k2_sequence": lambda log_probs, ref_log_probs, mask, ratio: k2_sequence(log_probs, ref_log_probs, mask),
    "k3": lambda log_probs, ref_log_probs, mask, ratio: k3(log_probs, ref_log_probs),
    "frozen": lambda log_probs, ref_log_probs, mask, ratio: frozen(log_probs, ref_log_probs, ratio),
}


def adapted(kl_coef: float, kl: float, kl_target: float) -> float:
    """The coefficient after an update: up to 2% more where the KL was too large, up to 2% less where too small.

    The controller of Ziegler et al., 1909.08593, with its step taken once an update.

    Args:
        kl_coef: before.
        kl: KL(π‖π_ref) as measured, in nats per token.
        kl_target: what it should be, in nats per token.

    >>> adapted(0.1, kl=0.5, kl_target=0.1), adapted(0.1, kl=0.1, kl_target=0.1)
    (0.10200000000000001, 0.1)
    """
    error = min(0.2, max(-0.2, kl / kl_target - 1))
    return kl_coef * (1 + 0.1 * error)
