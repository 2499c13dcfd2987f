"""Intervals of a few numbers: a mean, and the mean difference of paired runs.

Pure functions of arrays; what a number means is its caller's business.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, `mean` ± `half_width`, and a two-sided test against a mean of 0."""

    mean: float
    half_width: float
    low: float
    high: float
    p_value: float


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean: x̄ ± t_{n-1, (1+c)/2} · s/√n, s with n-1 in its denominator (Student 1908).

    Exact for independent normal values. Of values that never differ the interval has no width, and the p value is the
    limit: 1 where they are all 0, else 0.

    Args:
        values: [n] finite numbers, n ≥ 2, in any unit; the interval has the same.
        confidence: c, the share of such intervals that hold the true mean, between 0 and 1.

    Raises:
        ValueError: fewer than two values, values that are not finite or no vector, or a confidence outside (0, 1).

    >>> interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    '3.000 [1.037, 4.963]'
    """
    array = _checked(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; give a number between 0 and 1")
    freedom = len(array) - 1
    if (array == array[0]).all():  # exactly; rounding in the mean would leave a width
        mean = float(array[0])
        return Interval(mean, 0.0, mean, mean, float(mean == 0))
    mean = float(array.mean())
    standard_error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half_width = float(stats.t.ppf((1 + confidence) / 2, freedom)) * standard_error
    p_value = float(2 * stats.t.sf(abs(mean) / standard_error, freedom))
    return Interval(mean, half_width, mean - half_width, mean + half_width, p_value)


def paired_t_interval(
    values: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """Paired t interval of a mean difference: the t interval of d_i = values_i - reference_i.

    What both members of a pair share, here a seed's weights and prompts, cancels; that is what common random numbers
    are for.

    Args:
        values: [n] one number a pair, n ≥ 2.
        reference: [n] the other number of each pair, in the same order.
        confidence: see `t_interval`.

    Raises:
        ValueError: as `t_interval`, or vectors of different lengths.

    >>> paired_t_interval([3.0, 5.0, 7.0], [2.0, 4.0, 6.0])
    Interval(mean=1.0, half_width=0.0, low=1.0, high=1.0, p_value=0.0)
    """
    first, second = _checked(values), _checked(reference)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values and {len(second)} to pair them with; give one for each")
    return t_interval(first - second, confidence)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"values have shape {array.shape}; an interval needs a vector of at least 2")
    if not np.isfinite(array).all():
        raise ValueError(f"values[{int(np.flatnonzero(~np.isfinite(array))[0])}] is not finite; give finite numbers")
    return array
