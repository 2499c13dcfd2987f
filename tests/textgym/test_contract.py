"""The contract suite: every case as a scalar and as a vector environment, in all three autoreset modes."""

import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.textgym.cases import (
    CASES,
    DROPPED,
    MODES,
    arrays,
    assert_same,
    legal_actions,
    make,
    make_sync,
    make_vec,
    tokens_of,
)
from textgym.vector_env import TextGenVectorEnv

ROOT = Path(__file__).parents[2]
INFO_DTYPES = {
    "prompt_length": (int, np.int64),
    "length": (int, np.int64),
    "finish_reason": (int, np.int64),
    "score": (float, np.float64),
    "scores": (np.ndarray, np.float64),
    "scores_valid": (np.ndarray, np.bool_),
    "valid": (bool, np.bool_),
}
pytestmark = pytest.mark.filterwarnings(f"ignore:{DROPPED}")
RESERVED = ("episode", "env_id", "final", "terminal_observation", "TimeLimit")

every_case = pytest.mark.parametrize("name", CASES)
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def expected_infos(env: Any) -> dict[str, tuple[type, Any, tuple[int, ...]]]:
    """Type, dtype and shape of every info key of one row of an environment."""
    problem = env.unwrapped.problem
    functions = (len(problem.reward.names),)
    kinds = {key: (kind, dtype, functions if kind is np.ndarray else ()) for key, (kind, dtype) in INFO_DTYPES.items()}
    if problem.task is not None and problem.task.true_reward is not None:
        kinds["true_score"] = (float, np.float64, ())
    if problem.task is not None and problem.task.constraint is not None:
        kinds["action_mask"] = (np.ndarray, np.int8, (problem.vocabulary.size,))
    if problem.text_info:
        kinds |= {"prompt": (str, object, ()), "completion": (str, object, ())}
    return kinds


@every_case
def test_gymnasium_has_no_complaint(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=DROPPED)
        check_env(make(name).unwrapped)


@every_case
def test_stable_baselines3_has_no_complaint(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=DROPPED)
        stable_baselines3.common.env_checker.check_env(make(name))


@every_mode
def test_make_vec_gives_the_native_environment(mode):
    envs = make_vec("default", num_envs=5, mode=mode)
    assert type(envs.unwrapped) is TextGenVectorEnv
    assert envs.num_envs == 5
    assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is mode


def test_the_default_autoreset_mode_is_next_step_and_a_string_names_one():
    assert gym.make_vec("TextGen-v0", num_envs=2).autoreset_mode is AutoresetMode.NEXT_STEP
    assert gym.make_vec("TextGen-v0", num_envs=2, autoreset_mode="SameStep").autoreset_mode is AutoresetMode.SAME_STEP


def test_sync_vectorization_runs_over_the_scalar_environment():
    envs = gym.make_vec("textgym:TextGen-v0", num_envs=2, vectorization_mode="sync")
    assert isinstance(envs, SyncVectorEnv)
    envs.reset(seed=0)
    assert envs.step(np.array([0, 1]))[0].shape == (2, 8)


def without_other_masks(result: Any) -> Any:
    """The result without the action masks of rows that an info leaves out: the native ones hold, the others are 0."""
    for infos in (result[-1], result[-1].get("final_info", {})):
        if "action_mask" in infos:
            infos["action_mask"] = np.where(infos["_action_mask"][:, None], infos["action_mask"], np.int8(0))
    return result


def test_masks_of_rows_that_were_not_reset_hold():
    envs = make_vec("masked", mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(legal_actions(envs, np.random.default_rng(0)))
    _, infos = envs.reset(options={"reset_mask": np.array([True, False, False])})
    np.testing.assert_array_equal(infos["action_mask"], envs.unwrapped.action_masks())
    assert infos["action_mask"].any(axis=1).all() and infos["_action_mask"].tolist() == [True, False, False]


@every_case
@every_mode
def test_native_and_sync_walk_in_lockstep(name, mode):
    rng = np.random.default_rng(17)
    native, sync = make_vec(name, mode=mode), make_sync(name, mode=mode)
    assert_same(native.reset(seed=3), sync.reset(seed=3))
    for step in range(60):
        actions = legal_actions(native, rng)
        result = native.step(actions)
        assert_same(without_other_masks(result), without_other_masks(sync.step(actions)), f"step {step}")
        mask = np.zeros(3, dtype=bool) if rng.random() < 0.8 else rng.random(3) < 0.5
        if mode is AutoresetMode.DISABLED:
            mask |= result[2] | result[3]
        if mask.any():  # the end of an episode, or now and then its middle, so that the rows get out of step
            seed = [None, 40 + step, [step, None, 7]][step % 3]
            options = [{"reset_mask": mask.copy()} for _ in range(2)]
            results = native.reset(seed=seed, options=options[0]), sync.reset(seed=seed, options=options[1])
            assert_same(*map(without_other_masks, results), f"reset after step {step}")


@pytest.mark.parametrize(
    ("seed", "of_rows"),
    [
        (8, [8, 9, 10]),
        (np.int64(8), [8, 9, 10]),
        ([4, None, 9], [4, None, 9]),
        ((np.int32(4), 2, None), [4, 2, None]),
        (np.array([5, 5, 6]), [5, 5, 6]),
        (None, None),
    ],
    ids=str,
)
def test_seeds_of_every_kind_equal_those_of_scalar_environments(seed, of_rows):
    native, sync = make_vec("sort-2"), make_sync("sort-2")
    native.reset(seed=1), sync.reset(seed=1)
    assert_same(native.reset(seed=seed), sync.reset(seed=of_rows))
    for _ in range(5):
        assert_same(native.reset(), sync.reset())
    assert native.np_random_seed == sync.np_random_seed


@pytest.mark.parametrize("seed", [6, np.int64(6), np.uint8(6)], ids=repr)
def test_scalar_seeds_may_be_numpy_integers(seed):
    assert_same(make("sort-2").reset(seed=seed), make("sort-2").reset(seed=6))


def test_another_seed_draws_other_prompts():
    env = make("sort-4")
    drawn = {tuple(env.reset(seed=seed)[0]) for seed in range(20)}
    assert len(drawn) == 20  # of 10^10 prompts


@pytest.mark.parametrize(
    "options",
    [{"prompt_index": 1}, {"prompt": "ba", "columns": {"answer": "a"}}, {"prompt_ids": [2], "completion_ids": [1, 0]}],
    ids=lambda options: next(iter(options)),
)
@every_mode
def test_reset_options_hold_for_all_rows_as_in_sync(options, mode):
    native, sync = make_vec("prefix_delta", mode=mode), make_sync("prefix_delta", mode=mode)
    assert_same(native.reset(seed=0, options=options), sync.reset(seed=0, options=dict(options)))
    for actions in ([0, 1, 2], [2, 1, 0]):
        assert_same(native.step(np.array(actions)), sync.step(np.array(actions)))


def test_rollouts_are_the_same_bytes_in_every_process():
    def start(hash_seed: int) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        command = [sys.executable, "-m", "tests.textgym.digest"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    digests = [json.loads(start(hash_seed).communicate()[0]) for hash_seed in (0, 1, 2)]
    assert digests[0] == digests[1] == digests[2]
    assert set(digests[0]) == set(CASES)
    told_apart = [name for name in CASES if "noisy" not in name]  # their levels differ in a rare flip alone
    assert len({digests[0][name] for name in told_apart}) == len(told_apart)


def walk(env: Any, steps: int = 14, scribble: bool = False) -> list[Any]:
    """What a seeded random walk returns; `scribble` overwrites each result once it is noted, and the actions."""
    rng = np.random.default_rng(2)
    vector = hasattr(env, "num_envs")
    noted, kept = [], []

    def note(result: tuple[Any, ...]) -> None:
        noted.append(json.dumps(result, default=lambda value: [value.dtype.str, value.tolist()]))
        kept.append(result)
        if scribble:
            overwrite(result)

    note(env.reset(seed=4))
    for _ in range(steps):
        actions = np.atleast_1d(legal_actions(env, rng))
        result = env.step(actions if vector else actions[0])
        mask = np.logical_or(result[2], result[3])
        note(result)
        actions[:] = 0
        if not vector and mask:
            note(env.reset())
        if vector and env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and mask.any():
            note(env.reset(options={"reset_mask": mask}))
            mask[:] = True
    return noted if scribble is not None else kept


def overwrite(result: tuple[Any, ...]) -> None:
    for array in list(arrays(result)):
        array.fill(1)
    result[-1].clear()


def both_kinds(name: str) -> list[Any]:
    return [lambda: make(name), *(lambda mode=mode: make_vec(name, mode=mode) for mode in MODES)]


@every_case
def test_what_is_overwritten_by_the_caller_changes_nothing(name):
    for build in both_kinds(name):
        assert walk(build(), scribble=True) == walk(build(), scribble=False)


@every_case
def test_no_two_arrays_share_memory_within_a_call_or_between_calls(name):
    for build in both_kinds(name):
        returned = [array for result in walk(build(), steps=6, scribble=None) for array in arrays(result)]
        assert not [1 for one, other in itertools.combinations(returned, 2) if np.may_share_memory(one, other)]


def test_action_masks_are_a_fresh_array_of_bools():
    env, envs = make("sort-1"), make_vec("sort-1", num_envs=2)
    mask, masks = env.unwrapped.action_masks(), envs.unwrapped.action_masks()
    assert (mask.dtype, mask.shape, masks.dtype, masks.shape) == (bool, (8,), bool, (2, 8))
    assert mask.all() and masks.all()
    mask[:] = False
    assert env.unwrapped.action_masks().all()


@every_case
def test_infos_have_the_same_keys_and_types_at_reset_and_every_step(name):
    for result in walk(make(name), scribble=None):
        described = {
            key: (type(value), value.dtype if isinstance(value, np.ndarray) else None, np.shape(value))
            for key, value in result[-1].items()
        }
        assert described == {
            key: (kind, np.dtype(dtype) if kind is np.ndarray else None, shape)
            for key, (kind, dtype, shape) in expected_infos(make(name)).items()
        }


@every_case
@every_mode
def test_vector_infos_have_the_same_keys_and_dtypes_at_reset_and_every_step(name, mode):
    for result in walk(make_vec(name, mode=mode), scribble=None):
        infos = {key: value for key, value in result[-1].items() if "final" not in key}
        expected = expected_infos(make(name))
        assert set(infos) == {*expected, *(f"_{key}" for key in expected)}
        for key, (_, dtype, shape) in expected.items():
            assert (infos[key].dtype, infos[key].shape) == (dtype, (3, *shape)), key
            assert (infos[f"_{key}"].dtype, infos[f"_{key}"].shape) == (np.bool_, (3,)), key


@every_case
def test_no_info_key_is_one_that_agent_libraries_reserve(name):
    keys = [*make(name).reset(seed=0)[1], *make_vec(name).reset(seed=0)[1]]
    assert not [key for key in keys for word in RESERVED if word in key]


@every_case
def test_an_observation_is_prompt_then_actions_then_pad(name):
    env = make(name)
    size = env.action_space.n
    observation, info = env.reset(seed=9)
    tokens = tokens_of(observation)
    written = tokens[: info["prompt_length"]].tolist()
    space = env.observation_space
    assert (space["tokens"] if isinstance(space, gym.spaces.Dict) else space) == gym.spaces.Box(
        0, size, tokens.shape, np.int64
    )
    rng, ended = np.random.default_rng(0), False
    while not ended:
        assert info["length"] == len(written)
        assert tokens.tolist() == written + [size] * (len(tokens) - len(written))
        assert tokens.dtype == np.int64 and observation in space
        written.append(int(legal_actions(env, rng)))
        observation, _, terminated, truncated, info = env.step(written[-1])
        tokens, ended = tokens_of(observation), terminated or truncated
    assert tokens[: info["length"]].tolist() == written


@pytest.mark.parametrize(
    ("name", "size", "length"),
    [
        ("default", 8, 4 + 4),
        ("bandit-2", 10, 0 + 1),
        ("reverse-4", 16, 12 + 12),
        ("columns", 4, 3 + 5),
        ("wide", 4, 16),
    ],
)  # "abba" is the three tokens ab, b, a
def test_spaces_count_tokens(name, size, length):
    env, envs = make(name), make_vec(name, num_envs=2)
    single = gym.spaces.Box(0, size, (length,), np.int64)
    assert env.observation_space == envs.single_observation_space == single
    assert env.action_space == envs.single_action_space == gym.spaces.Discrete(size)
    assert envs.observation_space == gym.spaces.Box(0, size, (2, length), np.int64)
    assert envs.action_space == gym.spaces.MultiDiscrete([size, size])


@every_case
def test_rewards_and_flags_are_plain_python_values_and_the_horizon_alone_truncates(name):
    env = make(name)
    truncates = env.unwrapped.problem.on_limit == "truncate"
    for result in walk(env, scribble=None):
        if len(result) == 5:
            assert [type(value) for value in result[1:4]] == [float, bool, bool]
            assert result[3] is (truncates and result[4]["finish_reason"] == 2)
            assert result[2] is (result[4]["finish_reason"] > 0 and not result[3])


@pytest.mark.parametrize(
    ("name", "actions", "reasons"),
    [
        ("columns", [0, 3], [0, 1]),  # <eos>
        ("columns", [0, 1, 2, 0, 1], [0, 0, 0, 0, 2]),  # horizon 5
        ("columns", [0, 1, 2, 0, 3], [0, 0, 0, 0, 1]),  # a stop at the last allowed token
        ("several_stops", [1, 0], [0, 1]),
        ("several_stops", [1, 3], [0, 1]),
        ("no_stops", [3, 3, 3], [0, 0, 2]),
        ("horizon_one", [0], [2]),
        ("horizon_one", [3], [1]),
        ("stop_in_prompt", [0, 0, 0], [0, 0, 2]),
    ],
)
def test_finish_reason_says_how_the_episode_ended(name, actions, reasons):
    env, envs = make(name), make_vec(name, num_envs=2)
    assert env.reset(seed=0)[1]["finish_reason"] == 0
    assert envs.reset(seed=0)[1]["finish_reason"].tolist() == [0, 0]
    for action, reason in zip(actions, reasons, strict=True):
        _, _, terminated, truncated, info = env.step(action)
        assert (info["finish_reason"], terminated, truncated) == (reason, reason > 0, False)
        _, _, terminated, truncated, infos = envs.step(np.array([action, action]))
        assert infos["finish_reason"].tolist() == [reason, reason]
        assert (terminated.tolist(), truncated.tolist()) == ([reason > 0] * 2, [False] * 2)


@every_case
def test_a_finished_row_is_frozen_in_disabled_mode(name):
    envs = make_vec(name, num_envs=2, mode=AutoresetMode.DISABLED)
    envs.reset(seed=1)
    horizon = envs.unwrapped.problem.max_new_tokens
    rng = np.random.default_rng(0)
    for _ in range(horizon):
        observations, rewards, terminated, truncated, infos = envs.step(legal_actions(envs, rng))
    assert (terminated | truncated).all()
    frozen = (observations, terminated, truncated, infos)
    for actions in ([0, 0], [-1, 10**6]):
        observations, rewards, terminated, truncated, infos = envs.step(np.array(actions))
        assert_same((observations, terminated, truncated, infos), frozen)
        assert rewards.tolist() == [0.0, 0.0]
    _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
    assert infos["_length"].tolist() == [True, False] and infos["finish_reason"].tolist() == [0, 0]
    observations, _, terminated, truncated, infos = envs.step(legal_actions(envs, rng))
    assert_same(tokens_of(observations)[1], tokens_of(frozen[0])[1])
    assert (terminated[1], truncated[1]) == (frozen[1][1], frozen[2][1])
    assert infos["score"][1] == frozen[3]["score"][1] and infos["finish_reason"][1] == frozen[3]["finish_reason"][1]


@every_mode
def test_a_text_is_scored_once(mode):
    scored: list[list[str]] = []

    def count(prompts, completions):
        scored.append(list(completions))
        return [1.0] * len(completions)

    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=2,
        autoreset_mode=mode,
        tokenizer=["a", "<eos>"],
        prompts=[""],
        reward=count,
        max_new_tokens=3,
    )
    envs.reset(seed=0)
    paid = [envs.step(np.array(actions))[1].tolist() for actions in ([1, 0], [0, 0], [0, 0])]
    # The first row then restarts, plays on or stays frozen; in no mode does it end again within these steps.
    assert scored == [[""], ["aaa"]]
    assert paid == [[1, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("action", [-1, 8, 9, 10**30, 1.0, "1", None, np.array([1, 2])], ids=repr)
def test_an_action_outside_the_space_is_a_value_error(action):
    env, untouched = make("sort-1").unwrapped, make("sort-1").unwrapped
    env.reset(seed=0), untouched.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    assert_same(env.step(1), untouched.step(1))


@pytest.mark.parametrize("actions", [[0, -1], [8, 0], [0, 10**30], [0.0, 1.0], [0], [[0, 1]], [0, None]], ids=repr)
@every_mode
def test_actions_outside_the_space_are_a_value_error(actions, mode):
    native, untouched = make_vec("sort-1", num_envs=2, mode=mode), make_vec("sort-1", num_envs=2, mode=mode)
    native.reset(seed=0), untouched.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        native.step(np.array(actions))
    assert_same(native.step(np.array([1, 2])), untouched.step(np.array([1, 2])))


@pytest.mark.parametrize("action", [2, np.int64(2), np.uint8(2), np.array(2), np.array([2])], ids=repr)
def test_an_action_may_be_any_integer(action):
    env = make("sort-1")
    env.reset(seed=0)
    assert env.step(action)[0][4] == 2


@pytest.mark.parametrize("build", both_kinds("sort-1"))
def test_a_step_before_the_first_reset_is_refused(build):
    env = build().unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(3, dtype=int) if hasattr(env, "num_envs") else 0)


def test_a_step_after_the_end_is_refused():
    env = make("horizon_one")
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_a_spec_of_strings_survives_json():
    env = gym.make(
        "TextGen-v0",
        tokenizer=["a", "b", "<eos>"],
        prompts=["a", "ab"],
        reward="tests.textgym.cases:weighted_ids",
        max_new_tokens=3,
        scheme="prefix_delta",
    )
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert walk(again) == walk(env)
