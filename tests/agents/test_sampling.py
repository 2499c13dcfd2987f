"""TokenDistribution: what is sampled is what is scored."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from agents.sampling import TokenDistribution

LOG = [math.log(1), math.log(2), math.log(5)]  # probabilities 1/8, 2/8, 5/8
DRAWS = 20_000


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws(distribution: TokenDistribution, seed: int = 0) -> np.ndarray:
    return distribution.sample(torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("masked", [False, True])
def test_probabilities_sum_to_one(temperature, masked):
    mask = torch.rand(4, 6, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 3] = True
    distribution = TokenDistribution(random_logits(4, 6, 9), 9, temperature, mask if masked else None)
    total = distribution.log_probs.exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones(4, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    if masked:
        assert (distribution.log_probs[~mask] == -torch.inf).all()


def test_probabilities_of_known_logits():
    probs = TokenDistribution(torch.tensor(LOG), 3).log_probs.exp()
    np.testing.assert_allclose(probs.numpy(), [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)


def test_ids_beyond_the_vocabulary_lie_outside():
    logits = torch.tensor([*LOG, 30.0, torch.nan])  # what a padded embedding says is nothing
    distribution = TokenDistribution(logits.expand(500, 5), 3)
    assert distribution.log_probs.shape == (500, 3)
    np.testing.assert_allclose(distribution.log_probs[0].exp().numpy(), [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
    assert set(draws(distribution)) == {0, 1, 2}
    assert (distribution.mode() == 2).all()


def test_a_temperature_flattens_and_scores_as_it_samples():
    # Halved logits: weights 1, √4, √9 out of 6, by hand.
    logits = torch.tensor([math.log(1), math.log(4), math.log(9)])
    distribution = TokenDistribution(logits.expand(DRAWS, 3), 3, temperature=2.0)
    expected = np.array([1 / 6, 2 / 6, 3 / 6])
    actions = draws(distribution)
    assert stats.chisquare(np.bincount(actions, minlength=3), DRAWS * expected).pvalue > 1e-3
    scored = distribution.log_prob(torch.tensor(actions)).numpy()
    np.testing.assert_allclose(scored, np.log(expected)[actions], rtol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "mask", "expected"),
    [
        (1.0, None, [1 / 8, 2 / 8, 5 / 8]),
        (0.5, None, [1 / 30, 4 / 30, 25 / 30]),
        (1.0, [True, False, True], [1 / 6, 0, 5 / 6]),
        (0.5, [True, True, False], [1 / 5, 4 / 5, 0]),
        (1.0, [False, True, False], [0, 1, 0]),
    ],
)
def test_frequencies_match_the_probabilities(temperature, mask, expected):
    legal = np.array(expected) > 0
    action_mask = None if mask is None else torch.tensor(mask).expand(DRAWS, 3)
    distribution = TokenDistribution(torch.tensor(LOG).expand(DRAWS, 3), 3, temperature, action_mask)
    np.testing.assert_allclose(distribution.log_probs[0].exp().numpy(), expected, rtol=1e-5)
    counts = np.bincount(draws(distribution), minlength=3)
    assert (counts[~legal] == 0).all()  # a masked token is never drawn
    if legal.sum() > 1:
        assert stats.chisquare(counts[legal], DRAWS * np.array(expected)[legal]).pvalue > 1e-3


def test_the_frequency_check_finds_a_temperature_that_is_left_out():
    distribution = TokenDistribution(torch.tensor(LOG).expand(DRAWS, 3), 3)
    counts = np.bincount(draws(distribution), minlength=3)
    assert stats.chisquare(counts, DRAWS * np.array([1 / 30, 4 / 30, 25 / 30])).pvalue < 1e-6


def test_rows_are_drawn_and_scored_by_their_own_logits():
    logits = torch.full((2, 3, 4), -50.0)
    wanted = torch.tensor([[0, 3, 1], [2, 2, 0]])
    logits.scatter_(-1, wanted[..., None], 50.0)
    distribution = TokenDistribution(logits, 4)
    assert (distribution.sample(torch.Generator().manual_seed(0)) == wanted).all()
    assert (distribution.mode() == wanted).all()
    assert distribution.log_prob(wanted).abs().max() < 1e-6
    assert (distribution.log_prob((wanted + 1) % 4) < -90).all()


def test_a_masked_token_scores_minus_infinity():
    distribution = TokenDistribution(torch.tensor([[9.0, 1.0]]), 2, action_mask=torch.tensor([[False, True]]))
    assert distribution.log_prob(torch.tensor([0])).item() == -torch.inf
    assert distribution.log_prob(torch.tensor([1])).item() == 0
    assert distribution.mode().item() == 1


def test_the_same_generator_draws_the_same():
    distribution = TokenDistribution(random_logits(100, 5), 5)
    assert (draws(distribution, seed=3) == draws(distribution, seed=3)).all()
    assert (draws(distribution, seed=3) != draws(distribution, seed=4)).any()


# --- entropy


@pytest.mark.parametrize(
    ("logits", "mask", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], None, math.log(4)),
        (LOG, None, math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8),
        ([7.0, 0.0, 0.0], [False, True, True], math.log(2)),
        (LOG, [True, True, False], math.log(3) - 2 * math.log(2) / 3),
        (LOG, [False, True, False], 0.0),
        ([0.0, -2000.0], None, 0.0),  # a probability that underflows to 0
    ],
)
def test_entropy_in_nats(logits, mask, expected):
    action_mask = None if mask is None else torch.tensor(mask)
    entropy = TokenDistribution(torch.tensor(logits).double(), len(logits), action_mask=action_mask).entropy()
    assert entropy.item() == pytest.approx(expected, abs=1e-6)


def test_gradients_are_finite_under_a_mask():
    logits = torch.tensor(LOG, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, True, False])
    distribution = TokenDistribution(logits, 3, action_mask=mask)
    (entropy,) = torch.autograd.grad(distribution.entropy(), logits, retain_graph=True)
    # dH/dz_i = -p_i (log p_i + H) with p = 1/3, 2/3; H = log 3 - ⅔ log 2; the same for both up to sign.
    slope = 2 / 9 * math.log(2)
    np.testing.assert_allclose(entropy.numpy(), [slope, -slope, 0.0], atol=1e-12)
    (score,) = torch.autograd.grad(distribution.log_prob(torch.tensor(1)), logits)
    np.testing.assert_allclose(score.numpy(), [-1 / 3, 1 / 3, 0.0], atol=1e-12)


def test_half_precision_logits_are_scored_in_single_precision():
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    distribution = TokenDistribution(logits, 2)
    assert distribution.log_probs.dtype == torch.float32
    assert distribution.log_probs[0, 0].item() == pytest.approx(-math.log(1 + math.e), rel=1e-6)


# --- errors


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature="):
        TokenDistribution(torch.zeros(1, 2), 2, temperature)


def test_fewer_logits_than_tokens_are_refused():
    with pytest.raises(ValueError, match="2 logits for 3 tokens"):
        TokenDistribution(torch.zeros(1, 2), 3)


def test_a_state_without_a_legal_token_is_refused():
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="without a legal token"):
        TokenDistribution(torch.zeros(2, 2), 2, action_mask=mask)
