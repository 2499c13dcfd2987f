"""Truncated distributions: against transformers' processors, and stored and used again by rollout and learner."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import collect
from agents.sampling import TokenDistribution, Truncation
from tests.agents import tiny

CUTS = [
    {"top_k": 3},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 1.0},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"min_p": 0.0},
    {"top_k": 5, "top_p": 0.8},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.1},
]


def drawn_logits(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_transformers(logits, top_k=None, top_p=None, min_p=None):
    processors = LogitsProcessorList()
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        processors.append(MinPLogitsWarper(min_p))
    return torch.log_softmax(processors(None, logits), dim=-1)


# --- the distribution


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_what_is_cut_off_is_what_transformers_cuts_off(cut, temperature):
    logits = drawn_logits(40, 12)
    distribution = TokenDistribution(logits, 12, temperature, truncation=Truncation(**cut))
    expected = with_transformers(logits / temperature, **cut)
    np.testing.assert_allclose(distribution.log_probs, expected, atol=1e-12)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_mask_goes_on_before_the_cut(cut):
    logits = drawn_logits(40, 12)
    mask = torch.rand(40, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[:, 7] = True
    distribution = TokenDistribution(logits, 12, action_mask=mask, truncation=Truncation(**cut))
    expected = with_transformers(logits.masked_fill(~mask, float("-inf")), **cut)
    np.testing.assert_allclose(distribution.log_probs, expected, atol=1e-12)
    assert not (distribution.support & ~mask).any()


@settings(deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.01, 1),
    st.none() | st.floats(0, 1),
)
def test_what_can_be_sampled_sums_to_one(logits, top_k, top_p, min_p):
    distribution = TokenDistribution(torch.tensor([logits]), len(logits), truncation=Truncation(top_k, top_p, min_p))
    support = torch.isfinite(distribution.log_probs)
    assert float(distribution.log_probs.exp().sum()) == pytest.approx(1, abs=1e-5)
    if distribution.support is not None:
        assert torch.equal(support, distribution.support)
    assert torch.tensor(logits)[support[0]].max() == max(logits)
    drawn = {int(distribution.sample(torch.Generator().manual_seed(seed))) for seed in range(20)}
    assert drawn <= set(support[0].nonzero().flatten().tolist())


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_gradient_and_entropy_are_finite(cut):
    logits = drawn_logits(20, 12).requires_grad_()
    mask = torch.ones(20, 12, dtype=torch.bool)
    mask[:, :4] = False
    distribution = TokenDistribution(logits, 12, action_mask=mask, truncation=Truncation(**cut))
    entropy = distribution.entropy()
    (entropy.sum() + distribution.log_prob(distribution.sample(torch.Generator().manual_seed(0))).sum()).backward()
    assert torch.isfinite(entropy).all() and torch.isfinite(logits.grad).all()
    assert (logits.grad[:, :4] == 0).all()
    probs = distribution.log_probs.detach().exp()
    np.testing.assert_allclose(entropy.detach(), torch.distributions.Categorical(probs=probs).entropy(), atol=1e-9)


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": -3}, "top_k=-3"),
        ({"top_k": True}, "top_k=True"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"min_p": float("inf")}, "min_p=inf"),
    ],
)
def test_numbers_outside_their_range_are_refused(cut, words):
    with pytest.raises(ValueError, match=words):
        TransformerPolicy.small(4, d_model=16, **cut)


# --- stored and used again


def make_policy(envs, **cut):
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, **cut)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(4)
    return policy


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.4}], ids=str)
def test_an_episode_is_scored_within_what_it_was_sampled_from(cut):
    envs = tiny.make_envs(32)
    policy = make_policy(envs, **cut)
    rollout = collect(policy, envs, 64, np.random.default_rng(0))
    support = rollout.support
    assert support.shape == (*rollout.mask.shape, 4)
    assert np.take_along_axis(support, rollout.actions[..., None], -1)[..., 0][rollout.mask].all()
    assert not support[rollout.mask].all()
    np.testing.assert_allclose(policy.log_probs(rollout).detach(), rollout.log_probs, atol=1e-5)
    with torch.no_grad():  # an update after which other tokens would be cut off
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    log_probs = policy.log_probs(rollout).detach()
    assert torch.isfinite(log_probs).all()
    probs = policy.action_distribution(rollout).log_probs.exp().detach().numpy()
    np.testing.assert_allclose(probs.sum(-1)[rollout.mask], 1, atol=1e-5)
    assert (probs[rollout.mask][~support[rollout.mask]] == 0).all()


def test_an_update_would_cut_off_what_was_sampled():
    """The reason for storing it: with what the updated weights would leave, sampled tokens have no probability."""
    envs = tiny.make_envs(32)
    policy = make_policy(envs, top_p=0.7)
    rollout = collect(policy, envs, 64, np.random.default_rng(0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.isinf(policy.log_probs(rollout._replace(cut_off=None))).any()


def test_masks_of_the_task_and_the_cut_together():
    envs = gym.make_vec("TextGen-v0", num_envs=16, task="brackets", autoreset_mode="Disabled")
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, top_k=2)
    rollout = collect(policy, envs, 32, np.random.default_rng(0))
    support = rollout.support[rollout.mask]
    assert not (support & ~rollout.action_mask[rollout.mask]).any()
    assert (support.sum(-1) <= 2).all()
    np.testing.assert_allclose(policy.log_probs(rollout).detach(), rollout.log_probs, atol=1e-5)


def test_support_follows_its_episodes():
    envs = tiny.make_envs(8)
    policy = make_policy(envs, top_k=2)
    rollout = collect(policy, envs, 24, np.random.default_rng(0))
    rows = np.array([5, 0, 17])
    part = rollout.select(rows)
    expected = policy.log_probs(rollout).detach()[rows][:, : part.mask.shape[1]]
    np.testing.assert_allclose(policy.log_probs(part).detach(), expected, atol=1e-6)


def test_without_a_cut_nothing_is_stored():
    envs = tiny.make_envs(4)
    assert collect(make_policy(envs, top_p=1.0, min_p=0.0), envs, 4, np.random.default_rng(0)).support is None


def test_a_learner_trains_within_the_cut():
    envs = tiny.make_envs(16)
    policy = make_policy(envs, top_k=2)
    before = [parameter.clone() for parameter in policy.parameters()]
    norms = []
    learner = PolicyGradient(policy, envs, group_size=4, episodes_per_update=16)
    learner.learn(100, lambda update: norms.append(update.metrics["grad_norm"]))
    assert np.isfinite(norms).all() and max(norms) > 0
    assert any(not torch.equal(one, other) for one, other in zip(before, policy.parameters(), strict=True))


def test_the_cut_is_saved_with_the_policy(tmp_path):
    policy = TransformerPolicy.small(tiny.make_envs(), d_model=16, top_k=3, top_p=0.9, min_p=0.01)
    policy.save_pretrained(tmp_path)
    assert TransformerPolicy.from_pretrained(tmp_path).truncation == Truncation(3, 0.9, 0.01)
    assert TransformerPolicy.from_pretrained(tmp_path, top_k=None, top_p=0.5).truncation == Truncation(None, 0.5, 0.01)
