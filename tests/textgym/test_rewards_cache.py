"""Scores of equal texts that are remembered."""

import asyncio
import copy

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.reward_cases import draw, length, texts
from textgym.rewards import cached, load_reward


class Counting:
    """Scores by length, and notes the texts that it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, completions, answer=None):
        self.asked.append(list(completions))
        return [float(len(text)) for text in completions]


def test_equal_texts_are_scored_once():
    function = Counting()
    reward = load_reward(cached(function))
    same = texts(["b", "", "b"])._replace(prompts=["p"] * 3)
    assert reward(same).score.tolist() == [1.0, 0.0, 1.0]
    assert reward(same._replace(completions=["", "abc", "abc"])).score.tolist() == [0.0, 3.0, 3.0]
    assert reward(same).score.tolist() == [1.0, 0.0, 1.0]
    assert function.asked == [["b", ""], ["abc"]]


def test_without_it_equal_texts_are_scored_anew():
    asked = []

    def score(completions):
        asked.append(completions)
        return [float(len(asked))] * len(completions)

    envs = gym.make_vec("TextGen-v0", num_envs=2, tokenizer=["a"], prompts=[""], reward=score, max_new_tokens=1)
    envs.reset(seed=0)
    paid = [envs.step(np.array([0, 0]))[1].tolist() for _ in range(3)]  # the second step begins anew
    assert (asked, paid) == ([["a", "a"]] * 2, [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])


def test_hits_and_misses_are_counted():
    function = cached(length)
    assert function(completions=["a", "a", "bb"]) == [1.0, 1.0, 2.0]
    assert function(completions=["bb"]) == [2.0]
    assert (function.hits, function.misses) == (2, 2)


def every(**columns):
    return [1.0] * len(columns["completions"])


@pytest.mark.parametrize(
    ("change", "misses"),
    [
        (dict(), 0),
        (dict(prompts=["q"]), 1),
        (dict(completions=["y"]), 1),
        (dict(completion_ids=[[2]]), 1),
        (dict(columns={"a": [1], "b": [24]}), 1),
        (dict(columns={"a": [12], "b": [3]}), 1),  # the same digits in a row
        (dict(columns={"a": [1.0], "b": [23]}), 1),
        (dict(columns={"a": [True], "b": [23]}), 1),
        (dict(columns={"a": ["1"], "b": [23]}), 1),
        (dict(columns={"a": [[1]], "b": [23]}), 1),
        (dict(columns={"b": [23], "a": [1]}), 0),
        (dict(columns={"a": [1]}), 1),
        (dict(columns={"a": [1], "c": [23]}), 1),
    ],
    ids=str,
)
def test_a_text_is_known_by_all_that_the_function_receives(change, misses):
    function = cached(every)
    reward = load_reward(function)
    first = texts(["x"], a=[1], b=[23])
    reward(first)
    reward(first._replace(**change))
    assert function.misses == 1 + misses


def test_what_the_function_does_not_receive_tells_no_texts_apart():
    function = cached(length)
    load_reward(function)(texts(["x", "x"], answer=[1, 2]))
    assert (function.hits, function.misses) == (1, 1)


def test_a_list_and_a_tuple_are_told_apart_and_both_remembered():
    function = cached(every)
    for _ in range(2):
        for value in ([1], (1,), {"1": None}, {1: None}):
            function(completions=["x"], entry=[value])
    assert (function.hits, function.misses) == (4, 4)


def test_a_column_without_a_text_form_is_scored_anew():
    function = cached(every)
    for _ in range(2):
        assert function(completions=["x", "x"], entry=[np.ones(2), 1]) == [1.0, 1.0]
    assert (function.hits, function.misses) == (1, 3)


def test_the_score_that_was_not_asked_for_longest_gives_way():
    function = Counting()
    remembered = cached(function, max_size=2)
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        remembered(completions=[text])
    assert function.asked == [["a"], ["bb"], ["ccc"], ["bb"]]
    assert remembered(completions=["a", "ccc", "bb", "dddd", "a"]) == [1.0, 3.0, 2.0, 4.0, 1.0]


def test_none_is_remembered():
    calls = []

    def nothing(completions):
        calls.append(completions)
        return [None] * len(completions)

    reward = load_reward({"nothing": cached(nothing), "length": length})
    for _ in range(2):
        assert reward(texts(["abc"])).valid.tolist() == [[False, True]]
    assert len(calls) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", [1.0]], ids=repr)
def test_a_refused_value_is_not_remembered(value):
    values = [value, 3.0]
    function = cached(lambda completions: [1.0, values.pop(0)] if len(completions) == 2 else [values.pop(0)])
    reward = load_reward(function, on_error="drop")
    same = texts(["a", "b", "b"])._replace(prompts=["p"] * 3)
    with pytest.warns(UserWarning, match="'<lambda>' returned"):
        assert reward(same).kept.tolist() == [True, False, False]
    assert reward(same).score.tolist() == [1.0, 3.0, 3.0]


@pytest.mark.parametrize("returned", [[1.0], 5.0, None], ids=repr)
def test_a_wrong_count_is_told_as_without_the_cache(returned):
    reward = load_reward(cached(lambda completions: returned))
    with pytest.raises(textgym.RewardError, match="^reward function '<lambda>' returned"):
        reward(texts())


def test_an_exception_is_not_remembered_and_shows_a_text_that_was_asked_for():
    failures = [False, True, False]

    def sometimes(completions):
        if failures.pop(0):
            raise RuntimeError("busy")
        return [float(len(text)) for text in completions]

    reward = load_reward(cached(sometimes))
    first = texts(["a", "b", "cc"])
    reward(first.only(0))
    with pytest.raises(textgym.RewardError, match="'sometimes' raised RuntimeError: busy .completion 1 of 3") as error:
        reward(first)
    assert "completion: 'b'" in str(error.value) and isinstance(error.value.__cause__, RuntimeError)
    assert reward(first).score.tolist() == [1.0, 1.0, 2.0]


def test_an_async_function_is_remembered():
    asked = []

    async def later(completions):
        asked.append(completions)
        await asyncio.sleep(0)
        if "bad" in completions:
            raise KeyError("bad")
        return [float(len(text)) for text in completions]

    reward = load_reward(cached(later), timeout=30)
    for _ in range(2):
        assert reward(texts()).score.tolist() == [0.0, 1.0, 4.0]
    for _ in range(2):
        with pytest.raises(textgym.RewardError, match="'later' raised KeyError: 'bad' .completion 1 of 2"):
            reward(texts(["", "bad"]))
    assert asked == [["", "b", "abab"], ["bad"], ["bad"]]


def test_it_has_the_name_and_the_signature_of_the_function():
    remembered = cached("tests.textgym.reward_cases:length")
    assert remembered.__name__ == "length"
    assert load_reward([remembered, length, cached(Counting())]).names == ("length", "length_2", "Counting")
    assert load_reward(remembered)(texts(answer=[1, 2, 3])).score.tolist() == [0.0, 1.0, 4.0]


def test_trls_own_keywords_pass_through():
    def logging(completions, log_extra, trainer_state):
        log_extra("x", completions)
        return [float(trainer_state is None)] * len(completions)

    function = cached(logging)
    reward = load_reward(function)
    for _ in range(2):
        assert reward(texts(["a"])).score.tolist() == [1.0]
    assert (function.hits, function.misses) == (1, 1)


def test_a_deep_copy_shares_the_scores_and_one_that_is_made_anew_starts_without():
    function = cached(length, max_size=7)
    function(completions=["a"])
    assert copy.deepcopy(function) is function
    other = copy.copy(function)  # made as in another process
    assert other(completions=["abc"]) == [3.0] and (other.misses, function.misses) == (1, 1)


def test_environments_that_are_made_one_after_the_other_share_the_scores():
    function = Counting()
    remembered = cached(function)
    for _ in range(2):
        env = gym.make("TextGen-v0", tokenizer=["a", "<eos>"], prompts=["a"], reward=remembered, max_new_tokens=2)
        gym.make(env.spec).reset()  # the spec is a deep copy
        env.reset()
        env.step(0)
        assert env.step(1)[1] == 1.0
    assert function.asked == [["a"]]


@pytest.mark.parametrize(
    ("make", "exception", "words"),
    [
        (lambda: cached(draw), ValueError, ["cached", "'draw'", "'rng'", "leave cached out"]),
        (lambda: cached(3), TypeError, ["cached", "3", "int"]),
        (lambda: cached(length, max_size=0), ValueError, ["max_size=0", "at least 1"]),
        (lambda: cached(length, max_size=True), TypeError, ["max_size", "True", "bool"]),
        (lambda: cached(length, max_size=1.5), TypeError, ["max_size", "1.5", "float"]),
        (lambda: cached("tests.textgym.reward_cases:lenght"), AttributeError, ["'lenght'", "Did you mean 'length'"]),
    ],
)
def test_what_cannot_be_cached(make, exception, words):
    with pytest.raises(exception) as error:
        make()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
