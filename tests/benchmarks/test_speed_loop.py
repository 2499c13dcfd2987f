"""stable-baselines3's loop over the native environment, as the benchmark runs it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from benchmarks import speed_loop, workload
from benchmarks.sb3_loop import NativeVecEnv
from benchmarks.speed_loop import CACHED, PLAIN, Case, Loop, largest_difference, measure

CASE = Case("S", 3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(workload, "HORIZON", 6)


def make_envs():
    return workload.make_envs(3, 4, horizon=6, autoreset_mode=AutoresetMode.SAME_STEP)


def test_both_sides_say_the_same_and_fill_the_buffer():
    cached, plain = Loop(CASE, cached=True), Loop(CASE, cached=False)
    assert largest_difference(cached, plain, steps=4) < 1e-5
    for loop in (cached, plain):
        assert loop() == 3 * 6
        buffer = loop.model.rollout_buffer
        assert buffer.full and buffer.actions.shape == (6, 3, 1)
    assert cached.model.policy.cache.tokens_fed > 0 and plain.model.policy.cache is None


def test_the_environment_is_gymnasiums_step_for_step():
    ours, theirs = NativeVecEnv(make_envs()), make_envs()
    ours.envs.reset(seed=3), theirs.reset(seed=3)
    generator = np.random.default_rng(0)
    for _ in range(20):
        actions = generator.integers(4, size=3)  # 0 stops
        ours.step_async(actions)
        observations, rewards, ended, rows = ours.step_wait()
        expected, paid, terminated, truncated, infos = theirs.step(actions)
        np.testing.assert_array_equal(observations, expected)
        np.testing.assert_allclose(rewards, paid, rtol=1e-6)
        np.testing.assert_array_equal(ended, terminated | truncated)
        for row in range(3):
            assert ("terminal_observation" in rows[row]) == ended[row]
            if ended[row]:
                np.testing.assert_array_equal(rows[row]["terminal_observation"], infos["final_obs"][row])
                assert rows[row]["TimeLimit.truncated"] is False  # the horizon is an end
    assert isinstance(theirs.single_action_space, gym.spaces.Discrete)


def test_without_the_library_it_is_missing_and_not_beaten(monkeypatch):
    monkeypatch.setattr(speed_loop, "find_spec", lambda name: None)
    finding = measure(True, 1, lambda line: None)
    [requirement] = finding.record["requirements"]
    assert requirement["verdict"] == "not measured" and (requirement["first"], requirement["second"]) == (CACHED, PLAIN)
    assert "\nMissing: without it: stable-baselines3 is not installed.\n" in finding.notes
