"""The axes that an algorithm is a choice on, what can be chosen, and what contradicts each other.

advantage × scale × objective × importance level × aggregation × form of the KL term × clipping × epochs. What the names
stand for is in `agents.advantages`, `agents.losses` and `agents.kl`, and `agents.surrogate` puts the loss together; the
known algorithms are rows of `agents.algorithms`. Does not import torch: names are checked before it is loaded.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from agents.advantages import gae, group_mean, group_std, leave_one_out, reward_to_go, spread, total_return, whiten
from agents.rollout import Rollout
from textgym.errors import unknown
from textgym.escape import shown, type_name
from textgym.tasks.base import is_integer


class AdvantageRule(NamedTuple):
    """A way to make advantages, and what it needs.

    Attributes:
        of: from a rollout and the algorithm's row to float64 [B, T], 0 where not mask.
        min_group_size: the least episodes that must share a prompt.
        min_episodes: the least episodes of an update.
        critic: whether it reads `rollout.values`.
    """

    of: Callable[[Rollout, "Algorithm"], np.ndarray]
    min_group_size: int = 1
    min_episodes: int = 1
    critic: bool = False


def _return(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    return total_return(rollout.rewards, rollout.mask)


def _to_go(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    return reward_to_go(rollout.rewards, rollout.mask, row.gamma)


def _batch_leave_one_out(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    # The whole batch is one group: the mean of the *other* episodes is a baseline that keeps the gradient unbiased.
    return spread(leave_one_out(rollout.returns, np.zeros_like(rollout.group), rollout.sizes), rollout.mask)


def _leave_one_out(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    return spread(leave_one_out(rollout.returns, rollout.group, rollout.sizes), rollout.mask)


def _group_mean(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    return spread(group_mean(rollout.returns, rollout.group, rollout.sizes), rollout.mask)


def _gae(rollout: Rollout, row: "Algorithm") -> np.ndarray:
    if rollout.values is None:
        raise ValueError(f"algorithm {row.name!r} needs the critic's values, and the rollout has none")
    return gae(rollout.rewards, rollout.values, rollout.mask, row.gamma, row.gae_lambda)


ADVANTAGES: dict[str, AdvantageRule] = {
    "return": AdvantageRule(_return),
    "to_go": AdvantageRule(_to_go),
    "batch_leave_one_out": AdvantageRule(_batch_leave_one_out, min_episodes=2),
    "leave_one_out": AdvantageRule(_leave_one_out, min_group_size=2),
    "group_mean": AdvantageRule(_group_mean, min_group_size=2),
    "gae": AdvantageRule(_gae, critic=True),
}
SCALES = ("none", "group_std", "whiten")
# The keys of the tables of `agents.losses`, and the forms that `agents.surrogate` knows, without loading torch.
OBJECTIVES = ("policy_gradient", "clip", "cispo")
IMPORTANCE = ("token", "sequence")
AGGREGATIONS = ("constant", "sequence_mean", "token_mean")
KL_FORMS = ("none", "k1_reward", "k1", "k2", "k2_sequence", "k3", "frozen")
_NAMED = {
    "advantages": tuple(ADVANTAGES),
    "scale": SCALES,
    "objective": OBJECTIVES,
    "importance": IMPORTANCE,
    "aggregation": AGGREGATIONS,
    "kl": KL_FORMS,
}
_FUNCTIONS_TOO = ("advantages", "objective", "aggregation")


@dataclass(frozen=True)
class Algorithm:
    """One way to estimate the policy gradient, and to step along it.

    Attributes:
        name: what `algorithm=` calls it.
        advantages: A_t: a name of `ADVANTAGES`, or a function of a rollout that returns float64 [B, T]. It never sees a
            dropped episode, so that groups may be smaller than the group size, and one episode alone in its own.
        scale: what the advantages are divided by: "none", "group_std" (the deviation of the group's returns) or
            "whiten" (mean 0, deviation 1 over the batch's tokens).
        objective: "policy_gradient" (A log π), "clip" (PPO's bound), "cispo" (clipped constant ratio times A log π), or
            a function like those of `agents.losses`.
        importance: whether the ratio π_θ/π_old is that of each token, or the episode's geometric mean ("sequence").
        aggregation: "constant" (sum over tokens, mean over episodes), "sequence_mean" (mean over the tokens of each
            episode), "token_mean" (mean over all tokens), or a function like those of `agents.losses`.
        kl: where the KL to the reference policy stands, if its coefficient is not 0: "k1_reward" (a cost in the
            reward), "k1", "k2", "k2_sequence", "k3" or "frozen" (terms of the loss, see `agents.kl`); "none": nowhere.
        clip_epsilon: ε; ratios count down to 1 - ε, and up to 1 + ε. None: no bound.
        clip_epsilon_high: another ε for the upper bound.
        num_epochs: how often an update goes over its episodes.
        num_minibatches: steps of the optimizer in each epoch.
        gamma: γ, the discount, of "to_go" and "gae".
        gae_lambda: λ of "gae".
        value_coef: weight of the critic's mean squared error, where there is a critic.
        sampling_rounds: most times that episodes are sampled for one update. Above 1, groups of equal returns are left
            out, and sampled again until the batch is full (dynamic sampling, DAPO).
        overlong_buffer: share of the horizon, at its end, over which a penalty of up to 1 grows; see
            `agents.advantages.overlong_penalty`.
        min_group_size: the least episodes that must share a prompt, where a function of one's own needs several.
        min_episodes: the least episodes of an update, likewise.
        critic: whether a function of one's own reads `rollout.values`.
        batch_multiple: how many times as many tokens an update and a run have, where `textgym train` is left to choose:
            without a baseline an estimate is noisier.
        ascends: what it ascends, in words.

    Raises:
        TypeError, ValueError: a name that an axis does not have, a number outside its range, or a choice on one axis
            that contradicts another's.
    """

    name: str
    advantages: str | Callable[[Rollout], np.ndarray] = "leave_one_out"
    scale: str = "none"
    objective: str | Callable[..., Any] = "policy_gradient"
    importance: str = "token"
    aggregation: str | Callable[..., Any] = "constant"
    kl: str = "k1_reward"
    clip_epsilon: float | None = None
    clip_epsilon_high: float | None = None
    num_epochs: int = 1
    num_minibatches: int = 1
    gamma: float = 1.0
    gae_lambda: float = 1.0
    value_coef: float = 0.5
    sampling_rounds: int = 1
    overlong_buffer: float = 0.0
    min_group_size: int = 1
    min_episodes: int = 1
    critic: bool = False
    batch_multiple: int = 1
    ascends: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"the name of an algorithm is {shown(self.name)}; give a str")
        for axis, names in _NAMED.items():
            self._check_axis(axis, names)
        for count in _COUNTS:
            value = getattr(self, count)
            if not is_integer(value) or value < 1:
                raise ValueError(f"{self._told(count)}; give an integer of at least 1")
            object.__setattr__(self, count, operator.index(value))  # numpy's integers are not JSON's
        for number, least, most in _RANGES:
            value = getattr(self, number)
            if value is None and number.startswith("clip"):
                continue
            is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not is_number or not least <= value <= most or value == math.inf:
                allowed = f"number from {least} to {most}" if most < math.inf else f"finite number of at least {least}"
                raise ValueError(f"{self._told(number)}; give a {allowed}")
            object.__setattr__(self, number, float(value))
        self._check_together()
        if isinstance(self.advantages, str):
            rule = ADVANTAGES[self.advantages]
            object.__setattr__(self, "min_group_size", max(self.min_group_size, rule.min_group_size))
            object.__setattr__(self, "min_episodes", max(self.min_episodes, self.min_group_size, rule.min_episodes))
            object.__setattr__(self, "critic", self.critic or rule.critic)
        self._check_read()

    @property
    def clip_range(self) -> tuple[float | None, float | None]:
        """The least and the largest ratio that count; None where there is no bound."""
        low, high = self.clip_epsilon, self.clip_epsilon_high
        high = low if high is None else high
        return (None if low is None else 1 - low), (None if high is None else 1 + high)

    @property
    def num_steps(self) -> int:
        """Steps of the optimizer in an update."""
        return self.num_epochs * self.num_minibatches

    def advantages_of(self, rollout: Rollout) -> np.ndarray:
        """A_t of a rollout without dropped episodes, scaled; float64 [B, T], 0 where not mask."""
        if isinstance(self.advantages, str):
            advantages = ADVANTAGES[self.advantages].of(rollout, self)
        else:
            advantages = self._checked(self.advantages(rollout), rollout)
        if self.scale == "group_std":
            return advantages / group_std(rollout.returns, rollout.group, rollout.sizes)[:, None]
        return whiten(advantages, rollout.mask, rollout.sizes) if self.scale == "whiten" else advantages

    def targets_of(self, rollout: Rollout) -> np.ndarray | None:
        """What the critic should have said of each state, the λ-return, float64 [B, T]; None without a critic."""
        if not self.critic:
            return None
        assert rollout.values is not None
        ahead = gae(rollout.rewards, rollout.values, rollout.mask, self.gamma, self.gae_lambda)
        return np.where(rollout.mask, ahead + rollout.values, 0.0)

    def overlong_tokens(self, horizon: int) -> int:
        """The tokens at the end of the horizon W that are charged, rounded down."""
        return int(self.overlong_buffer * horizon + 1e-9)

    def _checked(self, advantages: Any, rollout: Rollout) -> np.ndarray:
        """What a function of one's own returned, if it can be an advantage for each token."""
        shape, given = rollout.mask.shape, np.asarray(advantages)
        if given.shape != shape or not np.issubdtype(given.dtype, np.number):
            raise ValueError(
                f"algorithm {self.name!r}: its advantages are {given.dtype} {given.shape}; return a number for each "
                f"token, float64 {shape}: [B, T] as rollout.mask is"
            )
        return given.astype(np.float64)

    def _check_axis(self, axis: str, names: tuple[str, ...]) -> None:
        value = getattr(self, axis)
        if callable(value) and axis in _FUNCTIONS_TOO:
            return
        if not isinstance(value, str):
            also = ", or a function" if axis in _FUNCTIONS_TOO else ""
            raise TypeError(f"{self._told(axis)}; give one of {', '.join(names)}{also}")
        if value not in names:
            raise ValueError(f"algorithm {self.name!r}: {unknown(axis, value, names)}")

    def _check_read(self) -> None:
        """Refuse a discount, λ or weight of a critic that is set and nothing would read."""
        discounts = self.critic or self.advantages == "to_go" or callable(self.advantages)
        readers = {
            "gamma": (discounts, "'to_go' or 'gae'"),
            "gae_lambda": (self.critic, "'gae'"),
            "value_coef": (self.critic, "'gae'"),
        }
        for name, (is_read, needed) in readers.items():
            if getattr(self, name) != getattr(Algorithm, name) and not is_read:  # the class holds the defaults
                raise ValueError(f"{self._told(name)}, which nothing reads; give advantages={needed} too")

    def _check_together(self) -> None:
        if self.objective == "policy_gradient":
            if self.num_steps > 1:
                raise ValueError(
                    f"algorithm {self.name!r}: {self.num_steps} steps on the same episodes and the objective "
                    "'policy_gradient', which does not correct for it; give objective='clip' (without clip_epsilon it "
                    "is importance sampling), or one epoch and one minibatch"
                )
            if self.importance != "token" or self.clip_epsilon is not None or self.clip_epsilon_high is not None:
                raise ValueError(
                    f"algorithm {self.name!r}: importance or clipping is set, and the objective 'policy_gradient' has "
                    "no ratio; give objective='clip'"
                )
        if self.sampling_rounds > 1 and self.advantages not in ("leave_one_out", "group_mean"):
            raise ValueError(
                f"algorithm {self.name!r}: sampling_rounds={self.sampling_rounds} leaves out groups of equal returns, "
                "which teach nothing where advantages compare the members of a group alone; give advantages="
                "'leave_one_out' or 'group_mean'"
            )

    def _told(self, attribute: str) -> str:
        value = getattr(self, attribute)
        return f"algorithm {self.name!r}: {attribute} is {shown(value)} of type {type_name(value)}"


_COUNTS = ("num_epochs", "num_minibatches", "sampling_rounds", "batch_multiple", "min_group_size", "min_episodes")
_RANGES = (
    ("clip_epsilon", 0, 1),
    ("clip_epsilon_high", 0, math.inf),
    ("gamma", 0, 1),
    ("gae_lambda", 0, 1),
    ("value_coef", 0, math.inf),
    ("overlong_buffer", 0, 1),
)
AXES = tuple(field.name for field in fields(Algorithm) if field.name not in ("name", "ascends"))
