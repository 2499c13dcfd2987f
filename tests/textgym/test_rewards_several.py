"""Several reward functions: their weights, their Nones, their names, the rows' generators, and dropped episodes."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.reward_cases import constant, draw, draw_and_fail, fail_at_b, generators, length, texts
from textgym.rewards import Reward, load_reward


def halves(completions):
    """None for a text of odd length."""
    return [None if len(text) % 2 else len(text) / 2 for text in completions]


def scored(reward, *args, **options):
    return load_reward(reward, **options)(texts(*args))


def test_the_score_is_the_weighted_sum_and_the_scores_are_not_weighted():
    result = scored({"a": (length, 0.5), "b": constant, "c": (length, -2)})
    assert result.scores.tolist() == [[0.0, 10.0, 0.0], [1.0, 10.0, 1.0], [4.0, 10.0, 4.0]]
    assert result.score.tolist() == [10.0, 0.5 + 10 - 2, 2.0 + 10 - 8]
    assert result.valid.all() and result.kept.all()
    assert (result.score.dtype, result.scores.dtype) == (np.float64, np.float64)
    assert (result.valid.dtype, result.kept.dtype, result.kept.shape) == (bool, bool, (3,))


def test_a_list_has_weights_of_one_and_own_names():
    reward = load_reward([length, constant, "tests.textgym.reward_cases:length"])
    assert (reward.names, reward.weights) == (("length", "constant", "length_2"), (1.0, 1.0, 1.0))
    assert reward(texts()).score.tolist() == [10.0, 12.0, 18.0]


def named(name):
    def function(completions):
        return [0.0] * len(completions)

    function.__name__ = name
    return function


def test_equal_names_in_a_list_are_told_apart():
    names = ("score", "score", "score_2", "score")
    assert load_reward([named(name) for name in names]).names == ("score", "score_2", "score_2_2", "score_3")


def test_the_names_of_a_dict_are_its_keys_and_are_escaped():
    assert load_reward({"a\x1b": length, "b": (length, 2)}).names == (r"a\x1b", "b")


def test_none_leaves_a_function_out_for_that_text():
    result = scored({"half": (halves, 3.0), "ten": (constant, 0.5)})
    assert result.score.tolist() == [5.0, 5.0, 11.0]
    assert result.scores.tolist() == [[0.0, 10.0], [0.0, 10.0], [2.0, 10.0]]
    assert result.valid.tolist() == [[True, True], [False, True], [True, True]]


@pytest.mark.parametrize(
    ("reward", "names"), [([halves, halves], "reward functions 'halves', 'halves_2'"), (halves, "function 'halves'")]
)
def test_none_of_all_functions_is_an_error(reward, names):
    with pytest.raises(textgym.RewardError) as error:
        scored(reward)
    for word in (names, "returned None", "completion 1 of 3", "prompt: 'p1'", "completion: 'b'"):
        assert word in str(error.value)


def test_the_error_of_one_of_several_functions_names_it_alone():
    with pytest.raises(textgym.RewardError, match="^reward function 'two' raised KeyError"):
        scored({"one": length, "two": fail_at_b})


def test_a_weighted_sum_that_overflows_is_an_error():
    with pytest.raises(textgym.RewardError, match="'huge', 'also' added up to inf; lower the weights") as error:
        scored({"huge": (length, 1e308), "also": (length, 1e308)}, ["", "b"])
    assert "completion: 'b'" in str(error.value)
    assert scored({"huge": (length, 1e308)}, ["", "b"]).score.tolist() == [0.0, 1e308]


def test_a_row_has_the_same_score_whatever_stands_beside_it():
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(50, 7))

    def function(place):
        return lambda completions: [columns[int(text), place] for text in completions]

    reward = load_reward({str(place): (function(place), 0.1 + place) for place in range(7)})
    together = reward(texts([str(row) for row in range(50)])).score
    assert together.tolist() == [reward(texts([str(row)])).score.item() for row in range(50)]
    expected = [math.fsum(columns[row, place] * (0.1 + place) for place in range(7)) for row in range(50)]
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-13)


def test_a_function_cannot_change_what_the_next_one_gets():
    def spoil(prompts, completions, names):
        names[0].clear()
        completions.clear()
        return [0.0] * len(prompts)

    def read(completions, names):
        return [float(len(name)) for name in names]

    assert load_reward([spoil, read])(texts(["a"], names=[[1, 2]])).score.tolist() == [2.0]


def test_an_environment_has_one_column_of_scores_for_each_function():
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=2,
        tokenizer=["a", "b", "<eos>"],
        prompts=["a"],
        max_new_tokens=2,
        reward={"half": (halves, 3.0), "ten": constant},
    )
    envs.reset(seed=0)
    envs.step(np.array([2, 0]))
    _, rewards, _, _, infos = envs.step(np.array([0, 1]))
    assert rewards[1] == infos["score"][1] == 13.0
    assert infos["scores"][1].tolist() == [1.0, 10.0] and infos["scores_valid"].shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "exception", "words"),
    [
        (dict(timeout=0), ValueError, ["reward_timeout=0", "more than 0", "None"]),
        (dict(timeout=-1.5), ValueError, ["reward_timeout=-1.5", "more than 0", "None"]),
        (dict(timeout=float("nan")), ValueError, ["reward_timeout", "nan", "finite"]),
        (dict(timeout=float("inf")), ValueError, ["reward_timeout", "inf", "None"]),
        (dict(timeout=True), TypeError, ["reward_timeout", "True", "bool"]),
        (dict(timeout="3"), TypeError, ["reward_timeout", "'3'", "str"]),
        (dict(on_error="rise"), ValueError, ["on_reward_error", "'rise'", "drop, raise", "Did you mean 'raise'"]),
        (dict(on_error=None), ValueError, ["on_reward_error", "None", "drop, raise"]),
        (dict(isolate=1), TypeError, ["isolate_reward", "1", "int", "True or False"]),
    ],
    ids=str,
)
def test_a_bad_setting(options, exception, words):
    for make in (load_reward, Reward):
        with pytest.raises(exception) as error:
            make(length, **options)
        assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_what_a_potential_is_called_in_messages():
    potential = load_reward(fail_at_b, what="potential function")
    with pytest.raises(textgym.RewardError, match="^potential function 'fail_at_b' raised KeyError"):
        potential(texts())
    with pytest.raises(TypeError, match=r"^potential\[0\] is 3"):
        load_reward([3], what="potential function")
    with pytest.raises(FileNotFoundError, match="^potential: there is no file"):
        load_reward("absent.py:phi", what="potential function")


# Generators


def test_a_function_that_names_rng_gets_the_generator_of_each_row():
    own = generators(3)
    expected = [generator.normal() for generator in generators(3)]
    assert load_reward(draw)(texts(generators=own)).score.tolist() == expected
    assert [generator.normal() for generator in own] == [generator.normal(size=2)[1] for generator in generators(3)]


def test_a_shared_generator_is_the_same_object_in_each_row():
    seen = []

    def note(completions, rng):
        seen.extend(rng)
        return [float(generator.integers(100)) for generator in rng]

    [shared] = generators(1)
    score = load_reward(note)(texts(generators=[shared] * 3)).score
    assert seen == [shared] * 3
    assert score.tolist() == generators(1)[0].integers(100, size=3).tolist()


def test_rng_never_comes_through_other_keywords():
    def take_all(completions, **others):
        assert set(others) == {"prompts", "completion_ids"}
        return [0.0] * len(completions)

    def take_both(completions, rng, **others):
        assert set(others) == {"prompts", "completion_ids"}
        return [float(len(rng))] * len(completions)

    assert load_reward([take_all, take_both])(texts(generators=generators(3))).score.tolist() == [3.0] * 3


def test_texts_without_generators_are_an_error_for_a_function_that_draws():
    with pytest.raises(textgym.RewardError, match="'draw' names 'rng', and these texts come without"):
        load_reward(draw)(texts())


def draw_nothing(completions, rng):
    """Draws, and scores nothing."""
    for generator in rng:
        generator.normal()
    return [None] * len(completions)


@pytest.mark.parametrize("reward", [[draw, draw_and_fail], [draw_nothing, lambda completions: [None] * 3]])
def test_after_a_failure_the_generators_are_as_before(reward):
    own = generators(3)
    with pytest.raises(textgym.RewardError):
        load_reward(reward)(texts(generators=own))
    assert [generator.normal() for generator in own] == [generator.normal() for generator in generators(3)]


# Dropped episodes


def dropped(reward, *args, warned=True, **keywords):
    """The scores, and the warning's text."""
    made = load_reward(reward, on_error="drop")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = made(texts(*args, **keywords))
    assert [warning.category for warning in caught] == [UserWarning] * warned
    assert made.num_dropped == np.sum(~result.kept)
    return result, "".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (float("nan"), "returned nan"),
        (float("inf"), "returned inf"),
        ("1", "returned '1' of type str"),
        (None, "returned None"),
        ([1.0], "of type list"),
    ],
    ids=repr,
)
def test_a_bad_value_drops_its_text_alone(value, word):
    calls = []

    def odd(completions):
        calls.append(completions)
        return [1.0, value, 3.0]

    result, warning = dropped(odd)
    assert (result.score.tolist(), result.kept.tolist()) == ([1.0, 0.0, 3.0], [True, False, True])
    assert (result.scores.tolist(), result.valid.tolist()) == ([[1.0], [0.0], [3.0]], [[True], [False], [True]])
    assert len(calls) == 1
    for expected in ("reward function 'odd'", word, "prompt: 'p1'", "completion: 'b'", "on_reward_error='drop'"):
        assert expected in warning


def test_a_dropped_text_has_no_score_of_any_function():
    result, _ = dropped([length, lambda completions: [1.0, 1.0, float("nan")]])
    assert result.scores.tolist() == [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert result.valid.tolist() == [[True, True], [True, True], [False, False]]
    assert result.score.tolist() == [1.0, 2.0, 0.0]


def test_an_exception_drops_only_the_texts_that_fail_alone():
    result, warning = dropped(fail_at_b)
    assert (result.score.tolist(), result.kept.tolist()) == ([0.0, 0.0, 4.0], [True, False, True])
    assert r"raised KeyError: 'no b\x1b[31m'" in warning and "completion: 'b'" in warning and "\x1b" not in warning


@pytest.mark.parametrize("returned", [[], [1.0, 2.0], 5.0, "123"], ids=repr)
def test_a_wrong_count_is_tried_one_by_one(returned):
    def miscount(completions):
        return [7.0] if len(completions) == 1 else returned

    result, warning = dropped(miscount)
    assert result.score.tolist() == [7.0] * 3 and result.kept.all()
    assert "its texts were scored one by one" in warning and "none is dropped" in warning


def test_nothing_is_dropped_or_warned_of_where_all_is_well():
    result, _ = dropped([length, halves], warned=False)
    assert result.kept.all()


def test_the_first_drop_warns_and_all_are_counted():
    reward = load_reward(lambda completions: [float("nan")] * len(completions), on_error="drop")
    with pytest.warns(UserWarning, match="completion: ''"):
        reward(texts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(texts(["x"]))
    assert reward.num_dropped == 4


def test_a_keyboard_interrupt_is_never_dropped():
    def interrupted(completions):
        raise KeyboardInterrupt

    for options in ({}, {"on_error": "drop"}, {"on_error": "drop", "timeout": 5}):
        with pytest.raises(KeyboardInterrupt):
            load_reward(interrupted, **options)(texts())


def draw_without_b(completions, rng):
    values = [float(generator.normal()) for generator in rng]
    if "b" in completions:
        raise RuntimeError("b")
    return values


def test_a_batch_and_single_calls_agree_on_draws_when_one_fails():
    def after(completions, rng):
        return [float(generator.normal()) for generator in rng]

    reward = load_reward([draw_without_b, after], on_error="drop")
    together, alone = generators(3), generators(3)
    with pytest.warns(UserWarning):
        result = reward(texts(generators=together))
    single = [reward(texts([text], generators=[own])) for text, own in zip(["", "b", "abab"], alone, strict=True)]
    assert result.scores.tolist() == [one.scores[0].tolist() for one in single]
    assert result.kept.tolist() == [True, False, True]
    assert [generator.normal() for generator in together] == [generator.normal() for generator in alone]
    fresh = generators(3)[2]
    assert result.scores[2].tolist() == [fresh.normal(), fresh.normal()]
