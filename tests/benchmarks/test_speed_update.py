"""The measurement of updates: both sides compute the same gradient, and the tables say what was measured."""

from itertools import count

import pytest
import torch

from benchmarks import speed_update, workload
from benchmarks.speed_update import BATCHES, CLOSE, OURS, Case, Key, gradient_error, measure, padded, time_case
from benchmarks.timing import Timing

SMALL = workload.Size(32, 1)


@pytest.fixture(scope="module")
def case() -> Case:
    return speed_update.make_case(SMALL, episodes=16)


def test_both_sides_compute_the_same_gradient(case):
    assert len(set(case.experience.rollout.length.tolist())) > 4  # there is padding
    assert (case.experience.advantages != 0).any()
    assert gradient_error(case) < CLOSE


def test_another_gradient_would_be_noticed(case):
    rollout = case.experience.rollout
    rewarded = case.experience._replace(advantages=case.experience.advantages + 0.01 * rollout.mask)
    calls = iter((case.experience, rewarded))

    class Changing:  # what the second side is given differs a little
        learner = case.learner

        @property
        def experience(self):
            return self._experience

        def __init__(self) -> None:
            self._experience = next(calls)

    ours, theirs = Changing(), Changing()
    speed_update.our_gradient(ours)
    first = torch.cat([each.grad.flatten().clone() for each in case.learner.policy.parameters()])
    speed_update.padded_gradient(theirs, 16)
    second = torch.cat([each.grad.flatten() for each in case.learner.policy.parameters()])
    assert (first - second).norm() / second.norm() > 100 * CLOSE


@pytest.mark.parametrize("batch", [3, 16])
def test_the_peer_does_not_depend_on_the_rows_of_a_pass(case, batch):
    speed_update.padded_gradient(case, 16)
    whole = torch.cat([each.grad.flatten().clone() for each in case.learner.policy.parameters()])
    assert speed_update.padded_gradient(case, batch) == case.experience.rollout.num_tokens
    found = torch.cat([each.grad.flatten() for each in case.learner.policy.parameters()])
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-6)


def test_rates_are_tokens_of_completions_a_second(case):
    ticks = count()
    timings = time_case("S", case, 2, clock=lambda: 2.0 * next(ticks))
    assert set(timings) == {Key("S", OURS), *(Key("S", padded(batch)) for batch in BATCHES)}
    assert all(timing.rates == (case.experience.rollout.num_tokens / 2,) * 2 for timing in timings.values())


def test_the_requirement_is_on_the_peer_at_its_best(monkeypatch, case):
    def timed(name, case, repeats, batches):
        assert batches == BATCHES
        slow = dict.fromkeys((Key(name, padded(batch)) for batch in BATCHES), Timing((100.0,) * repeats))
        return {Key(name, OURS): Timing((390.0,) * repeats), **slow, Key(name, padded(64)): Timing((200.0,) * repeats)}

    errors = dict(zip(workload.SIZES.values(), (1e-7, 1e-4, 1e-7), strict=True))
    monkeypatch.setattr(speed_update, "make_case", lambda size, episodes: Case(size, case.experience))
    monkeypatch.setattr(speed_update, "gradient_error", lambda case: errors[case.learner])
    monkeypatch.setattr(speed_update, "time_case", timed)
    monkeypatch.setattr(speed_update, "update_limit", lambda *arguments: 2.0)
    said: list[str] = []
    finding = measure(False, 1, said.append)
    assert said == ["S: timed", "M: timed", "L: timed"]
    assert [entry["verdict"] for entry in finding.record["requirements"]] == ["NOT MET"] * 3
    assert {entry["second"] for entry in finding.record["requirements"]} == {
        "padded, 64 rows a pass: S",
        "padded, 64 rows a pass: M",
        "padded, 64 rows a pass: L",
    }
    assert finding.record["requirements"][0]["ratio"]["median"] == pytest.approx(1.95)
    assert "1e-07" not in finding.tables[0] and finding.record["gradient_errors"] == {"S": 1e-7, "M": 1e-4, "L": 1e-7}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in finding.tables[2].splitlines()[2:]]
    shown = {"S": ["1.0e-07", "met"], "M": ["1.0e-04", "NOT MET"], "L": ["1.0e-07", "met"]}
    assert rows == [[name, error, "at most 1e-05", verdict] for name, (error, verdict) in shown.items()]
    assert finding.record["limits"]["S"] == case.experience.rollout.num_tokens / 2
