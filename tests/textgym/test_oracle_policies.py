"""What is no policy on a tree is refused by every function that takes one, with the place."""

import numpy as np
import pytest

from tests.textgym.oracle_cases import random_policy, small_tree, tree_of
from textgym.oracle import best_of_n, entropy, kl, regularised_objective, sequence_log_probs, soft_optimum, values

TREE = small_tree({"aa": 1.0, "ab": 0.0, "ba": 2.0, "bb": -1.0})
FUNCTIONS = {
    "values": values,
    "sequence_log_probs": sequence_log_probs,
    "best_of_n": lambda tree, log_probs: best_of_n(tree, log_probs, 2),
    "entropy": entropy,
    "kl": lambda tree, log_probs: kl(tree, log_probs, tree.uniform()),
    "regularised_objective": lambda tree, log_probs: regularised_objective(tree, log_probs, tree.uniform(), 1.0),
}
REFERENCES = {
    "soft_optimum": lambda tree, reference: soft_optimum(tree, reference, 1.0),
    "kl": lambda tree, reference: kl(tree, tree.uniform(), reference),
    "regularised_objective": lambda tree, reference: regularised_objective(tree, tree.uniform(), reference, 1.0),
}


def changed(tree, node, token, value):
    policy = tree.uniform()
    policy[node, token] = value
    return policy


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_is_no_policy(function):
    with pytest.raises(ValueError, match=r"log_probs has the shape \(2, 2\); give .* 3 nodes × 2 tokens, \(3, 2\)"):
        function(TREE, np.log(np.full((2, 2), 0.5)))
    with pytest.raises(TypeError, match="log_probs is 'uniform' of type str; give an array of log-probabilities"):
        function(TREE, "uniform")
    with pytest.raises(ValueError, match=r"log_probs\[2, 1\] is nan in node 2 \(prompt '', tokens written \[1\]\)"):
        function(TREE, changed(TREE, 2, 1, np.nan))
    with pytest.raises(ValueError, match=r"exp\(log_probs\) sum to 1\.5 in node 1 \(prompt '', tokens written \[0\]\)"):
        function(TREE, changed(TREE, 1, 0, 0.0))
    with pytest.raises(ValueError, match=r"exp\(log_probs\) sum to 3\.29744 in node 0"):
        function(TREE, np.exp(TREE.uniform()))  # probabilities, not their logs: 2 e^.5
    with pytest.raises(ValueError, match=r"exp\(log_probs\) sum to 0 in node 2"):
        function(TREE, np.where(np.arange(3)[:, None] == 2, -np.inf, TREE.uniform()))


@pytest.mark.parametrize("function", REFERENCES.values(), ids=REFERENCES)
def test_what_is_no_reference(function):
    with pytest.raises(ValueError, match=r"reference has the shape \(3,\)"):
        function(TREE, np.zeros(3))
    with pytest.raises(ValueError, match=r"exp\(reference\) sum to 1\.5 in node 1"):
        function(TREE, changed(TREE, 1, 0, 0.0))


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_an_illegal_token_with_probability(function):
    tree = tree_of("masked")
    node, token = (int(place[0]) for place in np.nonzero(~tree.legal))
    with pytest.raises(ValueError, match=rf"log_probs\[{node}, {token}\] is -9, and the token is illegal in node"):
        function(tree, changed(tree, node, token, -9.0))


def test_an_infinite_log_prob():
    with pytest.raises(ValueError, match=r"log_probs\[0, 1\] is inf in node 0"):
        values(TREE, changed(TREE, 0, 1, np.inf))


def test_a_policy_in_float32_is_one():
    policy = random_policy(TREE, 0)
    assert values(TREE, policy.astype(np.float32)).objective == pytest.approx(values(TREE, policy).objective, abs=1e-6)
    with pytest.raises(ValueError, match="sum to"):
        values(TREE, policy + 1e-5)
