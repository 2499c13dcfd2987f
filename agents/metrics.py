"""What a rollout says of the training, under TRL's metric names."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.advantages import equal_returns
from agents.rollout import Rollout
from textgym.finish import FinishReason


def rollout_metrics(rollout: Rollout, reward_names: Sequence[str]) -> dict[str, float]:
    """The metrics of one rollout, over the episodes that were not dropped; 0 where there is nothing to measure.

    Args:
        rollout: B episodes.
        reward_names: K names.

    Returns:
        `reward` and `reward_std` of the returns, `true_score` (mean) where the task has one, `frac_reward_zero_std`
        (share of groups whose returns are all equal), `rewards/NAME/mean` and `/std` of the scores that a function
        gave, `completions/...` in tokens, `completions/clipped_ratio` (share of episodes that the horizon ended), and
        `episodes/dropped`, a count.
    """
    with np.errstate(over="ignore"):  # an infinity is the caller's to report
        metrics = _measure(rollout.without_dropped(), reward_names)
    metrics["episodes/dropped"] = len(rollout.valid) - rollout.valid.sum()
    return {name: float(value) for name, value in metrics.items()}


def _measure(rollout: Rollout, reward_names: Sequence[str]) -> dict[str, Any]:
    returns, lengths = rollout.returns, (rollout.length - rollout.prompt_length).astype(np.float64)
    one_of_each = np.unique(rollout.group, return_index=True)[1]
    equal = equal_returns(returns, rollout.group, rollout.sizes)[one_of_each]
    metrics: dict[str, Any] = {"reward": _or_0(np.mean, returns), "reward_std": _or_0(np.std, returns)}
    if rollout.true_score is not None:
        metrics["true_score"] = _or_0(np.mean, rollout.true_score)
    metrics |= {
        "frac_reward_zero_std": _or_0(np.mean, equal),
        "completions/mean_length": _or_0(np.mean, lengths),
        "completions/min_length": _or_0(np.min, lengths),
        "completions/max_length": _or_0(np.max, lengths),
        "completions/mean_terminated_length": _or_0(np.mean, lengths[rollout.finish_reason == FinishReason.STOP]),
        "completions/clipped_ratio": _or_0(np.mean, rollout.finish_reason == FinishReason.LIMIT),
    }
    for name, scores, valid in zip(reward_names, rollout.scores.T, rollout.scores_valid.T, strict=True):
        metrics[f"rewards/{name}/mean"] = _or_0(np.mean, scores[valid])
        metrics[f"rewards/{name}/std"] = _or_0(np.std, scores[valid])
    return metrics


def _or_0(measure: Callable[[np.ndarray], Any], values: np.ndarray) -> Any:
    return measure(values) if len(values) else 0.0
