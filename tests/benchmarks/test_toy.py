"""The toy does what the environment does: two programs that were written apart agree step by step."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

from benchmarks.toy import HORIZON, KEYWORDS, MAX_LENGTH, VOCABULARY_SIZE, ToyEnv
from textgym.env import TextGenEnv
from textgym.vector_env import TextGenVectorEnv


def test_the_toy_is_an_environment_of_the_same_spaces():
    toy, env = ToyEnv(), TextGenEnv(**KEYWORDS)
    assert toy.observation_space == env.observation_space and toy.action_space == env.action_space
    assert (VOCABULARY_SIZE, MAX_LENGTH) == (32, 24) == (env.vocabulary.size, env.problem.max_length)
    check_env(ToyEnv(), skip_render_check=True)


@pytest.mark.parametrize("seed", range(4))
def test_the_toy_walks_and_pays_as_the_environment_does(seed):
    toy, env = ToyEnv(), TextGenEnv(**KEYWORDS)
    assert np.array_equal(toy.reset(seed=seed)[0], env.reset(seed=seed)[0])
    paid = 0.0
    for action in np.random.default_rng(seed).integers(5, 9, size=3 * HORIZON):
        (mine, *outcome, info), (theirs, *expected, _) = toy.step(action), env.step(action)
        assert np.array_equal(mine, theirs) and outcome == expected and info == {}
        paid += outcome[0]
        if outcome[1]:
            assert np.array_equal(toy.reset()[0], env.reset()[0])
    assert 0 < paid < 3


def test_many_toys_walk_as_the_native_environment_does():
    toys, native = SyncVectorEnv([ToyEnv] * 3), TextGenVectorEnv(3, **KEYWORDS)
    assert np.array_equal(toys.reset(seed=7)[0], native.reset(seed=7)[0])
    for actions in np.random.default_rng(0).integers(VOCABULARY_SIZE, size=(3 * HORIZON, 3)):
        for mine, theirs in zip(toys.step(actions)[:4], native.step(actions)[:4], strict=True):
            assert np.array_equal(mine, theirs)
