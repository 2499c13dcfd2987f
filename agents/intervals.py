"""Confidence intervals of a mean score, for the ways in which episodes are chosen.

Pure functions of arrays, in numpy alone; what a number means is its caller's business. All intervals are Student's t
intervals (Student 1908) of a standard error that fits the way the values were had. Where the scores are known to lie
between two bounds, the interval also holds the one that has z²/2 values added at either bound, as Agresti and Coull
(1998) add them to shares: scores that are nearly all equal, such as those of a trained policy, would otherwise seem
certain, while 8 right answers of 8 leave a mean of .6 possible. Without bounds, nothing can be said from values that
are all equal, and nothing is.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_LEAST_REPEATS = 8  # fewer values of a stratum too often look all alike, and leave out what differs within it
_LARGEST = 1e150
_MOST_FREEDOM = 10_000  # beyond, the quantile changes by less than a part in 5,000; fewer are the safe side


class Interval(NamedTuple):
    """A mean between `low` and `high`."""

    mean: float
    low: float
    high: float


def independent_interval(
    values: np.ndarray, confidence: float = 0.95, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Interval of the expectation that n independent values share.

    Args:
        values: [n] finite numbers.
        confidence: share of such intervals that hold the expectation, between 0 and 1.
        bounds: what no value can lie outside of, where that is known.

    Returns:
        The interval, within the bounds; None where nothing can be said: no values, or without bounds fewer than two or
        only equal ones.

    >>> interval = independent_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    >>> f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    '3.000 [1.037, 4.963]'
    >>> interval = independent_interval(np.ones(8), bounds=(0, 1))
    >>> f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    '1.000 [0.588, 1.000]'
    """
    return clustered_interval(values, np.arange(len(values)), confidence, bounds)


def clustered_interval(
    values: np.ndarray, clusters: np.ndarray, confidence: float = 0.95, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Interval of an expectation over clusters, of which those that are seen are an independent sample.

    Values of a cluster depend on each other, so that the clusters are what is counted. The mean is that of all values;
    where clusters differ in size it is a ratio, and its standard error the linear approximation (Cochran 1977, ch. 6).

    Args:
        values: [n] finite numbers.
        clusters: [n] labels.
        confidence: see `independent_interval`.
        bounds: see `independent_interval`.
    """
    _check(values, clusters, confidence, bounds)
    labels, place = np.unique(clusters, return_inverse=True)
    count = len(labels)
    if count == 0:
        return None
    mean = float(values.mean())
    deviations = np.bincount(place, values - mean) * (count / len(values))  # [count], of a cluster's mean where equal
    variance = _without_rounding(float((deviations**2).sum() / (count - 1)), values) if count > 1 else 0.0
    return _interval(mean, variance, count, count - 1, confidence, bounds)


def stratified_interval(
    values: np.ndarray, strata: np.ndarray, confidence: float = 0.95, bounds: tuple[float, float] | None = None
) -> Interval | None:
    """Interval of the mean of the strata's expectations, all of which are seen, each by the same number of values.

    What tells the strata apart leaves nothing open; only what differs within them does. Degrees of freedom are
    Satterthwaite's (1946). Where strata have fewer than 8 values, or differ in their number, the values are taken as
    independent ones of a single expectation, which makes the interval wider than it need be.

    Args:
        values: [n] finite numbers.
        strata: [n] labels.
        confidence: see `independent_interval`.
        bounds: see `independent_interval`.
    """
    _check(values, strata, confidence, bounds)
    labels, place, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    if len(labels) == 0 or sizes.min() != sizes.max() or sizes[0] < _LEAST_REPEATS:
        return independent_interval(values, confidence, bounds)
    means = np.bincount(place, values) / sizes
    variances = np.bincount(place, (values - means[place]) ** 2) / (sizes - 1)  # of each stratum
    variance, freedom = _without_rounding(float(variances.mean()), values), len(values) - len(labels)
    if variance > 0:
        freedom = int(variances.sum() ** 2 / (variances**2).sum() * (sizes[0] - 1))
    return _interval(float(values.mean()), variance, len(values), freedom, confidence, bounds)


def t_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| ≤ t) = `confidence` for Student's T with `freedom` degrees, at least 1.

    With t = √ν tan θ the probability is a finite sum of powers of cos θ (Abramowitz and Stegun, 26.7.3 and 26.7.4), and
    grows with θ.

    >>> round(t_quantile(0.95, 4), 4)
    2.7764
    """
    odd = freedom % 2
    powers = np.arange(odd, freedom - 1, 2)
    coefficients = np.cumprod(np.where(powers < 2, 1.0, (powers - 1) / np.maximum(powers, 1)))

    def probability(theta: float) -> float:
        total = math.sin(theta) * float(coefficients @ math.cos(theta) ** powers)
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _interval(
    mean: float,
    variance: float,
    count: int,
    freedom: int,
    confidence: float,
    bounds: tuple[float, float] | None,
) -> Interval | None:
    """Interval of a mean of `count` independent units with this variance, estimated with so many degrees of freedom."""
    plain = _around(mean, variance, count, freedom, confidence) if freedom > 0 and variance > 0 else None
    if bounds is None:
        return plain
    low, high = bounds
    each = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / 2  # values at either bound
    total = count + 2 * each
    centre = (count * mean + each * (low + high)) / total
    squares = (count - 1) * variance + count * (mean - centre) ** 2
    squares += each * ((low - centre) ** 2 + (high - centre) ** 2)
    wide = _around(centre, squares / (total - 1), total, freedom + int(2 * each), confidence)
    lows, highs = zip(*((part.low, part.high) for part in (plain, wide) if part is not None), strict=True)
    return Interval(mean, max(low, min(lows)), min(high, max(highs)))


def _around(mean: float, variance: float, count: float, freedom: int, confidence: float) -> Interval:
    half_width = t_quantile(confidence, min(max(freedom, 1), _MOST_FREEDOM)) * math.sqrt(variance / count)
    return Interval(mean, mean - half_width, mean + half_width)


def _without_rounding(variance: float, values: np.ndarray) -> float:
    """The variance, or 0 where it is nothing but the rounding of numbers that are all equal."""
    return variance if variance > (1e-12 * float(np.abs(values).max())) ** 2 else 0.0


def _check(values: np.ndarray, labels: np.ndarray, confidence: float, bounds: tuple[float, float] | None) -> None:
    if values.ndim != 1 or values.shape != labels.shape:
        raise ValueError(f"values and labels have shapes {values.shape} and {labels.shape}; give two vectors alike")
    if not np.isfinite(values).all():
        raise ValueError(f"values[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite; give finite numbers")
    if np.abs(values).max(initial=0) > _LARGEST:
        raise ValueError(f"a score of {np.abs(values).max():g} is too large to be squared; scale the reward down")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; give a number between 0 and 1")
    if bounds is None:
        return
    if not bounds[0] < bounds[1] or not np.isfinite(bounds).all():
        raise ValueError(f"bounds={bounds}; give two finite numbers, the lower one first")
    outside = (values < bounds[0]) | (values > bounds[1])
    if outside.any():
        raise ValueError(f"values[{int(outside.argmax())}] is {values[outside][0]}, outside the bounds {bounds}")
