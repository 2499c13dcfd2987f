"""The loss that the choices of a row are put together to: each token's coefficient, by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import KL_FORMS, Algorithm
from agents.surrogate import Batch, surrogate
from tests.agents import hand_made

# Two episodes of two and three tokens. Ratios 2 and ½; 1.1, 1.25 and 1: a geometric mean of 1, and of 1.375^⅓ = 1.112.
RATIOS = [[2.0, 0.5, 1.0], [1.1, 1.25, 1.0]]
MASK = torch.tensor([[True, True, False], [True, True, True]])
OLD = torch.tensor([[0.1, 0.2, 1.0], [0.2, 0.3, 0.6]], dtype=torch.float64).log()
ADVANTAGES = [[3.0, 3.0, 0.0], [1.0, -1.0, 1.0]]


def batch(advantages: Any = None, **others: Any) -> Batch:
    given = torch.tensor(ADVANTAGES if advantages is None else advantages, dtype=torch.float64)
    return Batch(given, MASK, 2, 5, **({"old_log_probs": OLD} | others))


def leaf() -> Tensor:
    return (OLD + torch.tensor(RATIOS, dtype=torch.float64).log()).requires_grad_()


def coefficients(row: Algorithm, of: Batch, kl_coef: float = 0.0) -> list[list[float]]:
    new = leaf()
    return (-torch.autograd.grad(surrogate(row, new, of, kl_coef).loss, new)[0]).tolist()


def close(actual: list[list[float]], expected: list[list[float]]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


# --- away from the first step


def test_grpo():
    # The first ratio is beyond 1.2 with a positive advantage: no gradient. The fifth is beyond it with a negative one.
    close(coefficients(ALGORITHMS["grpo"], batch()), [[0, 3 * 0.5 / 4, 0], [1.1 / 6, -1.25 / 6, 1 / 6]])


def test_dr_grpo():
    close(coefficients(ALGORITHMS["dr_grpo"], batch()), [[0, 3 * 0.5 / 2, 0], [1.1 / 2, -1.25 / 2, 1 / 2]])


def test_dapo():
    close(coefficients(ALGORITHMS["dapo"], batch()), [[0, 3 * 0.5 / 5, 0], [1.1 / 5, -1.25 / 5, 1 / 5]])
    higher = [[3.0, 3.0, 0.0], [1.0, 1.0, 1.0]]  # 1.25 lies within 1.28, and beyond grpo's 1.2
    close(coefficients(ALGORITHMS["dapo"], batch(higher)), [[0, 3 * 0.5 / 5, 0], [1.1 / 5, 1.25 / 5, 1 / 5]])
    assert coefficients(ALGORITHMS["grpo"], batch(higher))[1][1] == 0


def test_cispo():
    # Nothing below, up to 5 above: all ratios are weights; with a bound of 1.5 the first counts that much.
    close(coefficients(ALGORITHMS["cispo"], batch()), [[6 / 5, 1.5 / 5, 0], [1.1 / 5, -1.25 / 5, 1 / 5]])
    narrow = make_algorithm("cispo", clip_epsilon_high=0.5)
    close(coefficients(narrow, batch()), [[4.5 / 5, 1.5 / 5, 0], [1.1 / 5, -1.25 / 5, 1 / 5]])


def test_gspo():
    # The first episode's ratio is exactly 1, whatever its tokens' are; the second's is far beyond its range.
    equal = [[3.0, 3.0, 0.0], [1.0, 1.0, 1.0]]
    close(coefficients(ALGORITHMS["gspo"], batch(equal)), [[3 / 4, 3 / 4, 0], [0, 0, 0]])
    equal[1] = [-1.0, -1.0, -1.0]
    mean = 1.375 ** (1 / 3)
    close(coefficients(ALGORITHMS["gspo"], batch(equal)), [[3 / 4, 3 / 4, 0], [-mean / 6] * 3])


def test_without_old_log_probabilities_the_ratio_is_1():
    for name in ("grpo", "dr_grpo", "dapo", "cispo"):
        scale = {"grpo": [[4] * 3, [6] * 3], "dr_grpo": 2}.get(name, 5)
        expected = (np.array(ADVANTAGES) / np.array(scale)).tolist()
        close(coefficients(ALGORITHMS[name], batch(old_log_probs=None)), expected)


def test_where_the_bounds_were_reached():
    found = surrogate(ALGORITHMS["grpo"], leaf(), batch())
    torch.testing.assert_close(found.ratio, torch.tensor(RATIOS, dtype=torch.float64))
    assert not found.ratio.requires_grad
    assert found.clipped_high.tolist() == [[True, False, False], [False, False, False]]
    assert not found.clipped_low.any()
    other = surrogate(ALGORITHMS["grpo"], leaf(), batch([[-3.0, -3.0, 0.0], [1.0, 1.0, 1.0]]))
    assert other.clipped_high.tolist() == [[False, False, False], [False, True, False]]
    assert other.clipped_low.tolist() == [[False, True, False], [False, False, False]]
    none = surrogate(make_algorithm("grpo", clip_epsilon=None), leaf(), batch())
    assert not none.clipped_low.any() and not none.clipped_high.any()


# --- the KL term


def ref_log_probs() -> Tensor:
    """Twice as probable as π in the first episode; in the second as probable as π, half and a quarter."""
    factors = torch.tensor([[2.0, 2.0, 1.0], [1.0, 0.5, 0.25]], dtype=torch.float64)
    return leaf().detach() + factors.log()


LN2 = math.log(2)
# Minus the derivative of each term by log π, at β = 1 and no advantage; to be divided as the aggregation does.
KL_COEFFICIENTS = {
    "k1": [[-1, -1, 0], [-1, -1, -1]],
    "k2": [[LN2, LN2, 0], [0, -LN2, -2 * LN2]],
    "k3": [[2 - 1, 2 - 1, 0], [0, 0.5 - 1, 0.25 - 1]],
    "k2_sequence": [[2 * LN2, 2 * LN2, 0], [-3 * LN2] * 3],
    # The ratio times what k3 has, and minus the ratio times k3 itself: ratio · (x - 1) - ratio · (x - 1 - log x).
    "frozen": [[2 * LN2, 0.5 * LN2, 0], [0, -1.25 * LN2, -2 * LN2]],
}


@pytest.mark.parametrize("form", KL_COEFFICIENTS)
def test_the_kl_term_in_the_loss(form):
    over = {"constant": 2, "token_mean": 5, "sequence_mean": np.array([[4], [6]])}
    nothing = batch(np.zeros((2, 3)).tolist(), ref_log_probs=ref_log_probs())
    for aggregation, denominator in over.items():
        if form == "k2_sequence" and aggregation != "constant":
            continue
        row = make_algorithm("dr_grpo", aggregation=aggregation, kl=form)
        expected = 0.7 * np.array(KL_COEFFICIENTS[form]) / denominator
        close(coefficients(row, nothing, kl_coef=0.7), expected.tolist())


def test_the_kl_term_is_added_to_the_objective():
    row = make_algorithm("dr_grpo", kl="k3")
    alone, term = coefficients(row, batch()), 0.7 * np.array(KL_COEFFICIENTS["k3"]) / 2
    both = coefficients(row, batch(ref_log_probs=ref_log_probs()), kl_coef=0.7)
    close(both, (np.array(alone) + term).tolist())


@pytest.mark.parametrize("form", ["none", "k1_reward"])
def test_a_form_that_stands_elsewhere_adds_no_term(form):
    row = make_algorithm("dr_grpo", kl=form)
    assert coefficients(row, batch(ref_log_probs=ref_log_probs()), 0.7) == coefficients(row, batch())


def test_every_form_has_its_numbers_here():
    assert set(KL_COEFFICIENTS) | {"none", "k1_reward"} == set(KL_FORMS)


# --- constants and padding


@pytest.mark.parametrize("form", KL_COEFFICIENTS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_flows_through_what_is_constant(name, form):
    """Advantages, old and reference log-probabilities that depend on the policy are weights all the same."""
    row, new = make_algorithm(name, kl=form), leaf()
    constants = [torch.zeros(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    given, old, ref = (torch.tensor(ADVANTAGES) + constants[0], OLD + constants[1], ref_log_probs() + constants[2])
    loss = surrogate(row, new, Batch(given, MASK, 2, 5, old, ref), kl_coef=0.3).loss
    assert loss.requires_grad
    assert torch.autograd.grad(loss, constants, allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("padding", [-math.inf, math.nan])
@pytest.mark.parametrize("form", KL_COEFFICIENTS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_stands_on_the_padding_changes_nothing(name, form, padding):
    results = []
    for filler in (0.0, padding):
        new, old, ref = (one.detach().masked_fill(~MASK, filler) for one in (leaf(), OLD, ref_log_probs()))
        row, new = make_algorithm(name, kl=form), new.requires_grad_()
        found = surrogate(row, new, batch(old_log_probs=old, ref_log_probs=ref), kl_coef=0.3)
        gradient = torch.autograd.grad(found.loss, new)[0]
        assert found.loss.isfinite() and gradient.isfinite().all() and gradient[0, 2] == 0
        assert not (found.clipped_low | found.clipped_high)[~MASK].any()
        results.append((found.loss, gradient, found.ratio[MASK]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_padding_that_holds_infinities_leaves_the_coefficients_of_whole_episodes():
    rollout = hand_made.rollout()
    mask = torch.tensor(rollout.mask)
    new = torch.where(mask, -1.0, -torch.inf).double().requires_grad_()
    loss = surrogate(ALGORITHMS["reinforce"], new, Batch(mask.double(), mask, 4, 9)).loss
    assert loss.item() == pytest.approx(9 / 4)
    assert (torch.autograd.grad(loss, new)[0] == torch.where(mask, -0.25, 0.0)).all()
