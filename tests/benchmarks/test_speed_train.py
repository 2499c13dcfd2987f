"""The training benchmark: our side, which numbers are kept, and what is missing; with TRL, its side (`full`)."""

import itertools
import time

import numpy as np
import pytest

from benchmarks import speed_train, workload
from benchmarks.requirement import Requirement
from benchmarks.roofline import Limit
from benchmarks.speed_train import (
    OURS,
    PEER,
    Curves,
    Key,
    Steps,
    _learner,
    _rewards,
    _trainer,
    learning_table,
    measure,
    steps_table,
    time_steps,
)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(workload, "EPISODES", 16)


class StandIn:
    """A peer whose every step but the first, which is slow, takes so many seconds."""

    def __init__(self, batch, seconds):
        self.batch, self.each, self.seconds, self.tokens = batch, seconds, [], []

    def train(self, updates):
        self.seconds += [self.each if self.seconds else 100.0] * updates
        self.tokens += [self.batch] * updates


def test_without_trl_it_is_missing_and_not_beaten(few, monkeypatch):
    monkeypatch.setattr(speed_train, "find_spec", lambda name: None)
    ticks = itertools.count()
    steps = time_steps("S", 2, (8,), lambda: float(next(ticks)))
    assert steps[Key("S", OURS)].completions.rates == (16.0, 16.0)  # in a second of that clock
    assert all(16 <= tokens <= 16 * 64 for tokens in steps[Key("S", OURS)].tokens)
    assert steps[Key("S", PEER)].missing == "trl is not installed"
    requirement = Requirement(Key("S", OURS), Key("S", PEER), 2.5)
    timings = {key: side.completions for key, side in steps.items()}
    assert requirement.verdict(requirement.measured(timings)) == "not measured"
    table = steps_table(steps, {"S": 100.0})
    assert "missing" in table and " 100 " in table


def test_the_limit_is_that_of_sampling_and_of_an_update_after_it(few, monkeypatch):
    monkeypatch.setattr(speed_train, "update_limit", lambda size, vocabulary_size, tokens, scored: tokens - scored)
    monkeypatch.setattr(speed_train, "decoding_limit", lambda *arguments: Limit(1.0, 2.0))
    lengths = workload.likely_lengths(16)
    assert speed_train.token_limit("S", 1.0) == pytest.approx(lengths.sum() / (2.0 + 16 * 8))


def test_likely_lengths_have_the_mean_of_the_workload():
    lengths = workload.likely_lengths(256)
    assert lengths.min() == 1 and lengths.max() == workload.HORIZON
    assert abs(lengths.mean() - 23.9) < 0.3


def test_the_peers_faster_batch_is_kept_without_its_first_step(few, monkeypatch):
    peers = {8: 4.0, 16: 2.0, 4: 3.0}
    monkeypatch.setattr(speed_train, "_trainer", lambda learner, batch, *_: StandIn(batch, peers[batch]))
    assert time_steps("S", 2, (8, 16, 4))[Key("S", PEER)] == Steps((2.0, 2.0), (16, 16), batch=16)


def test_rates_and_lengths_are_of_each_step(few):
    side = Steps((2.0, 4.0), (160, 480))
    assert side.completions.rates == (8.0, 4.0)
    assert side.token_rates.rates == (80.0, 120.0)
    assert side.mean_length == 20.0


def test_a_quick_run_has_both_sizes_and_says_what_is_missing(few, monkeypatch):
    monkeypatch.setattr(speed_train, "find_spec", lambda name: None)
    finding = measure(True, 1, lambda line: None)
    assert [requirement["first"] for requirement in finding.record["requirements"]] == [f"{OURS}, S", f"{OURS}, M"]
    assert finding.record["curves"] is None
    assert f"\nMissing: {PEER}, S: trl is not installed.\n" in finding.notes


def test_rewards_are_those_of_as_many_updates(few):
    rewards = _rewards(_learner("S", 16, seed=0), 3)
    assert len(rewards) == 3 and all(0 <= reward <= 1 for reward in rewards)


def test_intervals_that_are_apart_are_said_to_be():
    low, high = np.full((3, 8), 0.2) + np.arange(3)[:, None] / 100, np.full((3, 8), 0.8)
    assert "NO" in learning_table(Curves(low, high)) and "yes" not in learning_table(Curves(low, high))
    assert "NO" not in learning_table(Curves(low, low + 0.001))


@pytest.mark.full
def test_trl_samples_and_learns_as_we_do(few):
    steps = time_steps("S", 1, (8, 16))
    assert len(steps[Key("S", PEER)].seconds) == 1 and not steps[Key("S", PEER)].missing
    assert steps[Key("S", PEER)].batch in (8, 16)


@pytest.mark.full
def test_trls_completions_are_drawn_anew_in_each_step_and_for_each_seed(few, tmp_path):
    learner = _learner("S", 16, seed=0, learning_rate=1e-9)

    def rewards(seed, folder):
        trainer = _trainer(learner, 16, seed, tmp_path / folder, 16, time.perf_counter)
        for _ in range(2):
            trainer.train(1)
        return trainer.rewards

    first, again, other = rewards(0, "first"), rewards(0, "again"), rewards(1, "other")
    assert first == again
    assert len({*first, *other}) == 4


@pytest.mark.full
def test_both_sides_learn_the_same():
    curves = speed_train.learn(lambda line: None, seeds=3, updates=speed_train.UPDATES)
    for values in curves:
        assert values.shape == (3, speed_train.UPDATES)
        assert (values[:, -10:].mean(axis=1) > values[:, :3].mean(axis=1) + 0.1).all()
