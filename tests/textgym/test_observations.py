"""What the agent sees: the dict observation on hand-worked states, and copies or views."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.textgym.cases import assert_same

KEYWORDS = dict(
    tokenizer=["a", "b", "<eos>"],
    prompts=["ab"],
    reward=lambda completions: [0.5] * len(completions),
    max_new_tokens=2,
)


def box(high, shape, dtype):
    return gym.spaces.Box(0, high, shape, dtype)


def test_the_dict_observation_of_every_state():
    env = gym.make("TextGen-v0", observation="dict", max_prompt_tokens=3, **KEYWORDS)
    assert env.observation_space == gym.spaces.Dict(
        tokens=box(3, (5,), np.int64),
        length=box(5, (1,), np.int64),
        attention_mask=box(1, (5,), np.int8),
        action_mask=box(1, (3,), np.int8),
    )
    seen = [env.reset()[0], env.step(1)[0], env.step(2)[0]]
    assert [{name: value.tolist() for name, value in one.items()} for one in seen] == [
        dict(tokens=[0, 1, 3, 3, 3], length=[2], attention_mask=[1, 1, 0, 0, 0], action_mask=[1, 1, 1]),
        dict(tokens=[0, 1, 1, 3, 3], length=[3], attention_mask=[1, 1, 1, 0, 0], action_mask=[1, 1, 1]),
        dict(tokens=[0, 1, 1, 2, 3], length=[4], attention_mask=[1, 1, 1, 1, 0], action_mask=[1, 1, 1]),
    ]
    assert all(one in env.observation_space for one in seen)


@pytest.mark.parametrize("task", ["sort", "no_repeat"])
def test_the_parts_of_a_dict_observation_have_the_dtypes_of_their_boxes(task):
    dtypes = dict(tokens=np.int64, length=np.int64, attention_mask=np.int8, action_mask=np.int8)
    env = gym.make("TextGen-v0", task=task, observation="dict", on_illegal_action="terminate")
    for observation in (env.reset(seed=0)[0], env.step(2)[0]):
        assert {name: value.dtype for name, value in observation.items()} == dtypes
    envs = gym.make_vec("TextGen-v0", num_envs=2, task=task, observation="dict")
    assert {name: value.dtype for name, value in envs.reset(seed=0)[0].items()} == dtypes


def test_the_action_mask_in_the_observation_is_that_of_the_info():
    env = gym.make("TextGen-v0", task="no_repeat", observation="dict")
    observation, info = env.reset(options={"prompt": "bc"})
    for action in (3, 0, 4):
        np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])
        assert observation["action_mask"][action] == 1
        observation, *_, info = env.step(action)
    assert observation["action_mask"].tolist() == [1, 1, 1, 1, 1]


def test_dict_observations_of_a_vector_environment():
    envs = gym.make_vec("TextGen-v0", num_envs=2, observation="dict", autoreset_mode="SameStep", **KEYWORDS)
    observations, _ = envs.reset(options={"rows": {"prompt": ["a", "ab"]}})
    assert observations in envs.observation_space
    assert observations["length"].tolist() == [[1], [2]]
    assert observations["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
    observations, *_, infos = envs.step(np.array([2, 0]))
    final = infos["final_obs"]
    assert final.dtype == object and final[1] is None
    assert {name: value.tolist() for name, value in final[0].items()} == dict(
        tokens=[0, 2, 3, 3], length=[2], attention_mask=[1, 1, 0, 0], action_mask=[1, 1, 1]
    )
    assert observations["length"].tolist() == [[2], [3]]  # row 0 shows the prompt of its next episode


@pytest.mark.parametrize("observation", ["tokens", "dict"])
def test_without_copies_the_observation_is_a_view_that_follows_the_episode(observation):
    views = gym.make("TextGen-v0", copy=False, observation=observation, disable_env_checker=True, **KEYWORDS)
    copies = gym.make("TextGen-v0", observation=observation, **KEYWORDS)

    def tokens(env_observation):
        return env_observation["tokens"] if observation == "dict" else env_observation

    first, kept = tokens(views.reset()[0]), tokens(copies.reset()[0])
    views.step(1), copies.step(1)
    assert first.tolist() == [0, 1, 1, 3]
    assert kept.tolist() == [0, 1, 3, 3]


def test_a_view_cannot_be_written_through():
    env = gym.make("TextGen-v0", copy=False, disable_env_checker=True, **KEYWORDS)
    envs = gym.make_vec("TextGen-v0", num_envs=2, copy=False, observation="dict", **KEYWORDS)
    for tokens in (env.reset(seed=0)[0], envs.reset(seed=0)[0]["tokens"]):
        with pytest.raises(ValueError, match="read-only"):
            tokens[tokens == 3] = 0  # PAD


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.name)
def test_without_copies_a_vector_environment_walks_the_same_way(mode):
    views, copies = (
        gym.make_vec("TextGen-v0", num_envs=3, copy=copy, autoreset_mode=mode, task="bandit", level=1)
        for copy in (False, True)
    )
    assert_same(views.reset(seed=1), copies.reset(seed=1))
    assert np.shares_memory(views.reset(seed=2)[0], views.step(np.zeros(3, dtype=int))[0])
    copies.reset(seed=2), copies.step(np.zeros(3, dtype=int))
    for _ in range(5):
        actions = np.array([0, 1, 2])
        mine, theirs = views.step(actions), copies.step(actions)
        assert_same(mine, theirs)
        if mode is AutoresetMode.DISABLED:
            options = {"reset_mask": np.array([True, True, False])}
            assert_same(views.reset(options=dict(options)), copies.reset(options=dict(options)))
    if mode is AutoresetMode.SAME_STEP:
        assert not np.shares_memory(mine[-1]["final_obs"][0], mine[0])
