"""Exact gradients against autograd through plain enumeration, finite differences, and numbers worked out by hand.

The plain enumeration plays every action sequence in the scalar environment and runs the model on one history at a time;
of the code under test it uses nothing but the model's weights.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents.exact import entropy_gradient, exact_gradient, kl_gradient, node_log_probs, node_scores, score_gradient
from agents.policy import TransformerPolicy
from tests.agents import tiny
from tests.textgym import cases
from textgym.oracle import Tree, enumerate_tree, values

EXACT = 1e-12
CASES: dict[str, dict[str, Any]] = {
    "stop token": {},
    "reward on the way": dict(scheme="prefix_delta"),
    "no stop token": dict(tokenizer=["a", "b", "c"]),
    "stop string": dict(stop=["ab"]),
    "empty prompt": dict(prompts=["", "ab"]),
    "one step": dict(max_new_tokens=1),
    "mask": dict(task="brackets", max_new_tokens=6),
    "mask with dead ends": dict(task="no_repeat"),
    "temperature": {},
    "top_k": {},
    "weights": {},
}
SETTINGS: dict[str, dict[str, Any]] = {"temperature": dict(temperature=0.5), "top_k": dict(top_k=2)}
WEIGHTS = {"weights": [0.2, 0.8]}
assert cases.no_repeat  # registers the task


class Episode(NamedTuple):
    prompt: int
    prompt_ids: list[int]
    actions: list[int]
    legal: list[np.ndarray]  # bool [V] before each action
    paid: float


class Case(NamedTuple):
    policy: TransformerPolicy
    tree: Tree
    episodes: list[Episode]
    weights: list[float]


def make_env(keywords: dict[str, Any]) -> gym.Env:
    return gym.make("TextGen-v0", **keywords) if "task" in keywords else tiny.make_env(**keywords)


def make_case(name: str) -> Case:
    env = make_env(CASES[name])
    episodes = [episode for prompt in range(len(env.unwrapped.problem.prompts)) for episode in all_after(env, prompt)]
    policy = TransformerPolicy.small(env, d_model=16, num_layers=1, **SETTINGS.get(name, {})).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= 2
    count = len(env.unwrapped.problem.prompts)
    weights = WEIGHTS.get(name, [1 / count] * count)
    return Case(policy, enumerate_tree(env, WEIGHTS.get(name)), episodes, weights)


def all_after(env: gym.Env, prompt: int, start: Sequence[int] = ()) -> list[Episode]:
    """Every complete episode that begins with some actions, each replayed from its beginning."""
    episode, ended = play(env, prompt, start)
    if ended:
        return [episode]
    return [found for token in np.flatnonzero(episode.legal[-1]) for found in all_after(env, prompt, [*start, token])]


def play(env: gym.Env, prompt: int, actions: Sequence[int]) -> tuple[Episode, bool]:
    observation, info = env.reset(options={"prompt_index": prompt})
    prompt_ids = observation[: info["prompt_length"]].tolist()
    everything = np.ones(env.action_space.n, dtype=np.int8)
    legal, paid, ended = [info.get("action_mask", everything) > 0], 0.0, False
    for action in actions:
        _, reward, ended, _, info = env.step(action)
        legal.append(info.get("action_mask", everything) > 0)
        paid += reward
    return Episode(prompt, prompt_ids, [int(action) for action in actions], legal, paid), ended


def plain_step(policy: TransformerPolicy, history: list[int], legal: np.ndarray) -> Tensor:
    """Log π(· | s), [V], by one plain forward pass."""
    fed = history or [policy.bos_id]
    logits = policy.model(input_ids=torch.tensor([fed])).logits[0, -1, : policy.size] / policy.temperature
    logits = logits.masked_fill(~torch.tensor(legal), -torch.inf)
    if policy.truncation.top_k:
        least = logits.sort(descending=True).values[policy.truncation.top_k - 1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits - logits.logsumexp(dim=0)


def plain_log_probs(policy: TransformerPolicy, episodes: Sequence[Episode]) -> Tensor:
    """Log-probability of each completion given its prompt, with gradient."""
    seen: dict[tuple[int, ...], Tensor] = {}
    totals = []
    for episode in episodes:
        steps = []
        for step, action in enumerate(episode.actions):
            history = episode.prompt_ids + episode.actions[:step]
            if (key := (episode.prompt, *history)) not in seen:
                seen[key] = plain_step(policy, history, episode.legal[step])
            steps.append(seen[key][action])
        totals.append(torch.stack(steps).sum())
    return torch.stack(totals)


def plain_objective(case: Case, policy: TransformerPolicy | None = None) -> Tensor:
    probs = plain_log_probs(policy or case.policy, case.episodes).exp()
    weights = torch.tensor([case.weights[episode.prompt] for episode in case.episodes], dtype=torch.float64)
    assert float((weights * probs).sum().detach()) == pytest.approx(1, abs=1e-13)  # every episode is there
    return (weights * probs * torch.tensor([episode.paid for episode in case.episodes], dtype=torch.float64)).sum()


def flat(gradient: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in gradient])


def moved(policy: TransformerPolicy, direction: Tensor, step: float) -> TransformerPolicy:
    other = copy.deepcopy(policy)
    tiny.shift(other, direction, step)
    return other


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case("stop token")


@pytest.mark.parametrize("name", CASES)
def test_objective_and_gradient_equal_autograd_through_every_episode(name):
    case = make_case(name)
    truth = plain_objective(case)
    found = exact_gradient(case.policy, case.tree)
    assert found.objective == pytest.approx(truth.item(), rel=EXACT)
    assert tiny.relative_error(flat(found.gradient), tiny.flat_gradient(truth, case.policy)) < EXACT
    assert all(parameter.grad is None for parameter in case.policy.parameters())


def test_a_llama_folder_of_its_own_tokenizer(zoo_folder):
    folder = zoo_folder("llama")
    env = gym.make("TextGen-v0", tokenizer=str(folder), prompts=["red", "blue cat"], reward=lengths, max_new_tokens=2)
    policy = TransformerPolicy.from_pretrained(folder, dtype=torch.float64)
    episodes = [episode for prompt in range(2) for episode in all_after(env, prompt)]
    case = Case(policy, enumerate_tree(env), episodes, [0.5, 0.5])
    assert len(case.episodes) == case.tree.num_sequences > 100
    truth = plain_objective(case)
    found = exact_gradient(policy, case.tree)
    assert found.objective == pytest.approx(truth.item(), rel=EXACT)
    assert tiny.relative_error(flat(found.gradient), tiny.flat_gradient(truth, policy)) < EXACT


def lengths(completion_ids: list[list[int]]) -> list[float]:
    return [len(ids) + ids[0] / 7 for ids in completion_ids]


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_equals_finite_differences(case, seed):
    gradient = flat(exact_gradient(case.policy, case.tree).gradient)
    direction = random_direction(len(gradient), seed)
    above, below = (exact_gradient(moved(case.policy, direction, step), case.tree) for step in (1e-5, -1e-5))
    quotient = (above.objective - below.objective) / 2e-5
    assert quotient == pytest.approx(float(gradient @ direction), rel=1e-6, abs=1e-9)


def random_direction(size: int, seed: int) -> Tensor:
    direction = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return direction / direction.norm()


@pytest.mark.parametrize("name", ["stop token", "mask", "empty prompt"])
def test_the_score_has_mean_zero(name):
    case = make_case(name)
    log_probs = node_log_probs(case.policy, case.tree)
    visited = values(case.tree, log_probs).visitation
    assert flat(score_gradient(case.policy, case.tree, visited[:, None] * np.exp(log_probs))).norm() < 1e-13


@pytest.mark.parametrize("name", ["stop token", "mask", "top_k"])
def test_scores_of_single_actions_add_up(name):
    case = make_case(name)
    scores = node_scores(case.policy, case.tree)
    possible = np.isfinite(node_log_probs(case.policy, case.tree))
    assert scores.shape[:2] == case.tree.legal.shape
    assert (scores.any(axis=2) == possible & (possible.sum(axis=1, keepdims=True) > 1)).all()  # log 1 has no slope
    weights = np.where(possible, np.random.default_rng(0).normal(size=possible.shape), 0.0)
    whole = flat(score_gradient(case.policy, case.tree, weights))
    summed = torch.tensor(np.einsum("na,nad->d", weights, scores))
    assert tiny.relative_error(summed, whole) < EXACT


# --- by hand


def two_logits() -> TransformerPolicy:
    """π = (1/4, 3/4) in every state: the last layer reads a constant (1, 0, 0, ...), and logits are 0 and log 3."""
    policy = TransformerPolicy.small(2, d_model=4, num_layers=1).double()
    transformer = policy.model.transformer
    with torch.no_grad():
        transformer.ln_f.weight.zero_()
        transformer.ln_f.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        transformer.wte.weight.zero_()
        transformer.wte.weight[1, 0] = np.log(3)
    return policy


@pytest.mark.parametrize(
    ("horizon", "objective", "slope"),
    # dJ/dθ_a of the logits: with one step π_a (r_a - J) = 1/4 · 3/4; with two, J = π_0² and 2 π_0 · 3/16.
    [(1, 1 / 4, 3 / 16), (2, 1 / 16, 3 / 32)],
)
def test_a_softmax_over_two_tokens_by_hand(horizon, objective, slope):
    env = gym.make("TextGen-v0", tokenizer=["a", "b"], prompts=["b"], reward=only_first_token, max_new_tokens=horizon)
    policy = two_logits()
    found = exact_gradient(policy, enumerate_tree(env))
    assert found.objective == pytest.approx(objective, rel=1e-14)
    by_name = dict(zip((name for name, _ in policy.named_parameters()), found.gradient, strict=True))
    embeddings = by_name.pop("model.transformer.wte.weight")  # the output layer's too; nothing flows into the input's
    np.testing.assert_allclose(embeddings[:, 0], [slope, -slope, 0], rtol=1e-14, atol=1e-17)
    # Through the constant 1 that both logits are multiples of: Σ_a θ_a dJ/dθ_a.
    bias = by_name.pop("model.transformer.ln_f.bias")
    np.testing.assert_allclose(bias, [-slope * np.log(3), 0, 0, 0], rtol=1e-14, atol=1e-17)
    assert embeddings[:, 1:].abs().max() == 0
    by_name.pop("model.transformer.ln_f.weight")  # scales what lies before it
    assert all((gradient == 0).all() for gradient in by_name.values())


def only_first_token(completion_ids: list[list[int]]) -> list[float]:
    return [float(not any(ids)) for ids in completion_ids]


# --- of the policy's own distribution


def test_kl_and_its_gradient_equal_autograd_through_every_episode(case):
    reference = moved(case.policy, random_direction(sum(p.numel() for p in case.policy.parameters()), 5), 1.0)
    log_probs = plain_log_probs(case.policy, case.episodes)
    ref_log_probs = plain_log_probs(reference, case.episodes).detach()
    truth = (log_probs.exp() * (log_probs - ref_log_probs)).sum() / 2  # two prompts
    assert truth.item() > 0.01
    ours = kl_gradient(case.policy, case.tree, node_log_probs(reference, case.tree))
    assert ours.objective == pytest.approx(truth.item(), rel=EXACT)
    assert tiny.relative_error(flat(ours.gradient), tiny.flat_gradient(truth, case.policy)) < EXACT


@pytest.mark.parametrize("name", ["stop token", "mask", "top_k"])
def test_the_gradient_of_kl_and_entropy_equal_finite_differences(name):
    case = make_case(name)
    size = sum(p.numel() for p in case.policy.parameters())
    reference = np.where(case.tree.legal, -np.log(case.tree.legal.sum(axis=1, keepdims=True)), -np.inf)  # uniform
    direction = random_direction(size, 2)
    for measure in (lambda policy: kl_gradient(policy, case.tree, reference), lambda p: entropy_gradient(p, case.tree)):
        above, below = (measure(moved(case.policy, direction, step)).objective for step in (1e-5, -1e-5))
        slope = float(flat(measure(case.policy).gradient) @ direction)
        assert (above - below) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_entropy_and_its_gradient_equal_autograd_through_every_episode(case):
    log_probs = plain_log_probs(case.policy, case.episodes)
    truth = -(log_probs.exp() * log_probs).sum() / 2
    found = entropy_gradient(case.policy, case.tree)
    assert found.objective == pytest.approx(truth.item(), rel=EXACT)
    assert tiny.relative_error(flat(found.gradient), tiny.flat_gradient(truth, case.policy)) < EXACT


# --- what it costs and what it leaves alone


@pytest.mark.parametrize("name", ["stop token", "mask", "empty prompt"])
def test_nothing_depends_on_the_size_of_a_pass(name):
    case = make_case(name)
    whole = exact_gradient(case.policy, case.tree, tokens_per_pass=1_000_000)
    for tokens_per_pass in (1, 13):
        parts = exact_gradient(case.policy, case.tree, tokens_per_pass)
        assert parts.objective == pytest.approx(whole.objective, rel=EXACT)
        assert tiny.relative_error(flat(parts.gradient), flat(whole.gradient)) < EXACT


def test_only_the_longest_contexts_are_run_and_only_those_that_carry_weight(case, monkeypatch):
    rows = []
    plain = case.policy.action_distribution

    def noting(rollout):
        rows.append(len(rollout.mask))
        return plain(rollout)

    monkeypatch.setattr(case.policy, "action_distribution", noting)
    node_log_probs(case.policy, case.tree)
    assert sum(rows) == 2 * 3 * 3  # two prompts, three content tokens at each of the first two steps
    rows.clear()
    weights = np.zeros(case.tree.legal.shape)
    weights[[0, 2]] = 1.0  # the first prompt's root, and a state right after one of the roots
    score_gradient(case.policy, case.tree, weights)
    assert 1 <= sum(rows) <= 2
    rows.clear()
    assert all((gradient == 0).all() for gradient in score_gradient(case.policy, case.tree, 0 * weights))
    assert rows == []


def test_frozen_parameters_have_no_gradient_and_a_value_head_a_zero_one():
    env = tiny.make_env()
    policy = TransformerPolicy.small(env, d_model=16, num_layers=1, value_head=True)
    policy.model.transformer.wpe.weight.requires_grad_(False)
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, 7.0) if parameter.requires_grad else None
    found = exact_gradient(policy, enumerate_tree(env)).gradient
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(found) == len(names) == len(list(policy.parameters())) - 1
    by_name = dict(zip(names, found, strict=True))
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert by_name[name].shape == parameter.shape
            assert (by_name[name] == 0).all() == name.startswith("value_head")
            assert (parameter.grad == 7).all()


def test_half_precision_weights_have_a_gradient_in_float32(case):
    policy = copy.deepcopy(case.policy).to(torch.bfloat16)
    rounded = copy.deepcopy(policy).double()
    found, truth = (exact_gradient(one, case.tree) for one in (policy, rounded))
    assert {gradient.dtype for gradient in found.gradient} == {torch.float32}
    assert found.objective == pytest.approx(truth.objective, rel=0.02)
    assert tiny.relative_error(flat(found.gradient).double(), flat(truth.gradient)) < 0.1


# --- wrong use


def test_a_policy_of_other_tokens_is_refused(case):
    with pytest.raises(ValueError, match="the policy has 5 tokens and the tree 4"):
        exact_gradient(TransformerPolicy.small(5), case.tree)


def test_weights_of_another_shape_or_size_are_refused(case):
    with pytest.raises(ValueError, match=r"weights has the shape \(3,\); give one number a node and action"):
        score_gradient(case.policy, case.tree, np.zeros(3))
    weights = np.zeros(case.tree.legal.shape)
    weights[5, 2] = np.nan
    with pytest.raises(ValueError, match=r"weights\[5, 2\] is nan; give finite weights"):
        score_gradient(case.policy, case.tree, weights)
    with pytest.raises(ValueError, match=r"ref_log_probs has the shape \(3,\)"):
        kl_gradient(case.policy, case.tree, np.zeros(3))


def test_weight_on_an_action_that_cannot_be_is_refused():
    case = make_case("mask")
    with pytest.raises(ValueError, match="illegal or cut off"):
        score_gradient(case.policy, case.tree, np.ones(case.tree.legal.shape))


def test_a_reference_that_rules_out_what_the_policy_does_is_refused(case):
    reference = node_log_probs(case.policy, case.tree)
    reference[3, 1] = -np.inf
    with pytest.raises(ValueError, match=r"ref_log_probs\[3, 1\] is -inf, .*KL\(π‖π_ref\) is infinite"):
        kl_gradient(case.policy, case.tree, reference)


def test_weights_that_have_diverged_are_said_so(case):
    policy = copy.deepcopy(case.policy)
    with torch.no_grad():
        next(policy.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        node_log_probs(policy, case.tree)
