"""Our rows beside the settings that are the same to TRL 1.16, and all that stands between the two, by name."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from agents.advantages import group_std
from agents.algorithms import make_algorithm
from agents.axes import Algorithm
from agents.losses import clipped
from agents.rollout import Rollout
from tests.agents import tiny
from tests.agents.trl_trainers import Generated
from textgym.finish import FinishReason

SINGLE = 1e-6  # TRL has rewards, advantages and metrics in float32
MAX_LENGTH = 8  # max_completion_length: TRL's dr_grpo divides by it too; ours sums over the tokens
STD_EPSILON = 1e-4  # TRL divides by the deviation plus this; ours by the deviation, or by 1 where it is 0
UNSCALED = dict(scale_rewards="none")  # no division by the group's deviation
# TRL's KL term is k3 times the ratio, our "frozen", unless it is told otherwise: k3 is that of the papers.
K3, RATIO_TIMES_K3 = dict(use_bias_correction_kl=False), dict(use_bias_correction_kl=True)


class Case(NamedTuple):
    """A row of ours, and the GRPO trainer's settings that are the same."""

    row: Algorithm
    settings: dict[str, Any]
    scale: float = 1.0  # our loss over TRL's
    spread: float = 0.4  # of log π/π_old, so that both bounds are passed


# TRL's default has no KL term: where our row has none either, k3 stands for it.
CASES = {
    "grpo": Case(make_algorithm("grpo"), dict(loss_type="grpo", epsilon=0.2) | K3),
    "dr_grpo": Case(make_algorithm("dr_grpo"), dict(loss_type="dr_grpo", epsilon=0.2) | UNSCALED | K3, MAX_LENGTH),
    "dapo": Case(make_algorithm("dapo", kl="k3"), dict(loss_type="dapo", epsilon=0.2, epsilon_high=0.28) | K3),
    "gspo": Case(
        make_algorithm("gspo"),
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4) | K3,
        spread=6e-4,
    ),
    # TRL's epsilon_high is here the largest ratio itself; ours is its distance from 1.
    "cispo": Case(make_algorithm("cispo", kl="k3"), dict(loss_type="cispo", epsilon_high=5.0) | K3, spread=2.0),
    "frozen KL": Case(make_algorithm("grpo", kl="frozen"), dict(loss_type="grpo", epsilon=0.2) | RATIO_TIMES_K3),
}


def trl_rloo(length: Tensor) -> Algorithm:
    """TRL's RLOO bounds the product of an episode's ratios, once an episode, and takes any number of steps.

    Ours takes one, where every ratio is 1: the gradient is the same, though TRL's loss, a ratio, is another number than
    A log π. This row is TRL's at any ratio.

    Args:
        length: [B, 1] tokens of the episodes; our ratio of an episode is the geometric mean.
    """

    def product(log_probs: Tensor, ratio: Tensor, advantages: Tensor, low: float | None, high: float | None) -> Tensor:
        return clipped(log_probs, ratio**length, advantages, low, high) / length

    return make_algorithm("rloo", objective=product, importance="sequence", clip_epsilon=0.2)


def trl_scales(row: Algorithm, rollout: Rollout) -> np.ndarray:
    """The advantages of a row, float64 [B, T], with TRL's epsilon beside the deviation where there is one."""
    advantages = row.advantages_of(rollout)
    if row.scale != "group_std":
        return advantages
    deviation = group_std(rollout.returns, rollout.group)[:, None]
    return advantages * deviation / (deviation + STD_EPSILON)


def rollout_of(generated: Generated) -> Rollout:
    """The same episodes to us, the reward paid at the last step."""
    group_size = len(generated.completion_ids) // len(generated.prompts)
    prompts = [prompt for prompt in generated.prompts for _ in range(group_size)]
    episodes = []
    for prompt, ids, reward in zip(prompts, generated.completion_ids, generated.rewards, strict=True):
        paid = [*[0.0] * (len(ids) - 1), np.nan if reward is None else reward]
        reason = FinishReason.STOP if ids[-1] == tiny.STOP else FinishReason.LIMIT
        episodes.append(tiny.Episode(0, [tiny.SYMBOLS.index(symbol) for symbol in prompt], ids, paid, reason))
    return tiny.rollout_of(episodes, group=np.arange(len(episodes)) // group_size)
