"""Ratios, objectives, aggregations and the other terms of the loss, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from agents.losses import (
    AGGREGATIONS,
    OBJECTIVES,
    RATIOS,
    cispo,
    clipped,
    constant,
    entropy_bonus,
    policy_gradient,
    sequence_mean,
    sequence_ratio,
    token_mean,
    token_ratio,
    value_loss,
)

MASK = torch.tensor([[True, True, False], [True, True, True]])


def logs(*rows: list[float]) -> Tensor:
    """Logarithms, float64."""
    return torch.tensor(rows, dtype=torch.float64).log()


# π doubles the first token and halves the second; of the second episode it trebles, keeps and takes a third.
NEW = logs([0.4, 0.1, 1.0], [0.6, 0.5, 0.2])
OLD = logs([0.2, 0.2, 1.0], [0.2, 0.5, 0.6])


# --- ratios


def test_token_ratios():
    ratio = token_ratio(NEW, OLD, MASK)
    torch.testing.assert_close(ratio, torch.tensor([[2, 0.5, 1], [3, 1, 1 / 3]], dtype=torch.float64))


def test_sequence_ratios_are_geometric_means():
    old = logs([0.2, 0.05, 1.0], [0.2, 0.5, 0.3])  # ratios 2 and 2; 3, 1 and 2/3
    ratio = sequence_ratio(NEW, old, MASK)
    expected = torch.tensor([[2.0] * 3, [2 ** (1 / 3)] * 3], dtype=torch.float64)
    torch.testing.assert_close(ratio, expected)


@pytest.mark.parametrize("kind", RATIOS)
def test_a_policy_over_itself_is_exactly_1(kind):
    for dtype in (torch.float32, torch.float64):
        log_probs = torch.linspace(-37.3, -1e-4, 6, dtype=dtype).view(2, 3)
        assert (RATIOS[kind](log_probs, log_probs.clone(), MASK) == 1).all()


@pytest.mark.parametrize("kind", RATIOS)
@pytest.mark.parametrize("padding", [-math.inf, math.inf, math.nan])
def test_padding_changes_neither_ratio_nor_gradient(kind, padding):
    results = []
    for filler in (0.0, padding):
        new = NEW.masked_fill(~MASK, filler).requires_grad_()
        ratio = RATIOS[kind](new, OLD.masked_fill(~MASK, filler), MASK)
        gradient = torch.autograd.grad((ratio * torch.arange(1.0, 4.0)).sum(), new)[0]
        assert gradient[0, 2] == 0 and gradient.isfinite().all()
        results.append((ratio[MASK], gradient))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_ratios():
    new = NEW.clone().requires_grad_()
    token = torch.autograd.grad(token_ratio(new, OLD, MASK).sum(), new)[0]
    torch.testing.assert_close(token, torch.tensor([[2, 0.5, 0], [3, 1, 1 / 3]], dtype=torch.float64))
    # Both geometric means are 1; the derivative of each by any of its tokens is the mean over the length, 1/2 or 1/3.
    first = torch.autograd.grad(sequence_ratio(new, OLD, MASK)[:, 0].sum(), new)[0]
    torch.testing.assert_close(first, torch.tensor([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64))


# --- objectives: at old log-probabilities of log ½, so that the ratio is twice the probability

RATIO_CASES = (0.5, 0.9, 1.0, 1.1, 1.5)


def objective(name: str, ratio: float, advantage: float, low: float | None, high: float | None) -> tuple[float, float]:
    """The value at a ratio, and its derivative by the log-probability."""
    log_prob = torch.tensor([[ratio / 2]], dtype=torch.float64).log().requires_grad_()
    old, mask = logs([0.5]), torch.tensor([[True]])
    given = torch.tensor([[advantage]], dtype=torch.float64)
    value = OBJECTIVES[name](log_prob, token_ratio(log_prob, old, mask), given, low, high)
    [gradient] = torch.autograd.grad(value.sum(), log_prob)
    return value.item(), gradient.item()


@pytest.mark.parametrize(
    ("advantage", "values", "gradients"),
    [
        # Twice the smaller of ratio and clipped ratio: flat above 1.2, so that no step is made beyond it.
        (2.0, [1.0, 1.8, 2.0, 2.2, 2.4], [1.0, 1.8, 2.0, 2.2, 0.0]),
        # Minus twice the larger: flat below .8.
        (-2.0, [-1.6, -1.8, -2.0, -2.2, -3.0], [0.0, -1.8, -2.0, -2.2, -3.0]),
    ],
)
def test_clipping_takes_away_what_would_go_too_far(advantage, values, gradients):
    for ratio, value, gradient in zip(RATIO_CASES, values, gradients, strict=True):
        assert objective("clip", ratio, advantage, 0.8, 1.2) == pytest.approx((value, gradient), rel=1e-12, abs=1e-15)


def test_an_asymmetric_range():
    """Above, .28 instead of .2: a ratio of 1.25 still moves, one of 1.3 does not; below, .75 does not."""
    for ratio, advantage, expected in ((1.25, 1, 1.25), (1.3, 1, 0), (0.85, -1, -0.85), (0.75, -1, 0)):
        assert objective("clip", ratio, advantage, 0.8, 1.28)[1] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert objective("clip", 9.0, 1.0, 0.8, None) == pytest.approx((9.0, 9.0))
    assert objective("clip", 0.01, -1.0, None, 1.2) == pytest.approx((-0.01, -0.01))


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_without_bounds_clip_is_importance_sampling(advantage):
    for ratio in RATIO_CASES:
        assert objective("clip", ratio, advantage, None, None) == pytest.approx((ratio * advantage,) * 2, rel=1e-12)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_weighs_with_a_clipped_constant(advantage):
    for ratio, weight in zip(RATIO_CASES, [0.8, 0.9, 1.0, 1.1, 1.2], strict=True):
        value, gradient = objective("cispo", ratio, advantage, 0.8, 1.2)
        assert gradient == pytest.approx(weight * advantage, rel=1e-12)  # both signs, and none without a gradient
        assert value == pytest.approx(weight * advantage * math.log(ratio / 2), rel=1e-12)
    assert objective("cispo", 7.0, advantage, None, 5.0)[1] == pytest.approx(5 * advantage)
    assert objective("cispo", 0.01, advantage, None, 5.0)[1] == pytest.approx(0.01 * advantage)


def test_the_policy_gradient_does_not_look_at_the_ratio():
    for ratio in RATIO_CASES:
        assert objective("policy_gradient", ratio, 3.0, 0.9, 1.1) == pytest.approx((3 * math.log(ratio / 2), 3.0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_advantages_and_old_log_probabilities_are_constants(name):
    """Also where they depend on the policy: their own gradient is none, and what goes through them is not there."""
    new, given = NEW.clone().requires_grad_(), torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    old = (OLD + 0 * new).requires_grad_()
    for kind in RATIOS.values():
        value = OBJECTIVES[name](new, kind(new, old, MASK), given * new, None, None).sum()
        gradient, none = torch.autograd.grad(value, [new, given], allow_unused=True, retain_graph=True)
        assert none is None and torch.autograd.grad(value, old, allow_unused=True)[0] is None
        detached = NEW.clone().requires_grad_()
        plain = OBJECTIVES[name](detached, kind(detached, OLD, MASK), NEW.clone(), None, None).sum()
        torch.testing.assert_close(gradient, torch.autograd.grad(plain, detached)[0])


@pytest.mark.parametrize("kind", RATIOS)
@pytest.mark.parametrize("function", [clipped, policy_gradient])
def test_objectives_against_finite_differences(function, kind):
    generator = torch.Generator().manual_seed(0)
    new, old, given = (torch.randn(2, 3, generator=generator, dtype=torch.float64) / 2 for _ in range(3))

    def value(log_probs: Tensor) -> Tensor:
        ratio = RATIOS[kind](log_probs, old, MASK)
        return constant(function(log_probs, ratio, given, 0.7, 1.4), MASK, 2, 5)

    assert torch.autograd.gradcheck(value, new.requires_grad_(), eps=1e-6, atol=1e-8)


def test_cispo_against_finite_differences_with_its_weights_held():
    new, given = NEW.clone().requires_grad_(), torch.ones(2, 3, dtype=torch.float64)
    weights = token_ratio(NEW, OLD, MASK).clamp(0.8, 1.2)

    def held(log_probs: Tensor) -> Tensor:
        return (weights * given * log_probs)[MASK].sum()

    assert torch.autograd.gradcheck(held, new)
    value = cispo(new, token_ratio(new, OLD, MASK), given, 0.8, 1.2)[MASK].sum()
    expected = torch.autograd.grad(held(new), new)[0]
    torch.testing.assert_close(torch.autograd.grad(value, new)[0], expected)


# --- aggregations

PER_TOKEN = torch.tensor([[1.0, 2.0, 100.0], [3.0, 4.0, 8.0]])


def test_aggregations():
    # Sums 3 and 15 of 2 and 3 tokens: over two episodes, as means 1.5 and 5 over two, over five tokens.
    assert constant(PER_TOKEN, MASK, 2, 5).item() == 9
    assert sequence_mean(PER_TOKEN, MASK, 2, 5).item() == 3.25
    assert token_mean(PER_TOKEN, MASK, 2, 5).item() == pytest.approx(3.6)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_parts_add_up_to_the_whole(name):
    whole = AGGREGATIONS[name](PER_TOKEN, MASK, 2, 5)
    parts = [AGGREGATIONS[name](PER_TOKEN[row : row + 1], MASK[row : row + 1], 2, 5) for row in (0, 1)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("padding", [-math.inf, math.nan])
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_padding_adds_nothing(name, padding):
    per_token = PER_TOKEN.masked_fill(~MASK, padding).requires_grad_()
    value = AGGREGATIONS[name](per_token, MASK, 2, 5)
    assert value == AGGREGATIONS[name](PER_TOKEN, MASK, 2, 5)
    gradient = torch.autograd.grad(value, per_token)[0]
    assert gradient[0, 2] == 0 and (gradient[MASK] > 0).all()


# --- the other terms


def test_the_critic_is_off_by_the_mean_square():
    values = torch.tensor([[1.0, 2.0, 50.0], [0.0, 4.0, 3.0]], requires_grad=True)
    targets = torch.tensor([[3.0, 2.0, 0.0], [1.0, 1.0, 3.0]], requires_grad=True)
    loss = value_loss(values, targets, MASK, 5)
    assert loss.item() == pytest.approx((4 + 0 + 1 + 9 + 0) / 5)
    gradient, none = torch.autograd.grad(loss, [values, targets], allow_unused=True)
    assert none is None
    torch.testing.assert_close(gradient, torch.tensor([[-4.0, 0, 0], [-2, 6, 0]]) / 5)


@pytest.mark.parametrize("padding", [-math.inf, math.nan])
def test_padding_of_critic_and_entropy_adds_nothing(padding):
    given = torch.tensor([[1.0, 2.0, padding], [0.0, 4.0, 3.0]], requires_grad=True)
    for loss in (value_loss(given, torch.zeros(2, 3), MASK, 5), entropy_bonus(given, MASK)):
        gradient = torch.autograd.grad(loss, given)[0]
        assert loss.isfinite() and gradient.isfinite().all() and gradient[0, 2] == 0
    assert entropy_bonus(given, MASK).item() == 2 and entropy_bonus(given, MASK, 20).item() == 0.5
