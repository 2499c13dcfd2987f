"""What a dropped episode pays and says, step by step, and that the next one is none the wiser."""

import os
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.cases import make_no_repeat
from textgym import schemes

KEYWORDS = dict(tokenizer=["a", "b", "<eos>"], prompts=["a"], max_new_tokens=3)
DROPPED = "the episode is dropped"


def not_b(completions):
    """The number of letters; not a number for the text `b`."""
    return [float("nan") if text == "b" else float(len(text)) for text in completions]


def nothing(completions):
    return [0.0] * len(completions)


def process(completions):
    return [float(os.getpid())] * len(completions)


def slow(completions):
    time.sleep(5)
    return [0.0] * len(completions)


def play(env, actions):
    """The reward and the info of each step of a new episode."""
    env.reset()
    return [(result[1], result[4]) for result in map(env.step, actions)]


def test_a_dropped_episode_pays_no_extra_term_either_and_the_next_is_valid():
    env = gym.make("TextGen-v0", reward=not_b, on_reward_error="drop", scheme=schemes.Length(0.25), **KEYWORDS)
    with pytest.warns(UserWarning, match=DROPPED):
        (_, running), (reward, info) = play(env, [1, 2])
    assert running["valid"] is True
    assert (reward, info["score"], info["scores"].tolist()) == (0.0, 0.0, [0.0])
    assert (info["valid"], info["scores_valid"].tolist(), info["finish_reason"]) == (False, [False], 1)
    assert env.reset()[1]["valid"] is True
    paid = play(env, [0, 2])
    assert [reward for reward, _ in paid] == [-0.25, 0.75]
    assert paid[-1][1]["valid"] is True and paid[-1][1]["scores_valid"].tolist() == [True]


def test_an_episode_that_is_dropped_on_its_way_stays_dropped_and_is_not_scored_again():
    asked = []

    def noting(completions):
        asked.extend(completions)
        return not_b(completions)

    env = gym.make("TextGen-v0", reward=noting, on_reward_error="drop", scheme="prefix_delta", **KEYWORDS)
    with pytest.warns(UserWarning, match=DROPPED):
        results = play(env, [1, 0, 0])
    assert asked == ["b"]
    assert [(reward, info["valid"], info["score"]) for reward, info in results] == [(0.0, False, 0.0)] * 3


def test_a_prefix_that_is_refused_drops_the_episode_from_its_start():
    env = gym.make("TextGen-v0", reward=not_b, on_reward_error="drop", scheme="prefix_delta", **KEYWORDS)
    with pytest.warns(UserWarning, match=DROPPED):
        _, info = env.reset(options={"completion_ids": [1]})
    assert info["valid"] is False
    _, reward, _, _, info = env.step(2)
    assert (reward, info["valid"]) == (0.0, False)


def test_a_dropped_episode_has_no_true_score():
    def proxy(completions):
        return [float("nan")] * len(completions)

    textgym.register_task("proxy", lambda level: replace(make_no_repeat(level), name="proxy", reward=proxy))
    try:
        env = gym.make("TextGen-v0", task="proxy", on_reward_error="drop")
        env.reset(options={"prompt": ""})
        env.step(0), env.step(1)
        with pytest.warns(UserWarning, match=DROPPED):
            *_, info = env.step(4)
    finally:
        del textgym.TASKS["proxy"]
    assert (info["finish_reason"], info["valid"], info["true_score"]) == (1, False, 0.0)


def test_a_dropped_row_leaves_the_others_alone():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward=not_b, on_reward_error="drop", **KEYWORDS)
    envs.reset(seed=0)
    envs.step(np.array([1, 1]))
    with pytest.warns(UserWarning, match=DROPPED):
        _, rewards, terminated, _, infos = envs.step(np.array([2, 2]))
    assert not infos["valid"].any() and not rewards.any() and terminated.all()
    envs.step(np.array([0, 0]))  # both begin anew
    envs.step(np.array([1, 0]))
    _, rewards, _, _, infos = envs.step(np.array([2, 2]))
    assert (rewards.tolist(), infos["valid"].tolist()) == ([0.0, 1.0], [False, True])


def test_a_potential_that_fails_drops_the_episode():
    shaped = dict(reward=nothing, scheme=schemes.Potential(not_b), on_reward_error="drop", **KEYWORDS)
    env = gym.make("TextGen-v0", **shaped)
    with pytest.warns(UserWarning, match=f"(?s)potential function 'not_b' returned nan.*{DROPPED}"):
        results = play(env, [1, 0, 0])
    assert [(reward, info["valid"]) for reward, info in results] == [(0.0, False)] * 3
    with pytest.warns(UserWarning, match=DROPPED):
        _, info = gym.make("TextGen-v0", **shaped).reset(options={"completion_ids": [1]})
    assert info["valid"] is False


def test_the_limits_of_reward_functions_hold_for_potentials():
    shaped = dict(reward=nothing, **KEYWORDS)
    env = gym.make("TextGen-v0", scheme=schemes.Potential(slow), reward_timeout=0.2, **shaped)
    begun = time.monotonic()
    with pytest.raises(textgym.RewardError, match="potential function 'slow' took longer than 0.2 s"):
        env.reset()
    assert time.monotonic() - begun < 3
    [(reward, _)] = play(gym.make("TextGen-v0", scheme=schemes.Potential(process), **shaped), [2])
    assert reward == -os.getpid()  # of the empty text; that of the end is 0
    isolated = gym.make("TextGen-v0", scheme=schemes.Potential(process), isolate_reward=True, **shaped)
    [(reward, _)] = play(isolated, [2])
    assert reward < 0 and reward != -os.getpid()


def test_a_gold_reward_that_fails_is_named_and_dropped_like_any_other(monkeypatch):
    def gold(completions):
        raise OSError("no gold today")

    def make_task(level):
        return replace(make_no_repeat(level), name="no_gold", true_reward=gold)

    monkeypatch.setitem(textgym.TASKS, "no_gold", textgym.TaskFamily("no_gold", make_task))
    env = gym.make("TextGen-v0", task="no_gold", on_illegal_action="terminate")
    env.reset(options={"prompt": ""})
    env.step(0), env.step(1)
    with pytest.raises(textgym.RewardError, match="true reward function 'gold' raised OSError: no gold today"):
        env.step(4)
    env = gym.make("TextGen-v0", task="no_gold", on_illegal_action="terminate", on_reward_error="drop")
    env.reset(options={"prompt": ""})
    env.step(0), env.step(1)
    with pytest.warns(UserWarning, match="no gold today"):
        *_, info = env.step(4)
    assert (info["valid"], info["true_score"]) == (False, 0.0)
