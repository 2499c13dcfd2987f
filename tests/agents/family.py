"""Learners of every algorithm on the small problem, and what of them is compared."""

from typing import Any

from gymnasium.vector import VectorEnv

from agents.learner import PolicyGradient, Update
from agents.policy import TransformerPolicy
from tests.agents import tiny


def make_policy(envs: VectorEnv, seed: int = 0, **settings: Any) -> TransformerPolicy:
    """A float32 policy."""
    return TransformerPolicy.small(envs, d_model=16, num_layers=1, seed=seed, **settings)


def make_learner(
    algorithm: Any = "rloo", envs: VectorEnv | None = None, policy: TransformerPolicy | None = None, **settings: Any
) -> PolicyGradient:
    envs = tiny.make_envs(8) if envs is None else envs
    own: dict[str, Any] = dict(group_size=4, episodes_per_update=8, entropy_coef=0.01, learning_rate=0.003)
    return PolicyGradient(policy or make_policy(envs), envs, algorithm, **(own | settings))


def updates_of(learner: PolicyGradient, count: int) -> list[Update]:
    """The next updates of a learner."""
    updates: list[Update] = []
    end = learner.num_updates + count
    learner.learn(10**9, lambda update: updates.append(update) or update.step < end)
    return updates


def weights(learner: PolicyGradient) -> bytes:
    """Every parameter, to the last bit."""
    return b"".join(value.detach().numpy().tobytes() for value in learner.policy.parameters())
