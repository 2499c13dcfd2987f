"""The call of reward functions, what they may return, and how their failures read."""

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.cases import MODES, assert_same

SYMBOLS = ["a", "b", "<eos>"]
PROMPTS = [{"prompt": "a", "answer": "x"}, {"prompt": "ba", "answer": None}]


def make_vec(reward, num_envs=2, **keywords):
    defaults = dict(tokenizer=SYMBOLS, prompts=PROMPTS, max_new_tokens=2)
    return gym.make_vec("TextGen-v0", num_envs=num_envs, reward=reward, **(defaults | keywords))


def first_end(reward, **keywords):
    """Two rows end at once: "b" and the stop token after prompt 0, the horizon with "ab" after prompt 1."""
    envs = make_vec(reward, **keywords)
    envs.reset(options={"rows": {"prompt_index": [0, 1]}})
    envs.step(np.array([1, 0]))
    return envs.step(np.array([2, 1]))


def test_texts_that_end_together_are_scored_in_one_call_by_keyword():
    calls = []

    def score(*, prompts, completions, completion_ids, answer):
        calls.append((prompts, completions, completion_ids, answer))
        return [0.25, 4]

    _, rewards, terminated, _, infos = first_end(score)
    assert calls == [(["a", "ba"], ["b", "ab"], [[1, 2], [0, 1]], ["x", None])]
    assert rewards.tolist() == infos["score"].tolist() == [0.25, 4.0]
    assert (infos["scores"].tolist(), infos["scores_valid"].tolist()) == ([[0.25], [4.0]], [[True], [True]])
    assert terminated.all() and infos["valid"].all()


def test_nothing_is_scored_and_all_is_zero_before_the_end():
    envs = make_vec(lambda completions: 1 / 0)
    _, at_reset = envs.reset(seed=0)
    _, rewards, _, _, running = envs.step(np.array([0, 1]))
    assert rewards.tolist() == [0.0, 0.0]
    for infos in (at_reset, running):
        assert infos["score"].tolist() == [0.0, 0.0] and infos["scores"].tolist() == [[0.0], [0.0]]
        assert not infos["scores_valid"].any() and infos["valid"].all()


def test_a_new_episode_knows_nothing_of_the_score_before():
    env = gym.make("TextGen-v0", tokenizer=SYMBOLS, prompts=PROMPTS, max_new_tokens=1, reward=lambda completions: [3.0])
    env.reset(seed=0)
    assert env.step(1)[4]["scores_valid"].tolist() == [True]
    info = env.reset()[1]
    assert (info["score"], info["scores"].tolist(), info["scores_valid"].tolist()) == (0.0, [0.0], [False])


def test_a_function_receives_only_the_keywords_that_it_names():
    received = {}

    def few(completions, answer="unset"):
        received["few"] = (completions, answer)
        return [0.0, 0.0]

    def every(completions, **others):
        received["every"] = set(others)
        return [0.0, 0.0]

    class Scorer:
        def __call__(self, prompts):
            received["object"] = prompts
            return [0.0, 0.0]

    for reward in (few, every, Scorer()):
        first_end(reward)
    assert received["few"] == (["b", "ab"], ["x", None])
    assert received["every"] == {"prompts", "completion_ids", "answer"}
    assert received["object"] == ["a", "ba"]


def test_a_stop_token_first_scores_the_empty_text():
    seen = []
    env = gym.make(
        "TextGen-v0",
        tokenizer=SYMBOLS,
        prompts=[""],
        reward=lambda completions, completion_ids: seen.append((completions, completion_ids)) or [2.0],
        max_new_tokens=2,
    )
    env.reset()
    assert env.step(2)[1] == 2.0
    assert seen == [([""], [[2]])]


@pytest.mark.parametrize(
    "returned",
    [[1, 0.5], (1.0, 0.5), np.array([1, 0.5]), np.array([1, 0.5], dtype=np.float32), [np.int64(1), np.float16(0.5)]],
    ids=repr,
)
def test_any_sequence_of_numbers_is_one_score_a_completion(returned):
    rewards = first_end(lambda completions: returned)[1]
    assert rewards.dtype == np.float64 and rewards.tolist() == [1.0, 0.5]


async def later(completions):
    return [0.0] * len(completions)


def raising(completions):
    raise KeyError("no key \x1b[31m")


def leaving(completions):
    raise SystemExit(3)


def wants_more(completions, reference):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("returned", "row", "words"),
    [
        ([1.0, float("nan")], 1, ["nan", "finite"]),
        ([float("inf"), 1.0], 0, ["inf", "finite"]),
        ([1.0, -float("inf")], 1, ["-inf"]),
        ([1.0, None], 1, ["None"]),
        ([1.0, "1"], 1, ["'1'", "str", "float"]),
        ([1.0, [1.0]], 1, ["list", "float"]),
        ([1.0], 0, ["1 values", "2 completions"]),
        ([1.0, 1.0, 1.0], 0, ["3 values", "2 completions"]),
        (np.ones((2, 2)), 0, ["ndarray", "float"]),
        (1.0, 0, ["float", "list"]),
        ("12", 0, ["'12'", "list"]),
        ({0: 1.0, 1: 1.0}, 0, ["dict", "list"]),
        (None, 0, ["None"]),
        (later, 0, ["awaitable", "not built"]),
        (raising, 0, ["KeyError", "no key", r"\x1b[31m"]),
        (leaving, 0, ["SystemExit"]),
        (wants_more, 0, ["TypeError", "reference"]),
    ],
    ids=str,
)
def test_what_is_not_one_finite_number_a_completion_is_an_error_that_shows_the_text(returned, row, words):
    def made_for_this_test(completions):
        return returned

    reward = returned if callable(returned) else made_for_this_test
    with pytest.raises(textgym.RewardError) as error:
        first_end(reward)
    prompt, completion = [("a", "b"), ("ba", "ab")][row]
    for word in [*words, reward.__name__, f"prompt: '{prompt}'", f"completion: '{completion}'"]:
        assert word in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_after_an_error_the_step_can_be_taken_again(mode):
    failures = [True, False, True, False]

    def sometimes(completions):
        if failures.pop(0):
            raise RuntimeError("busy")
        return [float(len(text)) for text in completions]

    failing = make_vec(sometimes, autoreset_mode=mode)
    untouched = make_vec(lambda completions: [float(len(text)) for text in completions], autoreset_mode=mode)
    assert_same(failing.reset(seed=0), untouched.reset(seed=0))
    for actions in ([2, 0], [1, 1]):
        with pytest.raises(textgym.RewardError):
            failing.step(np.array(actions))
        assert_same(failing.step(np.array(actions)), untouched.step(np.array(actions)))


def test_a_file_and_a_module_name_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Weight:\n    value: 'float' = 3.0\n\n"
        "def score(completions):\n    return [Weight().value] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    for reward in (str(tmp_path / "my_rewards.py") + ":score", "my_rewards.py:score", "my_rewards:score"):
        assert first_end(reward)[1].tolist() == [3.0, 3.0]


def test_the_score_of_a_prompt_with_other_columns_than_its_neighbour_keeps_its_own():
    def own(prompts, answer):
        return [{"x": 1.0, None: 2.0, "z": 3.0}[value] for value in answer]

    envs = make_vec(own, num_envs=3, max_new_tokens=1)
    envs.reset(options={"rows": {"prompt": ["a", "b", "ab"], "columns": [{"answer": "z"}, {}, {"answer": "x"}]}})
    assert envs.step(np.zeros(3, dtype=int))[1].tolist() == [3.0, 2.0, 1.0]
