"""The gradient is right: exact enumeration of a small problem against the production losses and advantages."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import Algorithm
from agents.experience import Experience
from agents.learner import PolicyGradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents import hand_made, tiny
from tests.agents.hand_made import COEFFICIENTS, coefficients
from tests.agents.tiny import STOP

EXACT = 1e-9
WEIGHT_SCALE = 2.0  # a near-uniform policy would hide wrong weights


class Truth(NamedTuple):
    """J and ∇J by enumeration."""

    policy: TransformerPolicy
    episodes: list[tiny.Episode]
    probs: np.ndarray  # [80] P(prompt) · π(completion | prompt)
    objective: float
    gradient: Tensor

    @property
    def norm(self) -> float:
        return float(self.gradient.norm())

    @property
    def direction(self) -> Tensor:
        return self.gradient / self.gradient.norm()


def objective(policy: TransformerPolicy, episodes: list[tiny.Episode]) -> tuple[Tensor, Tensor]:
    """J = Σ p R, with gradient, and the p."""
    log_probs = torch.stack([steps.sum() for steps in tiny.step_log_probs(policy, episodes)])
    probs = log_probs.exp() / len(tiny.PROMPTS)
    returns = torch.tensor([sum(e.rewards) for e in episodes], dtype=torch.float64)
    return (probs * returns).sum(), probs


def enumerate_exactly(scheme: str) -> Truth:
    policy = tiny.make_policy(tiny.make_envs(), scale=WEIGHT_SCALE)
    episodes = tiny.every_episode(scheme=scheme)
    value, probs = objective(policy, episodes)
    return Truth(policy, episodes, probs.detach().numpy(), value.item(), tiny.flat_gradient(value, policy))


@pytest.fixture(scope="module")
def truths() -> dict[str, Truth]:
    return {scheme: enumerate_exactly(scheme) for scheme in ("terminal", "prefix_delta")}


@pytest.fixture(scope="module")
def truth(truths: dict[str, Truth]) -> Truth:
    return truths["terminal"]


# --- the truth itself


def test_every_episode_is_there_and_the_policy_is_far_from_uniform(truth):
    assert len(truth.episodes) == 2 * tiny.SEQUENCES_PER_PROMPT
    assert truth.probs.sum() == pytest.approx(1, abs=1e-14)
    assert truth.probs.max() > 30 * truth.probs.min()
    returns = [sum(e.rewards) for e in truth.episodes]
    assert 0.2 <= min(returns) < 0.5 < 0.8 < max(returns) <= 1


def test_the_score_function_has_mean_zero(truth):
    log_probs = torch.stack([steps.sum() for steps in tiny.step_log_probs(truth.policy, truth.episodes)])
    mean = tiny.flat_gradient((torch.tensor(truth.probs) * log_probs).sum(), truth.policy)
    assert mean.norm() < 1e-13


def test_both_schemes_have_the_same_objective(truths):
    assert truths["terminal"].objective == pytest.approx(truths["prefix_delta"].objective, rel=1e-14)
    assert tiny.relative_error(truths["terminal"].gradient, truths["prefix_delta"].gradient) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_exact_gradient_equals_finite_differences(truth, seed):
    direction = torch.randn(len(truth.gradient), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction /= direction.norm()
    assert difference_quotient(truth, direction) == pytest.approx(float(truth.gradient @ direction), rel=1e-6, abs=1e-9)


def difference_quotient(truth: Truth, direction: Tensor, step: float = 1e-5) -> float:
    policy = tiny.make_policy(tiny.make_envs(), scale=WEIGHT_SCALE)
    values = []
    for sign in (1, -2):
        tiny.shift(policy, direction, sign * step)
        values.append(objective(policy, truth.episodes)[0].item())
    return (values[0] - values[1]) / (2 * step)


# --- token coefficients c = -∂loss/∂log π, read off the production loss


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_token_coefficients_equal_their_closed_form(name):
    rollout = hand_made.rollout()
    actual = coefficients(ALGORITHMS[name], rollout)
    np.testing.assert_allclose(actual, COEFFICIENTS[name], rtol=1e-13, atol=0)
    assert (actual[~rollout.mask] == 0).all()  # exactly nothing on padding
    assert (actual[:, 0] != 0).all() and actual[1, 2] != 0  # the first token and the stop token count


def test_every_algorithm_has_its_closed_form_here():
    assert set(COEFFICIENTS) >= set(ALGORITHMS)


# --- the exact expectation of the production estimator


def expected_coefficients(truth: Truth, algorithm: Algorithm, batches: list[tuple[int, ...]], weights: Any) -> Tensor:
    """E[c] by episode and step, [80, W], over batches of episodes with their probabilities."""
    expected = np.zeros((len(truth.episodes), tiny.HORIZON))
    for rows, weight in zip(batches, weights, strict=True):
        rollout = tiny.rollout_of([truth.episodes[row] for row in rows], group=[0] * len(rows))
        rollout = rollout._replace(values=wrong_values(rollout))
        for row, own in zip(rows, weight * coefficients(algorithm, rollout), strict=True):
            expected[row, : len(own)] += own
    return torch.tensor(expected)


def wrong_values(rollout: Rollout) -> np.ndarray:
    """What a critic says that knows the state, and nothing of its value."""
    values = np.zeros(rollout.mask.shape)
    for row, step in zip(*np.nonzero(rollout.mask), strict=True):
        history = rollout.tokens[row, : rollout.prompt_length[row] + step]
        values[row, step] = 2 * np.sin(history @ (np.arange(len(history)) + 1))
    return values


def batches_of(truth: Truth, kind: str) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Every batch of one episode, of two of one prompt, or of any two, with its probability."""
    rows = range(len(truth.episodes))
    if kind == "single":
        return [(row,) for row in rows], truth.probs
    prompt = [e.prompt_index for e in truth.episodes]
    pairs = [(i, j) for i in rows for j in rows if kind == "pair" or prompt[i] == prompt[j]]
    weights = np.array([truth.probs[i] * truth.probs[j] for i, j in pairs])
    if kind == "group":  # the prompt is drawn once for both
        weights *= len(tiny.PROMPTS)
    assert weights.sum() == pytest.approx(1, abs=1e-13)
    return pairs, weights


@pytest.mark.parametrize(
    ("name", "kind", "scheme"),
    [
        ("reinforce", "single", "terminal"),
        ("reinforce", "single", "prefix_delta"),
        ("reinforce_to_go", "single", "terminal"),
        ("reinforce_to_go", "single", "prefix_delta"),
        ("rloo", "group", "terminal"),
        ("rloo", "group", "prefix_delta"),
        ("reinforce_baseline", "pair", "terminal"),
        ("a2c", "single", "terminal"),
        ("a2c", "single", "prefix_delta"),
    ],
)
def test_the_expected_gradient_is_the_gradient_of_the_objective(truths, name, kind, scheme):
    truth = truths[scheme]
    weights = expected_coefficients(truth, ALGORITHMS[name], *batches_of(truth, kind))
    log_probs = truth.policy.log_probs(tiny.rollout_of(truth.episodes))  # production scoring, all episodes padded
    mean = tiny.flat_gradient((weights * log_probs).sum(), truth.policy)
    error = tiny.relative_error(mean, truth.gradient)
    assert error < EXACT


def test_a_baseline_that_holds_the_sample_halves_the_exact_gradient_of_pairs(truth):
    weights = expected_coefficients(truth, ALGORITHMS["dr_grpo"], *batches_of(truth, "group"))
    log_probs = truth.policy.log_probs(tiny.rollout_of(truth.episodes))
    mean = tiny.flat_gradient((weights * log_probs).sum(), truth.policy)
    assert tiny.relative_error(2 * mean, truth.gradient) < EXACT


# --- sampled episodes of the real environment and policy

EPISODES = 20_000
GROUP_SIZE = 4


@pytest.fixture(scope="module")
def sampled(truth: Truth) -> Rollout:
    return collect(
        truth.policy,
        tiny.make_envs(num_envs=1000, scheme="prefix_delta"),  # so that rewards to go are not the whole return
        EPISODES,
        np.random.default_rng(0),
        group_size=GROUP_SIZE,
        action_generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture(scope="module")
def projections(truth: Truth) -> dict[tuple[int, ...], np.ndarray]:
    """∇ log π(a | s) on the direction of ∇J for each action, by history s, from plain forward passes."""
    table = {}
    for history in {tuple(e.prompt + e.completion[:step]) for e in truth.episodes for step in range(len(e.completion))}:
        logits = truth.policy.model(input_ids=torch.tensor([history])).logits[0, -1, : len(tiny.SYMBOLS)]
        log_probs = torch.log_softmax(logits, dim=-1)
        gradients = [tiny.flat_gradient(log_probs[action], truth.policy) for action in range(len(tiny.SYMBOLS))]
        table[history] = np.array([float(gradient @ truth.direction) for gradient in gradients])
    return table


def production_mean(truth: Truth, rollout: Rollout, algorithm: Algorithm) -> float:
    """The mean gradient that the learner ascends, on the direction of ∇J."""
    learner = PolicyGradient(
        truth.policy,
        tiny.make_envs(),
        algorithm,
        group_size=GROUP_SIZE,
        entropy_coef=0.0,
        max_grad_norm=1e9,
        tokens_per_microbatch=1_000_000,
    )
    learner.accumulate_gradient(Experience(rollout, algorithm.advantages_of(rollout)))
    return -float(tiny.stored_gradient(truth.policy) @ truth.direction)


def group_projections(rollout: Rollout, algorithm: Algorithm, table: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """The gradient of each group of episodes on the direction of ∇J; groups are independent."""
    weights = coefficients(algorithm, rollout) * len(rollout.mask)
    each = np.zeros(len(rollout.mask))
    for row, step in zip(*np.nonzero(rollout.mask), strict=True):
        history = tuple(rollout.tokens[row, : rollout.prompt_length[row] + step].tolist())
        each[row] += weights[row, step] * table[history][rollout.actions[row, step]]
    return each.reshape(-1, GROUP_SIZE).mean(axis=1)


def z_value(truth: Truth, rollout: Rollout, algorithm: Algorithm, table: dict[tuple[int, ...], np.ndarray]) -> float:
    """How many standard errors the production gradient's projection is from ‖∇J‖."""
    each = group_projections(rollout, algorithm, table)
    mean = production_mean(truth, rollout, algorithm)
    assert mean == pytest.approx(each.mean(), rel=1e-9)  # two ways to the same number
    return (mean - truth.norm) / (each.std(ddof=1) / np.sqrt(len(each)))


@pytest.mark.parametrize("name", ["reinforce", "reinforce_to_go", "rloo"])
def test_sampled_gradients_project_on_the_exact_one(truth, sampled, projections, name):
    assert len(sampled.mask) == EPISODES
    z = z_value(truth, sampled, ALGORITHMS[name], projections)
    assert abs(z) < 5


def mask_stop_token(rollout: Rollout) -> Rollout:
    return rollout._replace(mask=rollout.mask & (rollout.actions != STOP))


def shift_labels(rollout: Rollout) -> Rollout:
    """Each state is scored with the next step's token, the last one with its own."""
    shifted = rollout.actions.copy()
    follows = rollout.mask[:, 1:]
    shifted[:, :-1][follows] = rollout.actions[:, 1:][follows]
    return rollout._replace(actions=shifted)


FAULTS = {
    "stop token masked out": (mask_stop_token, ALGORITHMS["rloo"]),
    "label shifted by one": (shift_labels, ALGORITHMS["rloo"]),
    "baseline holds the sample": (lambda rollout: rollout, ALGORITHMS["dr_grpo"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(truth, sampled, projections, fault):
    plant, algorithm = FAULTS[fault]
    assert abs(z_value(truth, plant(sampled), algorithm, projections)) >= 5


# --- the learner's raw gradient


def make_learner(entropy_coef: float, algorithm: Any = "rloo", **settings: Any) -> PolicyGradient:
    envs = tiny.make_envs()
    policy = tiny.make_policy(envs, scale=WEIGHT_SCALE)
    return PolicyGradient(policy, envs, algorithm, entropy_coef=entropy_coef, max_grad_norm=1e9, **settings)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_learner_sets_minus_the_gradient_of_its_coefficients(name):
    alone = {"value_coef": 0.0} if ALGORITHMS[name].critic else {}  # the policy's gradient
    row, rollout = make_algorithm(name, **alone), hand_made.rollout()
    learner = make_learner(0.0, row)
    targets = np.zeros(rollout.mask.shape) if row.critic else None
    metrics = learner.accumulate_gradient(Experience(rollout, row.advantages_of(rollout), targets=targets))
    steps = tiny.step_log_probs(learner.policy, hand_made.EPISODES)
    rows = [own[: len(each)] for own, each in zip(COEFFICIENTS[name], steps, strict=True)]
    value = sum(torch.tensor(own, dtype=torch.float64) @ each for own, each in zip(rows, steps, strict=True))
    expected = tiny.flat_gradient(value, learner.policy)
    assert tiny.relative_error(-tiny.stored_gradient(learner.policy), expected) < EXACT
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-9)
    # Where the ratio is differentiated in place of the log-probability, 1 stands for it.
    loss = -sum(map(sum, rows)) if row.objective == "clip" else -value.item()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-9, abs=1e-15)


def mean_entropy(policy: TransformerPolicy) -> float:
    """Mean of H(π(· | s)) over the nine states that the hand-made episodes visit, as numpy has it."""
    total = 0.0
    for episode in hand_made.EPISODES:
        for step in range(len(episode.completion)):
            history = torch.tensor([episode.prompt + episode.completion[:step]])
            with torch.no_grad():
                logits = policy.model(input_ids=history).logits[0, -1, : len(tiny.SYMBOLS)].numpy()
            probs = np.exp(logits) / np.exp(logits).sum()
            total -= (probs * np.log(probs)).sum()
    return total / 9


@pytest.mark.parametrize("tokens_per_microbatch", [1, 1000])
def test_the_entropy_bonus_ascends_the_mean_entropy_of_the_visited_states(tokens_per_microbatch):
    learner = make_learner(entropy_coef=0.7, tokens_per_microbatch=tokens_per_microbatch)
    rollout = hand_made.rollout()
    metrics = learner.accumulate_gradient(Experience(rollout, np.zeros(rollout.mask.shape)))
    assert metrics["entropy"] == pytest.approx(mean_entropy(learner.policy), rel=1e-12)
    gradient = -tiny.stored_gradient(learner.policy)
    direction = gradient / gradient.norm()
    step = 1e-5
    tiny.shift(learner.policy, direction, step)
    above = mean_entropy(learner.policy)
    tiny.shift(learner.policy, direction, -2 * step)
    quotient = 0.7 * (above - mean_entropy(learner.policy)) / (2 * step)
    assert quotient == pytest.approx(float(gradient.norm()), rel=1e-7)


def test_the_gradient_is_scaled_down_to_its_largest_norm_and_never_up():
    rollout = hand_made.rollout()
    experience = Experience(rollout, ALGORITHMS["rloo"].advantages_of(rollout))
    whole = make_learner(entropy_coef=0.0)
    whole.accumulate_gradient(experience)
    clipped = make_learner(entropy_coef=0.0)
    clipped.settings["max_grad_norm"] = 0.001
    metrics = clipped.accumulate_gradient(experience)
    raw, short = tiny.stored_gradient(whole.policy), tiny.stored_gradient(clipped.policy)
    assert metrics["grad_norm"] == pytest.approx(float(raw.norm()), rel=1e-9)
    assert tiny.relative_error(short, 0.001 * raw / raw.norm()) < 1e-2  # torch divides by the norm plus 1e-6
