"""Experience: the episodes that an update learns from, with everything about them that stays constant meanwhile.

Made once an update; cut into minibatches, a step of the optimizer each, and those into microbatches that fit memory.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.advantages import overlong_penalty
from agents.axes import Algorithm
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from agents.rollout import Rollout

_MOST_PADDING = 0.1  # as a share of a microbatch
_NEAR = 2048  # tokens, of each thread
_WORTH_A_PASS = 1024  # tokens: with fewer, what a pass costs by itself counts


class Experience(NamedTuple):
    """B episodes that were not dropped, and what is held fixed while the policy learns from them."""

    rollout: Rollout
    advantages: np.ndarray  # float64 [B, T], 0 where not mask
    old_log_probs: np.ndarray | None = None  # [B, T] of the policy that sampled; None: what the first step finds
    ref_log_probs: np.ndarray | None = None  # [B, T] of the reference; None without one
    targets: np.ndarray | None = None  # [B, T] of the critic; None without one

    def select(self, rows: np.ndarray) -> "Experience":
        """The episodes `rows`, int64 [n], cut to their own longest history and completion."""
        rollout = self.rollout.select(rows)
        steps = rollout.mask.shape[1]

        def cut(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[rows][:, :steps]

        rest = cut(self.old_log_probs), cut(self.ref_log_probs), cut(self.targets)
        return Experience(rollout, self.advantages[rows][:, :steps], *rest)


def microbatches(rollout: Rollout, max_tokens: int) -> Iterator[np.ndarray]:
    """Rows of episodes of like length, int64 [n], at most `max_tokens` tokens with padding, or one episode.

    A microbatch ends early where more than a tenth of it would be padding, if it has tokens enough to be worth a pass.
    """
    order = np.argsort(rollout.length, kind="stable")[::-1]  # the longest first: memory is short early or never
    while len(order):
        length = rollout.length[order[: max(1, max_tokens // int(rollout.length[order[0]]))]]
        size = length[0] * np.arange(1, len(length) + 1)  # of the first 1, 2, ... rows, padded
        kept = (size <= _WORTH_A_PASS) | (size - np.cumsum(length) <= _MOST_PADDING * size)
        count = len(kept) if kept.all() else max(1, int(np.argmin(kept)))
        yield order[:count]
        order = order[count:]


def tokens_of_a_pass(policy: TransformerPolicy, max_tokens: int) -> int:
    """Tokens of the microbatches that suit where the policy is, at most as many.

    A processor is faster with what stays near it in its caches; an accelerator with as much as it is given.
    """
    return min(max_tokens, _NEAR * torch.get_num_threads()) if policy.device.type == "cpu" else max_tokens


def minibatches(count: int, parts: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Rows 0 to count - 1 in up to `parts` random parts of like size, none empty; in order where it is one part.

    >>> [len(rows) for rows in minibatches(10, 4, np.random.default_rng(0))]
    [3, 3, 2, 2]
    """
    if parts == 1:
        return [np.arange(count)] if count else []
    return [rows for rows in np.array_split(generator.permutation(count), parts) if len(rows)]


def make_experience(
    policy: TransformerPolicy,
    row: Algorithm,
    rollout: Rollout,
    horizon: int,
    tokens_per_microbatch: int,
    reference: ReferencePolicy | None = None,
    kl_coef: float | None = None,
) -> Experience:
    """Advantages, and all else that stays constant in an update.

    The policy's log-probabilities are computed anew where they are compared with other passes, after a step or of the
    reference, rather than taken from the rollout: those came from the cache, whose last digits are others. A narrow
    clip would see them, and at π = π_ref a KL that is 0 would be noise, which a division by its deviation makes a
    signal.

    Args:
        policy: π_θ as it sampled.
        row: the algorithm.
        rollout: B episodes, none of them dropped.
        horizon: W.
        tokens_per_microbatch: most tokens, padding included, in one forward pass.
        reference: π_ref, where there is one.
        kl_coef: β, where there is a reference.
    """
    if not len(rollout.mask):
        return Experience(rollout, np.zeros(rollout.mask.shape))
    old = ref_log_probs = None
    limit = tokens_of_a_pass(policy, tokens_per_microbatch)
    if row.num_steps > 1 or row.critic or reference is not None:
        old, *values = _by_parts(rollout, limit, lambda part: _scored(policy, row, part))
        rollout = rollout._replace(values=values[0] if values else None)
    if reference is not None:
        [ref_log_probs] = _by_parts(rollout, limit, lambda part: (reference.log_probs(part),))
    rewards = rollout.rewards + _overlong(row, rollout, horizon)
    if old is not None and ref_log_probs is not None and row.kl == "k1_reward":
        rewards = rewards - kl_coef * np.where(rollout.mask, old - ref_log_probs, 0.0)
    paid = rollout._replace(rewards=rewards)
    return Experience(rollout, row.advantages_of(paid), old, ref_log_probs, row.targets_of(paid))


def _scored(policy: TransformerPolicy, row: Algorithm, part: Rollout) -> tuple[Tensor, ...]:
    """Log-probabilities as the passes of the update compute them, and the critic's values where there is one."""
    scores = policy.token_scores(part, values=row.critic)
    return (scores.log_probs,) if scores.values is None else (scores.log_probs, scores.values)


def _overlong(row: Algorithm, rollout: Rollout, horizon: int) -> np.ndarray:
    """What the last step of each episode is charged for its length, float64 [B, T]."""
    charged, length = np.zeros(rollout.mask.shape), rollout.mask.sum(axis=1)
    penalty = overlong_penalty(length, horizon, row.overlong_tokens(horizon))
    charged[np.arange(len(length)), length - 1] = penalty
    return charged


@torch.no_grad()
def _by_parts(
    rollout: Rollout, tokens_per_microbatch: int, function: Callable[[Rollout], tuple[Tensor, ...]]
) -> list[np.ndarray]:
    """What a function says of the rollout, float64 [B, T] each, 0 where not mask, asked in parts that fit memory."""
    whole: list[np.ndarray] = []
    for rows in microbatches(rollout, tokens_per_microbatch):
        part = rollout.select(rows)
        said = [np.where(part.mask, each.double().cpu().numpy(), 0.0) for each in function(part)]
        whole = whole or [np.zeros(rollout.mask.shape) for _ in said]
        for target, values in zip(whole, said, strict=True):
            target[rows, : values.shape[1]] = values
    return whole
