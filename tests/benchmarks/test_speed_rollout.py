"""The sides of the rollouts' benchmark do what they say; the clock is the test's."""

import itertools

import numpy as np
import torch

from benchmarks import speed_rollout, workload
from benchmarks.speed_rollout import COMPILED, OURS, Case, Key, _generate, cases, compiled_decoding, time_case

CASE = Case("S", 8, 1, 2.0, episodes=6, batches=(6,))


def test_both_sides_are_timed_and_count_completion_tokens():
    ticks = itertools.count()
    timings, rollout = time_case(CASE, 2, lambda: float(next(ticks)))
    assert set(timings) == {Key(CASE, OURS), Key(CASE, "generate, batches of 6")}
    assert timings[Key(CASE, OURS)].rates == (rollout.num_tokens,) * 2  # a second each
    assert rollout.mask.shape[0] == 6


def test_the_better_batch_size_of_the_peer_goes_on():
    case = Case("S", 8, 1, 2.0, episodes=18, batches=(6, 18))
    # The first run of batches of 6 takes 1 on that clock, that of all 18 takes 9; everything later takes 1.
    clock = itertools.chain([0.0, 1.0, 1.0, 10.0], itertools.count(11.0)).__next__
    timings, _ = time_case(case, 1, clock)
    assert set(timings) == {Key(case, OURS), Key(case, "generate, batches of 6")}


def test_the_peer_counts_up_to_the_stop_token_and_leaves_the_global_generator_alone():
    envs = workload.make_envs(4, 8)
    policy = workload.make_policy(envs, workload.SIZES["S"], stop_probability=0.999999)
    before = torch.default_generator.get_state()
    tokens = torch.ones(4, 8, dtype=torch.long)
    assert _generate(policy, tokens, 2) == 4  # the stop token of each alone
    assert torch.equal(before, torch.default_generator.get_state())


def test_every_size_is_asked_for_with_and_without_groups():
    for quick in (False, True):
        assert [(case.size, case.group_size) for case in cases(quick)] == [
            (size, group) for group in (1, 8) for size in ("S", "M", "L")
        ]
        assert all(case.episodes % case.group_size == 0 for case in cases(quick))


def test_where_nothing_can_be_compiled_it_is_missing_and_says_why(monkeypatch):
    class Collector:
        def __init__(self, case, compile_decoding=False):
            self.fails = compile_decoding

        def __call__(self):
            if self.fails:
                raise RuntimeError("no compiler")
            return 1

    monkeypatch.setattr(speed_rollout, "_Collector", Collector)
    found = compiled_decoding(2)
    assert [(key.what, timing.missing) for key, timing in found.items()] == [(OURS, ""), (COMPILED, "no compiler")]
    table = speed_rollout._compiled_table(found)
    assert "missing" in table and "not measured" in table


def test_lengths_vary_as_the_workload_says():
    envs = workload.make_envs(256, 8)
    policy = workload.make_policy(envs, workload.SIZES["S"])
    distribution = policy.distribution(np.random.default_rng(0).integers(1, 1024, size=(512, 12)))
    stops = distribution.log_probs[:, workload.STOP_ID].exp()
    stops = stops.detach()
    assert abs(float(stops.mean()) - 1 / 26) < 0.005  # a mean length near 24
    assert float(stops.std()) < 0.005
