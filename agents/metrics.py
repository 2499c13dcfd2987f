"""What a rollout says of the training, under TRL's metric names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.rollout import Rollout
from textgym.transition import FinishReason


def rollout_metrics(rollout: Rollout, reward_names: Sequence[str]) -> dict[str, float]:
    """The metrics of one rollout.

    Args:
        rollout: B episodes.
        reward_names: K names.

    Returns:
        `reward` and `reward_std` of the returns, `frac_reward_zero_std` (share of groups whose returns are all equal),
        `rewards/NAME/mean` and `/std` of the scores, `completions/...` in tokens, `completions/clipped_ratio` (share of
        episodes that the horizon ended).
    """
    with np.errstate(over="ignore"):  # an infinity is the caller's to report
        metrics = _measure(rollout, reward_names)
    return {name: float(value) for name, value in metrics.items()}


def _measure(rollout: Rollout, reward_names: Sequence[str]) -> dict[str, Any]:
    returns, lengths = rollout.returns, (rollout.length - rollout.prompt_length).astype(np.float64)
    stopped = rollout.finish_reason == FinishReason.STOP
    groups = [returns[rollout.group == group] for group in np.unique(rollout.group)]
    metrics: dict[str, Any] = {
        "reward": returns.mean(),
        "reward_std": returns.std(),
        "frac_reward_zero_std": np.mean([group.max() == group.min() for group in groups]),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/mean_terminated_length": lengths[stopped].mean() if stopped.any() else 0.0,
        "completions/clipped_ratio": np.mean(rollout.finish_reason == FinishReason.LIMIT),
    }
    for name, scores in zip(reward_names, rollout.scores.T, strict=True):
        metrics |= {f"rewards/{name}/mean": scores.mean(), f"rewards/{name}/std": scores.std()}
    return metrics
