"""stable-baselines3's loop over the native environment, as the benchmark runs it."""

import pytest

from benchmarks import speed_loop, workload
from benchmarks.speed_loop import CACHED, PLAIN, Case, Loop, largest_difference, measure

CASE = Case("S", 3)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(workload, "HORIZON", 6)


def test_both_sides_say_the_same_and_fill_the_buffer():
    cached, plain = Loop(CASE, cached=True), Loop(CASE, cached=False)
    assert largest_difference(cached, plain, steps=4) < 1e-5
    for loop in (cached, plain):
        assert loop() == 3 * 6
        buffer = loop.model.rollout_buffer
        assert buffer.full and buffer.actions.shape == (6, 3, 1)
    assert cached.model.policy.cache.tokens_fed > 0 and plain.model.policy.cache is None


def test_without_the_library_it_is_missing_and_not_beaten(monkeypatch):
    monkeypatch.setattr(speed_loop, "find_spec", lambda name: None)
    finding = measure(True, 1, lambda line: None)
    [requirement] = finding.record["requirements"]
    assert requirement["verdict"] == "not measured" and (requirement["first"], requirement["second"]) == (CACHED, PLAIN)
    assert "\nMissing: without it: stable-baselines3 is not installed.\n" in finding.notes
