"""The gradient of one step of the optimizer: experience -> microbatches -> backward passes, and what they show.

The loss itself is `agents.surrogate`'s and `agents.losses`'; where the experience comes from, and the step, are the
learner's.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.axes import Algorithm
from agents.experience import Experience, microbatches, tokens_of_a_pass
from agents.full_precision import FullPrecision
from agents.losses import entropy_bonus, value_loss
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from agents.surrogate import Batch, Surrogate, surrogate
from agents.tally import Tally


def accumulate_gradient(
    policy: TransformerPolicy,
    weights: FullPrecision,
    row: Algorithm,
    settings: dict[str, Any],
    experience: Experience,
    kl_coef: float,
    tally: Tally,
) -> float:
    """Set every parameter's gradient to that of the loss over all episodes of the experience, clipped.

    Microbatches are parts of one sum, with the denominators of all those episodes. Where there are none, every
    parameter's gradient is None.

    Args:
        policy: π_θ.
        weights: its parameters.
        row: the algorithm.
        settings: `entropy_coef`, `max_grad_norm` and `tokens_per_microbatch`.
        experience: the episodes of this step.
        kl_coef: β, weight of the KL to the reference.
        tally: counts what the passes show.

    Returns:
        The gradient's norm before clipping.
    """
    weights.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for rows in microbatches(experience.rollout, tokens_of_a_pass(policy, settings["tokens_per_microbatch"])):
        part = _loss(policy, row, settings["entropy_coef"], experience.select(rows), experience.rollout, kl_coef, tally)
        part.backward()  # ∇_θ
        weights.take_gradients()
        loss += part.detach().double().cpu()
    tally.add("loss", loss[None])
    norm = torch.nn.utils.clip_grad_norm_(weights.parameters, settings["max_grad_norm"])
    tally.add("grad_norm", norm[None])
    return float(norm)


def _loss(
    policy: TransformerPolicy,
    row: Algorithm,
    entropy_coef: float,
    part: Experience,
    whole: Rollout,
    kl_coef: float,
    tally: Tally,
) -> Tensor:
    # Without a coefficient the entropy is for information, and no pass backward is spent on it.
    log_probs, entropy, values = policy.token_scores(part.rollout, row.critic, entropy_gradient=entropy_coef != 0)
    device = log_probs.device

    def constant(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.as_tensor(array, dtype=log_probs.dtype, device=device)

    advantages, old, reference = map(constant, (part.advantages, part.old_log_probs, part.ref_log_probs))
    assert advantages is not None
    mask = torch.as_tensor(part.rollout.mask, device=device)
    num_tokens = whole.num_tokens
    batch = Batch(advantages, mask, len(whole.mask), num_tokens, old, reference)
    found = surrogate(row, log_probs, batch, kl_coef)
    loss = found.loss - entropy_coef * entropy_bonus(entropy, mask, num_tokens)
    if values is not None:
        targets = constant(part.targets)
        assert targets is not None
        loss = loss + row.value_coef * value_loss(values, targets, mask, num_tokens)
        tally.add("value_loss", (values - targets)[mask].square())
    tally.add("entropy", entropy[mask])
    _count(found, log_probs, batch, torch.as_tensor(part.rollout.log_probs, device=device), tally)
    return loss


def _count(found: Surrogate, log_probs: Tensor, batch: Batch, sampled: Tensor, tally: Tally) -> None:
    mask = batch.mask
    log_probs = log_probs.detach()
    tally.add("ratio", found.ratio[mask])
    tally.add("clip_low", found.clipped_low[mask])
    tally.add("clip_high", found.clipped_high[mask])
    old = log_probs if batch.old_log_probs is None else batch.old_log_probs
    gap = (log_probs - old)[mask]  # of tokens that π_old drew: KL(π_old‖π)
    tally.add("k1", -gap)
    tally.add("k3", torch.expm1(gap) - gap)
    # What the sampler said of them itself, through its cache: at the first step it should be the same.
    tally.add("sampling", (old - sampled)[mask].exp())


def update_metrics(tally: Tally) -> dict[str, float]:
    """What the steps of an update showed, under TRL's names where it has one; 0 where nothing was counted."""
    return {
        "loss": tally.mean("loss"),
        "entropy": tally.mean("entropy"),
        "grad_norm": tally.mean("grad_norm"),
        "ratio/mean": tally.mean("ratio"),
        "ratio/min": tally.least("ratio"),
        "ratio/max": tally.most("ratio"),
        "clip_ratio/low_mean": tally.mean("clip_low"),
        "clip_ratio/high_mean": tally.mean("clip_high"),
        "clip_ratio/region_mean": tally.mean("clip_low") + tally.mean("clip_high"),
        "approx_kl/k1": tally.mean("k1"),
        "approx_kl/k3": tally.mean("k3"),
        "sampling/importance_sampling_ratio/mean": tally.mean("sampling"),
        "sampling/importance_sampling_ratio/min": tally.least("sampling"),
        "sampling/importance_sampling_ratio/max": tally.most("sampling"),
    }


def reference_kl(experience: Experience) -> dict[str, float]:
    """KL(π‖π_ref) of the sampled tokens, in nats per token, before the update: `kl/k1`, `kl/k3`, and `kl`.

    `kl` is k3, as TRL has it, but where masks or truncation restrict the policy: k3 takes π_ref/π to have the mean 1,
    which it has not where π_ref has tokens that π is kept from. There it is k1.
    """
    rollout = experience.rollout
    if not rollout.mask.any():
        return {"kl": 0.0, "kl/k1": 0.0, "kl/k3": 0.0}
    assert experience.ref_log_probs is not None and experience.old_log_probs is not None
    gap = (experience.ref_log_probs - experience.old_log_probs)[rollout.mask]
    k1, k3 = float(np.mean(-gap)), float(np.mean(np.expm1(gap) - gap))
    restricted = rollout.action_mask is not None or rollout.cut_off is not None
    return {"kl": k1 if restricted else k3, "kl/k1": k1, "kl/k3": k3}


def critic_metrics(tally: Tally, experience: Experience) -> dict[str, float]:
    """The critic's mean squared error, and how much of its targets' variance it explained before the update.

    1 - Var(target - V) / Var(target) over the tokens; 0 where all targets are equal.
    """
    rollout, targets = experience.rollout, experience.targets
    variance = explained = 0.0
    if rollout.mask.any():
        assert rollout.values is not None and targets is not None
        wanted, said = targets[rollout.mask], rollout.values[rollout.mask]
        variance = float(np.var(wanted))
        explained = 1 - float(np.var(wanted - said)) / variance if variance > 0 else 0.0
    return {"value_loss": tally.mean("value_loss"), "explained_variance": explained}
