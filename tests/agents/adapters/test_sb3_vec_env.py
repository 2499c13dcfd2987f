"""The native environment behind stable-baselines3's interface: what DummyVecEnv of scalar environments is."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from agents.adapters.stable_baselines3 import TextGenVecEnv, make_vec_env
from textgym.env import TextGenEnv

N, SEED = 5, 3


def score(completions, rng):
    """Draws, so that the generators of the rows matter."""
    return [len(text) / 10 + generator.random() / 100 for text, generator in zip(completions, rng, strict=True)]


OWN = {
    "prompts": ["a", "bb", "abab"],
    "tokenizer": ["a", "b", "<eos>"],
    "reward": score,
    "max_new_tokens": 4,
    "on_limit": "truncate",
}
KEYWORDS = {
    "sort": {"task": "sort"},
    "masks in dicts": {"task": "brackets", "observation": "dict", "text_info": True},
    "stops and truncation": OWN,
    "paid on the way": {"task": "copy", "scheme": "prefix_delta"},
}


def both(keywords):
    envs = gym.make_vec("TextGen-v0", num_envs=N, autoreset_mode=AutoresetMode.SAME_STEP, **keywords)
    return TextGenVecEnv(envs), DummyVecEnv([partial(TextGenEnv, **keywords)] * N)


def same(one, other, where=""):
    """Deep equality, kinds of numbers among it."""
    if isinstance(other, dict):
        assert isinstance(one, dict) and one.keys() == other.keys(), where
        for key in other:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(other, np.ndarray):
        assert isinstance(one, np.ndarray) and (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert np.array_equal(one, other), where
    else:
        assert type(one) is type(other) and one == other, (where, one, other)


@pytest.mark.parametrize("name", KEYWORDS)
def test_it_is_dummy_vec_env_step_for_step(name):
    native, dummy = both(KEYWORDS[name])
    assert (native.observation_space, native.action_space) == (dummy.observation_space, dummy.action_space)
    generator = np.random.default_rng(0)
    for env in (native, dummy):
        env.seed(SEED)
    same(native.reset(), dummy.reset(), "reset")
    ended = 0
    for step in range(60):
        for row in range(N):
            same(native.reset_infos[row], dummy.reset_infos[row], f"{step}: reset_infos[{row}]")
        masks = native.env_method("action_masks")
        same(np.stack(masks), np.stack(dummy.env_method("action_masks")), f"{step}: masks")
        actions = np.array([generator.choice(np.flatnonzero(mask)) for mask in masks])
        found, expected = native.step(actions), dummy.step(actions)
        for part, one, other in zip(("observations", "rewards", "dones"), found, expected, strict=False):
            same(one, other, f"{step}: {part}")
        for row, (one, other) in enumerate(zip(found[3], expected[3], strict=True)):
            same(one, other, f"{step}: info[{row}]")
        ended += int(found[2].sum())
    assert ended > 20


def test_seeds_are_used_once_and_options_reach_the_rows():
    native, dummy = both(OWN)
    options = [{"prompt_index": row % 3} for row in range(N)]
    for env in (native, dummy):
        env.seed(SEED)
        env.set_options(options)
    same(native.reset(), dummy.reset())
    assert [info["prompt_length"] for info in native.reset_infos] == [1, 2, 4, 1, 2]
    for env in (native, dummy):  # the seeds and options are gone
        assert env.reset() is not None
    native.set_options({"prompt": "ab"})
    assert (native.reset()[:, :2] == [0, 1]).all()


def test_rows_that_share_a_generator_are_seeded_together():
    first, second = (make_vec_env(n_envs=3, seed=4, env_kwargs={"rng": "shared"}).reset() for _ in range(2))
    assert np.array_equal(first, second)


def test_infos_of_wrappers_reach_their_rows():
    native = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode=AutoresetMode.SAME_STEP)
    envs = TextGenVecEnv(gym.wrappers.vector.RecordEpisodeStatistics(native))
    envs.reset()
    for _ in range(4):
        _, rewards, dones, infos = envs.step(np.zeros(2, dtype=np.int64))
    assert dones.all() and [info["episode"]["r"] for info in infos] == pytest.approx(rewards.tolist())


def test_attributes_and_methods_of_rows():
    native, dummy = both({"task": "brackets"})
    native.reset()
    assert native.get_attr("optimum") == dummy.get_attr("optimum") == [1.0] * N
    assert native.get_attr("action_space", [0, 2]) == dummy.get_attr("action_space", [0, 2])
    assert len(native.get_attr("render_mode", 1)) == 1
    assert native.get_attr("action_masks")[1]().tolist() == native.env_method("action_masks", indices=1)[0].tolist()
    assert native.has_attr("vocabulary") and not native.has_attr("nothing_like_it")
    assert native.env_is_wrapped(VecMonitor) == [False] * N
    with pytest.raises(NotImplementedError, match="share all attributes"):
        native.set_attr("render_mode", "ansi")
    with pytest.raises(AttributeError):
        native.env_method("nothing_like_it")


def test_sb3_contrib_finds_the_masks():
    env = make_vec_env(n_envs=3, env_kwargs={"task": "brackets"})
    observations = env.reset()
    assert is_masking_supported(env)
    assert (get_action_masks(env) == observations["action_mask"]).all()


def test_frames_are_tiled():
    env = make_vec_env(n_envs=2, env_kwargs={"render_mode": "rgb_array"})
    env.reset()
    frame = env.render()
    assert frame.ndim == 3 and frame.dtype == np.uint8 and frame.std() > 0


def test_the_monitor_counts_whole_episodes(tmp_path):
    env = make_vec_env(n_envs=4, seed=0, monitor_dir=str(tmp_path / "monitor"))
    assert isinstance(env, VecMonitor) and isinstance(env, VecEnv)
    env.reset()
    returns = np.zeros(4)
    for step in range(8):
        _, rewards, dones, infos = env.step(np.full(4, step % 8))
        returns += rewards
        for row in np.flatnonzero(dones):
            assert infos[row]["episode"]["l"] == 4
            assert infos[row]["episode"]["r"] == pytest.approx(infos[row]["score"], abs=1e-6)
            assert infos[row]["episode"]["r"] == pytest.approx(returns[row], abs=1e-6)
            assert (infos[row]["terminal_observation"] != 8).all()  # whole, not the next episode's
            returns[row] = 0
    assert dones.all() and list((tmp_path / "monitor").iterdir())


def test_rewards_can_be_normalised_and_observations_stay_as_they_are():
    plain, scaled = (make_vec_env(n_envs=4, seed=0, env_kwargs={"task": "copy"}) for _ in range(2))
    normalised = VecNormalize(scaled, norm_obs=False)
    first, second = plain.reset(), normalised.reset()
    for step in range(12):
        same(second, first)
        actions = np.full(4, step % 4)
        (first, rewards, *_), (second, others, *_) = plain.step(actions), normalised.step(actions)
        assert ((rewards != 0) == (others != 0)).all()
        assert normalised.get_original_reward() == pytest.approx(rewards)
    assert second.dtype == np.int64


def test_only_what_goes_on_at_once_is_taken():
    with pytest.raises(ValueError, match="SAME_STEP"):
        TextGenVecEnv(gym.make_vec("TextGen-v0", num_envs=2))
    with pytest.raises(TypeError, match="gym.make_vec"):
        TextGenVecEnv(gym.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(TypeError, match="DummyVecEnv"):
        TextGenVecEnv(DummyVecEnv([TextGenEnv]))


def test_masks_come_with_the_observations_unless_they_are_told_not_to():
    assert isinstance(make_vec_env(env_kwargs={"task": "brackets"}).observation_space, gym.spaces.Dict)
    told = {"task": "brackets", "observation": "tokens"}
    assert isinstance(make_vec_env(env_kwargs=told).observation_space, gym.spaces.Box)
    assert isinstance(make_vec_env().observation_space, gym.spaces.Box)
