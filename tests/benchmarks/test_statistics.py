"""Intervals against a hand-worked example, scipy's own test and a simulation of what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics import Interval, paired_t_interval, t_interval


def test_three_values_by_hand():
    # Mean 2, s = 1, standard error 1/√3. With two degrees of freedom Student's distribution has a closed form:
    # t_{2, .975} = .95 √(2 / (4 · .975 · .025)), and P(|T| > t) = 1 - t/√(2 + t²) at t = 2√3.
    half_width = 0.95 * math.sqrt(2 / 0.0975) / math.sqrt(3)
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(half_width, rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((2 - half_width, 2 + half_width), rel=1e-12)
    assert interval.p_value == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_interval_is_scipys(count, confidence):
    generator = np.random.default_rng(count)
    first, second = generator.normal(0.3, 1, count), generator.normal(0, 2, count)
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(confidence)
    interval = paired_t_interval(first, second, confidence)
    assert interval.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-10)


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(5, 1, 6)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (t_interval(values).low, t_interval(values).high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("value, p_value", [(0.0, 1.0), (0.1, 0.0)])
def test_equal_values_have_no_width(value, p_value):
    assert t_interval([value] * 3) == Interval(value, 0.0, value, value, p_value)


@pytest.mark.parametrize("count", [3, 5])
def test_nineteen_intervals_in_twenty_hold_the_truth(count):
    # What the members of a pair share is five times what tells them apart, as with runs of one seed.
    generator, repeats = np.random.default_rng(count), 4000
    shared = generator.normal(0, 5, (repeats, count))
    first, second = (shared + generator.normal(mean, 1, (repeats, count)) for mean in (0.7, 0.2))
    intervals = [paired_t_interval(*pair) for pair in zip(first, second, strict=True)]
    coverage = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert abs(coverage - 0.95) < 4 * math.sqrt(0.95 * 0.05 / repeats)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_values_without_an_interval_are_refused(values):
    with pytest.raises(ValueError, match="values"):
        t_interval(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_confidence_is_checked(confidence):
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], confidence)


def test_pairs_need_two_members():
    with pytest.raises(ValueError, match="3 values and 2"):
        paired_t_interval([1.0, 2.0, 3.0], [1.0, 2.0])
