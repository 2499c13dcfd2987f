"""Forms of the KL term: values and gradients by hand, and what they are in expectation over enumerated policies."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.kl import adapted, frozen, k1, k2, k2_sequence, k3

# One step over two tokens: π has the probabilities .8 and .2, π_ref .5 and .5.
PI, REF = np.array([0.8, 0.2]), np.array([0.5, 0.5])
LOGIT = math.log(4)  # of the first token; that of the second is 0
# With x = .8/.5 = 1.6 and .2/.5 = .4.
KL = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)


def policy(logit: float = LOGIT) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both tokens, [2, 1], as a function of a leaf, and the leaf."""
    leaf = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    return torch.log_softmax(torch.stack([leaf, torch.zeros((), dtype=torch.float64)]), dim=0)[:, None], leaf


REF_LOGS = torch.tensor(REF).log()[:, None]
FORMS = {"k1": k1, "k2": k2, "k3": k3, "frozen": lambda new, ref: frozen(new, ref, (new - new.detach()).exp())}


def test_values_by_hand():
    new, _ = policy()
    up, down = math.log(1.6), math.log(0.4)
    expected = {
        "k1": [up, down],
        "k2": [up**2 / 2, down**2 / 2],
        "k3": [1 / 1.6 - 1 + up, 1 / 0.4 - 1 + down],
        "frozen": [1 / 1.6 - 1 + up, 1 / 0.4 - 1 + down],  # the ratio is 1 here
    }
    for name, form in FORMS.items():
        assert form(new, REF_LOGS).flatten().tolist() == pytest.approx(expected[name], rel=1e-14), name
    ratio = torch.full((2, 1), 3.0)
    torch.testing.assert_close(frozen(new, REF_LOGS, ratio), 3 * k3(new, REF_LOGS))


def test_derivatives_by_hand():
    """By log π: 1; log π/π_ref; 1 - π_ref/π; and with the ratio 1, that of k3 plus k3 itself, which is log π/π_ref."""
    expected = {
        "k1": [1, 1],
        "k2": [math.log(1.6), math.log(0.4)],
        "k3": [1 - 1 / 1.6, 1 - 1 / 0.4],
        "frozen": [math.log(1.6), math.log(0.4)],
    }
    for name, form in FORMS.items():
        leaf = torch.tensor(PI).log()[:, None].requires_grad_()
        gradient = torch.autograd.grad(form(leaf, REF_LOGS).sum(), leaf)[0]
        assert gradient.flatten().tolist() == pytest.approx(expected[name], rel=1e-12), name


def test_a_policy_at_its_reference_pays_exactly_nothing():
    leaf = torch.linspace(-20, -1e-3, 7, dtype=torch.float64).requires_grad_()
    for name, form in FORMS.items():
        value = form(leaf, leaf.detach().clone())
        assert (value == 0).all(), name
        assert (torch.autograd.grad(value.sum(), leaf)[0] == (name == "k1")).all(), name


def test_k1_and_k3_are_the_kl_in_the_mean_and_k2_is_not():
    new = policy()[0].detach()
    means = {form: float(torch.tensor(PI) @ form(new, REF_LOGS).flatten()) for form in (k1, k2, k3)}
    half_squares = 0.4 * math.log(1.6) ** 2 + 0.1 * math.log(0.4) ** 2
    assert means == pytest.approx({k1: KL, k3: KL, k2: half_squares}, rel=1e-14)
    assert abs(half_squares - KL) > 0.02
    assert (k3(new, REF_LOGS) >= 0).all() and (k1(new, REF_LOGS) < 0).any()


def test_k3_of_a_policy_that_is_kept_from_tokens_is_less():
    # π has the first two tokens, each ½; π_ref has ¼, ½ and ¼, and with it KL = ½ ln 2 + ½ ln 1.
    new, ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.5]).log()
    assert k1(new, ref).mean().item() == pytest.approx(math.log(2) / 2)
    assert k3(new, ref).mean().item() == pytest.approx(math.log(2) / 2 - 0.25)


def gradient_in_expectation(name: str) -> float:
    """Σ_a π(a) ∂term(a)/∂leaf: of tokens that were sampled, whose probabilities carry no gradient."""
    new, leaf = policy()
    return float(torch.autograd.grad((torch.tensor(PI) * FORMS[name](new, REF_LOGS).flatten()).sum(), leaf)[0])


def test_gradients_in_expectation():
    # Of the first logit: ∂π/∂logit = .8 · .2 = .16 for the first token and -.16 for the second.
    reverse = 0.16 * (math.log(1.6) - math.log(0.4))  # KL(π‖π_ref) = Σ π log π/π_ref
    forward = 0.8 - 0.5  # KL(π_ref‖π) = const - Σ π_ref log π
    expected = {"k1": 0.0, "k2": reverse, "k3": forward, "frozen": reverse}
    for name in FORMS:
        assert gradient_in_expectation(name) == pytest.approx(expected[name], abs=1e-15), name
    assert abs(reverse - forward) > 0.05  # or the check could not tell them apart


def test_those_are_the_gradients_of_the_kl():
    """The closed forms above, by finite differences of the KL itself, as scipy has it."""
    from scipy.stats import entropy

    def pi(logit: float) -> np.ndarray:
        return np.array([1, math.exp(-logit)]) / (1 + math.exp(-logit))

    step = 1e-6
    for name, kl in (("k2", lambda p: entropy(p, REF)), ("k3", lambda p: entropy(REF, p))):
        quotient = (kl(pi(LOGIT + step)) - kl(pi(LOGIT - step))) / (2 * step)
        assert gradient_in_expectation(name) == pytest.approx(quotient, rel=1e-8), name
    assert entropy(PI, REF) == pytest.approx(KL, rel=1e-14)


# --- two steps over two tokens: token 1 stops, and the second step's distribution is another

EPISODES = [(1,), (0, 0), (0, 1)]
STEPS_MASK = torch.tensor([[True, False], [True, True], [True, True]])
LEAF = torch.tensor([0.9, -1.3], dtype=torch.float64)
REF_LEAF = torch.tensor([-0.4, 0.5], dtype=torch.float64)


def step_logs(leaf: Tensor) -> Tensor:
    """Log-probabilities of the episodes' tokens, [3, 2]; -inf on the padding."""
    tables = [torch.log_softmax(torch.stack([one, torch.zeros_like(one)]), dim=0) for one in leaf]
    nothing = torch.tensor(-math.inf, dtype=torch.float64)
    rows = [[*(tables[step][token] for step, token in enumerate(episode)), nothing][:2] for episode in EPISODES]
    return torch.stack([torch.stack(row) for row in rows])


def sums(log_probs: Tensor) -> Tensor:
    return log_probs.masked_fill(~STEPS_MASK, 0.0).sum(dim=1)


def exact_gradient(freeze_visits: bool = False) -> Tensor:
    """Of KL(π‖π_ref) over whole episodes, or of its sum over states with the probability of their visit held fixed."""
    leaf = LEAF.clone().requires_grad_()
    if not freeze_visits:
        new, ref = sums(step_logs(leaf)), sums(step_logs(REF_LEAF))
        return torch.autograd.grad((new.exp() * (new - ref)).sum(), leaf)[0]
    visits = torch.stack([torch.ones((), dtype=torch.float64), torch.sigmoid(LEAF[0])])
    pi, ref = (torch.stack([torch.sigmoid(one), torch.sigmoid(-one)]) for one in (leaf, REF_LEAF))
    return torch.autograd.grad((visits * (pi * (pi / ref).log()).sum(dim=0)).sum(), leaf)[0]


def mean_gradient(name: str) -> Tensor:
    """Of a term as a loss, summed over tokens, in expectation over the episodes."""
    leaf = LEAF.clone().requires_grad_()
    new, ref = (step_logs(one).masked_fill(~STEPS_MASK, 0.0) for one in (leaf, REF_LEAF))
    terms = k2_sequence(new, ref, STEPS_MASK) if name == "k2_sequence" else FORMS[name](new, ref)
    probs = sums(step_logs(LEAF)).exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-15)
    return torch.autograd.grad((probs[:, None] * terms.masked_fill(~STEPS_MASK, 0.0)).sum(), leaf)[0]


def test_k2_of_the_sequence_follows_the_exact_gradient():
    torch.testing.assert_close(mean_gradient("k2_sequence"), exact_gradient(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["k2", "frozen"])
def test_k2_of_tokens_and_frozen_hold_the_visited_states(name):
    torch.testing.assert_close(mean_gradient(name), exact_gradient(freeze_visits=True), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(mean_gradient(name), exact_gradient(), rtol=0.1)


def test_k1_as_a_loss_leads_nowhere_and_as_a_cost_follows_the_exact_gradient():
    assert mean_gradient("k1").abs().max() < 1e-15
    leaf = LEAF.clone().requires_grad_()
    new, probs = sums(step_logs(leaf)), sums(step_logs(LEAF)).exp()
    cost = (sums(step_logs(LEAF)) - sums(step_logs(REF_LEAF))).detach()  # R = -k1 of the whole episode
    policy_gradient = torch.autograd.grad((probs * cost * new).sum(), leaf)[0]
    torch.testing.assert_close(policy_gradient, exact_gradient(), rtol=1e-12, atol=1e-15)


def test_k2_of_the_sequence_by_hand():
    new = torch.tensor([[1.0, 2.0, 7.0], [3.0, -1.0, 0.5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    terms = k2_sequence(new, torch.zeros(2, 3), mask)  # halves of 3 · 3 and 2.5 · 2.5 in all
    assert terms.tolist() == [[1.5, 3, 0], [3.75, -1.25, 0.625]]
    assert terms.sum(dim=1).tolist() == [4.5, 3.125]


# --- the coefficient


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.5), (0.11, 0.505), (0.09, 0.495), (0.12, 0.51), (5.0, 0.51), (0.08, 0.49), (0.0, 0.49), (-3.0, 0.49)],
)
def test_the_coefficient_follows_a_tenth_of_the_relative_error_and_at_most_2_percent(kl, expected):
    assert adapted(0.5, kl, kl_target=0.1) == pytest.approx(expected, rel=1e-12)
