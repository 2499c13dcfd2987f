"""Exponents of made-up costs, and one point for real."""

import numpy as np
import pytest

from benchmarks import roofline, scaling, speed_scaling
from benchmarks.scaling import Curve, fit, upper_half
from benchmarks.speed_scaling import AXES, Point, predicted_seconds, seconds


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_a_power_is_found(exponent):
    values = [2, 4, 8, 16]
    found = fit(values, [3.0 * value**exponent for value in values])
    assert found.exponent == pytest.approx(exponent) and found.factor == pytest.approx(3.0)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_is_that_of_least_squares():
    # Of y = 0, 1, 0 over x = -1, 0, 1 (in logarithms): slope 0, residuals -1/3, 2/3, -1/3, one degree of freedom.
    found = fit(np.exp([-1.0, 0.0, 1.0]), np.exp([0.0, 1.0, 0.0]))
    assert found.exponent == pytest.approx(0.0) and found.error == pytest.approx(np.sqrt((6 / 9) / 2))


def test_what_a_call_costs_by_itself_does_not_hide_growth():
    values = (1, 10, 100, 1000, 10_000, 100_000)
    curve = Curve("x", "work", values, tuple(50.0 + value for value in values), 0.5)
    assert curve.fit.exponent > 0.95 and curve.fit.verdict(0.5) == "NOT MET" and curve.fit.verdict(1.0) == "met"
    assert upper_half((1, 2, 3), (4.0, 5.0, 6.0)) == ((1, 2, 3), (4.0, 5.0, 6.0))


def test_the_axes_vary_what_they_say():
    for axis in AXES:
        assert axis.field in Point._fields
        for values in (axis.values, axis.quick):
            assert len(values) >= 3 and list(values) == sorted(set(values))
    groups = AXES[3]
    assert all(groups.start.environments % size == 0 for size in groups.values)


def test_points_take_turns_on_the_clock_that_is_given():
    # Start, middle and end of each run; the first of each point is a warm-up. Of the others the medians are:
    readings = {
        "small": [(0, 50, 90), (0, 1, 3), (0, 2, 6), (0, 6, 7)],  # of 1, 2, 6: 2; of 2, 4, 1: 2
        "large": [(0, 70, 90), (0, 9, 20), (0, 7, 12), (0, 8, 20)],  # of 9, 7, 8: 8; of 11, 5, 12: 11
    }
    in_turns = [reading for pair in zip(*readings.values(), strict=True) for run in pair for reading in run]
    points = [Point(horizon=2, vocabulary=8, environments=rows, prompt_tokens=2) for rows in (2, 4)]
    found = seconds(points, 3, map(float, in_turns).__next__)
    assert found == [
        {speed_scaling.ROLLOUT: 2.0, speed_scaling.UPDATE: 2.0},
        {speed_scaling.ROLLOUT: 8.0, speed_scaling.UPDATE: 11.0},
    ]


def test_seconds_by_operations_and_bytes_by_hand():
    # 2 rows of 3 tokens; d=64, two layers; V=8, 1 operation a second but for the head's 2, 4 bytes a second.
    rates = dict.fromkeys([(64, 192), (64, 64), (64, 256), (256, 64)], 1.0) | {(64, 8): 2.0}
    found = predicted_seconds(Point(horizon=3, vocabulary=8, environments=2, prompt_tokens=5), rates, 4.0)
    blocks = 2 * 12 * 64 * 64  # two layers
    # Each token reads 5 of the prompt and on average 1.5 of the completion, of which a layer keeps 2 · 64 numbers.
    assert found == pytest.approx(6 * (2 * blocks + 2 * 64 * 8 / 2) + 6 * 6.5 * (2 * 2 * 64 * 4) / 4)


def test_the_page_has_every_axis_and_its_verdicts(monkeypatch):
    # Sampling grows with the square of whatever an axis counts, updates with the root.
    def made_up(points, repeats):
        counts = [each.horizon * each.vocabulary * each.environments * each.group_size / 1e6 for each in points]
        return [{speed_scaling.ROLLOUT: count**2, speed_scaling.UPDATE: count**0.5} for count in counts]

    monkeypatch.setattr(speed_scaling, "seconds", made_up)
    monkeypatch.setattr(speed_scaling, "bandwidth", lambda: 1e9)
    monkeypatch.setattr(speed_scaling, "product_rate", lambda *shape: 1e9)
    monkeypatch.setattr(roofline, "product_rate", lambda *shape, dtype=None: 1e9)
    said = []
    finding = speed_scaling.measure(True, 1, said.append)
    assert [line.split(":")[0] for line in said] == [axis.name for axis in AXES]
    verdicts = {(each["axis"], each["work"]): each["verdict"] for each in finding.record["curves"]}
    assert verdicts == {
        **{(axis.name, "rollout"): "NOT MET" for axis in AXES},  # 2 for what may be 1 or 0
        **{(axis.name, "update"): "met" for axis in AXES},
        ("horizon, tokens", "rollout"): "met",  # attention may
        ("group size", "update"): "NOT MET",  # .5 for what may be 0
    }
    exponents, points = finding.tables
    assert exponents.count("2.00 ± 0.00") == 4 and exponents.count("0.50 ± 0.00") == 4
    assert all(f"{value:,}" in points for axis in AXES for value in axis.quick)


def test_the_limit_by_hand(monkeypatch):
    monkeypatch.setattr(roofline, "product_rate", lambda *shape, dtype=None: 1e9)
    found = speed_scaling.limit(Point(horizon=3, vocabulary=10, environments=4, group_size=2, prompt_tokens=5), 1e3)
    blocks, head = 2 * 12 * 64**2, 64 * 10  # weights
    # 4 rows of 3 tokens and 5 of the prompt, forward and twice that backward; the head sees the 3 alone.
    assert found["update"] == pytest.approx(3 * 2 * (blocks * 4 * 8 + head * 4 * 3) / 1e9)
    # Three steps read all weights; then 1 and 2 own tokens of each row, and twice the prompt of each group.
    tokens = 4 * (1 + 2) + 2 * 2 * 5
    assert found["rollout"] == pytest.approx(4 * (3 * (blocks + head) + tokens * 2 * 2 * 64) / 1e3)


def test_the_plot_is_written(tmp_path):
    curves = {
        axis: [Curve(axis, work, (1, 2, 4), (1.0, 2.0, 4.0), 1.0) for work in ("rollout", "update")] for axis in "abcd"
    }
    scaling.draw(curves, tmp_path)
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
