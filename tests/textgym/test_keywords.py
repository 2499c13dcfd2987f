"""Every keyword of the environment does what its row of the page says; the details stand in files of their own."""

import inspect
import os
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import textgym
from tests.textgym.cases import any_prompt, no_repeat
from textgym.problem import make_problem

SYMBOLS = ["a", "b", "<eos>"]


def count_a(completions):
    return [float(text.count("a")) for text in completions]


def process(completions):
    return [float(os.getpid())] * len(completions)


def slow(completions):
    time.sleep(5)
    return [0.0] * len(completions)


def broken(completions):
    raise OSError("no judge today")


def play(actions, *, options=None, seed=None, **keywords):
    """Reset, take the actions, and return everything that came back."""
    env = gym.make("TextGen-v0", **{"tokenizer": SYMBOLS, "prompts": ["ab"], "reward": count_a, **keywords})
    results = [env.reset(seed=seed, options=options)]
    return env.unwrapped, results + [env.step(action) for action in actions]


def tokens(result):
    return result[0].tolist()


def check_task():
    assert gym.make("TextGen-v0", task="reverse").unwrapped.problem.task.name == "reverse"


def check_level():
    assert gym.make("TextGen-v0", task="reverse", level=3).action_space.n == 12


def check_prompts():
    assert tokens(play([], prompts=["ba"])[1][0])[:2] == [1, 0]


def check_prompt_order():
    env, _ = play([], prompts=["a", "b"], prompt_order="sequential")
    assert [env.reset()[0][0] for _ in range(3)] == [1, 0, 1]


def check_tokenizer():
    assert gym.make("TextGen-v0", prompts=["x"], tokenizer=["x", "y"], reward=count_a).action_space.n == 2


def check_stop_ids():
    assert play([1], stop_ids=[1])[1][1][2]
    assert not play([2], stop_ids=[])[1][1][2]


def check_stop():
    assert play([0, 1], stop=["ab"])[1][2][2]


def check_reward():
    assert play([0, 0, 2])[1][3][1] == 2.0


def check_scheme():
    assert [result[1] for result in play([0, 0, 2], scheme="prefix_delta")[1][1:]] == [1.0, 1.0, 0.0]


def check_max_new_tokens():
    assert play([])[1][0][0].shape == (2 + 32,)
    assert [result[2] for result in play([0, 0], max_new_tokens=2)[1][1:]] == [False, True]


def check_max_prompt_tokens():
    assert play([], max_prompt_tokens=7, max_new_tokens=2)[1][0][0].shape == (9,)
    with pytest.raises(ValueError, match="max_prompt_tokens"):
        play([], prompts=any_prompt)


def check_on_limit():
    assert play([0], max_new_tokens=1, on_limit="truncate")[1][1][2:4] == (False, True)


def check_on_reward_error():
    with pytest.warns(UserWarning, match="the episode is dropped"):
        _, (_, (_, reward, terminated, _, info)) = play([2], reward=broken, on_reward_error="drop")
    assert (reward, terminated, info["valid"], info["score"]) == (0.0, True, False, 0.0)
    with pytest.raises(textgym.RewardError, match="no judge today"):
        play([2], reward=broken)


def check_reward_timeout():
    begun = time.monotonic()
    with pytest.raises(textgym.RewardError, match="'slow'.*reward_timeout"):
        play([2], reward=slow, reward_timeout=0.2)
    assert time.monotonic() - begun < 3


def check_isolate_reward():
    assert play([2], reward=process)[1][1][1] == os.getpid()
    assert play([2], reward=process, isolate_reward=True)[1][1][1] != os.getpid()


def check_on_illegal_action():
    masked = dict(task="no_repeat", tokenizer=None, prompts=None, reward=None, options={"prompt": "a"})
    assert play([0], on_illegal_action="terminate", **masked)[1][1][4]["finish_reason"] == 4
    with pytest.raises(ValueError, match="illegal"):
        play([0], **masked)


def check_observation():
    assert set(play([], observation="dict")[1][0][0]) == {"tokens", "length", "attention_mask", "action_mask"}


def check_text_info():
    assert play([0, 2], text_info=True)[1][2][4]["completion"] == "a"


def check_copy():
    _, ((first, _), *_) = play([0], copy=False, disable_env_checker=True)
    assert first.tolist()[2] == 0


def check_rng():
    envs = gym.make_vec("TextGen-v0", num_envs=2, rng="shared")
    envs.reset(seed=0)
    assert envs.unwrapped.np_random[0] is envs.unwrapped.np_random[1]


def check_render_mode():
    assert "prompt: ab" in play([], render_mode="ansi")[0].render()


def check_autoreset_mode():
    envs = gym.make_vec("TextGen-v0", num_envs=2, task="bandit", autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    assert "final_obs" in envs.step(np.array([0, 1]))[4]


CHECKS = {name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")}


@pytest.mark.parametrize("keyword", CHECKS)
def test_a_keyword_does_what_it_says(keyword):
    CHECKS[keyword]()


def test_every_keyword_is_checked():
    keywords = {name for name in inspect.signature(make_problem).parameters if name != "unknown_keywords"}
    assert set(CHECKS) == keywords | {"render_mode", "autoreset_mode"}


def test_the_mask_of_the_test_task_is_what_the_page_says_of_masks():
    assert no_repeat("a", [1], 3).tolist() == [False, False, True, True, False]
