"""AgileRL: its scripts learn, its rollouts are what the environment says, it obeys masks, and what its GAE loses."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.plugins.playing import play

pytestmark = pytest.mark.plugins


def test_ppo_learns_to_sort():
    task, printed, played = play("agilerl_ppo")
    assert task == "sort"
    assert printed > 0.9 and played > 0.9  # a uniform policy gets .125


def test_ppo_within_masks_learns_to_nest():
    task, printed, played = play("agilerl_masks", observation="dict")
    assert task == "brackets"
    assert printed > 0.9 and played > 0.9


def make_envs(**settings):
    return gym.make_vec("textgym:TextGen-v0", num_envs=16, autoreset_mode="SameStep", **settings)


def ppo_of(envs, num_steps):
    from agilerl.algorithms import PPO

    return PPO(
        envs.single_observation_space,
        envs.single_action_space,
        num_envs=envs.num_envs,
        learn_step=num_steps * envs.num_envs,
        gamma=1.0,
        rollout_buffer_config={"use_gae": False},
    )


def collected(ppo, envs):
    """What a rollout leaves in the buffer, [T, N, ...]."""
    from agilerl.rollouts import collect_rollouts

    collect_rollouts(ppo, envs)
    return ppo.rollout_buffer.buffer


def test_a_rollout_is_what_the_environment_says_to_the_same_actions():
    envs, twin = make_envs(task="sort"), make_envs(task="sort")
    envs.reset(seed=5)
    twin.reset(seed=5)
    buffer = collected(ppo_of(envs, 40), envs)
    observations, _ = twin.reset()  # as the rollout does
    for step in range(40):
        assert np.array_equal(buffer["observations"][step], observations)
        actions = buffer["actions"][step].squeeze(-1).long().numpy()  # it keeps them in float32
        observations, rewards, terminated, truncated, _ = twin.step(actions)
        assert np.array_equal(buffer["rewards"][step], rewards)
        assert np.array_equal(buffer["dones"][step], terminated | truncated)
    assert buffer["rewards"].sum() > 0 and buffer["dones"].sum() == 16 * 10


def test_every_token_is_credited_with_the_score_at_the_end():
    envs = make_envs(task="sort")
    buffer = collected(ppo_of(envs, 40), envs)
    scores = buffer["rewards"].reshape(10, 4, 16)[:, 3:]  # ten episodes of four tokens
    assert torch.equal(buffer["returns"].reshape(10, 4, 16), scores.expand(10, 4, 16))


@pytest.mark.parametrize(
    ("use_gae", "expected"),
    [
        (False, [1, 1, 2, 2]),
        # Wrong: it masks with the end of the step that follows. Once this fails, the scripts may do without use_gae.
        (True, [0, 1, 0, 2]),
    ],
)
def test_gae_loses_the_score_where_plain_returns_do_not(use_gae, expected):
    from agilerl.components.rollout_buffer import RolloutBuffer

    space = gym.spaces.Box(0, 1, (1,))
    buffer = RolloutBuffer(4, space, gym.spaces.Discrete(2), num_envs=1, gamma=1.0, gae_lambda=1.0, use_gae=use_gae)
    for reward, done in ((0, False), (1, True), (0, False), (2, True)):  # two episodes of two steps, V = 0
        buffer.add(np.zeros((1, 1), np.float32), np.zeros(1, int), reward, np.array([done]), 0.0, 0.0)
    buffer.compute_returns_and_advantages(last_value=np.zeros(1), last_done=np.array([True]))
    assert buffer.buffer["returns"].flatten().tolist() == expected


def test_masks_are_obeyed_in_collecting_and_in_learning():
    envs = make_envs(task="brackets", observation="dict")
    ppo = ppo_of(envs, 250)
    buffer = collected(ppo, envs)  # 4,000 steps; an illegal action would raise
    masks, actions = buffer["observations"]["action_mask"], buffer["actions"].long()
    assert (masks.gather(-1, actions) == 1).all() and (masks == 0).sum() > 1_000
    assert torch.equal(buffer["action_masks"].bool(), masks.bool())
    batch = ppo.rollout_buffer.get_tensor_batch()
    log_probs, _, _ = ppo.evaluate_actions(
        batch["observations"], batch["actions"].squeeze(-1), action_mask=batch["action_masks"]
    )
    assert torch.allclose(log_probs, batch["log_probs"], atol=1e-5)  # scored within the masks that it was sampled in
    assert np.isfinite(ppo.learn())


def test_an_action_outside_the_mask_is_an_error():
    envs = make_envs(task="brackets", observation="dict")
    ppo = ppo_of(envs, 250)
    observations, _ = envs.reset(seed=0)
    with pytest.raises(ValueError, match="mask"):
        for _ in range(100):
            observations, *_ = envs.step(ppo.get_action(observations)[0])  # without it
