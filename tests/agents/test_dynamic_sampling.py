"""Sampling again where groups teach nothing, and charging long texts: what is counted, learned from and shown."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

from agents.algorithms import Algorithm, make_algorithm
from agents.learner import PolicyGradient
from agents.rollout import Rollout, collect
from tests.agents import tiny
from tests.agents.family import make_learner, updates_of, weights
from tests.agents.tiny import STOP, A, B, C

# --- rollouts one after the other


def rollout_of(*paid: float, length: int = 1, group: list[int] | None = None, prompt: int = 0) -> Rollout:
    """An episode a payment, of one prompt, in groups of two."""
    history = ([A], [B, C])[prompt]
    episodes = [tiny.Episode(prompt, history, [B] * length, [0.0] * (length - 1) + [one], 2) for one in paid]
    return tiny.rollout_of(episodes, np.arange(len(paid)) // 2 if group is None else group)


def test_rollouts_are_stacked_with_groups_of_their_own():
    first, second = rollout_of(1, 2, 3, 4), rollout_of(5, 6, length=3, prompt=1)
    both = first.followed_by(second)
    assert both.group.tolist() == [0, 0, 1, 1, 2, 2] and both.returns.tolist() == [1, 2, 3, 4, 5, 6]
    assert both.tokens.tolist() == [[A, B, 4, 4, 4]] * 4 + [[B, C, B, B, B]] * 2
    assert both.mask.tolist() == [[True, False, False]] * 4 + [[True, True, True]] * 2
    assert both.rewards[-1].tolist() == [0, 0, 6] and both.num_tokens == 10
    back = second.followed_by(first)
    assert back.group.tolist() == [0, 0, 1, 1, 2, 2] and back.tokens[2:].tolist() == [[A, B, 4, 4, 4]] * 4
    for part, rows in ((first, np.arange(4)), (second, np.arange(4, 6))):
        again = both.select(rows)
        for name, value in part._asdict().items():
            if isinstance(value, np.ndarray) and name != "group":
                np.testing.assert_array_equal(getattr(again, name), value, err_msg=name)


def test_masks_and_supports_are_stacked_too():
    first, second = rollout_of(1, 2), rollout_of(3, 4, length=2)
    few, many = np.zeros((2, 1, 4), dtype=bool), np.zeros((2, 2, 4), dtype=bool)
    bits = [np.full((2, steps, 1), 96, dtype=np.uint8) for steps in (1, 2)]  # 0b01100000
    both = first._replace(action_mask=few, cut_off=bits[0]).followed_by(
        second._replace(action_mask=many, cut_off=bits[1])
    )
    assert both.action_mask[:2, 1].all() and not both.action_mask[:2, 0].any() and not both.action_mask[2:].any()
    assert both.support[2, 1].tolist() == [True, False, False, True] and both.support[0, 1].all()


# --- sampling again


def envs_paying(score: Any, **keywords: Any) -> VectorEnv:
    return tiny.make_envs(8, reward=lambda completion_ids: [float(score(ids)) for ids in completion_ids], **keywords)


def dapo(**axes: Any) -> Algorithm:
    return make_algorithm("dapo", **axes)


def test_groups_of_equal_returns_are_left_out_and_sampled_again():
    # Paid for beginning with a: about one in four, so that groups of two differ in three cases out of eight.
    learner = make_learner(dapo(sampling_rounds=10), envs_paying(lambda ids: ids[0] == A), group_size=2)
    for update in updates_of(learner, 6):
        rounds, rest = divmod(len(update.rollout.mask), 8)
        assert rest == 0 and 1 < rounds <= 10
        assert update.rollout.group.tolist() == np.repeat(np.arange(4 * rounds), 2).tolist()
        differ = np.repeat(np.ptp(update.rollout.returns.reshape(-1, 2), axis=1) > 0, 2)
        assert differ.sum() >= 8 > differ[: 8 * (rounds - 1)].sum()  # it stopped as soon as there were enough
        learned = update.advantages.any(axis=1)
        assert learned.sum() == 8 and learned.tolist() == (differ & (differ.cumsum() <= 8)).tolist()
        assert update.metrics["frac_reward_zero_std"] == pytest.approx(1 - differ.mean())
        np.testing.assert_allclose(np.abs(update.advantages[learned, 0]), 0.5**0.5)


def test_all_tokens_are_counted():
    learner = make_learner(dapo(sampling_rounds=4), envs_paying(lambda ids: ids[0] == A), group_size=2)
    updates = updates_of(learner, 5)
    counts = np.cumsum([update.rollout.num_tokens for update in updates])
    assert [update.num_timesteps for update in updates] == counts.tolist()
    assert any(len(update.rollout.mask) > 8 for update in updates)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_nothing_to_learn_from_changes_nothing_and_ends(rounds):
    learner = make_learner(dapo(sampling_rounds=rounds), envs_paying(lambda ids: 0.1), entropy_coef=0.5)
    plain = make_learner(dapo(sampling_rounds=1), envs_paying(lambda ids: 0.1), entropy_coef=0.5)
    before = weights(learner)
    updates = updates_of(learner, 3)
    for update in updates:
        assert len(update.rollout.mask) == 8 * rounds and not update.advantages.any()
        assert all(map(math.isfinite, update.metrics.values()))
    if rounds > 1:
        assert weights(learner) == before and updates[-1].metrics["loss"] == 0
    else:  # the entropy bonus alone
        assert weights(learner) != before
    assert learner.num_timesteps == sum(update.rollout.num_tokens for update in updates)
    assert len(updates_of(plain, 1)[0].rollout.mask) == 8


def test_no_second_round_where_the_first_is_full():
    plain, dynamic = (make_learner(dapo(sampling_rounds=rounds), group_size=4) for rounds in (1, 3))
    expected, found = updates_of(plain, 2), updates_of(dynamic, 2)  # tiny's rewards differ from text to text
    assert [len(update.rollout.mask) for update in found] == [8, 8]
    assert [update.metrics for update in found] == [update.metrics for update in expected]
    assert weights(plain) == weights(dynamic)


def test_an_update_learns_from_the_first_informative_groups_alone():
    """As if the others had not been there."""
    learner = make_learner(dapo(num_epochs=1), group_size=2)
    useless, useful = rollout_of(3, 3, 0.1 + 0.2, 0.3), rollout_of(0, 1, 5, 4, prompt=1)
    whole = useless.followed_by(useful).followed_by(rollout_of(7, 7, 2, 1)).followed_by(rollout_of(6, 9))
    plain = make_learner(dapo(sampling_rounds=1), group_size=2)
    learner._collect = lambda: whole
    plain._collect = lambda: useful.followed_by(rollout_of(2, 1, 6, 9))
    [update], [expected] = updates_of(learner, 1), updates_of(plain, 1)
    assert weights(learner) == weights(plain)
    for name in ("loss", "entropy", "grad_norm"):
        assert update.metrics[name] == expected.metrics[name]
    assert update.metrics["reward"] == pytest.approx((6 + 0.6 + 10 + 17 + 15) / 14)
    assert update.advantages.any(axis=1).tolist() == [False] * 4 + [True] * 4 + [False] * 2 + [True] * 4


def test_a_group_that_lost_members_is_still_one_group():
    """An update has two groups, here of three episodes each, and not two and two thirds."""
    learner = make_learner(dapo(), group_size=4)
    whole = rollout_of(*([9.0, 1, 2, 3] * 3), group=np.repeat([0, 1, 2], 4).tolist())
    learner._collect = lambda: whole._replace(valid=np.arange(12) % 4 > 0)
    [update] = updates_of(learner, 1)
    # 1, 2 and 3 have mean 2 and deviation 1.
    np.testing.assert_allclose(update.advantages[:, 0], [0, -1, 0, 1] * 2 + [0] * 4, atol=1e-15)


def test_groups_that_lost_members_fill_an_update():
    learner = make_learner(dapo(), group_size=4)
    play = learner._play
    learner._play = lambda: play()._replace(valid=np.arange(8) % 4 > 0)
    [update] = updates_of(learner, 1)
    assert len(update.rollout.mask) == 8 and update.metrics["episodes/dropped"] == 2
    assert update.advantages.any(axis=1).tolist() == update.rollout.valid.tolist()
    learner._play = lambda: play()._replace(valid=np.arange(8) == 0)  # one is left, with nobody to be compared with
    before = weights(learner)
    [update] = updates_of(learner, 1)
    assert len(update.rollout.mask) == 24 and update.metrics["episodes/dropped"] == 21 and weights(learner) == before


def test_prompts_in_order_go_on_through_the_rounds(tmp_path):
    prompts = ["a", "b", "c", "ab", "ba", "ca", "ac"]
    envs = envs_paying(lambda ids: 0.5, prompts=prompts, prompt_order="sequential")
    learner = make_learner(dapo(sampling_rounds=2), envs, group_size=4)
    seen = [update.rollout.texts(row)[0] for update in updates_of(learner, 2) for row in range(0, 16, 4)]
    assert seen == prompts + prompts[:1]
    learner.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, envs)
    [update] = updates_of(loaded, 1)
    assert [update.rollout.texts(row)[0] for row in range(0, 16, 4)] == prompts[1:5]


# --- long texts


def test_the_penalty_changes_advantages_and_not_the_reported_reward():
    # A horizon of 10 and a buffer of 4 tokens: 0 up to 6 tokens, then a quarter for each.
    envs = tiny.make_envs(8, max_new_tokens=10)
    row = make_algorithm("reinforce", overlong_buffer=0.4)
    learner = make_learner(row, envs, group_size=1)
    lengths = np.array([1, 5, 6, 7, 8, 9, 10])
    episodes = [tiny.Episode(0, [A], [B] * n, [0.0] * (n - 1) + [2.0], 2) for n in lengths]
    rollout = tiny.rollout_of(episodes)
    advantages = learner.experience(rollout).advantages
    assert advantages[:, 0].tolist() == [2, 2, 2, 1.75, 1.5, 1.25, 1]
    assert (advantages[~rollout.mask] == 0).all() and (rollout.returns == 2).all()
    learner._collect = lambda: rollout
    [update] = updates_of(learner, 1)
    assert (update.metrics["reward"], update.metrics["reward_std"]) == (2, 0)


def test_the_penalty_is_paid_at_the_last_step():
    learner = make_learner(make_algorithm("reinforce_to_go", overlong_buffer=1.0), group_size=1)  # all three tokens
    rollout = tiny.rollout_of([tiny.Episode(0, [A], [B, STOP], [1.0, 4.0], 1), tiny.Episode(0, [A], [STOP], [1.0], 1)])
    expected = [[5 - 2 / 3, 4 - 2 / 3], [1 - 1 / 3, 0]]
    np.testing.assert_allclose(learner.experience(rollout).advantages, expected, rtol=1e-15)


def test_a_stop_before_the_buffer_is_preferred():
    """Whether a long text is right does not matter here: each is charged by its length."""
    envs = envs_paying(lambda ids: 0.5, max_new_tokens=6)
    row = make_algorithm("rloo", overlong_buffer=0.5)
    learner = make_learner(row, envs, learning_rate=0.01, entropy_coef=0.0, episodes_per_update=32)
    updates = updates_of(learner, 25)
    first, last = (updates[index].metrics["completions/mean_length"] for index in (0, -1))
    assert last < first - 0.5 and {update.metrics["reward"] for update in updates} == {0.5}


def test_collected_episodes_are_of_whole_rounds():
    learner = make_learner(dapo(sampling_rounds=2), envs_paying(lambda ids: 0.0))
    [update] = updates_of(learner, 1)
    generator, actions = np.random.default_rng(0), torch.Generator().manual_seed(0)
    policy = make_learner(dapo()).policy
    first = collect(policy, tiny.make_envs(8), 8, generator, 4, actions)
    again = collect(policy, tiny.make_envs(8), 8, generator, 4, actions)
    np.testing.assert_array_equal(update.rollout.tokens, first.followed_by(again).tokens)
