"""Values of a policy and the optimum: numbers by hand, sums over every episode played, and what tasks declare."""

import math

import numpy as np
import pytest

import textgym
from tests.textgym.cases import CASES, make
from tests.textgym.oracle_cases import TREES, played, random_policy, small_tree, states_of, tree_of
from textgym.oracle import enumerate_tree, optimum, values

REWARDS = {"aa": 1.0, "ab": 0.0, "ba": 2.0, "bb": -1.0}
# Nodes: the root, "a", "b".
POLICY = np.log([[1 / 4, 3 / 4], [1 / 2, 1 / 2], [1 / 3, 2 / 3]])


def test_values_by_hand():
    found = values(small_tree(REWARDS), POLICY)
    assert found.objective == pytest.approx(1 / 8)
    np.testing.assert_allclose(found.prompt_objective, [1 / 8])
    np.testing.assert_allclose(found.v, [1 / 8, 1 / 2, 0], atol=1e-15)
    np.testing.assert_allclose(found.q, [[1 / 2, 0], [1, 0], [2, -1]], atol=1e-15)
    np.testing.assert_allclose(found.advantage, [[3 / 8, -1 / 8], [1 / 2, -1 / 2], [2, -1]], atol=1e-15)
    np.testing.assert_allclose(found.visitation, [1, 1 / 4, 3 / 4])


def test_a_discount_by_hand():
    found = values(small_tree(REWARDS, scheme=textgym.schemes.Length(0.5)), POLICY, gamma=0.5)
    # V("a") = 1/2 - 1/2, V("b") = 0 - 1/2, Q(root) = -1/2 + V/2
    np.testing.assert_allclose(found.v[1:], [0, -1 / 2], atol=1e-15)
    np.testing.assert_allclose(found.q[0], [-1 / 2, -3 / 4], atol=1e-15)
    assert found.objective == pytest.approx(-1 / 2 / 4 - 3 / 4 * 3 / 4)
    np.testing.assert_allclose(found.visitation, [1, 1 / 4, 3 / 4])


def test_prompts_are_weighed():
    tree = enumerate_tree(make("columns"), weights=[1, 2, 5])
    found = values(tree, random_policy(tree, 0))
    assert found.objective == pytest.approx(found.prompt_objective @ [1 / 8, 2 / 8, 5 / 8])
    assert found.visitation[:3].tolist() == [1 / 8, 2 / 8, 5 / 8]
    assert len(set(found.prompt_objective)) == 3


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("name", TREES)
def test_values_are_means_over_every_episode_played(name, gamma):
    tree = tree_of(name)
    log_probs = random_policy(tree, seed=1, never=0.2)
    node_of = {state: node for node, state in enumerate(states_of(tree))}
    visits, gained = np.zeros(tree.num_nodes), np.zeros(tree.num_nodes)
    taken, after = np.zeros(tree.legal.shape), np.zeros(tree.legal.shape)
    for episode in played(name).episodes:
        nodes = [node_of[episode.prompt, episode.ids[:step]] for step in range(len(episode.ids))]
        steps = list(zip(nodes, episode.ids, strict=True))
        for step, (node, action) in enumerate(steps):
            # The probability of what is still to come, given this step and given this state.
            later = math.exp(sum(log_probs[place] for place in steps[step + 1 :]))
            to_go = sum(gamma**k * reward for k, reward in enumerate(episode.rewards[step:]))
            now = later * math.exp(log_probs[node, action])
            gained[node] += now * to_go
            after[node, action] += later * to_go
        whole = tree.weights[episode.prompt] * math.exp(sum(log_probs[place] for place in steps))
        for node, action in steps:
            visits[node] += whole
            taken[node, action] += whole
    found = values(tree, log_probs, gamma=gamma)
    np.testing.assert_allclose(found.v, gained, atol=1e-12)
    np.testing.assert_allclose(found.q, after, atol=1e-12)
    np.testing.assert_allclose(found.advantage, np.where(tree.legal, after - gained[:, None], 0), atol=1e-12)
    np.testing.assert_allclose(found.visitation, visits, atol=1e-12)
    np.testing.assert_allclose(found.visitation[:, None] * np.exp(log_probs), taken, atol=1e-12)
    roots = gained[: len(tree.prompts)]
    np.testing.assert_allclose(found.prompt_objective, roots, atol=1e-12)
    assert found.objective == pytest.approx(float(tree.weights @ roots))


def test_the_optimum_by_hand():
    best = optimum(small_tree(REWARDS))
    assert best.objective == 2
    assert best.v.tolist() == [2, 1, 2]
    assert best.q.tolist() == [[1, 2], [1, 0], [2, -1]]
    assert best.log_probs.tolist() == [[-np.inf, 0], [0, -np.inf], [0, -np.inf]]


@pytest.mark.parametrize("name", TREES)
def test_the_optimum_is_the_best_episode_of_each_prompt(name):
    tree = tree_of(name)
    best = optimum(tree)
    returns = [[] for _ in tree.prompts]
    for episode in played(name).episodes:
        returns[episode.prompt].append(sum(episode.rewards))
    expected = [max(own) for own in returns]
    np.testing.assert_allclose(best.prompt_objective, expected)
    assert best.objective == pytest.approx(float(tree.weights @ expected))
    found = values(tree, best.log_probs)
    np.testing.assert_allclose(found.v, best.v, atol=1e-12)
    assert (np.where(tree.legal, found.advantage, 0) <= 1e-12).all()
    assert found.objective > values(tree, tree.uniform()).objective or name == "only_stop"


def test_the_best_is_legal_where_all_is_lost():
    """A reward below 0 in every legal action must not let an illegal one win."""
    tree = enumerate_tree(make("masked", reward=lambda completions: [-5.0] * len(completions)))
    best = optimum(tree)
    assert best.objective == -5
    assert (best.log_probs[~tree.legal] == -np.inf).all()


# Sequences at most, and more where a task is worth the time.
LIMITS = {"addition-1": 200_000}
LARGE_TASKS = ("sort",)  # at every level


@pytest.mark.parametrize("name", [name for name in CASES if "-" in name and "noisy" not in name])
def test_built_in_tasks_declare_their_exact_returns(name):
    task, level = name.split("-")
    task = textgym.make_task(task, int(level))
    try:
        tree = enumerate_tree(task, limit=LIMITS.get(name, 70_000))
    except ValueError as error:
        assert "too large to enumerate" in str(error)
        assert task.name in LARGE_TASKS or level != "1"
        return
    assert optimum(tree).objective == pytest.approx(task.optimum, rel=1e-12)
    assert values(tree, tree.uniform()).objective == pytest.approx(task.uniform, rel=1e-12)


@pytest.mark.parametrize(
    ("gamma", "error", "words"),
    [
        (1.1, ValueError, "gamma=1.1; give a number from 0 to 1"),
        (float("nan"), ValueError, "gamma=nan"),
        ("1", TypeError, "gamma is '1' of type str"),
        (True, TypeError, "gamma is True of type bool"),
    ],
)
def test_malformed_discounts(gamma, error, words):
    with pytest.raises(error, match=words):
        values(small_tree(REWARDS), POLICY, gamma=gamma)
