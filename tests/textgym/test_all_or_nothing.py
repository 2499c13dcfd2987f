"""A step or a reset that fails, in whatever part, leaves everything as it was, and can be taken again."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import textgym
from tests.textgym.cases import MODES, assert_same
from textgym import schemes


class Sometimes:
    """A function of completions that raises when told to; what it draws shows whether the generators went back."""

    def __init__(self):
        self.fails = False

    def __call__(self, completions, rng):
        drawn = [float(generator.random()) for generator in rng]
        if self.fails:
            raise OSError("down")
        return drawn

    def __deepcopy__(self, memo):
        return self


class Rows:
    """A prompt function that raises when told to."""

    fails = False

    def __call__(self, generator):
        number = int(generator.integers(1000))
        if self.fails:
            raise OSError("down")
        return {"prompt": "ab"[number % 2], "number": number}

    def __deepcopy__(self, memo):
        return self


def build(mode, rng="per_env", **keywords):
    defaults = dict(tokenizer=["a", "b", "<eos>"], prompts=["a", "b"], reward=noisy, max_new_tokens=2)
    return gym.make_vec("TextGen-v0", num_envs=3, autoreset_mode=mode, rng=rng, **(defaults | keywords))


def noisy(completions, rng):
    return [float(generator.random()) for generator in rng]


def state(env):
    return {name: array.tolist() for name, array in env.unwrapped.get_state().items()}


ACTIONS = ([0, 2, 1], [1, 0, 2], [2, 2, 2], [0, 1, 0], [0, 0, 0], [1, 2, 1])


def walk(envs, trouble=None):
    """What the steps return; with `trouble`, each is first tried while it fails, and must change nothing then."""
    results = []
    for actions in ACTIONS:
        if trouble is not None:
            before, trouble.fails = state(envs), True
            try:
                envs.step(np.array(actions))
            except (textgym.RewardError, ValueError) as error:
                assert "down" in str(error)
                assert state(envs) == before
            else:
                envs.unwrapped.set_state({name: np.array(value) for name, value in before.items()})
            trouble.fails = False
        results.append(envs.step(np.array(actions)))
        if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and results[-1][2].any():
            results.append(envs.reset(options={"reset_mask": results[-1][2].copy()}))
    return results


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("rng", ["per_env", "shared"])
@pytest.mark.parametrize("where", ["potential", "reward", "prompts"])
def test_a_step_that_fails_changes_nothing_and_can_be_taken_again(mode, rng, where):
    trouble = Rows() if where == "prompts" else Sometimes()
    keywords = {
        "potential": dict(scheme=schemes.Potential(trouble)),
        "reward": dict(reward=trouble),
        "prompts": dict(prompts=trouble, max_prompt_tokens=1),
    }[where]
    troubled, fine = build(mode, rng, **keywords), build(mode, rng, **keywords)
    assert_same(troubled.reset(seed=5), fine.reset(seed=5))
    assert_same(walk(troubled, trouble), walk(fine))


@pytest.mark.parametrize("rng", ["per_env", "shared"])
def test_a_reset_that_fails_changes_nothing(rng):
    trouble = Sometimes()
    envs = build(AutoresetMode.DISABLED, rng, scheme=schemes.Potential(trouble), prompt_order="sequential")
    envs.reset(seed=1), envs.step(np.array([0, 2, 2]))
    before, trouble.fails = state(envs), True
    for seed, options in ((None, None), (7, None), (None, {"reset_mask": np.array([False, True, False])})):
        with pytest.raises(textgym.RewardError, match="down"):
            envs.reset(seed=seed, options=options)
        assert state(envs) == before
    with pytest.raises(ValueError, match="unknown reset option"):
        envs.reset(seed=7, options={"promt": "a"})
    assert state(envs) == before


def test_a_scalar_reset_that_fails_changes_nothing():
    trouble = Sometimes()
    env = gym.make(
        "TextGen-v0",
        tokenizer=["a", "<eos>"],
        prompts=["a", ""],
        reward=noisy,
        prompt_order="sequential",
        scheme=schemes.Potential(trouble),
    ).unwrapped
    env.reset(seed=1), env.step(0)
    before, trouble.fails = state(env), True
    for seed in (None, 9):
        with pytest.raises(textgym.RewardError, match="down"):
            env.reset(seed=seed)
        assert state(env) == before


def test_an_action_that_is_refused_leaves_the_last_rewards():
    envs = build(AutoresetMode.DISABLED)
    envs.reset(seed=0), envs.step(np.array([2, 0, 0]))
    before = state(envs)
    assert before["reward"][0] > 0
    with pytest.raises(ValueError, match="outside"):
        envs.step(np.array([0, 9, 0]))
    assert state(envs) == before


@pytest.mark.parametrize("name", ["scalar", "vector"])
def test_a_copy_is_an_environment_of_its_own(name):
    def make():
        if name == "scalar":
            return gym.make("TextGen-v0", task="sort", level=4).unwrapped
        return gym.make_vec("TextGen-v0", num_envs=2, task="sort", level=4).unwrapped

    first = make()
    first.reset(seed=3)
    second = copy.deepcopy(first)
    assert pickle.dumps(first)  # for libraries that send environments to other processes
    assert_same(second.reset(seed=8), make().reset(seed=8))
    before = state(first)
    second.reset(), second.step(np.zeros(2, dtype=int) if name == "vector" else 0)
    assert state(first) == before
    assert_same(first.reset(seed=8), make().reset(seed=8))
