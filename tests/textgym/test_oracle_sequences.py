"""Distributions over whole sequences: probabilities by hand, and best-of-n against every n-tuple of draws."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.oracle_cases import TREES, random_policy, small_tree, states_of, tree_of
from textgym.oracle import best_of_n, enumerate_tree, sequence_log_probs
from textgym.oracle.ties import distinct
from textgym.schemes import Potential


def best_of_tuples(p, returns, n):
    """The distribution of the best of n draws, over all n-tuples; ties are drawn alike among the draws."""
    q = np.zeros(len(p))
    for drawn in itertools.product(range(len(p)), repeat=n):
        best = [one for one in drawn if returns[one] == max(returns[list(drawn)])]
        for one in best:
            q[one] += np.prod(p[list(drawn)]) / len(best)
    return q


def test_sequence_log_probs_by_hand():
    tree = small_tree({"aa": 1.0, "ab": 0.0, "ba": 2.0, "bb": -1.0})
    policy = np.log([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [1 / 3, 2 / 3]])
    np.testing.assert_allclose(np.exp(sequence_log_probs(tree, policy)), [1 / 8, 1 / 8, 1 / 4, 1 / 2])


@pytest.mark.parametrize("name", TREES)
def test_sequence_log_probs_are_sums_along_the_path(name):
    tree = tree_of(name)
    policy = random_policy(tree, 4, never=0.2)
    node_of = {state: node for node, state in enumerate(states_of(tree))}
    s = tree.sequences()
    expected = []
    for prompt, actions, length in zip(s.prompt.tolist(), s.actions, s.length, strict=True):
        ids = tuple(actions[:length].tolist())
        expected.append(sum(policy[node_of[prompt, ids[:step]], ids[step]] for step in range(length)))
    np.testing.assert_allclose(sequence_log_probs(tree, policy), expected)


def test_best_of_n_by_hand():
    tree = small_tree({"a": 0.0, "b": 1.0})
    best = best_of_n(tree, np.log([[1 / 4, 3 / 4]]), 2)
    np.testing.assert_allclose(best.probabilities, [1 / 16, 15 / 16])
    assert best.objective == pytest.approx(15 / 16)
    assert best.kl == pytest.approx(1 / 16 * np.log(1 / 4) + 15 / 16 * np.log(5 / 4))


def test_ties_are_drawn_alike():
    tree = small_tree({"a": 1.0, "b": 1.0, "c": 0.0}, symbols="abc")
    best = best_of_n(tree, np.log([[0.2, 0.3, 0.5]]), 2)
    np.testing.assert_allclose(best.probabilities, [0.3, 0.45, 0.25])  # 3/4 of it 2 : 3
    never_c = np.array([[np.log(0.4), np.log(0.6), -np.inf]])
    np.testing.assert_allclose(best_of_n(tree, never_c, 9).probabilities, [0.4, 0.6, 0])


def test_sums_that_differ_by_rounding_alone_are_ties():
    levels, places = distinct(np.array([0.1 + 0.2, -5.0, 0.3, 0.30001]))
    assert (len(levels), places.tolist()) == (3, [1, 0, 1, 2])
    assert distinct(np.zeros(3))[1].tolist() == [0, 0, 0]
    assert distinct(np.array([0.0, 1e-300]))[1].tolist() == [0, 1]


def test_sums_that_cancel_are_ties_on_the_scale_of_their_terms():
    terms = np.array([[0.1, 0.7, -0.8], [0.0, 0.0, 0.0], [-0.8, 0.7, 0.1]])
    returns = terms.sum(axis=1)
    assert len(set(returns)) > 1  # as floats
    assert distinct(returns, scale=np.abs(terms).sum(axis=1).max())[1].tolist() == [0, 0, 0]
    assert distinct(np.array([0.0, 1e-11]), scale=1.6)[1].tolist() == [0, 1]
    assert distinct(np.array([0.1 + 0.2, 0.3]), scale=0.0)[1].tolist() == [0, 0]  # the returns themselves count too


def of_the_last_letter(completions):
    """Φ, 0 at the beginning: its differences along a text add up to 0 on paper."""
    return [{"": 0.0, "a": 0.1, "b": 0.7, "c": 1 / 3}[text[-1:]] for text in completions]


def test_nothing_is_chosen_where_a_potential_alone_pays():
    env = gym.make(
        "TextGen-v0",
        tokenizer=["a", "b", "c"],
        prompts=[""],
        reward=lambda completions: [0.0] * len(completions),
        scheme=["terminal", Potential(of_the_last_letter)],
        max_new_tokens=4,
    )
    tree = enumerate_tree(env)
    assert np.ptp(tree.sequences().returns) > 0  # rounding
    best = best_of_n(tree, tree.uniform(), 4)
    assert best.kl == 0
    np.testing.assert_allclose(best.probabilities, 1 / 81)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_is_that_of_every_tuple(n):
    rewards = {"aa": 1.0, "ab": 0.25, "ac": 0.25, "ba": -1.0, "bb": 1.0, "bc": 0.5, "ca": 0.25, "cb": 0.0, "cc": 1.0}
    tree = small_tree(rewards, symbols="abc")
    policy = random_policy(tree, 5, never=0.2)
    p, returns = np.exp(sequence_log_probs(tree, policy)), tree.sequences().returns
    q = best_of_tuples(p, returns, n)
    best = best_of_n(tree, policy, n)
    np.testing.assert_allclose(best.probabilities, q, atol=1e-15)
    assert best.objective == pytest.approx(q @ returns)
    taken = q > 0
    expected = (q[taken] * np.log(q[taken] / p[taken])).sum()
    assert best.kl == pytest.approx(expected, abs=1e-14)
    assert best.kl <= np.log(n) - (n - 1) / n + 1e-15


def test_best_of_n_is_taken_within_each_prompt():
    tree = tree_of("columns")
    policy, returns = random_policy(tree, 6), tree.sequences().returns
    best = best_of_n(tree, policy, 2)
    p = np.exp(sequence_log_probs(tree, policy))
    for prompt in range(len(tree.prompts)):
        own = np.flatnonzero(tree.sequences().prompt == prompt)
        pairs = p[own][:, None] * p[own]
        first, second = returns[own][:, None], returns[own]
        wins = pairs * ((first > second) + (first == second) / 2)
        q = 2 * wins.sum(axis=1)
        np.testing.assert_allclose(best.probabilities[own], q, atol=1e-15)
        assert best.prompt_kl[prompt] == pytest.approx((q * np.log(q / p[own])).sum())
    assert best.kl == pytest.approx(tree.weights @ best.prompt_kl)
    assert best.objective == pytest.approx((tree.weights[tree.sequences().prompt] * best.probabilities) @ returns)
    assert len(set(best.prompt_kl.round(6))) == 3


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("n", [2, 5, 10**9])
def test_the_bound_holds(name, n):
    tree = tree_of(name)
    best = best_of_n(tree, random_policy(tree, 7), n)
    np.testing.assert_allclose(np.bincount(tree.sequences().prompt, weights=best.probabilities), 1)
    assert ((best.prompt_kl >= 0) & (best.prompt_kl <= np.log(n) - (n - 1) / n)).all()


def test_the_bound_is_tight_without_ties():
    letters = [chr(0x4E00 + place) for place in range(2_000)]
    tree = small_tree({letter: float(place) for place, letter in enumerate(letters)}, symbols="".join(letters))
    assert best_of_n(tree, tree.uniform(), 4).kl == pytest.approx(np.log(4) - 3 / 4, rel=1e-3)


def test_many_draws_take_the_best():
    tree = small_tree({"a": 0.0, "b": 1.0, "c": 2.0}, symbols="abc")
    rare = 1e-12
    best = best_of_n(tree, np.log([[0.5, 0.5 - rare, rare]]), 10**12)
    # The rare one is missed by 10^12 draws with probability 1/e.
    np.testing.assert_allclose(best.probabilities, [0, np.exp(-1), 1 - np.exp(-1)], atol=1e-9)


@pytest.mark.parametrize(
    ("n", "error", "words"),
    [(0, ValueError, "n=0; give an integer of at least 1"), (2.0, TypeError, "n is 2.0 of type float")],
)
def test_malformed_draws(n, error, words):
    tree = small_tree({"a": 0.0, "b": 1.0})
    with pytest.raises(error, match=words):
        best_of_n(tree, tree.uniform(), n)
