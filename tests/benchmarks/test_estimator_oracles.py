"""What biased estimators are in expectation, from oracles of another kind; and the pitfalls that bias the others.

The certificate weighs the production coefficients of every batch; here the mean over the other members of a group comes
from `textgym.oracle.effective_reward`, discounted values from `textgym.oracle.values`, and samples from the sampler.
"""

from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import Algorithm
from agents.exact import exact_gradient, node_log_probs, score_gradient
from agents.rollout import Rollout, collect
from benchmarks.certificate import certify
from benchmarks.estimators import KEYWORDS, flat, gradient_of, make_policy, score
from benchmarks.fixture import Fixture, make_fixture, with_rewards
from tests.agents.hand_made import coefficients
from textgym.env import TextGenEnv
from textgym.oracle import Tree, effective_reward, enumerate_tree, values
from textgym.schemes import Payment, Potential

EXACT = 1e-12
D, STOP = 3, 4
GAMMA = 0.9
EPISODES = 20_000


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    env = TextGenEnv(reward=score, **KEYWORDS)
    return make_fixture(make_policy(env, seed=2), enumerate_tree(env))


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# --- the effective reward of groups that are standardised


def standardised(returns: np.ndarray) -> np.ndarray:
    """(r - mean) / std of each row, over G - 1; 0 where all are equal."""
    deviation = returns.std(axis=1, ddof=1, keepdims=True)
    return (returns - returns.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)


def gradient_of_effective(
    fixture: Fixture,
    size: int,
    told: Callable[[np.ndarray, np.ndarray], np.ndarray],
    advantages: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """∇E[f_G], f_G held constant and paid at the end.

    Args:
        fixture: the task.
        size: G.
        told: from returns and lengths of complete texts to the number that the members of a group compare.
        advantages: of such numbers [M, G], as `effective_reward` takes them.
    """
    tree, probs = fixture.tree, fixture.exact.values.visitation[:, None] * np.exp(node_log_probs_of(fixture))
    length, paid = np.broadcast_to(tree.depth[:, None] + 1, tree.ends.shape), np.zeros(tree.ends.shape)
    for prompt in range(len(tree.prompts)):
        own = tree.ends & (tree.prompt == prompt)[:, None]
        share = probs[own] / tree.weights[prompt]
        assert share.sum() == pytest.approx(1, abs=1e-14)
        paid[own] = effective_reward(told(tree.reward[own], length[own]), share, size, advantages)
    return flat(exact_gradient(fixture.policy, replace(tree, reward=paid)).gradient)


def node_log_probs_of(fixture: Fixture) -> np.ndarray:
    return node_log_probs(fixture.policy, fixture.tree)


@pytest.mark.parametrize("size", [2, 4])
def test_grpo_ascends_its_effective_reward(size, fixture):
    truth = gradient_of_effective(fixture, size, lambda returns, length: returns, standardised)
    found = certify(fixture, make_algorithm("grpo", aggregation="constant"), size).mean
    assert distance(found, truth) < EXACT
    assert distance(found, gradient_of(fixture)) > 0.1


@pytest.mark.parametrize("name", ["grpo", "gspo"])
@pytest.mark.parametrize("size", [2, 4])
def test_grpo_ascends_its_effective_reward_over_the_length(size, name, fixture):
    # A sum of length and a small return, so that the mean over the others knows both of each member.
    truth = gradient_of_effective(fixture, size, with_length, lambda told: standardised(told % 4) / (told // 4))
    found = certify(fixture, ALGORITHMS[name], size).mean
    assert distance(found, truth) < EXACT
    by_token = gradient_of_effective(fixture, size, lambda returns, length: returns, standardised)
    assert distance(found, by_token) > 0.1


@pytest.mark.parametrize("name", ["dapo", "cispo"])
@pytest.mark.parametrize("size", [2, 4])
def test_dapo_ascends_its_effective_reward_over_the_mean_length_of_the_group(size, name, fixture):
    def over_the_mean(told: np.ndarray) -> np.ndarray:
        return standardised(told % 4) / (told // 4).mean(axis=1, keepdims=True)

    truth = gradient_of_effective(fixture, size, with_length, over_the_mean)
    found = certify(fixture, ALGORITHMS[name], size).mean
    assert distance(found, truth) < EXACT
    assert distance(found, certify(fixture, ALGORITHMS["grpo"], size).mean) > 0.1


def with_length(returns: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Both in one number: 4 length + return, exactly, since returns are multiples of a half below 4."""
    assert ((returns >= 0) & (returns < 4)).all()
    return 4 * length + returns


def test_a_deviation_over_all_members_would_be_noticed(fixture):
    def over_all(returns: np.ndarray) -> np.ndarray:
        return standardised(returns) * (returns.shape[1] / (returns.shape[1] - 1)) ** 0.5

    truth = gradient_of_effective(fixture, 2, lambda returns, length: returns, over_all)
    found = certify(fixture, make_algorithm("grpo", aggregation="constant"), 2).mean
    # At G = 2 the advantages are 1 and -1 instead of ±√½.
    assert distance(2**0.5 * found, truth) < EXACT


# --- a terminal reward with a discount


def discounted_gradient(fixture: Fixture) -> np.ndarray:
    """Σ d π A_γ ∇ log π with γ = .9; d, the share of episodes that pass a state, is not discounted."""
    log_probs = node_log_probs_of(fixture)
    found = values(fixture.tree, log_probs, gamma=GAMMA)
    weights = found.visitation[:, None] * np.exp(log_probs) * found.advantage
    return flat(score_gradient(fixture.policy, fixture.tree, weights))


def gradient_of_discounted_objective(fixture: Fixture) -> np.ndarray:
    """∇E[Σ γ^t r_t], by paying the discounted rewards themselves."""
    tree = fixture.tree
    paid = GAMMA ** tree.depth[:, None] * tree.reward
    return flat(exact_gradient(fixture.policy, replace(tree, reward=paid)).gradient)


DISCOUNTED = make_algorithm("reinforce_to_go", gamma=GAMMA)


def test_a_discount_makes_rewards_to_go_another_gradient(fixture):
    found = certify(fixture, DISCOUNTED, group_size=4).mean
    assert distance(found, discounted_gradient(fixture)) < EXACT
    assert distance(found, gradient_of(fixture)) > 0.2
    assert distance(found, gradient_of_discounted_objective(fixture)) > 0.1  # which would weigh step t with γ^t


def test_sampled_episodes_with_a_discount_follow_the_oracle(fixture):
    right, wrong = discounted_gradient(fixture), gradient_of(fixture)
    direction = unit(wrong - right)  # most of what the discount changes is across ∇J, not along it
    projections = projected(fixture, sampled(fixture, EPISODES), DISCOUNTED, direction)
    assert abs(z_value(projections, right @ direction)) < 5
    assert z_value(projections, wrong @ direction) < -5


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def z_value(samples: np.ndarray, expected: float) -> float:
    return float((samples.mean() - expected) / (samples.std(ddof=1) / len(samples) ** 0.5))


def sampled(fixture: Fixture, episodes: int) -> Rollout:
    """Episodes of the environment, by the production sampler."""
    envs = gym.make_vec("TextGen-v0", num_envs=1000, reward=score, **KEYWORDS)
    generator = torch.Generator().manual_seed(0)
    return collect(fixture.policy, envs, episodes, np.random.default_rng(0), action_generator=generator)


def projected(fixture: Fixture, rollout: Rollout, row: Algorithm, direction: np.ndarray) -> np.ndarray:
    """Each episode's production gradient on a direction [D], [B]."""
    weights = coefficients(row, rollout) * len(rollout.mask)
    along = (fixture.scores @ direction).reshape(fixture.tree.legal.shape)
    projections = np.zeros(len(rollout.mask))
    nodes = roots_of(fixture.tree, rollout)
    for step in range(rollout.mask.shape[1]):
        playing, actions = rollout.mask[:, step], rollout.actions[:, step]
        projections += np.where(playing, weights[:, step] * along[nodes, actions], 0.0)
        nodes = np.where(playing, fixture.tree.child[nodes, actions], nodes)
    return projections


def roots_of(tree: Tree, rollout: Rollout) -> np.ndarray:
    """The root of each episode; prompts differ in their length."""
    lengths = [len(prompt.ids) for prompt in tree.prompts]
    return np.array([lengths.index(length) for length in rollout.prompt_length])


# --- a potential that is kept at the end


class Kept:
    """Φ(s') - Φ(s) with Φ the number of `d` in the history, an ended episode's included."""

    reads_observations = True

    def extra(self, payment: Payment) -> np.ndarray:
        """The gain of Φ of the step."""
        before = (payment.observations == D).sum(axis=1)
        after = before + (payment.actions == D)
        return (after - before).astype(np.float64)


def count(completions: list[str]) -> list[float]:
    """The same Φ, of texts."""
    return [float(text.count("d")) for text in completions]


@pytest.mark.parametrize("name", ["reinforce_to_go", "rloo"])
def test_a_potential_must_be_nothing_at_the_end(name, fixture):
    truth = gradient_of(fixture)
    found = {}
    for scheme in (Kept(), Potential(count)):
        env = TextGenEnv(reward=score, scheme=["terminal", scheme], **KEYWORDS)
        shaped = with_rewards(fixture, enumerate_tree(env))
        found[type(scheme)] = certify(shaped, ALGORITHMS[name], group_size=4).mean
        assert distance(found[type(scheme)], gradient_of(shaped)) < EXACT
    assert distance(found[Potential], truth) < EXACT
    assert cosine(found[Kept], truth) < 0.9


# --- the length as the reward


@pytest.fixture(scope="module")
def of_length(fixture: Fixture) -> Fixture:
    env = TextGenEnv(reward=lambda completions: [len(text) / 4 for text in completions], **KEYWORDS)
    return with_rewards(fixture, enumerate_tree(env))


def stop_masked(task: Fixture) -> Fixture:
    """The fault: the stop token gets no gradient."""
    rollout = task.rollout
    return task._replace(rollout=rollout._replace(mask=rollout.mask & (rollout.actions != STOP)))


def horizon_dropped(task: Fixture) -> Fixture:
    """The fault: episodes that the horizon ended are not learned from."""
    rows = np.flatnonzero(stopped(task.rollout))
    probs, prompt = task.probs[rows], task.prompt[rows]
    kept = np.bincount(prompt, weights=probs)
    return task._replace(
        rollout=task.rollout.select(rows),
        cells=task.cells[rows],
        probs=probs / kept[prompt] * task.tree.weights[prompt],
        prompt=prompt,
    )


def stopped(rollout: Rollout) -> np.ndarray:
    """Where an episode holds a stop token, bool [B]."""
    return (rollout.mask & (rollout.actions == STOP)).any(axis=1)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
@pytest.mark.parametrize("fault", [stop_masked, horizon_dropped])
def test_the_gradient_of_the_length_is_exact_and_a_fault_is_seen(fault, name, of_length):
    truth = gradient_of(of_length)
    assert {float(paid) for paid in of_length.rollout.returns} == {0, 0.25, 0.5, 0.75, 1}
    assert distance(certify(of_length, ALGORITHMS[name], group_size=2).mean, truth) < EXACT
    wrong = certify(fault(of_length), ALGORITHMS[name], group_size=2).mean
    assert distance(wrong, truth) > 0.1


def test_the_faults_are_what_they_say(of_length):
    masked, dropped = stop_masked(of_length).rollout, horizon_dropped(of_length)
    assert of_length.rollout.num_tokens - masked.num_tokens == stopped(of_length.rollout).sum() == 2 * (1 + 4 + 16 + 64)
    assert stopped(dropped.rollout).all() and len(dropped.probs) == 2 * (1 + 4 + 16 + 64)
    assert dropped.probs.sum() == pytest.approx(1, abs=1e-14)
