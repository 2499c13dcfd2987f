"""From the choices of an algorithm's row to the loss of a batch, whose gradient by the policy is what a step takes.

A pure function of log-probabilities: what each token's coefficient is can be read off it by automatic differentiation.
"""

from typing import NamedTuple

from torch import Tensor

from agents.axes import Algorithm
from agents.kl import FORMS
from agents.losses import AGGREGATIONS, OBJECTIVES, RATIOS, token_ratio


class Batch(NamedTuple):
    """B episodes of an update, or of a part of one; all constants."""

    advantages: Tensor  # [B, T]
    mask: Tensor  # bool [B, T], True where the policy chose the token
    num_episodes: int  # of the whole that is stepped on
    num_tokens: int
    old_log_probs: Tensor | None = None  # [B, T] of the policy that sampled; None where it is the one that is updated
    ref_log_probs: Tensor | None = None  # [B, T] of the reference; None without one


class Surrogate(NamedTuple):
    """A loss, and what it was made from."""

    loss: Tensor  # [], to be minimised
    ratio: Tensor  # [B, T] π_θ/π_old, of tokens or of episodes
    clipped_low: Tensor  # bool [B, T], ratios below the lower bound where A < 0, as TRL counts them
    clipped_high: Tensor  # bool [B, T], ratios above the upper bound where A > 0


def surrogate(row: Algorithm, log_probs: Tensor, batch: Batch, kl_coef: float = 0.0) -> Surrogate:
    """The policy's part of the loss: minus the objective, plus the KL term where that stands in the loss.

    Args:
        row: the choices on each axis.
        log_probs: [B, T] log π_θ(a_t | s_t) of the sampled tokens; carries the gradient.
        batch: what belongs to them.
        kl_coef: β, weight of the KL to the reference.
    """
    old = log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
    ratio = RATIOS[row.importance](log_probs, old, batch.mask)
    low, high = row.clip_range
    objective = OBJECTIVES[row.objective] if isinstance(row.objective, str) else row.objective
    per_token = -objective(log_probs, ratio, batch.advantages, low, high)
    if kl_coef and row.kl not in ("none", "k1_reward"):
        per_token = per_token + kl_coef * _kl_term(row.kl, log_probs, batch, old)
    aggregate = AGGREGATIONS[row.aggregation] if isinstance(row.aggregation, str) else row.aggregation
    loss = aggregate(per_token, batch.mask, batch.num_episodes, batch.num_tokens)
    reached, advantages = ratio.detach(), batch.advantages
    # On the other side of each, PPO's minimum keeps the gradient.
    below = (reached < low) & (advantages < 0) if low is not None else reached.new_zeros(reached.shape).bool()
    above = (reached > high) & (advantages > 0) if high is not None else reached.new_zeros(reached.shape).bool()
    return Surrogate(loss, reached, below & batch.mask, above & batch.mask)


def _kl_term(form: str, log_probs: Tensor, batch: Batch, old: Tensor) -> Tensor:
    assert batch.ref_log_probs is not None
    # What stands on padding may be infinite, and infinity minus infinity has no gradient.
    log_probs, reference, old = (
        each.masked_fill(~batch.mask, 0.0) for each in (log_probs, batch.ref_log_probs.detach(), old)
    )
    return FORMS[form](log_probs, reference, batch.mask, token_ratio(log_probs, old, batch.mask))
