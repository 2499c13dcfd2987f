"""The KL-regularised optimum, KL and entropy: by hand, against sums over whole sequences, and by the gap identity."""

import numpy as np
import pytest

from tests.textgym.oracle_cases import TREES, random_policy, small_tree, tree_of
from textgym.oracle import (
    entropy,
    kl,
    optimum,
    regularised_objective,
    sequence_log_probs,
    soft_optimum,
    values,
)

REWARDS = {"aa": 1.0, "ab": 0.0, "ba": 2.0, "bb": -1.0}
POLICY = np.log([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [1 / 3, 2 / 3]])
BETA = 1 / np.log(2)  # so that e^(R/β) = 2^R


def of_prompts(tree, per_sequence):
    """The sum over the sequences of each prompt, float64 [P]."""
    return np.bincount(tree.sequences().prompt, weights=per_sequence, minlength=len(tree.prompts))


def test_the_soft_optimum_by_hand():
    tree = small_tree(REWARDS)
    soft = soft_optimum(tree, tree.uniform(), BETA)
    # e^(V/β): after a (2 + 1)/2, after b (4 + 1/2)/2, at the root (3/2 + 9/4)/2
    np.testing.assert_allclose(soft.v, BETA * np.log([15 / 8, 3 / 2, 9 / 4]))
    np.testing.assert_allclose(soft.q, [[soft.v[1], soft.v[2]], [1, 0], [2, -1]])
    np.testing.assert_allclose(np.exp(soft.log_probs), [[2 / 5, 3 / 5], [2 / 3, 1 / 3], [8 / 9, 1 / 9]])
    np.testing.assert_allclose(soft.log_partition, [np.log(15 / 8)])
    assert soft.objective == pytest.approx(np.log2(15 / 8))


def test_kl_and_entropy_by_hand():
    tree = small_tree(REWARDS)
    at_root = 3 / 4 * np.log(3) - 2 * np.log(2)  # Σ p log p of 1/4, 3/4
    after_b = 2 / 3 * np.log(2) - np.log(3)
    assert entropy(tree, POLICY) == pytest.approx(-at_root + 1 / 4 * np.log(2) - 3 / 4 * after_b)
    assert entropy(tree, tree.uniform()) == pytest.approx(2 * np.log(2))
    assert kl(tree, POLICY, tree.uniform()) == pytest.approx(2 * np.log(2) - entropy(tree, POLICY))
    assert kl(tree, POLICY, POLICY) == 0
    assert regularised_objective(tree, POLICY, tree.uniform(), 3.0) == pytest.approx(
        1 / 8 - 3 * kl(tree, POLICY, tree.uniform())
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TREES)
def test_the_soft_tree_is_the_boltzmann_distribution(name, seed):
    tree, beta = tree_of(name), (0.1, 0.5, 3.0)[seed]
    reference = random_policy(tree, seed, never=0.2)
    soft = soft_optimum(tree, reference, beta)
    weights = np.exp(sequence_log_probs(tree, reference) + tree.sequences().returns / beta)
    partition = of_prompts(tree, weights)
    np.testing.assert_allclose(soft.log_partition, np.log(partition), atol=1e-12)
    np.testing.assert_allclose(
        np.exp(sequence_log_probs(tree, soft.log_probs)), weights / partition[tree.sequences().prompt], atol=1e-13
    )
    assert soft.objective == pytest.approx(float(tree.weights @ (beta * np.log(partition))))
    assert soft.objective == pytest.approx(regularised_objective(tree, soft.log_probs, reference, beta))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TREES)
def test_the_gap_to_the_optimum_is_the_kl_to_it(name, seed):
    """J_β* - J_β(π) = β KL(π‖π*), for any π."""
    tree, beta = tree_of(name), (0.1, 0.5, 3.0)[seed]
    reference, policy = random_policy(tree, seed), random_policy(tree, seed + 10, never=0.3)
    soft = soft_optimum(tree, reference, beta)
    gap = soft.objective - regularised_objective(tree, policy, reference, beta)
    assert gap == pytest.approx(beta * kl(tree, policy, soft.log_probs), abs=1e-12)
    assert gap > 1e-3 or name == "only_stop"


@pytest.mark.parametrize("name", TREES)
def test_chain_rules_are_sums_over_sequences(name):
    tree = tree_of(name)
    policy, reference = random_policy(tree, 1, never=0.3), random_policy(tree, 2)
    p, log_p = np.exp(sequence_log_probs(tree, policy)), sequence_log_probs(tree, policy)
    np.testing.assert_allclose(of_prompts(tree, p), 1)
    with np.errstate(invalid="ignore"):
        ratio = np.where(p > 0, log_p - sequence_log_probs(tree, reference), 0)
    expected = tree.weights @ of_prompts(tree, p * ratio)
    assert kl(tree, policy, reference) == pytest.approx(float(expected), abs=1e-12)
    surprise = np.where(p > 0, -log_p, 0)
    assert entropy(tree, policy) == pytest.approx(float(tree.weights @ of_prompts(tree, p * surprise)), abs=1e-12)


def test_kl_is_infinite_where_the_reference_never_goes():
    tree = small_tree(REWARDS)
    never_b = tree.uniform()
    never_b[0] = [0.0, -np.inf]
    assert kl(tree, POLICY, never_b) == np.inf
    assert regularised_objective(tree, POLICY, never_b, 0.1) == -np.inf
    assert kl(tree, never_b, POLICY) == pytest.approx(np.log(4))  # a has probability 1/4, both agree after it


def test_kl_is_finite_where_neither_goes():
    tree = small_tree(REWARDS)
    half, inf = np.log(0.5), -np.inf
    only_a = np.array([[0.0, inf], [half, half], [half, half]])
    only_a_too = np.array([[0.0, inf], [half, half], [0.0, inf]])  # differs where neither goes
    assert kl(tree, only_a, only_a_too) == 0
    assert kl(tree, only_a_too, only_a) == 0
    assert entropy(tree, only_a_too) == pytest.approx(np.log(2))


def test_the_soft_optimum_keeps_to_the_support_of_the_reference():
    tree = small_tree(REWARDS)
    half, inf = np.log(0.5), -np.inf
    soft = soft_optimum(tree, np.array([[0.0, inf], [half, half], [half, half]]), BETA)
    assert soft.log_probs[0].tolist() == [0, inf]
    assert soft.v[0] == pytest.approx(BETA * np.log(3 / 2))
    tree = tree_of("masked")
    reference = random_policy(tree, 0, never=0.4)
    assert (soft_optimum(tree, reference, 0.3).log_probs[reference == -np.inf] == -np.inf).all()


@pytest.mark.parametrize("beta", [1e-300, 1e-12])
def test_a_tiny_temperature_is_the_optimum(beta):
    tree = tree_of("masked")
    reference = tree.uniform()
    soft = soft_optimum(tree, reference, beta)
    assert soft.objective == pytest.approx(optimum(tree).objective)
    assert np.isfinite(soft.v).all()
    np.testing.assert_allclose(np.exp(soft.log_probs).sum(axis=1), 1)
    assert values(tree, soft.log_probs).objective == pytest.approx(optimum(tree).objective)


@pytest.mark.parametrize("beta", [1e-300, 1.0])
def test_the_best_token_is_one_that_the_reference_never_writes(beta):
    tree = small_tree({"a": 0.0, "b": 1e10})
    soft = soft_optimum(tree, np.array([[0.0, -np.inf]]), beta)
    assert soft.objective == 0
    assert soft.log_probs.tolist() == [[0, -np.inf]]


def test_a_huge_temperature_is_the_reference():
    tree = tree_of("columns")
    reference = random_policy(tree, 3)
    soft = soft_optimum(tree, reference, 1e6)
    np.testing.assert_allclose(soft.log_probs, reference, atol=1e-5)
    assert soft.objective == pytest.approx(values(tree, reference).objective, abs=1e-5)


@pytest.mark.parametrize("beta", [1e8, 1e12, 1e300])
def test_a_temperature_so_huge_that_rewards_are_lost_beside_it(beta):
    """J_β* = J + Var(R)/(2β) + ..., between J and J + 3²/(8β)."""
    tree = small_tree(REWARDS)
    soft = soft_optimum(tree, POLICY, beta)
    assert soft.objective == pytest.approx(1 / 8, abs=1e-14 + 9 / 8 / beta)
    np.testing.assert_allclose(soft.v, [1 / 8, 1 / 2, 0], atol=1e-14 + 9 / 8 / beta)
    np.testing.assert_allclose(np.exp(soft.log_probs), np.exp(POLICY), atol=1e-7)
    assert soft.log_partition == pytest.approx(1 / 8 / beta, rel=1e-6, abs=0)


def test_the_first_order_of_a_huge_temperature_by_hand():
    tree = small_tree({"a": 0.0, "b": 1.0})
    soft = soft_optimum(tree, np.log([[0.7, 0.3]]), 1e4)
    assert 1e4 * (soft.objective - 0.3) == pytest.approx(0.7 * 0.3 / 2, rel=1e-3)


def test_a_reference_that_float32_rounded_is_normalised():
    tree = small_tree({"a": 0.0, "b": 1.0, "c": 0.5}, symbols="abc")
    single = np.log(np.float32([[0.1, 0.2, 0.7]])).astype(np.float64)
    assert abs(np.exp(single).sum() - 1) > 1e-9
    soft = soft_optimum(tree, single, 1e12)
    assert soft.objective == pytest.approx(0.55, abs=1e-7)
    np.testing.assert_allclose(np.exp(soft.log_probs).sum(), 1, rtol=0, atol=1e-15)


def test_a_temperature_at_which_the_partition_overflows():
    tree = small_tree(REWARDS)
    with pytest.raises(ValueError, match="beta=1e-310 is too small: log Z = V/β overflows, V being 2; give a larger"):
        soft_optimum(tree, tree.uniform(), 1e-310)
    nothing = soft_optimum(small_tree({"a": 0.0, "b": -1.0}), np.log([[0.5, 0.5]]), 1e-310)  # V is -β log 2
    assert nothing.log_partition == pytest.approx([-np.log(2)])
    np.testing.assert_array_equal(np.exp(nothing.log_probs), [[1, 0]])


def test_a_best_token_that_the_reference_hardly_writes():
    tree = small_tree({"a": 0.0, "b": 1000.0})
    soft = soft_optimum(tree, np.array([[np.log1p(-np.exp(-900.0)), -900.0]]), 1.0)
    np.testing.assert_allclose(soft.log_probs, [[-100, -np.exp(-100)]], atol=1e-12)
    assert soft.objective == pytest.approx(100)


@pytest.mark.parametrize(
    ("beta", "error", "words"),
    [
        (0, ValueError, "beta=0; give a finite number above 0"),
        (-1.0, ValueError, "beta=-1.0"),
        (float("inf"), ValueError, "beta=inf"),
        (float("nan"), ValueError, "beta=nan"),
        ("1", TypeError, "beta is '1' of type str; give a number above 0"),
        (True, TypeError, "beta is True of type bool"),
    ],
)
def test_malformed_temperatures(beta, error, words):
    tree = small_tree(REWARDS)
    with pytest.raises(error, match=words):
        soft_optimum(tree, tree.uniform(), beta)
    with pytest.raises(error, match=words):
        regularised_objective(tree, POLICY, tree.uniform(), beta)
