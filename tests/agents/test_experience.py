"""What an update holds constant: targets of the critic, a KL cost of nothing, and old log-probs in half precision."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import Algorithm
from agents.experience import Experience, make_experience
from agents.learner import PolicyGradient
from agents.losses import sequence_ratio
from agents.policy import TransformerPolicy
from agents.reference import ReferencePolicy
from agents.rollout import Rollout, collect
from tests.agents import hand_made, tiny
from tests.agents.family import make_learner, updates_of, weights

# --- what the critic learns


class Shifted(ReferencePolicy):
    """A reference that says half a nat less of each token than the policy: k1 is ½ everywhere."""

    def log_probs(self, rollout: Rollout) -> Tensor:
        return self._policy.log_probs(rollout).detach() - 0.5 * torch.tensor(rollout.mask)


def experience_of(row: Algorithm, kl_coef: float, critic: float) -> Experience:
    """Of the episodes made by hand, with a horizon of 4 and a critic that says the same everywhere."""
    policy = tiny.make_policy(tiny.make_envs())
    policy.add_value_head()  # says 0
    with torch.no_grad():
        policy.value_head.linear.bias += critic
    rollout = hand_made.rollout()
    rollout = rollout._replace(log_probs=policy.log_probs(rollout).detach().numpy())
    return make_experience(policy, row, rollout, 4, 1000, Shifted(policy), kl_coef)


# They pay .5; .25, -1, 2; 0, 0, 1; 0, 3. With β = .2 each token costs .1, and with a buffer of two tokens before the
# horizon of 4 the two texts of three tokens are charged a half at their end.
TO_GO = [[0.4, 0, 0], [0.45, 0.3, 1.4], [0.2, 0.3, 0.4], [2.8, 2.9, 0]]
ONE_STEP = [[0.4, 0, 0], [0.65, -0.6, 1.4], [0.4, 0.4, 0.4], [0.4, 2.9, 0]]  # what is paid, and .5 for the next state


@pytest.mark.parametrize(
    ("gae_lambda", "critic", "expected"), [(1.0, 0.0, TO_GO), (1.0, 0.5, TO_GO), (0.0, 0.5, ONE_STEP)]
)
def test_the_critic_learns_what_the_policy_is_paid(gae_lambda, critic, expected):
    row = make_algorithm("ppo", gae_lambda=gae_lambda, overlong_buffer=0.5)
    experience = experience_of(row, 0.2, critic)
    np.testing.assert_allclose(experience.targets, expected, rtol=0, atol=1e-12)
    # And is advised by it: the targets minus what it says are the advantages, before they are whitened.
    plain = experience_of(make_algorithm(row, scale="none"), 0.2, critic)
    ahead = np.where(plain.rollout.mask, np.array(expected) - critic, 0.0)
    np.testing.assert_allclose(plain.advantages, ahead, rtol=0, atol=1e-12)


# --- a policy that is its own reference

COSTED = {name: row for name, row in ALGORITHMS.items() if row.kl == "k1_reward"}


def constant(paid: float) -> gym.vector.VectorEnv:
    return tiny.make_envs(8, reward=lambda completions: [paid] * len(completions))


def test_rows_with_the_kl_as_a_cost():
    assert set(COSTED) == {"reinforce", "reinforce_baseline", "reinforce_to_go", "rloo", "reinforce_pp", "a2c", "ppo"}


@pytest.mark.parametrize("row", [*COSTED.values(), make_algorithm("grpo", kl="k1_reward")], ids=lambda row: row.name)
def test_a_policy_that_is_its_reference_stays_under_a_constant_reward(row):
    """What a text costs is exactly nothing then: rounding would be a step of Adam, or ±1 after a division."""
    # Without a comparison any other constant moves the policy, as it should.
    paid = 0.1 if row.min_episodes > 1 or row.scale == "whiten" and not row.critic else 0.0
    learner = make_learner(row, constant(paid), kl_coef=0.3, entropy_coef=0.0, learning_rate=0.01)
    assert all(parameter.dtype == torch.float32 for parameter in learner.policy.parameters())
    before = weights(learner)
    [update] = updates_of(learner, 1)
    assert not update.advantages.any()
    assert weights(learner) == before


@pytest.mark.parametrize("name", COSTED)
def test_a_policy_that_is_not_its_reference_moves(name):
    """The check above is worth something."""
    envs = constant(0.0)
    other = TransformerPolicy.small(envs, d_model=16, num_layers=1, seed=7)
    learner = make_learner(name, envs, kl_coef=0.3, reference=other, entropy_coef=0.0)
    before = weights(learner)
    [update] = updates_of(learner, 1)
    assert update.advantages.any() and weights(learner) != before


# --- log-probabilities of half precision

GSPO = make_algorithm("gspo", num_epochs=2)


def outside(ratio: Tensor) -> float:
    """The share of episodes whose ratio is outside GSPO's bounds."""
    low, high = GSPO.clip_range
    return float(((ratio[:, 0] < low) | (ratio[:, 0] > high)).double().mean())


def half_precision() -> tuple[TransformerPolicy, gym.vector.VectorEnv]:
    """A policy deep enough, and texts long enough, for roundings to differ between one token and a whole text."""
    keywords: dict[str, Any] = dict(tokenizer=["a", "b", "c", "d"], prompts=tiny.PROMPTS, max_new_tokens=24)
    envs = gym.make_vec("TextGen-v0", num_envs=64, reward=count, **keywords)
    policy = TransformerPolicy.small(envs, d_model=64, num_layers=4, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 2
    return policy, envs


def count(completions: list[str]) -> list[int]:
    return [text.count("a") for text in completions]


@pytest.mark.parametrize("tokens_per_microbatch", [100, 100_000])
def test_in_half_precision_only_what_the_sampler_said_lies_outside_the_bounds(tokens_per_microbatch):
    policy, envs = half_precision()
    settings: dict[str, Any] = dict(group_size=4, episodes_per_update=64, tokens_per_microbatch=tokens_per_microbatch)
    learner = PolicyGradient(policy, envs, GSPO, **settings)
    rollout = collect(policy, envs, 64, np.random.default_rng(0), 4, torch.Generator().manual_seed(0))
    experience = learner.experience(rollout)
    metrics = learner.accumulate_gradient(experience)
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1 and metrics["clip_ratio/region_mean"] == 0
    # The same weights and tokens, one at a time with a cache.
    again = learner.accumulate_gradient(experience._replace(old_log_probs=rollout.log_probs))
    assert again["ratio/min"] < GSPO.clip_range[0] and again["ratio/max"] > GSPO.clip_range[1]
    old, sampled = (torch.tensor(each, dtype=torch.float64) for each in (experience.old_log_probs, rollout.log_probs))
    assert outside(sequence_ratio(old, sampled, torch.tensor(rollout.mask))) > 0.5
    assert again["clip_ratio/region_mean"] > 0.2  # an advantage has one bound of the two
