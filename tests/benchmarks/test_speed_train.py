"""The training benchmark: our side, and what is said where TRL is missing; with TRL, its side (`full`)."""

import itertools

import numpy as np
import pytest

from benchmarks import speed_train, workload
from benchmarks.requirement import Requirement
from benchmarks.speed_train import OURS, PEER, Curves, Key, _learner, _rewards, learning_table, time_steps


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(workload, "EPISODES", 16)


def test_without_trl_it_is_missing_and_not_beaten(few, monkeypatch):
    monkeypatch.setattr(speed_train, "find_spec", lambda name: None)
    ticks = itertools.count()
    timings = time_steps("S", 2, (8,), lambda: float(next(ticks)))
    assert timings[Key("S", OURS)].rates == (16.0, 16.0)  # completions in a second of that clock
    assert timings[Key("S", PEER)].missing == "trl is not installed"
    requirement = Requirement(Key("S", OURS), Key("S", PEER), 2.5)
    assert requirement.verdict(requirement.measured(timings)) == "not measured"


def test_rewards_are_those_of_as_many_updates(few):
    rewards = _rewards(_learner("S", 16, seed=0), 3)
    assert len(rewards) == 3 and all(0 <= reward <= 1 for reward in rewards)


def test_intervals_that_are_apart_are_said_to_be():
    low, high = np.full((3, 8), 0.2) + np.arange(3)[:, None] / 100, np.full((3, 8), 0.8)
    assert "NO" in learning_table(Curves(low, high)) and "yes" not in learning_table(Curves(low, high))
    assert "NO" not in learning_table(Curves(low, low + 0.001))


@pytest.mark.full
def test_trl_samples_and_learns_as_we_do(few):
    timings = time_steps("S", 1, (8, 16))
    assert len(timings[Key("S", PEER)].rates) == 1 and not timings[Key("S", PEER)].missing


@pytest.mark.full
def test_both_sides_learn_the_same(monkeypatch):
    monkeypatch.setattr(speed_train, "SEEDS", 3)
    curves = speed_train.learn(lambda line: None)
    for values in curves:
        assert values.shape == (3, speed_train.UPDATES)
        assert (values[:, -10:].mean(axis=1) > values[:, :3].mean(axis=1) + 0.1).all()
