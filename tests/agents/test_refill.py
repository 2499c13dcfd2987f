"""More episodes than rows: rows are refilled in bulk, finished ones leave the model's batch, and no episode is lost."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.agents import tiny
from tests.agents.tiny import PAD, STOP


class Scripted:
    """Writes a run of one token, as long as the prompt says; notes what it is asked."""

    def __init__(self, envs) -> None:
        self.batches: list[np.ndarray] = []
        self.vocabulary = envs.unwrapped.vocabulary

    def act(self, observations, generator=None):
        self.batches.append(observations.copy())
        lengths = (observations != self.vocabulary.pad_id).sum(axis=1)
        wanted = observations[:, 0] + 1  # tokens in all, the stop token included
        written = lengths - 1
        actions = np.where(written == wanted - 1, self.vocabulary.stop_ids[0], 1)
        return actions, -0.25 * (1 + written).astype(np.float32)


def make_envs(num_envs: int):
    return gym.make_vec(
        "TextGen-v0",
        num_envs=num_envs,
        autoreset_mode="Disabled",
        prompts=["0", "1", "2", "7"],
        prompt_order="sequential",
        tokenizer=[*"01234567", "<eos>"],
        reward=lambda completions: [float(len(text)) for text in completions],
        max_new_tokens=8,
    )


@pytest.mark.parametrize("num_envs", [1, 2, 3, 4, 7, 40])
def test_every_episode_is_the_one_asked_for(num_envs):
    envs = make_envs(num_envs)
    rollout = collect(Scripted(envs), envs, 40, np.random.default_rng(0), group_size=2)
    prompts = np.tile(np.repeat([0, 1, 2, 7], 2), 5)
    np.testing.assert_array_equal(rollout.tokens[:, 0], prompts)
    np.testing.assert_array_equal(rollout.length - 1, prompts + 1)
    np.testing.assert_array_equal(rollout.mask.sum(axis=1), prompts + 1)
    np.testing.assert_array_equal(rollout.score, prompts)
    np.testing.assert_array_equal(rollout.rewards.sum(axis=1), prompts)
    steps = np.arange(8)
    np.testing.assert_array_equal(rollout.rewards, np.where(steps == prompts[:, None], prompts[:, None], 0))
    np.testing.assert_array_equal(rollout.log_probs, np.where(rollout.mask, -0.25 * (1 + steps), 0).astype(np.float32))
    np.testing.assert_array_equal(rollout.actions == 8, steps == prompts[:, None])
    np.testing.assert_array_equal(rollout.group, np.repeat(np.arange(20), 2))


@pytest.mark.parametrize("num_envs", [2, 4, 10])
def test_finished_rows_are_not_asked_about(num_envs):
    envs = make_envs(num_envs)
    actor = Scripted(envs)
    rollout = collect(actor, envs, 40, np.random.default_rng(0))
    assert sum(map(len, actor.batches)) == rollout.num_tokens  # once for every token


def test_rows_are_refilled_when_half_are_idle():
    envs = make_envs(4)
    actor = Scripted(envs)
    collect(actor, envs, 12, np.random.default_rng(0))
    news = [int((batch[:, 1] == envs.unwrapped.vocabulary.pad_id).sum()) for batch in actor.batches]
    # Prompts 0, 1, 2, 7 take 1, 2, 3 and 8 steps. After two steps two rows are idle, and so on; never one alone.
    assert news[0] == 4 and sum(news) == 12
    assert set(news[1:]) <= {0, 2, 3, 4}
    assert max(map(len, actor.batches)) == 4
    assert len(actor.batches) < 3 * 8  # three waves, each as long as its longest episode


@pytest.mark.parametrize("num_envs", [3, 8])
def test_stored_log_probs_are_the_models(num_envs):
    envs = tiny.make_envs(num_envs, max_new_tokens=6)
    policy = TransformerPolicy.small(envs, d_model=16)
    rollout = collect(policy, envs, 24, np.random.default_rng(0), group_size=4)
    np.testing.assert_allclose(policy.log_probs(rollout).detach(), rollout.log_probs, atol=1e-5)
    ended = rollout.finish_reason == 1
    last = rollout.tokens[np.arange(24), rollout.length - 1]
    assert (last[ended] == STOP).all()
    assert (rollout.tokens[np.arange(6 + 2) >= rollout.length[:, None]] == PAD).all()


def test_masks_stay_with_their_rows():
    envs = gym.make_vec("TextGen-v0", num_envs=5, task="brackets", autoreset_mode="Disabled")
    rollout = collect(TransformerPolicy.small(envs, d_model=16), envs, 24, np.random.default_rng(0))
    legal = np.take_along_axis(rollout.action_mask, rollout.actions[..., None], axis=-1)[..., 0]
    assert legal[rollout.mask].all()
    env = gym.make("TextGen-v0", task="brackets")
    for row in range(24):
        _, info = env.reset(seed=0)
        for step in range(int(rollout.mask[row].sum())):
            np.testing.assert_array_equal(rollout.action_mask[row, step], info["action_mask"] != 0)
            *_, info = env.step(int(rollout.actions[row, step]))


def test_a_grown_row_costs_one_token_and_a_groups_prompt_is_read_once():
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=16,
        autoreset_mode="Disabled",
        prompts=["abcabcabca"],
        tokenizer=[*"abc"],
        reward=lambda completions: [0.0] * len(completions),
        max_new_tokens=5,
    )
    policy = TransformerPolicy.small(envs, d_model=16)
    fed = []
    policy.model.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    collect(policy, envs, 16, np.random.default_rng(0), group_size=16)
    assert fed[0] == 10  # sixteen rows with one prompt of ten tokens
    assert sum(fed) <= 10 + 4 * 16  # rows that wrote the same tokens are still one


def test_the_episodes_do_not_depend_on_earlier_calls():
    envs = tiny.make_envs(8)
    policy = TransformerPolicy.small(envs, d_model=16)

    def play():
        rollout = collect(policy, envs, 16, np.random.default_rng(3), action_generator=torch.Generator().manual_seed(1))
        return rollout.tokens.tolist(), rollout.log_probs.tolist()

    first = play()
    policy.act(np.array([[0, 1, PAD]]))
    assert play() == first
