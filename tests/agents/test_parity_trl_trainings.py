"""Whole trainings against TRL's: its loop from text to weights beside ours, by plain gradient descent.

TRL's trainer is told which episodes it generated; rewards, advantages, masks, the model's passes, losses and steps are
its own. Needs the extra "parity"; without it these tests fail rather than be left out.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.algorithms import make_algorithm
from agents.axes import Algorithm
from agents.gradient import reference_kl
from agents.learner import PolicyGradient
from agents.metrics import rollout_metrics
from agents.policy import TransformerPolicy
from tests.agents import tiny
from tests.agents.trl_conventions import CASES, MAX_LENGTH, SINGLE, rollout_of, trl_scales
from tests.agents.trl_trainers import LEARNING_RATE, Generated, make_trainer, open_model, write_model

pytestmark = pytest.mark.full

KL_COEF, ENTROPY_COEF = 0.1, 0.05
A, B, C, STOP = tiny.A, tiny.B, tiny.C, tiny.STOP
GENERATED = Generated(
    prompts=tiny.PROMPTS,
    completion_ids=[[A, B, STOP], [STOP], [C, A, B], [B, STOP], [C, C, C], [A, STOP], [B, B, STOP], [STOP]],
    rewards=[0.5, 0.0, 1.0, 0.25, 0.0, 2.0, -0.5, 0.125],
)
# Under TRL's names, but: TRL's deviations have Bessel's correction, and its shares are of episodes where ratios are.
OTHERWISE = {"reward_std", "rewards/told/std"}
OF_EPISODES = {"clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"}


class Trained(NamedTuple):
    change: Tensor  # of every weight, in one vector
    metrics: list[dict[str, float]]  # of each step


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trl") / "model")


def trained_by_trl(kind: str, folder: Path, **settings: Any) -> Trained:
    trainer = make_trainer(kind, folder, GENERATED, beta=KL_COEF, max_completion_length=MAX_LENGTH, **settings)
    before = away_from_the_reference(trainer.model)
    trainer.train()
    return Trained(flat(trainer.model) - before, trainer.state.log_history)


def trained_by_us(folder: Path, row: Algorithm, learning_rate: float, entropy_coef: float) -> Trained:
    policy, reference = (TransformerPolicy(open_model(folder), len(tiny.SYMBOLS)) for _ in range(2))
    own = dict(group_size=4, episodes_per_update=8, max_grad_norm=1e9)
    learner = PolicyGradient(
        policy, tiny.make_envs(), row, kl_coef=KL_COEF, reference=reference, entropy_coef=entropy_coef, **own
    )
    learner.optimizer = torch.optim.SGD(learner.weights.parameters, lr=learning_rate)
    before = away_from_the_reference(policy.model)
    rollout = rollout_of(GENERATED)
    log_probs = policy.log_probs(rollout).detach().numpy()
    experience = learner.experience(rollout._replace(log_probs=np.where(rollout.mask, log_probs, 0.0)))
    metrics = []
    for _ in range(row.num_epochs):
        metrics.append(learner.accumulate_gradient(experience))
        learner.optimizer.step()
    metrics[0] |= rollout_metrics(rollout, ["told"]) | reference_kl(experience)
    return Trained(flat(policy.model) - before, metrics)


def away_from_the_reference(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def assert_metrics_are_trls(ours: dict[str, float], theirs: dict[str, float], least: int, besides: set[str]) -> None:
    names = ours.keys() & theirs.keys() - OTHERWISE - besides
    assert len(names) >= least
    assert {name: theirs[name] for name in names} == pytest.approx({name: ours[name] for name in names}, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_two_steps_on_the_same_episodes_change_the_weights_as_trls_do(model_folder, name):
    row, settings, scale, _ = CASES[name]
    two_steps = dict(num_iterations=2, max_steps=2, entropy_coef=ENTROPY_COEF)
    theirs = trained_by_trl("GRPO", model_folder, **settings, **two_steps)
    own = make_algorithm(
        row, advantages=lambda rollout: trl_scales(row, rollout), scale="none", num_epochs=2, sampling_rounds=1
    )
    ours = trained_by_us(model_folder, own, LEARNING_RATE / scale, ENTROPY_COEF * scale)
    assert tiny.relative_error(ours.change, theirs.change) < SINGLE
    besides = OF_EPISODES if row.importance == "sequence" else set()
    if scale != 1:
        besides = {"loss", "grad_norm"}
    assert_metrics_are_trls(ours.metrics[0], theirs.metrics[0], 12, besides)
    assert_metrics_are_trls(ours.metrics[1], theirs.metrics[1], 1, besides)
    if row.objective == "clip":
        assert theirs.metrics[1]["clip_ratio/region_mean"] > 0


def test_a_step_of_rloo_changes_the_weights_as_trls_does(model_folder):
    theirs = trained_by_trl("RLOO", model_folder)
    ours = trained_by_us(model_folder, make_algorithm("rloo"), LEARNING_RATE, entropy_coef=0.0)
    assert tiny.relative_error(ours.change, theirs.change) < SINGLE
    # TRL's loss is a ratio, whose value is another number; the KL that it shows here is k1.
    assert theirs.metrics[0].pop("kl") == pytest.approx(ours.metrics[0]["kl/k1"], rel=1e-5)
    assert_metrics_are_trls(ours.metrics[0], theirs.metrics[0], 10, {"loss"})
