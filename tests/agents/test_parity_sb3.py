"""GAE, the critic's targets and a step of PPO against stable-baselines3's own code, on the same numbers.

Its rollout buffer is given float64 arrays, and its optimizer is plain gradient descent with a step of 1, so that what a
parameter changed by is minus its gradient.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import configure
from torch import Tensor, nn

from agents.algorithms import make_algorithm
from agents.axes import Algorithm
from agents.learner import PolicyGradient
from agents.losses import value_loss
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from agents.surrogate import Batch, Surrogate, surrogate
from tests.agents import tiny

# Both whiten with Bessel's correction. It adds 1e-8 to the deviation, which is below this, and whitens each minibatch,
# where ours whitens the update: here they are one.
CLOSE = 1e-6
CLIP_EPSILON, VALUE_COEF, ENTROPY_COEF = 0.2, 0.5, 0.05
PPO_ROW = make_algorithm("ppo", num_epochs=1, num_minibatches=1)
DOUBLE = torch.float64


def rollout_of(rewards: list[list[float]], values: list[list[float]]) -> Rollout:
    """Episodes of what each step paid, and of what the critic said before it."""
    episodes = [tiny.Episode(0, [tiny.A], [step % 3 for step in range(len(paid))], paid, 1) for paid in rewards]
    rollout = tiny.rollout_of(episodes)
    said = np.zeros(rollout.mask.shape)
    said[rollout.mask] = np.concatenate(values)
    return rollout._replace(values=said)


def buffer_of(rollout: Rollout, row: Algorithm, old_log_probs: np.ndarray | None = None) -> RolloutBuffer:
    """The episodes back to back, as one environment would have played them; advantages and returns are its own.

    Observations are the numbers of the steps.
    """
    steps = rollout.num_tokens
    spaces_ = spaces.Box(0, steps, (1,)), spaces.Discrete(2)
    buffer = RolloutBuffer(steps, *spaces_, device="cpu", gamma=row.gamma, gae_lambda=row.gae_lambda)
    for name in ("rewards", "values", "episode_starts", "advantages", "returns", "log_probs"):
        setattr(buffer, name, getattr(buffer, name).astype(np.float64))
    starts = np.zeros(rollout.mask.shape)
    starts[:, 0] = 1
    old = np.zeros(rollout.mask.shape) if old_log_probs is None else old_log_probs
    numbers = zip(*(array[rollout.mask] for array in (rollout.rewards, rollout.values, starts, old)), strict=True)
    for step, (reward, value, start, log_prob) in enumerate(numbers):
        said = torch.tensor([value], dtype=DOUBLE), torch.tensor([log_prob], dtype=DOUBLE)
        buffer.add(np.array([[step]]), np.array([0]), np.array([reward]), np.array([start]), *said)
    beyond = torch.tensor([7.0], dtype=DOUBLE)  # of a state that does not follow: the last episode has ended
    buffer.compute_returns_and_advantage(beyond, dones=np.array([True]))
    return buffer


# --- GAE and the critic's targets

NUMBERS = st.floats(-10, 10)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@st.composite
def played(draw: st.DrawFn) -> Rollout:
    lengths = draw(LENGTHS)
    rewards, values = ([draw(st.lists(NUMBERS, min_size=n, max_size=n)) for n in lengths] for _ in range(2))
    return rollout_of(rewards, values)


@settings(max_examples=100, deadline=None)
@given(played(), st.floats(0, 1), st.floats(0, 1))
def test_gae_and_the_critics_targets_are_those_of_its_buffer(rollout, gamma, gae_lambda):
    row = make_algorithm("a2c", gamma=gamma, gae_lambda=gae_lambda)
    buffer = buffer_of(rollout, row)
    advantages, targets = row.advantages_of(rollout), row.targets_of(rollout)
    np.testing.assert_allclose(advantages[rollout.mask], buffer.advantages[:, 0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(targets[rollout.mask], buffer.returns[:, 0], rtol=1e-10, atol=1e-10)
    assert (advantages[~rollout.mask] == 0).all() and (targets[~rollout.mask] == 0).all()


# --- a step of PPO


class Scored(nn.Module):
    """What PPO's training asks of a policy.

    Args:
        scores: values, log-probabilities and, where it has them, entropies of the steps, [number of steps] each.
        parameters: what they are made from.
    """

    def __init__(self, scores: Callable[[], tuple[Tensor, Tensor, Tensor | None]], parameters: Iterable[nn.Parameter]):
        super().__init__()
        self.scores, self.trained = scores, nn.ParameterList(parameters)
        self.optimizer = torch.optim.SGD(self.trained, lr=1.0)

    def set_training_mode(self, mode: bool) -> None:
        """There is one mode."""

    def evaluate_actions(self, observations: Tensor, actions: Tensor) -> tuple[Tensor | None, ...]:
        steps = observations.flatten().long()
        return tuple(None if score is None else score[steps] for score in self.scores())


def train(policy: Scored, buffer: RolloutBuffer, entropy_coef: float) -> dict[str, float]:
    """One step of stable-baselines3's PPO on the whole buffer, and what it logs."""
    count = buffer.buffer_size
    ppo = PPO(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=1.0,
        n_steps=count,
        batch_size=count,
        n_epochs=1,
        clip_range=CLIP_EPSILON,
        ent_coef=entropy_coef,
        vf_coef=VALUE_COEF,
        max_grad_norm=1e9,
        device="cpu",
    )
    ppo.policy, ppo.rollout_buffer = policy, buffer
    ppo.set_logger(configure(None, []))
    ppo.train()
    return ppo.logger.name_to_value


def case() -> tuple[Rollout, np.ndarray]:
    """Episodes with a critic's values, and log-probabilities [B, T] of the policy that played them."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 7, size=12)
    rewards, values = ([generator.normal(size=length).tolist() for length in lengths] for _ in range(2))
    rollout = rollout_of(rewards, values)
    return rollout, generator.normal(-1.5, 0.5, rollout.mask.shape)


def our_losses(rollout: Rollout, old: np.ndarray, log_probs: Tensor, values: Tensor) -> tuple[Surrogate, Tensor]:
    """The policy's part of the loss, and the critic's."""
    mask, advantages, targets = (
        torch.as_tensor(array) for array in (rollout.mask, PPO_ROW.advantages_of(rollout), PPO_ROW.targets_of(rollout))
    )
    batch = Batch(advantages, mask, len(mask), rollout.num_tokens, torch.as_tensor(old))
    return surrogate(PPO_ROW, log_probs, batch), value_loss(values, targets, mask, rollout.num_tokens)


@pytest.mark.parametrize("spread", [0.0, 0.4], ids=["on policy", "off policy"])
def test_ppos_losses_and_their_gradients_are_its_own(spread):
    rollout, old = case()
    generator = np.random.default_rng(1)
    log_probs = torch.tensor(old + spread * generator.normal(size=old.shape), requires_grad=True)
    values = torch.tensor(rollout.values + generator.normal(size=old.shape), requires_grad=True)
    mask = torch.as_tensor(rollout.mask)
    before = log_probs[mask].detach(), values[mask].detach()
    table = [nn.Parameter(scores.clone()) for scores in before]
    logged = train(Scored(lambda: (table[1], table[0], None), table), buffer_of(rollout, PPO_ROW, old), 0.0)
    changes = [now.detach() - own for own, now in zip(before, table, strict=True)]
    found, critic = our_losses(rollout, old, log_probs, values)
    assert found.loss.item() == pytest.approx(logged["train/policy_gradient_loss"], rel=CLOSE, abs=CLOSE)
    assert critic.item() == pytest.approx(logged["train/value_loss"], rel=CLOSE)
    (found.loss + PPO_ROW.value_coef * critic).backward()
    assert tiny.relative_error(-log_probs.grad[mask], changes[0]) < CLOSE
    assert tiny.relative_error(-values.grad[mask], changes[1]) < CLOSE
    assert (log_probs.grad[~mask] == 0).all() and (values.grad[~mask] == 0).all()
    assert bool(found.clipped_low.any()) == bool(found.clipped_high.any()) == (spread > 0)


def flat(policy: TransformerPolicy) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_ppos_gradient_of_every_parameter_is_its_own():
    rollout, _ = case()
    envs = tiny.make_envs(max_new_tokens=6)
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, value_head=True, dtype=DOUBLE)
    torch.nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    learner = PolicyGradient(policy, envs, PPO_ROW, entropy_coef=ENTROPY_COEF, max_grad_norm=1e9)
    experience = learner.experience(rollout)
    generator = np.random.default_rng(2)
    now = policy.log_probs(rollout).detach().numpy()
    old = now + 0.4 * generator.normal(size=now.shape)
    metrics = learner.accumulate_gradient(experience._replace(old_log_probs=old))
    gradient = tiny.stored_gradient(policy)
    before = flat(policy)

    def scores() -> tuple[Tensor, Tensor, Tensor]:
        distribution, values = policy.action_distribution_and_values(rollout)
        log_probs = distribution.log_prob(torch.as_tensor(rollout.actions))
        return values[mask], log_probs[mask], distribution.entropy()[mask]

    mask = torch.as_tensor(rollout.mask)
    buffer = buffer_of(experience.rollout, PPO_ROW, old)
    logged = train(Scored(scores, policy.parameters()), buffer, ENTROPY_COEF)
    assert tiny.relative_error(-gradient, flat(policy) - before) < CLOSE
    assert metrics["loss"] == pytest.approx(logged["train/loss"], rel=CLOSE)
    assert metrics["entropy"] == pytest.approx(-logged["train/entropy_loss"], rel=CLOSE)
    assert metrics["approx_kl/k3"] == pytest.approx(logged["train/approx_kl"], rel=CLOSE)
