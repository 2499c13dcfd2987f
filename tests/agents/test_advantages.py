"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest

from agents.advantages import leave_one_out, reward_to_go, spread, total_return
from agents.algorithms import ALGORITHMS
from tests.agents import tiny

REWARDS = np.array([[1.0, -2.0, 4.0], [0.5, 0.0, 0.0], [0.0, 3.0, 0.0]])
MASK = np.array([[True, True, True], [True, False, False], [True, True, False]])


def constant_rollout(reward: float, group_size: int):
    """Two groups of episodes that are all paid the same."""
    episodes = [tiny.Episode(0, [tiny.A], [tiny.STOP], [reward], 1) for _ in range(2 * group_size)]
    return tiny.rollout_of(episodes, group=np.repeat([0, 1], group_size))


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


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1000.1, -7.7])
@pytest.mark.parametrize("name", ["rloo", "reinforce_baseline"])
def test_constant_rewards_give_exactly_zero(name, reward):
    for group_size in range(2, 65):
        advantages = ALGORITHMS[name].advantages_of(constant_rollout(reward, group_size))
        assert (advantages == 0).all(), group_size


def test_advantages_sum_to_zero_in_each_group():
    group = np.repeat(np.arange(5), 4)
    advantages = leave_one_out(np.random.default_rng(0).normal(size=20) + 1e6, group)
    np.testing.assert_allclose(np.bincount(group, weights=advantages), 0, atol=1e-8)


def test_one_prompt_does_not_leak_into_another():
    generator = np.random.default_rng(0)
    returns, group = generator.normal(size=12), np.repeat([0, 1], 6)
    before = leave_one_out(returns, group)
    moved = returns.copy()
    moved[6:] = generator.permutation(returns[6:])
    assert (leave_one_out(moved, group)[:6] == before[:6]).all()
    moved[6:] = 1e9
    assert (leave_one_out(moved, group)[:6] == before[:6]).all()


def test_advantages_follow_group_ids_and_not_places():
    generator = np.random.default_rng(1)
    returns, group = generator.normal(size=24), np.repeat([7, 3, 900, -2], 6)
    order = generator.permutation(24)
    np.testing.assert_allclose(
        leave_one_out(returns[order], group[order]), leave_one_out(returns, group)[order], rtol=1e-12
    )


def test_groups_may_differ_in_size():
    # 1 against 3; 2 against 5 and 8: 2 - 6.5, 5 - 5, 8 - 3.5.
    advantages = leave_one_out(np.array([1.0, 3.0, 2.0, 5.0, 8.0]), np.array([1, 1, 0, 0, 0]))
    assert advantages.tolist() == [-2, 2, -4.5, 0, 4.5]


def test_an_episode_without_others_has_no_advantage():
    # 1 against 2 and 2 against 1; 3 has nobody to be compared with.
    assert leave_one_out(np.array([1.0, 3.0, 2.0]), np.array([0, 1, 0])).tolist() == [-1, 0, 1]


def test_the_batch_is_one_group_for_reinforce_baseline():
    episodes = [tiny.Episode(0, [tiny.A], [tiny.STOP], [paid], 1) for paid in (0.0, 3.0, 6.0, 9.0)]
    rollout = tiny.rollout_of(episodes, group=[0, 0, 1, 1])
    # Against the means of the three others, 6, 5, 4 and 3; within the groups, against 3, 0, 9 and 6.
    assert ALGORITHMS["reinforce_baseline"].advantages_of(rollout).tolist() == [[-6], [-2], [2], [6]]
    assert ALGORITHMS["rloo"].advantages_of(rollout).tolist() == [[-3], [3], [-3], [3]]
