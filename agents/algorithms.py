"""The algorithms: a table from a name to what turns a rollout into advantages.

A row of one's own is one line: `ALGORITHMS["mine"] = Algorithm("mine", my_advantages)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agents.advantages import leave_one_out, reward_to_go, spread, total_return
from agents.rollout import Rollout
from textgym.errors import NotBuiltError, unknown


@dataclass(frozen=True)
class Algorithm:
    """One way to estimate the policy gradient.

    Attributes:
        name: what `algorithm=` calls it.
        advantages: the A_t of a rollout, float64 [B, T], 0 where not mask. It never sees a dropped episode, so that
            groups may be smaller than the group size, and one episode alone in its own.
        min_group_size: the least episodes that must share a prompt.
        min_episodes: the least episodes of an update.
    """

    name: str
    advantages: Callable[[Rollout], np.ndarray]
    min_group_size: int = 1
    min_episodes: int = 1


def _reinforce(rollout: Rollout) -> np.ndarray:
    return total_return(rollout.rewards, rollout.mask)


def _reinforce_baseline(rollout: Rollout) -> np.ndarray:
    # The whole batch is one group: the mean of the *other* episodes is a baseline that keeps the gradient unbiased.
    return spread(leave_one_out(rollout.returns, np.zeros_like(rollout.group)), rollout.mask)


def _reinforce_to_go(rollout: Rollout) -> np.ndarray:
    return reward_to_go(rollout.rewards, rollout.mask)


def _rloo(rollout: Rollout) -> np.ndarray:
    return spread(leave_one_out(rollout.returns, rollout.group), rollout.mask)


ALGORITHMS: dict[str, Algorithm] = {
    "reinforce": Algorithm("reinforce", _reinforce),
    "reinforce_baseline": Algorithm("reinforce_baseline", _reinforce_baseline, min_episodes=2),
    "reinforce_to_go": Algorithm("reinforce_to_go", _reinforce_to_go),
    "rloo": Algorithm("rloo", _rloo, min_group_size=2, min_episodes=2),
}
_LATER = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce_pp", "a2c", "ppo")


def make_algorithm(algorithm: str | Algorithm) -> Algorithm:
    """The algorithm of a name, or the row itself.

    Raises:
        ValueError: no such name; `NotBuiltError` where it comes in a later version.
    """
    if isinstance(algorithm, Algorithm):
        return algorithm
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm is {algorithm!r:.80}; give one of {', '.join(sorted(ALGORITHMS))}, or an Algorithm")
    if algorithm in _LATER:
        raise NotBuiltError(f"algorithm {algorithm!r} is not built yet; allowed now: {', '.join(sorted(ALGORITHMS))}")
    if algorithm not in ALGORITHMS:
        raise ValueError(unknown("algorithm", algorithm, ALGORITHMS))
    return ALGORITHMS[algorithm]
