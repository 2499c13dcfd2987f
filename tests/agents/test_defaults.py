"""Defaults that follow the size of the model, against hand-worked numbers."""

import pytest

from agents import TransformerPolicy
from agents.defaults import default_episodes, default_learning_rate, default_timesteps


@pytest.mark.parametrize(("width", "learning_rate"), [(32, 2e-3), (64, 1e-3), (128, 5e-4)])
def test_the_step_size_falls_with_the_width(width, learning_rate):
    assert default_learning_rate(TransformerPolicy.small(4, d_model=width)) == pytest.approx(learning_rate, rel=1e-12)


def test_a_step_size_that_decays_begins_at_twice_as_much():
    policy = TransformerPolicy.small(4)
    assert default_learning_rate(policy, decays=True) == 2 * default_learning_rate(policy)
    assert default_learning_rate(policy, num_steps=4, decays=True) == default_learning_rate(policy)


def test_the_length_of_a_run_against_a_count_by_hand():
    # d = 64: positions 1024·64; a block holds 2 norms of 128, attention 64·192 + 192 and 64·64 + 64, and an MLP
    # 64·256 + 256 and 256·64 + 64, 49,984 in all; two blocks and the last norm of 128: 165,632. The head has 9·64.
    # A token: 8 · (165,632 · 310/10 + 576) = 41,081,344 operations.
    policy = TransformerPolicy.small(8)
    assert default_timesteps(policy, prompt_tokens=300, max_new_tokens=10) == 2_500_000_000_000 // 41_081_344


def test_the_length_of_a_run_has_bounds():
    assert default_timesteps(TransformerPolicy.small(8), prompt_tokens=1, max_new_tokens=1) == 200_000
    wide = TransformerPolicy.small(8, d_model=256, num_layers=4)
    assert default_timesteps(wide, prompt_tokens=900, max_new_tokens=100) == 10_000


@pytest.mark.parametrize(
    ("timesteps", "horizon", "group_size", "episodes"),
    [
        (200_000, 4, 8, 256),  # 2,048 tokens would be 512 episodes
        (200_000, 32, 8, 64),
        (200_000, 32, 24, 48),  # the multiple of the group size below 64
        (40_000, 16, 8, 56),  # a fortieth of the run, 1,000 tokens, is 62 episodes
        (10_000, 32, 8, 16),  # 250 tokens would be 7
        (10_000, 32, 24, 24),  # never less than a group
    ],
)
def test_episodes_of_an_update(timesteps, horizon, group_size, episodes):
    assert default_episodes(timesteps, horizon, group_size) == episodes
