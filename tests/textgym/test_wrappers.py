"""Renamed and cast observations over scalar and vector environments, against values written by hand."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.textgym.cases import MODES, assert_same
from textgym.wrappers import RenameObservation, VectorRenameObservation, rename_observation

# Two tokens and a stop token, V = 3; histories of a prompt of one and a completion of two tokens, L = 3.
KEYWORDS = dict(
    tokenizer=["a", "b", "<eos>"],
    prompts=["b"],
    reward=lambda completions: [float(len(text)) for text in completions],
    max_new_tokens=2,
)
A, B, STOP, PAD = 0, 1, 2, 3


class DictObservation(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """The flat boxes of `observation="dict"`, over an environment of tokens."""

    def __init__(self, env, size=3):
        gym.utils.RecordConstructorArgs.__init__(self, size=size)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = Dict(
            {
                "tokens": Box(0, size, (3,), np.int64),
                "length": Box(0, 3, (1,), np.int64),
                "attention_mask": Box(0, 1, (3,), np.int8),
                "action_mask": Box(0, 1, (3,), np.int8),
            }
        )

    def observation(self, observation):
        written = observation != PAD
        return {
            "tokens": observation,
            "length": np.array([written.sum()]),
            "attention_mask": written.astype(np.int8),
            "action_mask": np.ones(3, dtype=np.int8),
        }


class DictVector(SyncVectorEnv):
    def action_masks(self):
        return np.stack(self.call("action_masks"))


def scalar(size=3):
    return DictObservation(gym.make("TextGen-v0", **KEYWORDS), size)


def vector(mode=AutoresetMode.NEXT_STEP, num_envs=2):
    return DictVector([scalar] * num_envs, autoreset_mode=mode)


def test_rllib_gets_observations_and_mask_in_float32():
    env = rename_observation(scalar(), "rllib")
    assert type(env) is RenameObservation
    ones = np.ones(3, np.float32)
    assert env.observation_space == Dict(
        {"observations": Box(0, 3, (3,), np.float32), "action_mask": Box(0, 1, (3,), np.float32)}
    )
    first, info = env.reset()
    assert_same(first, {"observations": np.array([B, PAD, PAD], np.float32), "action_mask": ones})
    assert info["length"] == 1
    second, reward, terminated, truncated, _ = env.step(STOP)
    assert_same(second, {"observations": np.array([B, STOP, PAD], np.float32), "action_mask": ones})
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert second in env.observation_space


def test_tianshou_gets_obs_and_a_boolean_mask():
    env = rename_observation(scalar(), "tianshou")
    observation, _ = env.reset()
    assert_same(observation, {"obs": np.array([B, PAD, PAD]), "mask": np.ones(3, dtype=bool)})
    assert observation in env.observation_space
    assert env.observation_space == Dict({"obs": Box(0, 3, (3,), np.int64), "mask": Box(0, 1, (3,), np.bool_)})


def test_own_names_keep_their_order_and_drop_the_rest():
    names = {"tokens": "z", "attention_mask": "m", "length": "a"}
    env = rename_observation(scalar(), names, {"length": np.int16, "attention_mask": bool})
    observation, _ = env.reset()
    assert list(observation) == list(env.observation_space) == ["z", "m", "a"]
    assert_same(
        observation,
        {"z": np.array([B, PAD, PAD]), "m": np.array([True, False, False]), "a": np.array([1], np.int16)},
    )
    assert observation in env.observation_space


def test_a_dtype_given_beside_a_preset_replaces_the_preset_s():
    observation, _ = rename_observation(scalar(), "rllib", {"action_mask": "int8"}).reset()
    assert {name: value.dtype.name for name, value in observation.items()} == {
        "observations": "float32",
        "action_mask": "int8",
    }


@pytest.mark.parametrize("preset", ["rllib", "tianshou"])
def test_gymnasium_has_no_complaint(preset):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*different from the unwrapped version")  # it is a wrapper
        check_env(rename_observation(scalar(), preset))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("names", ["rllib", "tianshou"])
def test_a_renamed_vector_environment_is_one_of_renamed_environments(mode, names):
    ours = rename_observation(vector(mode, 3), names)
    theirs = SyncVectorEnv([lambda: rename_observation(scalar(), names)] * 3, autoreset_mode=mode)
    assert type(ours) is VectorRenameObservation
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(seed=0), theirs.reset(seed=0))
    generator = np.random.default_rng(0)
    ended = 0
    for _ in range(20):
        actions = generator.integers(3, size=3)
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        assert result[0] in ours.observation_space
        ended += result[2].sum()
        if mode is AutoresetMode.DISABLED and result[2].any():
            masks = [{"reset_mask": result[2].copy()} for _ in range(2)]
            assert_same(ours.reset(options=masks[0]), theirs.reset(options=masks[1]))
    assert ended > 5


def test_final_observations_of_same_step_are_renamed():
    env = vector(AutoresetMode.SAME_STEP)
    envs = rename_observation(env, {"tokens": "x"}, {"tokens": "float32"})
    envs.reset()
    observations, _, _, _, infos = envs.step(np.array([STOP, A]))
    assert_same(observations, {"x": np.array([[B, PAD, PAD], [B, A, PAD]], np.float32)})
    assert infos["final_obs"].dtype == object and infos["final_obs"][1] is None
    assert_same(infos["final_obs"][0], {"x": np.array([B, STOP, PAD], np.float32)})
    assert infos["_final_obs"].tolist() == [True, False]


def test_values_that_are_cast_are_copies():
    class Fixed(DictObservation):
        def observation(self, observation):
            return kept

    env = rename_observation(Fixed(gym.make("TextGen-v0", **KEYWORDS)), "tianshou", {"tokens": "int64"})
    kept = scalar().reset()[0]
    observation, _ = env.reset()
    observation["obs"][:] = 7
    assert kept["tokens"].tolist() == [B, PAD, PAD]


def test_masks_are_reachable_on_the_wrapper():
    env = rename_observation(scalar(), "rllib")
    env.reset()
    for masks in (env.action_masks(), env.get_wrapper_attr("action_masks")()):
        assert_same(masks, np.ones(3, dtype=bool))
    envs = rename_observation(rename_observation(vector(), "rllib"), {"observations": "x"})
    envs.reset()
    assert_same(envs.action_masks(), np.ones((2, 3), dtype=bool))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_autoreset_mode_stays_known(mode):
    envs = rename_observation(vector(mode), "rllib")
    assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is mode


@pytest.mark.parametrize(
    ("names", "dtypes"), [("rllib", None), ({"tokens": "x", "length": "n"}, {"tokens": np.float64, "length": "int8"})]
)
def test_a_spec_makes_the_wrapped_environment_again(names, dtypes):
    keywords = {**KEYWORDS, "reward": "tests.textgym.test_wrappers:zero"}
    env = rename_observation(DictObservation(gym.make("TextGen-v0", **keywords)), names, dtypes)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert json.loads(env.spec.to_json())["additional_wrappers"][-1]["entry_point"].endswith(":RenameObservation")
    assert again.observation_space == env.observation_space
    assert_same(again.reset(seed=0)[0], env.reset(seed=0)[0])


def zero(completions):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("names", "dtypes", "error", "words"),
    [
        ("rlib", None, ValueError, r"unknown preset 'rlib'; allowed: rllib, tianshou. Did you mean 'rllib'\?"),
        ({"token": "x"}, None, ValueError, r"'token'; allowed: action_mask, .*tokens. Did you mean 'tokens'\?"),
        ({1: "x"}, None, ValueError, r"unknown key of the observation 1; allowed: action_mask"),
        ({"tokens": "x", "length": "x"}, None, ValueError, r"'tokens' and 'length' one name, 'x'"),
        ({"tokens": 3}, None, TypeError, r"names\['tokens'\] is 3 of type int; give a str"),
        ({}, None, ValueError, r"names is empty; name at least one of action_mask, "),
        (["tokens"], None, TypeError, r"names is \['tokens'\] of type list; .*rllib, tianshou"),
        ({"tokens": "x"}, {"token": "int8"}, ValueError, r"key of dtypes 'token'; .*Did you mean 'tokens'\?"),
        ({"tokens": "x"}, {"length": "int8"}, ValueError, r"unknown key of dtypes 'length'; allowed: tokens"),
        ({"tokens": "x"}, "int8", TypeError, r"dtypes is 'int8' of type str; give a dict"),
        ({"tokens": "x"}, {"tokens": "flot32"}, TypeError, r"dtypes\['tokens'\] is 'flot32', which is no dtype"),
        ({"tokens": "x"}, {"tokens": "bool"}, ValueError, r"dtypes\['tokens'\] is bool, .*every value of Box\(0, 3, "),
        ({"tokens": "x"}, {"tokens": "complex64"}, ValueError, r"is complex64, which does not hold .* a wider dtype"),
        ({"tokens": "x"}, {"tokens": "str"}, ValueError, "does not hold"),
        ({"tokens": "x"}, {"tokens": object}, ValueError, "does not hold"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [scalar, vector])
def test_what_cannot_be_renamed_is_refused(make, names, dtypes, error, words):
    with pytest.raises(error, match=words):
        rename_observation(make(), names, dtypes)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("int8", 127), ("uint8", 255), ("int16", 2**15 - 1), ("float16", 2**11), ("float32", 2**24), ("float64", 2**53)],
)
def test_a_dtype_must_hold_every_token_exactly(dtype, most):
    box = rename_observation(scalar(most), {"tokens": "x"}, {"tokens": dtype}).observation_space["x"]
    assert box == Box(0, most, (3,), np.dtype(dtype)) and int(box.high[0]) == most
    with pytest.raises(ValueError, match=f"is {dtype}, which does not hold every value of Box.0, {most + 1}, "):
        rename_observation(scalar(most + 1), {"tokens": "x"}, {"tokens": dtype})


def test_a_dtype_must_hold_negative_values_too():
    def make():
        space = Dict({"x": Box(-128, 1, (1,), np.int64)})
        return gym.wrappers.TransformObservation(scalar(), lambda _: {"x": np.array([-128])}, space)

    observation, _ = rename_observation(make(), {"x": "x"}, {"x": "int8"}).reset()
    assert_same(observation, {"x": np.array([-128], np.int8)})
    with pytest.raises(ValueError, match="is uint8, which does not hold"):
        rename_observation(make(), {"x": "x"}, {"x": "uint8"})


def test_values_that_are_no_whole_numbers_may_only_be_widened():
    def make():
        env = gym.make("TextGen-v0", **KEYWORDS)
        space = Dict({"x": Box(-np.inf, np.inf, (1,), np.float32), "k": Discrete(3)})
        return gym.wrappers.TransformObservation(env, lambda _: {"x": np.ones(1, np.float32), "k": 0}, space)

    env = rename_observation(make(), {"x": "y", "k": "k"}, {"x": "float64"})
    observation, _ = env.reset()
    assert_same(observation, {"y": np.ones(1), "k": 0})
    assert observation in env.observation_space
    for dtypes in ({"x": "float16"}, {"x": "int64"}, {"k": "float32"}):
        with pytest.raises(ValueError, match="does not hold every value"):
            rename_observation(make(), {"x": "y", "k": "k"}, dtypes)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_observations_without_names_are_refused(make):
    with pytest.raises(TypeError, match=r"no dict, their space is Box\(0, 8, .*observation='dict'"):
        rename_observation(make("TextGen-v0"), "rllib")


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="env is 'TextGen-v0' of type str; give a Gymnasium environment"):
        rename_observation("TextGen-v0", "rllib")
