"""Effective rewards of groups: closed forms, and every tuple of draws."""

import itertools
import math

import numpy as np
import pytest

from tests.textgym.oracle_cases import random_policy, small_tree
from textgym.oracle import effective_reward, sequence_log_probs


def group_mean(returns):
    return returns - returns.mean(axis=1, keepdims=True)


def leave_one_out(returns):
    others = returns.sum(axis=1, keepdims=True) - returns
    return returns - others / (returns.shape[1] - 1)


def standardised(returns):
    """(r - mean) / std with Bessel's correction, 0 where all are equal."""
    constant = returns.max(axis=1, keepdims=True) == returns.min(axis=1, keepdims=True)
    std = np.where(constant, 1.0, returns.std(axis=1, ddof=1, keepdims=True))
    return np.where(constant, 0.0, group_mean(returns) / std)


RETURNS, PROBS = np.array([0.5, -1.0, 2.0, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
CENTRED = RETURNS - RETURNS @ PROBS


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_a_group_mean_shrinks_the_centred_return(size):
    found = effective_reward(RETURNS, PROBS, size, group_mean)
    np.testing.assert_allclose(found, (size - 1) / size * CENTRED, atol=1e-13)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_leaving_one_out_centres_the_return(size):
    np.testing.assert_allclose(effective_reward(RETURNS, PROBS, size, leave_one_out), CENTRED, atol=1e-13)


@pytest.mark.parametrize(("size", "weight"), [(2, 0.707), (4, 1.426), (8, 1.902), (16, 2.140)])
def test_the_weight_of_a_success_under_a_group_standard_deviation(size, weight):
    """w_G = f(1) - f(0) at p = .755, which tends to 1/√(p (1 - p)) = 2.325."""
    p, q = 0.755, 0.245
    f = effective_reward([1.0, 0.0], [p, q], size, standardised)
    assert f[0] - f[1] == pytest.approx(weight, abs=5e-4)
    # A group of k successes adds up to Σ A r = √(k (G - k) (G - 1) / G), and its mean is G p q w_G.
    sums = [math.sqrt(k * (size - k) * (size - 1) / size) for k in range(size + 1)]
    mean = sum(math.comb(size, k) * p**k * q ** (size - k) * sums[k] for k in range(size + 1))
    assert f[0] - f[1] == pytest.approx(mean / (size * p * q), rel=1e-12)
    assert p * f[0] + q * f[1] == pytest.approx(0, abs=1e-14)


def test_a_pair_by_hand():
    # Against an equal 0, against the other ±1/√2.
    f = effective_reward([0, 1], [0.25, 0.75], 2, standardised)
    np.testing.assert_allclose(f, [-0.75 / np.sqrt(2), 0.25 / np.sqrt(2)])


def test_a_large_group_tends_to_the_standardised_return():
    f = effective_reward([1.0, 0.0], [0.755, 0.245], 2_000, standardised)
    assert f[0] - f[1] == pytest.approx(1 / np.sqrt(0.755 * 0.245), rel=1e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_it_is_the_mean_over_every_tuple_of_the_others(size):
    def curved(returns):  # no closed form
        return np.exp(returns) / (1 + returns.max(axis=1, keepdims=True) ** 2) - np.median(returns, axis=1)[:, None]

    found = effective_reward(RETURNS, PROBS, size, curved)
    expected = np.zeros(4)
    for own in range(4):
        for others in itertools.product(range(4), repeat=size - 1):
            group = RETURNS[[own, *others]][None]
            expected[own] += np.prod(PROBS[list(others)]) * curved(group)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_equal_returns_are_one():
    found = effective_reward([1, 0, 0.1 + 0.2, 0.3, 1], [0.1, 0.2, 0.3, 0.3, 0.1], 3, standardised)
    merged = effective_reward([0, 0.3, 1], [0.2, 0.6, 0.2], 3, standardised)
    np.testing.assert_allclose(found, merged[[2, 0, 1, 1, 2]], atol=1e-14)


def test_returns_that_cancel_are_one_on_the_scale_of_their_rewards():
    returns, probs = [0.1 + 0.7 - 0.8, 0.0, 0.8 - 0.1 - 0.7], [0.5, 0.3, 0.2]
    assert len(set(returns)) > 1 and np.abs(effective_reward(returns, probs, 3, standardised)).max() > 0.1
    assert effective_reward(returns, probs, 3, standardised, scale=1.6).tolist() == [0, 0, 0]
    apart = effective_reward([0.0, 1.0], [0.5, 0.5], 2, standardised, scale=1e9)
    np.testing.assert_allclose(apart, [-np.sqrt(0.125), np.sqrt(0.125)])


def test_a_return_without_probability_has_one_still():
    found = effective_reward([0.0, 1.0, 5.0], [0.5, 0.5, 0.0], 3, leave_one_out)
    np.testing.assert_allclose(found, [-0.5, 0.5, 4.5])


def test_over_the_sequences_of_a_tree():
    tree = small_tree({"aa": 1.0, "ab": 0.0, "ba": 2.0, "bb": 0.0})
    p, returns = np.exp(sequence_log_probs(tree, random_policy(tree, 0))), tree.sequences().returns
    found = effective_reward(returns, p, 4, leave_one_out)
    np.testing.assert_allclose(found, returns - p @ returns, atol=1e-14)


def test_every_group_is_weighed_in_chunks_too(monkeypatch):
    expected = effective_reward(RETURNS, PROBS, 5, standardised)
    monkeypatch.setattr("textgym.oracle.groups._AT_ONCE", 15)
    np.testing.assert_allclose(effective_reward(RETURNS, PROBS, 5, standardised), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0, 1], [1.0], 2), ValueError, "there are 2 returns and 1 probs; give one probability a return"),
        (([0, 1], [0.5, 0.6], 2), ValueError, "probs sum to 1.1"),
        (([0, 1], [1.5, -0.5], 2), ValueError, "the least is -0.5"),
        (([0, np.inf], [0.5, 0.5], 2), ValueError, r"returns is \[0, inf\]; give a flat list"),
        (([], [], 2), ValueError, r"returns is \[\]; give a flat list of at least one finite number"),
        (("ab", [1.0], 2), TypeError, "returns is 'ab' of type str; give a list of numbers"),
        (([[0, 1]], [[0.5, 0.5]], 2), ValueError, "give a flat list"),
        (([0, 1], [0.5, 0.5], 0), ValueError, "group_size=0; give an integer of at least 1"),
        (([0, 1], [0.5, 0.5], 2.0), TypeError, "group_size is 2.0 of type float; give an integer"),
        # 100 × (102 choose 3)
        ((range(100), [0.01] * 100, 4), ValueError, "100 distinct returns in groups of 4 make 17,170,000 groups, and"),
        ((range(100), [0.01] * 100, 10**6), ValueError, r"make more than 10\^30 groups.*give a smaller group_size"),
    ],
)
def test_malformed_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        effective_reward(*arguments, group_mean)


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        ("1", TypeError, r"scale is '1' of type str; give a number of at least 0"),
        (True, TypeError, "scale is True of type bool"),
        (
            -1.0,
            ValueError,
            "scale=-1.0; give a finite number of at least 0: the largest sum of .rewards. of a",
        ),
        (float("nan"), ValueError, "scale=nan"),
        (np.float64("inf"), ValueError, "scale=inf"),
    ],
)
def test_malformed_scales(scale, error, words):
    with pytest.raises(error, match=words):
        effective_reward([0, 1], [0.5, 0.5], 2, group_mean, scale=scale)


def test_malformed_advantages():
    with pytest.raises(ValueError, match=r"advantages returned an array of shape \(3,\) for 3 groups of 3"):
        effective_reward([0, 1], [0.5, 0.5], 3, lambda returns: returns[:, 0])
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=r"returned \[nan, nan\] for the returns \[0.0, 0.0\]; return finite numbers"),
    ):
        effective_reward([0, 1], [0.5, 0.5], 2, lambda returns: group_mean(returns) / returns.std(axis=1)[:, None])
