"""What a policy gets: how its prompts are chosen, and what finished episodes say of it, each number with its interval.

Plays nothing and prints nothing.
"""

from typing import Literal, NamedTuple

import numpy as np

from agents.intervals import Interval, clustered_interval, independent_interval, stratified_interval
from agents.rollout import Rollout
from textgym.finish import FinishReason

DEFAULT_EPISODES = 256
MOST_COVERED = 4_096  # prompts that are all played where no number of episodes is given
_ROUNDING = 1e-9  # of a sum of rewards, as a share of their range

Basis = Literal["exact", "these", "alike", "drawn"]


class Plan(NamedTuple):
    """Which prompts are played and how often, and what an interval of the mean can therefore be about.

    `basis` is "exact": every prompt there is was played, by a policy that always writes the same; "these": the interval
    is about the mean over the prompts that were played, all there are; "alike": they count as a sample of prompts like
    them, and the interval is about those; "drawn": about all prompts, of which some were drawn.
    """

    num_prompts: int  # that there are
    episodes: int
    repeats: int  # episodes of each prompt, 1 where they are drawn
    basis: Basis


def make_plan(num_prompts: int, episodes: int | None, deterministic: bool, fixed: bool) -> Plan:
    """Every prompt as often as the others where the episodes suffice for that, otherwise prompts that are drawn.

    Args:
        num_prompts: how many there are.
        episodes: the most to play; None for 256, or each of up to 4,096 prompts once.
        deterministic: whether a prompt always leads to the same text and score, so that one episode of it is enough.
        fixed: whether the prompts are all that matter, not a sample. A prompt that is alone is no sample.

    >>> make_plan(100, None, deterministic=False, fixed=True)
    Plan(num_prompts=100, episodes=200, repeats=2, basis='these')
    >>> make_plan(100, 60, deterministic=True, fixed=True)
    Plan(num_prompts=100, episodes=60, repeats=1, basis='drawn')
    """
    if episodes is None:
        episodes = max(DEFAULT_EPISODES, num_prompts if num_prompts <= MOST_COVERED else 0)
    if episodes < num_prompts:
        return Plan(num_prompts, episodes, 1, "drawn")
    repeats = 1 if deterministic else episodes // num_prompts
    if fixed or num_prompts == 1:
        return Plan(num_prompts, num_prompts * repeats, repeats, "exact" if deterministic else "these")
    return Plan(num_prompts, num_prompts * repeats, repeats, "alike")


class Measure(NamedTuple):
    """One line of the table; None where there is nothing to say."""

    policy: str  # "greedy" or "sampled"
    measure: str
    episodes: int  # that it is of; dropped ones are left out
    share: float | None  # of the episodes
    mean: float | None
    low: float | None  # of the interval
    high: float | None
    tokens: float | None  # mean number


def measures(
    policy: str,
    rollout: Rollout,
    plan: Plan,
    reward_names: tuple[str, ...],
    confidence: float,
    bounds: tuple[float, float] | None,
) -> list[Measure]:
    """What the episodes of a plan say: the return, the true score, both by how episodes end, the reward functions.

    Args:
        policy: what it is called.
        rollout: the episodes, those of a prompt in a group of their own unless prompts were drawn.
        plan: what was played.
        reward_names: K names.
        confidence: of the intervals, between 0 and 1.
        bounds: what no score can lie outside of, where that is known.

    Raises:
        ValueError: a score outside the bounds, or too large to reckon with.
    """
    kept = rollout.without_dropped()
    lengths = (kept.length - kept.prompt_length).astype(np.float64)
    everything = np.ones(len(lengths), dtype=bool)

    def line(name: str, values: np.ndarray, rows: np.ndarray, share: float | None = None) -> Measure:
        # How many episodes of each prompt end in one way is chance, so that prompts are no strata of theirs.
        basis: Basis = "drawn" if plan.basis == "these" and not rows.all() else plan.basis
        interval = interval_of(values[rows], kept.group[rows], basis, confidence, bounds)
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        return Measure(policy, name, int(rows.sum()), share, _mean(values[rows]), low, high, _mean(lengths[rows]))

    returns = _within(kept.returns, bounds)
    lines = [line("return", returns, everything)]
    if kept.true_score is not None:
        lines.append(line("true_score", _within(kept.true_score, bounds), everything))
    for reason in np.unique(kept.finish_reason).tolist():
        rows = kept.finish_reason == reason
        lines.append(line(f"finish_reason/{FinishReason(reason).name.lower()}", returns, rows, float(rows.mean())))
    for name, scores, valid in zip(reward_names, kept.scores.T, kept.scores_valid.T, strict=True):
        count, mean = int(valid.sum()), _mean(scores[valid])
        lines.append(Measure(policy, f"rewards/{name}", count, None, mean, None, None, _mean(lengths[valid])))
    return lines


def interval_of(
    values: np.ndarray, groups: np.ndarray, basis: Basis, confidence: float, bounds: tuple[float, float] | None
) -> Interval | None:
    """The interval of a mean over episodes, float64 [n] in groups int64 [n], or None where nothing can be said."""
    if basis == "exact" and len(values):
        return Interval(*[float(values.mean())] * 3)
    if basis == "alike":
        return clustered_interval(values, groups, confidence, bounds)
    if basis == "these":
        return stratified_interval(values, groups, confidence, bounds)
    return independent_interval(values, confidence, bounds)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _within(values: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """The values without the rounding that takes them past the bounds."""
    if bounds is None:
        return values
    low, high = bounds
    slack = _ROUNDING * (high - low)
    outside = (values < low - slack) | (values > high + slack)
    if outside.any():
        value = values[outside][0]
        raise ValueError(f"an episode got {value:g}, outside the range {low:g} to {high:g}; give another --score-range")
    return np.clip(values, low, high)
