"""Reset options: prompts, columns and prefixes of one's own, for all rows and for each."""

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.cases import assert_same

SYMBOLS = ["a", "b", "ab", "<eos>"]
PROMPTS = [{"prompt": "a", "answer": "A"}, {"prompt": "ba", "answer": "B"}, {"prompt": "abab", "answer": "C"}]
KEYWORDS = dict(tokenizer=SYMBOLS, prompts=PROMPTS, max_new_tokens=3, max_prompt_tokens=3)


def noting(calls):
    def score(prompts, completions, completion_ids, answer):
        calls.extend(zip(prompts, completions, completion_ids, answer, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    return score


def end(options, actions=(1, 3)):
    """Start a scalar episode with options, and return its first observation and info, and what was scored."""
    calls = []
    env = gym.make("TextGen-v0", reward=noting(calls), **KEYWORDS)
    first = env.reset(seed=0, options=options)
    for action in actions:
        env.step(action)
    return *first, calls


@pytest.mark.parametrize(
    ("options", "prompt_ids", "text", "answer"),
    [
        ({"prompt_index": 1}, [1, 0], "ba", "B"),
        ({"prompt_index": np.int64(2)}, [2, 2], "abab", "C"),
        ({"prompt": "bb"}, [1, 1], "bb", None),
        ({"prompt": "bb", "columns": {"answer": "mine"}}, [1, 1], "bb", "mine"),
        ({"prompt": "bb", "columns": {}}, [1, 1], "bb", None),
        ({"prompt": ""}, [], "", None),
        ({"prompt_ids": [0, 1]}, [0, 1], "ab", None),  # ids that the text would not encode to
        ({"prompt_ids": np.array([0]), "columns": {"answer": 7}}, [0], "a", 7),
        ({"prompt_ids": []}, [], "", None),
    ],
)
def test_options_name_the_prompt(options, prompt_ids, text, answer):
    observation, info, calls = end(options)
    assert observation.tolist() == prompt_ids + [4] * (6 - len(prompt_ids))
    assert info["prompt_length"] == info["length"] == len(prompt_ids)
    assert calls == [(text, "b", [1, 3], answer)]


@pytest.mark.parametrize("completion_ids", [[], [0], [2, 0], np.array([1, 1])], ids=repr)
def test_an_episode_from_a_prefix_ends_with_the_score_of_the_whole_completion(completion_ids):
    prefix = list(completion_ids)
    observation, info, calls = end({"prompt": "b", "completion_ids": completion_ids}, actions=[3])
    assert observation.tolist() == [1, *prefix] + [4] * (5 - len(prefix))
    assert (info["prompt_length"], info["length"], info["finish_reason"]) == (1, 1 + len(prefix), 0)
    assert calls == [("b", "".join(SYMBOLS[id_] for id_ in prefix), [*prefix, 3], None)]


def test_the_horizon_counts_the_tokens_of_the_prefix():
    env = gym.make("TextGen-v0", reward=noting([]), **KEYWORDS)
    env.reset(options={"completion_ids": [0, 0]})
    _, reward, terminated, _, info = env.step(1)
    assert (reward, terminated, info["finish_reason"]) == (3.0, True, 2)


@pytest.mark.parametrize("vector", [False, True])
def test_nothing_of_the_episode_before_is_left_behind_the_prompt(vector):
    keywords = dict(reward=noting([]), **KEYWORDS)
    env = gym.make_vec("TextGen-v0", num_envs=1, **keywords) if vector else gym.make("TextGen-v0", **keywords)
    env.reset(options={"prompt": "bab"})
    for _ in range(3):
        env.step(np.array([1]) if vector else 1)
    observation, _ = env.reset(options={"prompt": "b"})
    assert observation.reshape(-1).tolist() == [1, 4, 4, 4, 4, 4]


def test_every_step_tells_the_tokens_of_the_prompt_and_of_all():
    env = gym.make("TextGen-v0", reward=noting([]), **KEYWORDS)
    _, first = env.reset(options={"prompt": "ba", "completion_ids": [2]})
    infos = [first, *(env.step(action)[4] for action in (1, 0))]
    assert [(info["prompt_length"], info["length"]) for info in infos] == [(2, 3), (2, 4), (2, 5)]


def test_a_prefix_without_a_prompt_follows_a_drawn_one():
    env = gym.make("TextGen-v0", reward=noting([]), **KEYWORDS)
    drawn, _ = env.reset(seed=4)
    observation, info = env.reset(seed=4, options={"completion_ids": [1]})
    prompt = drawn[drawn < 4].tolist()
    assert observation[: info["length"]].tolist() == [*prompt, 1]


def test_a_prefix_follows_a_prompt_of_the_list():
    observation, info, calls = end({"prompt_index": 1, "completion_ids": [2]}, actions=[3])
    assert observation.tolist() == [1, 0, 2, 4, 4, 4]
    assert (info["prompt_length"], info["length"]) == (2, 3)
    assert calls == [("ba", "ab", [2, 3], "B")]


def test_options_leave_the_draws_of_the_generator_alone():
    def draws(options):
        env = gym.make("TextGen-v0", **{**KEYWORDS, "prompts": [{"prompt": "ab" * n} for n in range(4)]}, reward=ones)
        env.reset(seed=3)
        env.reset(options=options)
        return [env.reset()[1]["length"] for _ in range(8)]

    def ones(completions):
        return [1.0] * len(completions)

    assert draws({"prompt_index": 1}) == draws({"prompt": "a"})


def test_rows_give_each_row_its_own_value():
    calls = []
    envs = gym.make_vec("TextGen-v0", num_envs=3, reward=noting(calls), **KEYWORDS)
    rows = {
        "prompt": ["a", "bb", ""],
        "columns": [{"answer": 1}, {"answer": 2}, {}],
        "completion_ids": [[], [1], [2, 0]],
    }
    observations, infos = envs.reset(seed=0, options={"rows": rows})
    assert observations.tolist() == [[0, 4, 4, 4, 4, 4], [1, 1, 1, 4, 4, 4], [2, 0, 4, 4, 4, 4]]
    assert (infos["prompt_length"].tolist(), infos["length"].tolist()) == ([1, 2, 0], [1, 3, 2])
    envs.step(np.array([3, 3, 3]))
    assert calls == [("a", "", [3], 1), ("bb", "b", [1, 3], 2), ("", "aba", [2, 0, 3], None)]


@pytest.mark.parametrize(
    ("name", "values"),
    [("prompt_index", [2, 0, 1]), ("prompt_index", np.array([2, 0, 1])), ("prompt_ids", [[1], [], [0, 0]])],
    ids=repr,
)
def test_a_row_starts_as_a_scalar_environment_with_its_value(name, values):
    envs = gym.make_vec("TextGen-v0", num_envs=3, reward=noting([]), **KEYWORDS)
    observations, infos = envs.reset(seed=0, options={"rows": {name: values}})
    for row, value in enumerate(values):
        env = gym.make("TextGen-v0", reward=noting([]), **KEYWORDS)
        observation, info = env.reset(seed=row, options={name: value})
        assert_same(observations[row], observation)
        assert info["length"] == infos["length"][row]


def test_a_shared_option_and_rows_go_together():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward=noting([]), **KEYWORDS)
    observations, _ = envs.reset(options={"prompt": "b", "rows": {"completion_ids": [[0], [2, 2]]}})
    assert observations.tolist() == [[1, 0, 4, 4, 4, 4], [1, 2, 2, 4, 4, 4]]


def test_options_go_to_the_rows_of_the_reset_mask_alone():
    envs = gym.make_vec("TextGen-v0", num_envs=2, reward=noting([]), autoreset_mode="Disabled", **KEYWORDS)
    envs.reset(options={"prompt": "a"})
    envs.step(np.array([0, 1]))
    options = {"rows": {"prompt_index": [2, 1]}, "reset_mask": np.array([False, True])}
    observations, infos = envs.reset(options=options)
    assert observations.tolist() == [[0, 0, 4, 4, 4, 4], [1, 0, 4, 4, 4, 4]]
    assert infos["length"].tolist() == [0, 2] and infos["_length"].tolist() == [False, True]


@pytest.mark.parametrize("vector", [False, True])
def test_the_options_that_were_given_are_not_changed(vector):
    env = gym.make_vec("TextGen-v0", num_envs=1) if vector else gym.make("TextGen-v0")
    options = {"prompt_ids": [1, 2], "columns": {"note": [1]}, "completion_ids": [3]}
    if vector:
        options["reset_mask"] = np.array([True])
    env.reset(options=options)
    kept = {name: value for name, value in options.items() if name != "reset_mask"}
    assert kept == {"prompt_ids": [1, 2], "columns": {"note": [1]}, "completion_ids": [3]}
    assert ("reset_mask" in options) == vector
