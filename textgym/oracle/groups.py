"""What a group of samples turns a return into, in expectation over the other members of the group."""

import math
import operator
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, islice
from typing import Any

import numpy as np

from textgym.escape import shown, type_name
from textgym.oracle.size import HUGE, told_number
from textgym.oracle.ties import distinct
from textgym.tasks.base import is_integer

_MOST_MEMBERS = 40_000_000  # of all groups together
_AT_ONCE = 2**20  # members of the groups of a call


def effective_reward(
    returns: Any, probs: Any, group_size: int, advantages: Callable[[np.ndarray], Any], *, scale: float = 0.0
) -> np.ndarray:
    """f_G(r): the expected advantage of a member whose return is r, over the other G - 1 members of its group.

    An estimator that weighs ∇ log π(y_i) with advantages of independent groups ascends E[f_G(R)] with f_G held fixed.
    Exact: every composition of the other members is weighed with its multinomial probability. Returns that differ by
    rounding alone, 1e-12 of the largest of them or of `scale`, are one.

    Args:
        returns: float64 [K], the returns that may occur.
        probs: float64 [K], how likely each is; they sum to 1.
        group_size: G, at least 1.
        advantages: maps returns float64 [M, G] of M groups to advantages [M, G]; treats the members of a group alike.
        scale: where rewards of both signs may cancel in a return, the largest sum of a sequence's |rewards|, such as
            `np.abs(tree.sequences().rewards).sum(axis=1).max()`; sums that should be equal differ by rounding of its
            size.

    Returns:
        float64 [K], f_G of each of the returns, also of one with probability 0.

    Raises:
        TypeError, ValueError: malformed arguments, advantages that are not M × G finite numbers, or too many
            compositions.

    >>> effective_reward([0, 1], [0.25, 0.75], 4, lambda returns: returns - returns.mean(axis=1, keepdims=True))
    array([-0.5625,  0.1875])
    """
    levels, place, mass = _checked(returns, probs, _checked_scale(scale))
    others = _checked_size(group_size) - 1
    likely = np.flatnonzero(mass > 0)
    _check_count(len(levels), len(likely), others)
    expected = np.zeros(len(levels))
    for compositions in _compositions(likely, others):
        weights = _multinomial(compositions, mass)
        for level, own in enumerate(levels):
            groups = np.column_stack([np.full(len(compositions), own), levels[compositions]])
            expected[level] += weights @ _advantages(advantages, groups)[:, 0]
    return expected[place]


def _compositions(likely: np.ndarray, others: int) -> Iterator[np.ndarray]:
    """Every multiset of `others` places out of `likely`, int64 [m, others] at a time."""
    every = combinations_with_replacement(likely.tolist(), others)
    while chunk := list(islice(every, max(1, _AT_ONCE // (others + 1)))):
        yield np.array(chunk, dtype=np.int64).reshape(len(chunk), others)


def _multinomial(compositions: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The probability of each multiset, in any order, float64 [m]."""
    others = compositions.shape[1]
    counts = np.stack([(compositions == place).sum(axis=1) for place in range(len(mass))], axis=1)
    log_factorial = np.array([math.lgamma(count + 1) for count in range(others + 1)])
    log_mass = np.log(mass, out=np.zeros(len(mass)), where=mass > 0)  # one of probability 0 is in no composition
    return np.exp(log_factorial[others] - log_factorial[counts].sum(axis=1) + counts @ log_mass)


def _advantages(function: Callable[[np.ndarray], Any], groups: np.ndarray) -> np.ndarray:
    advantages = np.asarray(function(groups.copy()), dtype=np.float64)
    if advantages.shape != groups.shape:
        raise ValueError(
            f"advantages returned an array of shape {advantages.shape} for {groups.shape[0]} groups of "
            f"{groups.shape[1]}; return one number a member, {groups.shape}"
        )
    if not np.isfinite(advantages).all():
        row = int((~np.isfinite(advantages)).any(axis=1).argmax())
        raise ValueError(
            f"advantages returned {advantages[row].tolist()} for the returns {groups[row].tolist()}; return finite "
            "numbers, 0 for a group of equal returns for instance"
        )
    return advantages


def _checked(returns: Any, probs: Any, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct returns, the place of each return among them, and their probabilities."""
    given, weights = (_numbers(name, value) for name, value in (("returns", returns), ("probs", probs)))
    if given.shape != weights.shape:
        raise ValueError(f"there are {len(given)} returns and {len(weights)} probs; give one probability a return")
    if (weights < 0).any() or not abs(weights.sum() - 1) <= 1e-6:
        raise ValueError(
            f"probs sum to {weights.sum():g}, the least is {weights.min():g}; give at least 0 each, 1 in all"
        )
    levels, place = distinct(given, scale)
    mass = np.bincount(place, weights=weights, minlength=len(levels))
    return levels, place, mass / mass.sum()


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {shown(value)} of type {type_name(value)}; give a list of numbers") from error
    if numbers.ndim != 1 or len(numbers) == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {shown(value)}; give a flat list of at least one finite number")
    return numbers


def _checked_size(group_size: Any) -> int:
    if not is_integer(group_size):
        raise TypeError(f"group_size is {shown(group_size)} of type {type_name(group_size)}; give an integer")
    if group_size < 1:
        raise ValueError(f"group_size={group_size}; give an integer of at least 1")
    return operator.index(group_size)


def _checked_scale(scale: Any) -> float:
    if isinstance(scale, bool | np.bool_) or not isinstance(scale, int | float | np.integer | np.floating):
        raise TypeError(f"scale is {shown(scale)} of type {type_name(scale)}; give a number of at least 0")
    if not (np.isfinite(scale) and scale >= 0):
        raise ValueError(
            f"scale={scale}; give a finite number of at least 0: the largest sum of |rewards| of a sequence"
        )
    return float(scale)


def _check_count(levels: int, likely: int, others: int) -> None:
    log_count = math.lgamma(others + likely) - math.lgamma(others + 1) - math.lgamma(likely)
    groups = levels * math.comb(others + likely - 1, others) if log_count < 100 else HUGE + 1
    if groups * (others + 1) > _MOST_MEMBERS:
        raise ValueError(
            f"{levels} distinct returns in groups of {others + 1} make {told_number(groups)} groups, and at most "
            f"{_MOST_MEMBERS:,} members of groups are enumerated; give a smaller group_size or fewer distinct returns"
        )
