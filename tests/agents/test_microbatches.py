"""The gradient does not depend on how the episodes are cut into microbatches."""

import numpy as np
import pytest
import torch

from agents.experience import Experience, microbatches
from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents import tiny

EPISODES, HORIZON = 24, 9
PROMPTS = ["a", "bcab", "ccabcab"]
BUDGETS = [1, 7, 16, 33, 100, 10_000]


def setting(dtype: torch.dtype) -> tuple[PolicyGradient, Rollout, np.ndarray]:
    """A learner and a rollout of episodes of very unequal lengths, with an advantage of its own for each token."""
    envs = tiny.make_envs(prompts=PROMPTS, max_new_tokens=HORIZON)
    policy = TransformerPolicy.small(envs, d_model=32, num_layers=2).to(dtype)
    learner = PolicyGradient(policy, envs, "reinforce", group_size=1, entropy_coef=0.3, max_grad_norm=1e9)
    rollout = collect(
        policy, envs, EPISODES, np.random.default_rng(1), action_generator=torch.Generator().manual_seed(1)
    )
    advantages = np.where(rollout.mask, np.random.default_rng(2).normal(size=rollout.mask.shape), 0.0)
    return learner, rollout, advantages


def gradient_and_metrics(
    learner: PolicyGradient, rollout: Rollout, advantages: np.ndarray, budget: int
) -> tuple[torch.Tensor, dict[str, float]]:
    learner.settings["tokens_per_microbatch"] = budget
    metrics = learner.accumulate_gradient(Experience(rollout, advantages))
    return tiny.stored_gradient(learner.policy).clone(), metrics


def test_lengths_are_unequal():
    _, rollout, _ = setting(torch.float64)
    assert rollout.length.max() >= 2 * rollout.length.min()
    assert len(set(rollout.length.tolist())) > 5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_the_gradient_is_the_same_for_every_budget(dtype, tolerance):
    learner, rollout, advantages = setting(dtype)
    whole, expected = gradient_and_metrics(learner, rollout, advantages, 1_000_000)
    for budget in BUDGETS:
        gradient, metrics = gradient_and_metrics(learner, rollout, advantages, budget)
        assert tiny.relative_error(gradient, whole) < tolerance, budget
        if dtype is torch.float64:
            torch.testing.assert_close(gradient, whole, rtol=tolerance, atol=1e-12)
        assert metrics == pytest.approx(expected, rel=max(tolerance, 1e-9)), budget


def test_a_mean_over_microbatches_would_be_noticed():
    """The check above is worth something: the mean of per-microbatch gradients is far off."""
    learner, rollout, advantages = setting(torch.float64)
    whole, _ = gradient_and_metrics(learner, rollout, advantages, 1_000_000)
    parts = [
        gradient_and_metrics(learner, part, advantages[rows][:, : part.mask.shape[1]], 1_000_000)[0]
        for rows in microbatches(rollout, 33)
        for part in [rollout.select(rows)]
    ]
    assert tiny.relative_error(torch.stack(parts).mean(dim=0), whole) > 1e-2


@pytest.mark.parametrize("budget", BUDGETS)
def test_each_episode_is_there_once_and_the_budget_is_kept(budget):
    _, rollout, _ = setting(torch.float64)
    batches = list(microbatches(rollout, budget))
    assert sorted(np.concatenate(batches).tolist()) == list(range(EPISODES))
    for rows in batches:
        tokens = rollout.select(rows).tokens
        assert tokens.size <= budget or len(rows) == 1


def test_a_budget_is_used_up():
    lengths = np.array([2, 4, 4, 2, 3])  # with a budget of 8: two of 4, two of 3 and 2, and the last
    rollout = tiny.rollout_of([tiny.Episode(0, [tiny.A], [tiny.B] * (n - 1), [0.0] * (n - 1), 2) for n in lengths])
    sizes = [sorted(lengths[rows].tolist()) for rows in microbatches(rollout, 8)]
    assert sizes == [[4, 4], [2, 3], [2]]
    assert [len(rows) for rows in microbatches(rollout, 20)] == [5]
