"""Losses, gradients and advantages against TRL's own code, on the same log-probabilities, rewards and masks.

Needs the extra "parity"; without it these tests fail rather than be left out. Where TRL's convention is another,
`tests.agents.trl_conventions` names it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.algorithms import make_algorithm
from agents.axes import Algorithm
from agents.surrogate import Batch, Surrogate, surrogate
from tests.agents import tiny
from tests.agents.trl_conventions import CASES, MAX_LENGTH, SINGLE, rollout_of, trl_rloo, trl_scales
from tests.agents.trl_trainers import Generated, loss_of, make_trainer, prepared_inputs, write_model

pytestmark = pytest.mark.full

EXACT = 1e-9  # of float64
LENGTHS = (5, 2, 6, 1, 3, 6, 4, 2)  # of two groups of four
GENERATED = Generated(
    prompts=tiny.PROMPTS,
    completion_ids=[[tiny.A] * (length - 1) + [tiny.STOP] for length in LENGTHS],
    rewards=[0.5, 0.0, 1.0, 0.25, 0.0, 2.0, -0.5, 0.125],
)
# Which way each episode has become more probable: both ways where its advantage is above 0, and where it is below.
DRIFT = (1.5, -1.5, -1.5, 1.5, -1.5, 1.5, 1.5, -1.5)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("trl") / "model")


class Given(NamedTuple):
    """[B, T] each; what stands on padding is as large as elsewhere."""

    log_probs: Tensor
    old: Tensor | None
    reference: Tensor


def given(spread: float, on_policy: bool) -> Given:
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)

    log_probs, away = -1.5 + 0.5 * normal(), torch.tensor(DRIFT)[:, None] + normal()
    old = None if on_policy else log_probs - spread * away
    return Given(log_probs.requires_grad_(), old, log_probs.detach() + 0.5 * normal())


def inputs_of(trainer: Any, row: Algorithm, said: Given) -> dict[str, Any]:
    """TRL's inputs with our advantages in float64, since its own are compared further down."""
    inputs = prepared_inputs(trainer, GENERATED)
    inputs["advantages"] = torch.as_tensor(row.advantages_of(rollout_of(GENERATED))[:, 0])
    if said.old is not None:
        inputs["old_per_token_logps"] = said.old
    return inputs | {"ref_per_token_logps": said.reference}


def surrogates(row: Algorithm, said: Given, kl_coef: float = 0.0, parts: int = 1) -> list[Surrogate]:
    rollout = rollout_of(GENERATED)
    advantages, mask = torch.as_tensor(row.advantages_of(rollout)), torch.as_tensor(rollout.mask)
    found = []
    for rows in torch.arange(len(LENGTHS)).chunk(parts):
        old = None if said.old is None else said.old[rows]
        batch = Batch(advantages[rows], mask[rows], len(LENGTHS), rollout.num_tokens, old, said.reference[rows])
        found.append(surrogate(row, said.log_probs[rows], batch, kl_coef))
    return found


def total(found: list[Surrogate]) -> Tensor:
    return torch.stack([part.loss for part in found]).sum()


def gradient_of(loss: Tensor, said: Given) -> Tensor:
    return torch.autograd.grad(loss, said.log_probs)[0]


def bounds_passed(found: list[Surrogate]) -> tuple[bool, bool]:
    return any(part.clipped_low.any() for part in found), any(part.clipped_high.any() for part in found)


# --- losses and gradients by the log-probabilities


@pytest.mark.parametrize("parts", [1, 2])  # that a step accumulates
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("on_policy", [True, False], ids=["on policy", "off policy"])
@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradient_are_trls(model_folder, name, on_policy, kl_coef, parts):
    row, settings, scale, spread = CASES[name]
    trainer = make_trainer(
        "GRPO",
        model_folder,
        GENERATED,
        beta=kl_coef,
        max_completion_length=MAX_LENGTH,
        per_device_train_batch_size=len(LENGTHS) // parts,
        gradient_accumulation_steps=parts,
        **settings,
    )
    said = given(spread, on_policy)
    theirs = loss_of(trainer, inputs_of(trainer, row, said), said.log_probs, parts)
    found = surrogates(row, said, kl_coef, parts)
    assert total(found).item() == pytest.approx(scale * theirs.item(), rel=EXACT)
    gradient = gradient_of(total(found), said)
    assert tiny.relative_error(gradient, scale * gradient_of(theirs, said)) < EXACT
    assert (gradient[~torch.as_tensor(rollout_of(GENERATED).mask)] == 0).all()
    bounded = tuple(bound is not None and not on_policy for bound in row.clip_range)
    assert bounds_passed(found) == bounded


@pytest.mark.parametrize("on_policy", [True, False], ids=["on policy", "off policy"])
def test_the_loss_of_rloo_and_its_gradient_are_trls(model_folder, on_policy):
    trainer = make_trainer("RLOO", model_folder, GENERATED, beta=0.0, epsilon=0.2)
    said, mask = given(0.4, on_policy), torch.as_tensor(rollout_of(GENERATED).mask)
    row = trl_rloo(mask.sum(dim=-1, keepdim=True))
    old = said.log_probs.detach() if said.old is None else said.old
    inputs = inputs_of(trainer, row, said) | {"old_logps": (old * mask).sum(dim=-1)}
    theirs = loss_of(trainer, inputs, said.log_probs)
    found = surrogates(row, said)
    assert total(found).item() == pytest.approx(theirs.item(), rel=EXACT)
    gradient = gradient_of(theirs, said)
    assert tiny.relative_error(gradient_of(total(found), said), gradient) < EXACT
    if on_policy:
        plain = surrogates(make_algorithm("rloo"), said)
        assert tiny.relative_error(gradient_of(total(plain), said), gradient) < EXACT
    else:
        metrics = trainer._metrics["train"]
        assert metrics["clip_ratio/low_mean"][0] > 0 and metrics["clip_ratio/high_mean"][0] > 0


# --- advantages

COUNT = 48
TRAINERS = {
    "grpo": ("GRPO", dict(scale_rewards="group")),
    "dr_grpo": ("GRPO", dict(scale_rewards="none")),
    "rloo": ("RLOO", {}),
}


@pytest.mark.parametrize("dropped", [0.0, 0.4])
@pytest.mark.parametrize("group_size", [2, 3, 8])
@pytest.mark.parametrize("name", TRAINERS)
def test_advantages_are_trls(model_folder, name, group_size, dropped):
    generator = np.random.default_rng(group_size)
    rewards = generator.integers(-4, 5, COUNT) / 4
    rewards[:group_size] = 0.75  # a group that teaches nothing
    scored = generator.random(COUNT) >= dropped
    generated = Generated(
        prompts=["a"] * (COUNT // group_size),
        completion_ids=[[tiny.A, tiny.STOP], [tiny.STOP]] * (COUNT // 2),
        rewards=[float(reward) if valid else None for reward, valid in zip(rewards, scored, strict=True)],
    )
    kind, settings = TRAINERS[name]
    trainer = make_trainer(kind, model_folder, generated, beta=0.0, **settings)
    theirs = prepared_inputs(trainer, generated)["advantages"].numpy()
    rollout = rollout_of(generated).select(np.flatnonzero(scored))
    ours = trl_scales(make_algorithm(name), rollout)[:, 0]
    np.testing.assert_allclose(ours, theirs[scored], rtol=SINGLE, atol=SINGLE)
    assert (theirs[~scored] == 0).all()
    assert (ours[rollout.group == 0] == 0).all() and np.abs(ours).max() > 0.5
