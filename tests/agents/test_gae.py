"""Generalised advantage estimation: by hand, and with the exact values of a small tree."""

import itertools

import numpy as np
import pytest

from agents.advantages import gae, reward_to_go, total_return
from agents.algorithms import ALGORITHMS, make_algorithm
from tests.agents import hand_made

# One step errors with γ = 1: 1 + 0 - 2, 0 + 3 - 0 and 4 + 0 - 3; of the second row 1 - .5, and nothing behind it.
REWARDS = np.array([[1.0, 0.0, 4.0], [1.0, 0.0, 0.0]])
VALUES = np.array([[2.0, 0.0, 3.0], [0.5, 0.0, 0.0]])
MASK = np.array([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("gamma", "gae_lambda", "expected"),
    [
        (1.0, 0.0, [[-1, 3, 1], [0.5, 0, 0]]),
        (1.0, 1.0, [[3, 4, 1], [0.5, 0, 0]]),  # rewards to go 5, 4 and 4 minus the values
        (1.0, 0.5, [[-1 + 0.5 * 3.5, 3 + 0.5 * 1, 1], [0.5, 0, 0]]),
        # One step errors with γ = ½: 1 + 0 - 2, 0 + 1.5 - 0 and 4 + 0 - 3.
        (0.5, 0.0, [[-1, 1.5, 1], [0.5, 0, 0]]),
        (0.5, 1.0, [[0, 2, 1], [0.5, 0, 0]]),  # 1 + 0 + 1, 0 + 2 and 4 minus the values
        (0.5, 0.5, [[-1 + 0.25 * 1.75, 1.5 + 0.25 * 1, 1], [0.5, 0, 0]]),
    ],
)
def test_by_hand(gamma, gae_lambda, expected):
    assert gae(REWARDS, VALUES, MASK, gamma, gae_lambda).tolist() == expected


def test_what_lies_off_the_mask_counts_nothing():
    rewards, values = np.where(MASK, REWARDS, np.nan), np.where(MASK, VALUES, np.inf)
    assert (gae(rewards, values, MASK, 0.9, 0.8) == gae(REWARDS, VALUES, MASK, 0.9, 0.8)).all()


def test_without_a_critic_it_is_the_reward_to_go():
    assert (gae(REWARDS, 0 * VALUES, MASK) == reward_to_go(REWARDS, MASK)).all()
    assert reward_to_go(REWARDS, MASK, gamma=0.5).tolist() == [[2, 2, 4], [1, 0, 0]]
    assert (total_return(REWARDS, MASK)[:, 0] == reward_to_go(REWARDS, MASK)[:, 0]).all()


def test_the_targets_of_the_critic_are_what_was_found_ahead():
    rollout = hand_made.rollout()
    to_go = [[0.5, 0, 0], [1.25, 1, 2], [1, 1, 1], [3, 3, 0]]
    assert ALGORITHMS["a2c"].targets_of(rollout).tolist() == to_go
    # With λ = 0 what was paid and the value of the next state: .5; .25 - .5, -1 + 1, 2; 0 + .75, 0 + .25, 1; 0 + 2, 3.
    one_step = make_algorithm("a2c", gae_lambda=0.0).targets_of(rollout).tolist()
    assert one_step == [[0.5, 0, 0], [-0.25, 0, 2], [0.75, 0.25, 1], [2, 3, 0]]
    assert ALGORITHMS["rloo"].targets_of(rollout) is None


# --- a tree of three steps over two tokens, of which 1 stops; every step pays something

HORIZON, STOP, PROBS = 3, 1, (0.7, 0.3)


def paid(history: tuple[int, ...]) -> float:
    """What the last token of a history is paid."""
    return float(np.sin(sum((place + 2) * (token + 1) ** 2 for place, token in enumerate(history))))


def complete() -> list[tuple[int, ...]]:
    """Every complete episode: a stop at once, a stop after one other token, and so on to the horizon."""
    tokens = itertools.chain.from_iterable(itertools.product((0, 1), repeat=n) for n in range(1, HORIZON + 1))
    return [t for t in tokens if STOP not in t[:-1] and (t[-1] == STOP or len(t) == HORIZON)]


def probability(history: tuple[int, ...]) -> float:
    return float(np.prod([PROBS[token] for token in history]))


def q_value(history: tuple[int, ...], gamma: float) -> float:
    ended = history[-1] == STOP or len(history) == HORIZON
    return paid(history) + (0.0 if ended else gamma * value(history, gamma))


def value(history: tuple[int, ...], gamma: float) -> float:
    return sum(PROBS[token] * q_value((*history, token), gamma) for token in (0, 1))


def arrays(gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, exact values of the states before each action, and mask of every complete episode."""
    episodes = complete()
    rewards, values = np.zeros((len(episodes), HORIZON)), np.zeros((len(episodes), HORIZON))
    for row, episode in enumerate(episodes):
        for step in range(len(episode)):
            rewards[row, step], values[row, step] = paid(episode[: step + 1]), value(episode[:step], gamma)
    return rewards, values, np.array([[step < len(episode) for step in range(HORIZON)] for episode in episodes])


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_with_exact_values_its_expectation_is_the_exact_advantage(gamma, gae_lambda):
    """The horizon too is an end: to look for a value beyond it would be off by it."""
    rewards, values, mask = arrays(gamma)
    advantages = gae(rewards, values, mask, gamma, gae_lambda)
    weights = np.array([probability(episode) for episode in complete()])
    assert weights.sum() == pytest.approx(1, abs=1e-15)
    assert advantages[:, 0] @ weights == pytest.approx(0, abs=1e-14)
    for history in [(), (0,), (0, 0)]:
        for token in (0, 1):
            taken = (*history, token)
            rows = [row for row, episode in enumerate(complete()) if episode[: len(taken)] == taken]
            mean = advantages[rows, len(history)] @ weights[rows] / weights[rows].sum()
            assert mean == pytest.approx(q_value(taken, gamma) - value(history, gamma), abs=1e-14)


def test_a_value_beyond_the_horizon_would_be_noticed():
    """The check above is worth something: where the horizon were a cut, with .6 beyond it, the means would not be 0."""
    rewards, values, mask = arrays(1.0)
    for row, episode in enumerate(complete()):
        rewards[row, HORIZON - 1] += 0.6 * (episode[-1] != STOP)
    weights = np.array([probability(episode) for episode in complete()])
    for gae_lambda in (0.0, 0.95, 1.0):
        advantages = gae(rewards, values, mask, 1.0, gae_lambda)
        # The three tokens that do not stop have the probability .7³, and λ² of the last error reaches the first step.
        assert advantages[:, 0] @ weights == pytest.approx(0.7**3 * gae_lambda**2 * 0.6, abs=1e-14)
        assert advantages[:, 2] @ weights == pytest.approx(0.7**3 * 0.6, abs=1e-14)
