"""Advantages against numbers worked out by hand."""

from itertools import product

import numpy as np
import pytest

from agents.advantages import (
    equal_returns,
    group_mean,
    group_std,
    leave_one_out,
    overlong_penalty,
    reward_to_go,
    spread,
    total_return,
    whiten,
)
from agents.algorithms import ALGORITHMS
from agents.axes import SCALES, Algorithm
from agents.metrics import rollout_metrics
from agents.rollout import Rollout
from tests.agents import tiny

REWARDS = np.array([[1.0, -2.0, 4.0], [0.5, 0.0, 0.0], [0.0, 3.0, 0.0]])
MASK = np.array([[True, True, True], [True, False, False], [True, True, False]])


def normalized(returns: np.ndarray, group: np.ndarray) -> np.ndarray:
    """GRPO's advantages."""
    return group_mean(returns, group) / group_std(returns, group)


BY_GROUP = [leave_one_out, group_mean, normalized]


def test_total_return():
    assert total_return(REWARDS, MASK).tolist() == [[3, 3, 3], [0.5, 0, 0], [3, 3, 0]]


def test_reward_to_go():
    assert reward_to_go(REWARDS, MASK).tolist() == [[3, 2, 4], [0.5, 0, 0], [3, 3, 0]]


@pytest.mark.parametrize("function", [total_return, reward_to_go])
def test_rewards_off_the_mask_count_nothing(function):
    rewards = np.where(MASK, REWARDS, np.nan)
    assert (function(rewards, MASK) == function(REWARDS, MASK)).all()


def test_leave_one_out():
    # Group 0: 1, 2, 6 against 4, 3.5, 1.5. Group 1: 10, 4 against 4, 10.
    advantages = leave_one_out(np.array([1.0, 2.0, 6.0, 10.0, 4.0]), np.array([0, 0, 0, 1, 1]))
    assert advantages.tolist() == [-3, -1.5, 4.5, 6, -6]


def test_one_advantage_an_episode_repeats_on_its_steps():
    assert spread(np.array([2.0, -1.0, 0.5]), MASK).tolist() == [[2, 2, 2], [-1, 0, 0], [0.5, 0.5, 0]]


# --- by group


def test_group_mean_and_deviation():
    # Group 0: 1, 2, 6 have mean 3, gaps -2, -1, 3 and deviation √(14/2). Group 1: 10, 4 have mean 7 and √(18/1).
    returns, group = np.array([1.0, 2.0, 6.0, 10.0, 4.0]), np.array([0, 0, 0, 1, 1])
    assert group_mean(returns, group).tolist() == [-2, -1, 3, 3, -3]
    np.testing.assert_allclose(group_std(returns, group), [7**0.5] * 3 + [18**0.5] * 2, rtol=1e-15)


def test_of_two_episodes_the_better_one_is_one_over_the_root_of_two():
    """A deviation over G rather than G - 1 would give 1."""
    for better, worse in ((1.0, 0.0), (0.3, 0.1), (1e6 + 1, 1e6)):
        advantages = normalized(np.array([better, worse]), np.array([4, 4]))
        np.testing.assert_allclose(advantages, [0.5**0.5, -(0.5**0.5)], rtol=1e-9)


def test_the_group_mean_is_leave_one_out_scaled_down():
    generator = np.random.default_rng(3)
    for group_size in (2, 3, 8):
        returns, group = generator.normal(size=4 * group_size), np.repeat(np.arange(4), group_size)
        scaled = leave_one_out(returns, group) * (group_size - 1) / group_size
        np.testing.assert_allclose(group_mean(returns, group), scaled, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", BY_GROUP)
def test_advantages_sum_to_zero_in_each_group(rule):
    group = np.repeat(np.arange(5), 4)
    advantages = rule(np.random.default_rng(0).normal(size=20) + 1e6, group)
    np.testing.assert_allclose(np.bincount(group, weights=advantages), 0, atol=1e-8)


@pytest.mark.parametrize("rule", BY_GROUP)
def test_one_prompt_does_not_leak_into_another(rule):
    generator = np.random.default_rng(0)
    returns, group = generator.normal(size=12), np.repeat([0, 1], 6)
    before = rule(returns, group)
    for others in (generator.permutation(returns[6:]), 1e9, np.arange(6) * 1e9):
        moved = returns.copy()
        moved[6:] = others
        assert (rule(moved, group)[:6] == before[:6]).all()


@pytest.mark.parametrize("rule", BY_GROUP)
def test_advantages_follow_group_ids_and_not_places(rule):
    generator = np.random.default_rng(1)
    returns, group = generator.normal(size=24), np.repeat([7, 3, 900, -2], 6)
    order = generator.permutation(24)
    np.testing.assert_allclose(rule(returns[order], group[order]), rule(returns, group)[order], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # 1 against 3; 2 against 5 and 8: 2 - 6.5, 5 - 5, 8 - 3.5; 4 has nobody to be compared with.
        (leave_one_out, [-2, -4.5, 2, 0, 0, 4.5]),
        # 1 and 3 have mean 2 and deviation √2; 2, 5 and 8 mean 5 and deviation 3.
        (group_mean, [-1, -3, 1, 0, 0, 3]),
        (normalized, [-(0.5**0.5), -1, 0.5**0.5, 0, 0, 1]),
    ],
)
def test_groups_may_have_shrunk_to_any_size(rule, expected):
    returns, group = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 8.0]), np.array([1, 0, 1, 9, 0, 0])
    np.testing.assert_allclose(rule(returns, group), expected, rtol=1e-15)


def test_the_batch_is_one_group_for_reinforce_baseline():
    episodes = [tiny.Episode(0, [tiny.A], [tiny.STOP], [paid], 1) for paid in (0.0, 3.0, 6.0, 9.0)]
    rollout = tiny.rollout_of(episodes, group=[0, 0, 1, 1])
    # Against the means of the three others, 6, 5, 4 and 3; within the groups, against 3, 0, 9 and 6.
    assert ALGORITHMS["reinforce_baseline"].advantages_of(rollout).tolist() == [[-6], [-2], [2], [6]]
    assert ALGORITHMS["rloo"].advantages_of(rollout).tolist() == [[-3], [3], [-3], [3]]


# --- equal returns

COMPARING = [name for name, row in ALGORITHMS.items() if row.min_episodes > 1]
# The same return in several ways: paid at once, or as the differences of three prefixes' scores.
WAYS = {
    0.1: [[0.1], [0.3, -0.2], [0.7, -0.8, 0.2]],
    0.3: [[0.3], [0.1, 0.2], [1e6, 0.3, -1e6]],  # off by 5e-11, which is a rounding error of 1e6 and not of .3
    1 / 3: [[1 / 3], [1 / 6, 1 / 6], [1.0, -1 / 3, -1 / 3]],
    1000.1: [[1000.1], [0.7, 999.4], [0.3, 1000.0, -0.2]],
    -7.7: [[-7.7], [-7.0, -0.7], [7.7, -7.7, -7.7]],
}


def constant_rollout(reward: float, group_size: int, ways: int):
    """Two groups of episodes that are all paid the same, in different ways."""
    paid = [WAYS[reward][index % ways] for index in range(2 * group_size)]
    episodes = [tiny.Episode(0, [tiny.A], [tiny.B] * len(steps), steps, 1) for steps in paid]
    return tiny.rollout_of(episodes, group=np.repeat([0, 1], group_size))


def test_the_ways_differ_in_their_last_digits():
    """The checks below are worth something: sums that are equal on paper are not."""
    for reward in (0.1, 0.3, 1000.1):
        assert len({sum(steps) for steps in WAYS[reward]}) > 1, reward


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("reward", WAYS)
@pytest.mark.parametrize("name", COMPARING)
def test_constant_rewards_give_exactly_zero(name, reward, ways):
    for group_size in range(2, 65):
        rollout = constant_rollout(reward, group_size, ways)
        assert (ALGORITHMS[name].advantages_of(rollout) == 0).all(), group_size
        assert equal_returns(rollout.returns, rollout.group, rollout.sizes).all()


def test_every_rule_that_compares_episodes_is_among_them():
    assert set(COMPARING) == {"reinforce_baseline", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo"}


@pytest.mark.parametrize("reward", WAYS)
def test_constant_rewards_whitened_are_exactly_zero(reward):
    for group_size in range(2, 65):
        rollout = constant_rollout(reward, group_size, ways=1)
        assert (ALGORITHMS["reinforce_pp"].advantages_of(rollout) == 0).all(), group_size


# Payments that add up to nothing: steps of a prefix's score, and of a potential that comes back to where it was.
PHI = (0.1, 0.7, 1 / 3)
CANCELLING = [
    [0.1, 0.2, -0.3],
    [-0.3, 0.1, 0.2],
    [0.0, 0.0, 0.0],
    [PHI[0], PHI[1] - PHI[0], PHI[2] - PHI[1], -PHI[2]],
    [PHI[1], PHI[2] - PHI[1], PHI[0] - PHI[2], -PHI[0]],
    [0.0],
]
RULES = [("return", "whiten"), *product(("batch_leave_one_out", "leave_one_out", "group_mean"), SCALES)]


def cancelling_rollout(group_size: int) -> Rollout:
    """Two groups of episodes that were all paid nothing in the end."""
    paid = [CANCELLING[index % len(CANCELLING)] for index in range(2 * group_size)]
    episodes = [tiny.Episode(0, [tiny.A], [tiny.B] * len(steps), steps, 1) for steps in paid]
    return tiny.rollout_of(episodes, group=np.repeat([0, 1], group_size))


def test_what_cancels_leaves_last_digits():
    """The checks below are worth something: the sums are nothing on paper alone, and relative to each other far off."""
    assert len({sum(steps) for steps in CANCELLING}) > 2 and max(abs(sum(steps)) for steps in CANCELLING) < 1e-15


@pytest.mark.parametrize(("rule", "scale"), RULES)
def test_returns_that_cancel_are_equal(rule, scale):
    row = Algorithm("mine", rule, scale=scale)
    for group_size in range(2, 14):
        rollout = cancelling_rollout(group_size)
        assert (row.advantages_of(rollout) == 0).all(), group_size


@pytest.mark.parametrize("name", COMPARING)
def test_returns_that_cancel_are_equal_for_every_algorithm(name):
    for group_size in range(2, 14):
        assert (ALGORITHMS[name].advantages_of(cancelling_rollout(group_size)) == 0).all(), group_size


@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_groups_whose_returns_cancel_are_counted_as_equal(group_size):
    assert rollout_metrics(cancelling_rollout(group_size), ["score"])["frac_reward_zero_std"] == 1


@pytest.mark.parametrize("gap", [1e-6, 1e-9])
def test_what_is_left_of_larger_payments_counts(gap):
    episodes = [tiny.Episode(0, [tiny.A], [tiny.B] * 2, [1.0, left - 1.0], 1) for left in (0.0, gap)]
    rollout = tiny.rollout_of(episodes, group=[0, 0])
    np.testing.assert_allclose(ALGORITHMS["grpo"].advantages_of(rollout)[:, 0], [-(0.5**0.5), 0.5**0.5], rtol=1e-9)
    assert rollout_metrics(rollout, ["score"])["frac_reward_zero_std"] == 0


@pytest.mark.parametrize("gap", [1e-6, 1e-9, 5e-11])
def test_returns_that_differ_are_told_apart(gap):
    """Also such as would be a rounding error of larger payments."""
    returns = np.array([0.3, 0.3 + gap, 0.3, 0.3 - gap])
    assert not equal_returns(returns, np.zeros(4, dtype=int)).any()
    np.testing.assert_allclose(normalized(returns, np.zeros(4, dtype=int)), [0, 1.5**0.5, 0, -(1.5**0.5)], atol=1e-6)


def test_equal_returns():
    # 1 and 0; 7 twice, and .1 + .2; .3; one alone.
    returns = np.array([1.0, 7.0, 0.0, 7.0, 0.1 + 0.2, 0.3, -5.0])
    group = np.array([4, 2, 4, 2, 0, 0, 9])
    assert equal_returns(returns, group).tolist() == [False, True, False, True, True, True, True]


# --- the batch's tokens


def test_whitened_tokens():
    # The tokens 1, 2, 6, 7 have mean 4 and deviation √((9 + 4 + 4 + 9) / 3); what lies off the mask plays no part.
    mask = np.array([[True, True, False], [True, False, False], [True, False, False]])
    whitened = whiten(np.array([[1.0, 2.0, np.nan], [6.0, 1e9, 0.0], [7.0, 0.0, 0.0]]), mask)
    deviation = (26 / 3) ** 0.5
    expected = [[-3 / deviation, -2 / deviation, 0], [2 / deviation, 0, 0], [3 / deviation, 0, 0]]
    np.testing.assert_allclose(whitened, expected, rtol=1e-15)


def test_an_episode_near_the_horizon_is_charged():
    # Up to 6 of 8 tokens nothing, then half for each, with a buffer of 2; a whole one at once with a buffer of 1.
    length = np.array([1, 5, 6, 7, 8])
    assert overlong_penalty(length, 8, 2).tolist() == [0, 0, 0, -0.5, -1]
    assert overlong_penalty(length, 8, 1).tolist() == [0, 0, 0, 0, -1]
    assert overlong_penalty(length, 8, 8).tolist() == [-1 / 8, -5 / 8, -6 / 8, -7 / 8, -1]
    assert overlong_penalty(length, 8, 0).tolist() == [0, 0, 0, 0, 0]
