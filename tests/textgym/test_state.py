"""Saving and restoring: the continuation is the one without the detour, through a file without pickles."""

import io
import json
from datetime import date

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.textgym.cases import CASES, DROPPED, MODES, assert_same, legal_actions, make, make_vec

pytestmark = pytest.mark.filterwarnings(f"ignore:{DROPPED}")
every_case = pytest.mark.parametrize("name", CASES)


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **state, allow_pickle=False)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def steps(env, rng, count):
    """What some random steps return, ended episodes begun again."""
    results = []
    for _ in range(count):
        actions = legal_actions(env, rng)
        result = env.step(actions)
        results.append(result)
        mask = np.atleast_1d(np.logical_or(result[2], result[3]))
        if not hasattr(env, "num_envs"):
            results.extend([env.reset()] if mask[0] else [])
        elif env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and mask.any():
            results.append(env.reset(options={"reset_mask": mask}))
    return results


def builders(name):
    return [lambda: make(name), *(lambda mode=mode: make_vec(name, mode=mode) for mode in MODES)]


@every_case
def test_a_fresh_environment_goes_on_where_the_state_was_taken(name):
    for build in builders(name):
        env = build()
        env.reset(seed=5)
        steps(env, np.random.default_rng(1), 9)
        state = env.unwrapped.get_state()
        onward = steps(env, np.random.default_rng(2), 25)
        fresh = build()
        fresh.reset(seed=99), steps(fresh, np.random.default_rng(3), 4)
        fresh.unwrapped.set_state(through_a_file(state))
        assert_same(steps(fresh, np.random.default_rng(2), 25), onward)
        env.unwrapped.set_state(state)  # and the same one back in time
        assert_same(steps(env, np.random.default_rng(2), 25), onward)


@every_case
def test_a_state_is_arrays_without_objects(name):
    for build in builders(name):
        env = build()
        env.reset(seed=0)
        for key, array in env.unwrapped.get_state().items():
            assert isinstance(array, np.ndarray) and array.dtype != object, key


def test_a_state_before_the_first_reset_and_after_the_last_step():
    env, other = make("columns").unwrapped, make("columns").unwrapped
    other.reset(seed=4)
    other.set_state(env.get_state())
    with pytest.raises(gym.error.ResetNeeded):
        other.step(0)
    assert_same(other.reset(), env.reset())
    env.step(3)
    other.set_state(env.get_state())
    with pytest.raises(gym.error.ResetNeeded):
        other.step(0)


def test_what_changes_after_the_state_was_taken_does_not_reach_it():
    env = make_vec("shaped").unwrapped
    env.reset(seed=1)
    state = env.get_state()
    before = {name: array.copy() for name, array in state.items()}
    steps(env, np.random.default_rng(0), 5)
    assert_same(state, before)
    other = make_vec("shaped").unwrapped
    other.set_state(state)
    steps(other, np.random.default_rng(0), 5)
    assert_same(state, before)


def test_the_seeds_come_back_too():
    env, other = make_vec("columns").unwrapped, make_vec("columns").unwrapped
    env.reset(seed=30)
    other.set_state(env.get_state())
    assert other.np_random_seed == (30, 31, 32)
    assert [one.bit_generator.state for one in other.np_random] == [one.bit_generator.state for one in env.np_random]


def test_the_columns_of_a_running_episode_come_back():
    keywords = dict(
        tokenizer=["a", "<eos>"],
        prompts=["a"],
        reward=lambda completions, worth: [float(value) for value in worth],
        max_new_tokens=3,
    )
    env, other = (gym.make("TextGen-v0", **keywords).unwrapped for _ in range(2))
    env.reset(options={"prompt": "a", "columns": {"worth": 7}})
    env.step(0)
    other.reset(options={"prompt": "a", "columns": {"worth": 1}})
    other.set_state(through_a_file(env.get_state()))
    assert other.step(1)[1] == 7.0


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_an_ended_row_comes_back_with_all_that_is_told_of_it(scheme):
    def build():
        return gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="Disabled", task="no_repeat", scheme=scheme)

    env, other = build(), build()
    env.reset(seed=0, options={"prompt": ""})
    for actions in ([0, 1], [1, 0], [4, 2]):  # "ab" and the stop token; "bac", a dead end
        env.step(np.array(actions))
    other.reset(seed=1, options={"prompt": "bc"})
    other.unwrapped.set_state(through_a_file(env.unwrapped.get_state()))
    observations, rewards, terminated, _, infos = other.step(np.array([0, 0]))
    assert_same((observations, rewards, terminated), env.step(np.array([0, 0]))[:3])
    assert terminated.all() and not rewards.any()
    assert (infos["score"].tolist(), infos["scores"].tolist()) == ([1 / 3, 2 / 3], [[1 / 3], [2 / 3]])
    assert (infos["true_score"].tolist(), infos["finish_reason"].tolist()) == ([2 / 3, 1.0], [1, 3])
    assert infos["scores_valid"].all() and infos["action_mask"].all()


def test_a_state_is_drawn_as_the_episode_that_it_was_taken_from():
    env, other = (
        gym.make("TextGen-v0", task="sort", scheme="prefix_delta", render_mode="ansi").unwrapped for _ in range(2)
    )
    env.reset(options={"prompt": "3120"})
    env.step(0), env.step(1)
    other.reset(seed=0)
    other.set_state(through_a_file(env.get_state()))
    assert other.render() == env.render() == "prompt: 3120\ncompletion: 01\nrunning, 2 tokens, reward 0.25, score 0"
    assert other._transition.view(0).episode_return == 0.5


def test_a_shared_generator_comes_back_and_is_still_shared():
    keywords = dict(num_envs=3, task="noisy_verifier", level=2, rng="shared", autoreset_mode="SameStep")
    env, other = (gym.make_vec("TextGen-v0", **keywords) for _ in range(2))
    env.reset(seed=6)
    steps(env, np.random.default_rng(1), 5)
    other.reset(seed=7)
    other.unwrapped.set_state(through_a_file(env.unwrapped.get_state()))
    assert_same(steps(other, np.random.default_rng(2), 20), steps(env, np.random.default_rng(2), 20))
    assert len({id(generator) for generator in other.unwrapped.np_random}) == 1
    assert other.unwrapped.np_random_seed == (6, 6, 6)


def test_columns_travel_as_json():
    env = make("columns").unwrapped
    env.reset(options={"prompt": "ab", "columns": {"answer": "é\0", "hint": [1, {"a": None}, 0.1]}})
    assert json.loads(str(env.get_state()["columns"])) == [{"answer": "é\0", "hint": [1, {"a": None}, 0.1]}]


@pytest.mark.parametrize("value", [date(2020, 1, 2), (1, 2), {1: 2}, {"a": {3}}, [float("nan")], np.int64(3)], ids=repr)
def test_a_column_that_json_cannot_hold_is_an_error_that_says_so(value):
    env = make("columns").unwrapped
    env.reset(options={"prompt": "ab", "columns": {"hint": value}})
    with pytest.raises(TypeError, match=r"column 'hint' of row 0 holds .* JSON cannot hold"):
        env.get_state()
    env.set_state(make("columns").unwrapped.get_state())  # which does not hinder the way back


def changed(**entries):
    env = make_vec("columns").unwrapped
    env.reset(seed=0)
    state = env.get_state()
    for name, value in entries.items():
        state[name] = value(state[name]) if callable(value) else value
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ([1], TypeError, "state is of type list; give what get_state"),
        (lambda: changed(tokens=None), ValueError, "no entry 'tokens'"),
        (lambda: changed(extra=np.zeros(1)), ValueError, "an entry 'extra'"),
        (lambda: changed(tokens=lambda old: old[:2]), ValueError, r"'tokens' is int64 \(2, 8\).*int64 \(3, 8\)"),
        (lambda: changed(tokens=lambda old: old.astype(float)), ValueError, "'tokens' is float64"),
        (lambda: changed(tokens=lambda old: old + 1), ValueError, "tokens do not fit"),
        (lambda: changed(tokens=lambda old: np.where(old == 4, 0, old)), ValueError, "tokens do not fit"),
        (lambda: changed(length=lambda old: old - 5), ValueError, "lengths do not fit"),
        (lambda: changed(length=lambda old: old + 90), ValueError, "lengths do not fit"),
        (lambda: changed(prompt_length=lambda old: -old - 1), ValueError, "lengths do not fit"),
        (lambda: changed(finish_reason=lambda old: old + 9), ValueError, "finish_reason"),
        (lambda: changed(finish_reason=lambda old: old + 1), ValueError, "contradict"),
        (lambda: changed(next_index=lambda old: old + 3), ValueError, "next_index is outside 0 to 2"),
        (lambda: changed(version=lambda old: old + 1), ValueError, "version 2; this is version 1"),
        (lambda: changed(columns=np.array("{")), ValueError, "'columns' is not JSON"),
        (lambda: changed(columns=np.array("[{}]")), ValueError, "'columns' holds no list of 3"),
        (lambda: changed(prompts=np.array('["a", "b", 3]')), ValueError, "'prompts' holds no list of 3"),
        (lambda: changed(generators=np.array('["{}", "{}", "{}"]')), ValueError, "no state of a PCG64 generator"),
        (lambda: make("columns").unwrapped.get_state(), ValueError, "no entry 'ended'"),
        (lambda: make_vec("columns", num_envs=2).unwrapped.get_state(), ValueError, r"\(2,.*\(3,"),
    ],
)
def test_what_is_no_state_of_this_environment_is_refused_and_changes_nothing(state, error, words):
    env = make_vec("columns").unwrapped
    env.reset(seed=8)
    before = env.get_state()
    with pytest.raises(error, match=words):
        env.set_state(state() if callable(state) else state)
    assert_same(env.get_state(), before)
