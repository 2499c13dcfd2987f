"""Exponents of made-up costs, and one point for real."""

import numpy as np
import pytest

from benchmarks import scaling, speed_scaling
from benchmarks.scaling import Curve, fit, upper_half
from benchmarks.speed_scaling import AXES, Point, seconds


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


def test_a_point_is_measured_with_the_clock_that_is_given():
    # Rollouts from 0 to 1, 2 to 4, 10 to 15: the first is a warm-up, of the others the median is 3.5.
    clock = iter([0.0, 1.0, 1.5, 2.0, 4.0, 4.5, 10.0, 15.0, 16.5]).__next__
    found = seconds(Point(horizon=2, vocabulary=8, environments=4, prompt_tokens=2), 2, clock)
    assert found == {speed_scaling.ROLLOUT: 3.5, speed_scaling.UPDATE: 1.0}


def test_the_plot_is_written(tmp_path):
    curves = {
        axis: [Curve(axis, work, (1, 2, 4), (1.0, 2.0, 4.0), 1.0) for work in ("rollout", "update")] for axis in "abcd"
    }
    scaling.draw(curves, tmp_path)
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
