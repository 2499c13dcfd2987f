"""The texts in the infos: on request, and at the end alone."""

import gymnasium as gym
import numpy as np

KEYWORDS = dict(
    tokenizer=["a", "b", "<eos>"],
    prompts=["ab"],
    reward=lambda completions: [0.0] * len(completions),
    max_new_tokens=3,
    text_info=True,
)


def texts(info):
    return info["prompt"], info["completion"]


def test_texts_come_with_the_end():
    env = gym.make("TextGen-v0", **KEYWORDS)
    seen = [texts(env.reset()[1]), *(texts(env.step(action)[4]) for action in (1, 0, 2))]
    assert seen == [("", ""), ("", ""), ("", ""), ("ab", "ba")]
    assert texts(env.reset()[1]) == ("", "")


def test_texts_of_a_vector_environment_are_objects():
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="SameStep", **KEYWORDS)
    _, infos = envs.reset(seed=0)
    assert infos["prompt"].dtype == infos["completion"].dtype == object
    assert texts(infos)[1].tolist() == ["", ""]
    *_, infos = envs.step(np.array([2, 0]))
    assert infos["completion"].tolist() == ["", ""]  # row 0 is in its next episode
    assert infos["final_info"]["prompt"].tolist() == ["ab", None]
    assert infos["final_info"]["completion"].tolist() == ["", None]


def test_a_frozen_row_keeps_its_texts():
    envs = gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled", **KEYWORDS)
    envs.reset(seed=0)
    for actions in ([1, 1], [2, 1], [0, 1]):
        *_, infos = envs.step(np.array(actions))
    assert infos["completion"].tolist() == ["b", "bbb"]


def test_without_the_keyword_there_are_none():
    assert not {"prompt", "completion"} & set(gym.make("TextGen-v0").reset()[1])
