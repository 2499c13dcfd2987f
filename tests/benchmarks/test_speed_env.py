"""What is timed is what the table says, and a verdict is what the ratio says."""

import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import speed_env, toy
from benchmarks.requirement import Requirement
from benchmarks.speed_env import COMPARISONS, NUM_ENVS, groups, measure
from benchmarks.timing import Spread, Timing

ALL = {(row.name, row.num_envs): row for group in groups() for row in group}


def test_every_row_that_is_compared_is_timed_beside_the_other():
    for quick in (False, True):
        for comparison in COMPARISONS:
            (group,) = (
                group for group in groups(quick) if comparison.first in [(row.name, row.num_envs) for row in group]
            )
            assert comparison.second in [(row.name, row.num_envs) for row in group]


def test_groups_hold_one_number_of_environments_each():
    assert [group[0].num_envs for group in groups()] == [1, 16, 256, 1024] == list(NUM_ENVS)
    assert [{row.num_envs for row in group} for group in groups()] == [{1}, {16}, {256}, {1, 1024}]
    assert all(row.steps > 0 for group in groups(quick=True) for row in group)
    assert sum(row.steps for group in groups(quick=True) for row in group) < sum(row.steps for row in ALL.values()) / 2


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in ALL if name != speed_env.COPY))
def test_a_row_plays_as_many_episodes_as_it_says(name, monkeypatch):
    played = 0

    def score(completion_ids):
        nonlocal played
        assert all(len(ids) == 21 for ids in completion_ids)
        played += len(completion_ids)
        return [0.0] * len(completion_ids)

    reset = toy.ToyEnv.reset

    def begin(self, **keywords):
        nonlocal played
        played += 1
        return reset(self, **keywords)

    monkeypatch.setitem(toy.KEYWORDS, "reward", score)
    monkeypatch.setattr(toy.ToyEnv, "reset", begin)
    made = {row.name: row for group in groups() for row in group}  # anew, with the reward that counts
    num_envs = min(made[name].num_envs, 2)
    work = made[name].make(num_envs, 3)
    for _ in range(2):  # a second repeat begins where the first one did
        played = 0
        assert work() == num_envs * 3 * 21
        assert played == num_envs * 3


def test_the_limit_copies_the_observations_once_a_step(monkeypatch):
    copied = []

    class Observations:
        def copy(self):
            copied.append(1)

    monkeypatch.setattr(speed_env.np, "zeros", lambda shape, dtype: Observations() if shape == (2, 24) else None)
    assert ALL[speed_env.COPY, 1024].make(2, 3)() == 2 * 3 * 21
    assert len(copied) == 3 * 21


def test_steps_are_counted_over_all_environments():
    row = ALL[speed_env.native(speed_env.AutoresetMode.NEXT_STEP, speed_env.SHARED), 1024]
    assert row.steps == 1024 * row.episodes * 21
    assert replace(row, num_envs=2, episodes=3).steps == 126


def test_rows_are_measured_on_the_clock_and_missing_libraries_are_missing():
    ticks = iter(range(100))
    rows = [
        speed_env.Row("fast", 1, 1, lambda num_envs, episodes: lambda: 4),
        speed_env.Row("absent", 1, 1, lambda num_envs, episodes: lambda: 1, needs="a_library_that_is_not_there"),
    ]
    timings = measure(rows, 2, lambda: next(ticks))
    assert timings["fast", 1].rates == (4.0, 4.0)
    assert timings["absent", 1].missing == "a_library_that_is_not_there is not installed"


@pytest.mark.parametrize(
    "at_least, measured, verdict",
    [
        (10.0, Spread(10.0, 2.0, 30.0), "met"),
        (10.0, Spread(9.99, 9.0, 30.0), "NOT MET"),
        (None, Spread(0.5, 0.5, 0.5), ""),
        (10.0, None, "not measured"),
        (None, None, "not measured"),
    ],
)
def test_a_verdict_is_of_the_median_and_a_missing_row_was_not_beaten(at_least, measured, verdict):
    assert Requirement(("a", 1), ("b", 1), at_least).verdict(measured) == verdict


def test_comparisons_are_ratios_of_their_rows():
    timings = {key: Timing((10.0, 10.0)) for key in ALL} | {
        (speed_env.SYNC, 1024): Timing((4.0, 2.0)),
        (speed_env.DUMMY, 1024): Timing(missing="not installed"),
    }
    ratios = {comparison: comparison.measured(timings) for comparison in COMPARISONS}
    for comparison, measured in ratios.items():
        if comparison.second[0] == speed_env.SYNC:
            assert measured == Spread(3.75, 2.5, 5.0)
        elif speed_env.DUMMY in (comparison.first[0], comparison.second[0]):
            assert measured is None
        else:
            assert measured == Spread(1.0, 1.0, 1.0)


def test_the_scalar_environment_may_fall_behind_by_a_factor_of_1_3():
    (comparison,) = (one for one in COMPARISONS if one.first == (speed_env.SCALAR, 1))
    assert comparison.at_least == pytest.approx(1.2868, abs=1e-4)  # 808 / 483 = 1.6729


@pytest.mark.full
def test_every_requirement_is_met(tmp_path):
    code = "import sys; from benchmarks.cli import main; sys.exit(main())"
    arguments = ["speed", "env", "--quick", "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert "NOT MET" not in done.stdout and done.stdout.count(" met |") == 6  # five of speed, one of memory
