"""The certificate of each estimator: against brute force over all batches, and against what theory says it is."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents.advantages import group_mean, spread
from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import KL_FORMS, Algorithm
from agents.exact import exact_gradient, kl_gradient, node_log_probs, score_gradient
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from agents.surrogate import Batch, surrogate
from benchmarks import certificate, estimators
from benchmarks.certificate import certify, certify_kl, classes, multisets
from benchmarks.cli import main
from benchmarks.estimators import KEYWORDS, flat, gradient_of, make_policy, position_critic, potential, score
from benchmarks.fixture import Fixture, make_fixture, with_rewards
from textgym.env import TextGenEnv
from textgym.oracle import enumerate_tree, values
from textgym.schemes import Potential

EXACT = 1e-12
SMALL = KEYWORDS | {"tokenizer": ["a", "b", "c", "<eos>"], "max_new_tokens": 2}  # 13 texts after each prompt


def make(keywords: dict[str, Any], **more: Any) -> Fixture:
    """With a critic that is wrong everywhere."""
    env = TextGenEnv(reward=score, **keywords, **more)
    policy, tree = make_policy(env, seed=2), enumerate_tree(env)
    truth = values(tree, node_log_probs(policy, tree)).v
    return make_fixture(policy, tree, 0.7 * truth + 0.2 * np.random.default_rng(0).normal(size=len(truth)))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return make(KEYWORDS)


@pytest.fixture(scope="module")
def small() -> Fixture:
    return make(SMALL)


@pytest.fixture(scope="module")
def shaped(fixture: Fixture) -> Fixture:
    env = TextGenEnv(reward=score, scheme=["terminal", Potential(potential)], **KEYWORDS)
    return with_rewards(fixture, enumerate_tree(env))


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


# --- the fixture


def test_the_fixture_holds_every_text_and_is_far_from_uniform(fixture):
    assert len(fixture.probs) == 2 * (1 + 4 + 16 + 64 + 256)
    assert fixture.probs.sum() == pytest.approx(1, abs=1e-14)
    length = fixture.rollout.mask.sum(axis=1)
    assert min(fixture.probs[length == steps].sum() for steps in (1, 2, 3, 4)) > 0.05
    for prompt in (0, 1):
        paid = {value for value in fixture.rollout.returns[fixture.prompt == prompt]}
        assert paid == {0.0, 0.5, 1.0}
    assert fixture.probs.max() > 1000 * fixture.probs.min()


def test_the_scores_and_the_gradient_are_the_same_two_ways(fixture):
    log_probs = node_log_probs(fixture.policy, fixture.tree)
    found = values(fixture.tree, log_probs)
    weights = found.visitation[:, None] * np.exp(log_probs) * found.advantage
    assert distance(weights.ravel() @ fixture.scores, gradient_of(fixture)) < EXACT
    assert distance(fixture.probs @ fixture.rollout.returns, np.array(fixture.exact.objective)) < EXACT


def test_the_critic_of_the_position_is_right_in_the_mean(fixture):
    found = fixture.exact.values
    critic = position_critic(fixture.tree, found)
    for prompt, depth in itertools.product((0, 1), range(4)):
        own = (fixture.tree.prompt == prompt) & (fixture.tree.depth == depth)
        assert len(set(critic[own])) == 1
        assert found.visitation[own] @ (found.v - critic)[own] == pytest.approx(0, abs=1e-14)
    assert np.abs(critic - found.v).max() > 0.1


def test_episodes_whose_rewards_cancel_are_one_class(small):
    mask = np.ones((2, 3), dtype=bool)
    rewards = np.array([[0.1, 0.7, -0.8], [0.0, 0.0, 0.0]])
    two = small.rollout.select(np.array([0, 0]))._replace(rewards=rewards, mask=mask)
    assert two.returns[0] != two.returns[1]  # rounding
    assert classes(two, ALGORITHMS["reinforce"]).tolist() == [0, 0]
    apart = two._replace(rewards=rewards + [[0.0, 0.0, 1e-9], [0.0, 0.0, 0.0]])
    assert classes(apart, ALGORITHMS["reinforce"]).tolist() == [1, 0]


# --- the machinery against brute force


def coefficients(row: Algorithm, rollout: Rollout) -> np.ndarray:
    """-∂loss/∂log π of one batch, [B, T], by the production code."""
    leaf = torch.tensor(rollout.log_probs, requires_grad=True)
    advantages, mask = torch.tensor(row.advantages_of(rollout)), torch.tensor(rollout.mask)
    surrogate(row, leaf, Batch(advantages, mask, len(rollout.mask), rollout.num_tokens)).loss.backward()
    return -leaf.grad.numpy()


def brute_force(fixture: Fixture, row: Algorithm, size: int, one_prompt: bool) -> tuple[np.ndarray, float]:
    """E[g] and B Var(g) over every ordered batch of single episodes; g as a weight of each score."""
    inner = fixture.scores @ fixture.scores.T
    mean, second = np.zeros(len(inner)), 0.0
    for batch in itertools.product(range(len(fixture.probs)), repeat=size):
        rows = np.array(batch)
        if one_prompt and len(set(fixture.prompt[rows])) > 1:
            continue
        probability = fixture.probs[rows].prod() * (2 ** (size - 1) if one_prompt else 1)  # drawn once for all
        group = np.zeros(size, dtype=np.int64) if one_prompt else np.arange(size)
        rollout = fixture.rollout.select(rows)._replace(group=group)
        own = coefficients(row, rollout)
        cells = fixture.cells[rows][:, : own.shape[1]][rollout.mask]
        g = np.bincount(cells, weights=own[rollout.mask], minlength=len(inner))
        mean += probability * g
        second += probability * g @ inner @ g
    return mean @ fixture.scores, size * (second - mean @ inner @ mean)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_agrees_with_all_pairs(name, small, monkeypatch):
    monkeypatch.setattr(certificate, "BATCH", 2)
    row = ALGORITHMS[name]
    found = certify(small, row, group_size=2)
    truth, variance = brute_force(small, row, found.episodes, one_prompt=row.min_group_size > 1)
    assert found.episodes == (1 if name in ("reinforce", "reinforce_to_go", "a2c") else 2)
    assert distance(found.mean, truth) < EXACT
    assert found.variance == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize("aggregation", ["constant", "token_mean"])
def test_groups_of_three_agree_with_all_triples(aggregation, small):
    row = make_algorithm("grpo", aggregation=aggregation)
    found = certify(small, row, group_size=3)
    truth, variance = brute_force(small, row, 3, one_prompt=True)
    assert distance(found.mean, truth) < EXACT
    assert found.variance == pytest.approx(variance, rel=1e-10)


def test_advantages_that_are_a_function_may_see_everything(small):
    def own(rollout: Rollout) -> np.ndarray:
        return spread(group_mean(rollout.returns, rollout.group), rollout.mask)

    row = Algorithm("own", advantages=own, min_group_size=2, min_episodes=2)
    assert len(set(classes(small.rollout, row))) == len(small.probs)
    named = certify(small, make_algorithm("rloo", advantages="group_mean"), group_size=2)
    assert distance(certify(small, row, group_size=2).mean, named.mean) < EXACT


def test_an_objective_that_is_a_function_may_see_everything(small):
    def own(log_probs, ratio, advantages, low, high):  # its coefficient is A π: another for each token
        return advantages * log_probs.exp()

    row = make_algorithm("rloo", objective=own)
    truth, variance = brute_force(small, row, 2, one_prompt=True)
    found = certify(small, row, group_size=2)
    assert distance(found.mean, truth) < EXACT
    assert found.variance == pytest.approx(variance, rel=1e-10)


def test_compositions_and_their_probabilities_by_hand():
    members, probs = multisets(np.array([0.5, 0.3, 0.2]), 3)
    found = {tuple(row): weight for row, weight in zip(members.tolist(), probs, strict=True)}
    assert len(found) == 10
    assert found[0, 0, 0] == pytest.approx(0.125)
    assert found[0, 0, 2] == pytest.approx(3 * 0.25 * 0.2)
    assert found[0, 1, 2] == pytest.approx(6 * 0.5 * 0.3 * 0.2)
    assert probs.sum() == pytest.approx(1, abs=1e-15)


def test_too_many_compositions_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match="batches of 16 episodes from 100 classes have .* compositions.*smaller group"):
        multisets(np.full(100, 0.01), 16)


# --- what theory says of each estimator


@pytest.mark.parametrize("name", ["reinforce", "reinforce_to_go", "reinforce_baseline", "rloo", "a2c"])
def test_unbiased_estimators_are(name, fixture):
    found = certify(fixture, ALGORITHMS[name], group_size=4)
    assert distance(found.mean, gradient_of(fixture)) < EXACT


@pytest.mark.parametrize("group_size", [2, 3, 4])
@pytest.mark.parametrize("row", [ALGORITHMS["dr_grpo"], make_algorithm("rloo", advantages="group_mean")])
def test_the_mean_of_the_whole_group_scales_the_gradient(row, group_size, fixture):
    found = certify(fixture, row, group_size)
    assert distance(found.mean, (group_size - 1) / group_size * gradient_of(fixture)) < EXACT


@pytest.mark.parametrize("name", ["ppo", "cispo", "dapo", "grpo"])
def test_the_objectives_are_the_policy_gradient_at_the_first_step(name, fixture):
    row = make_algorithm(name, advantages="leave_one_out", scale="none", aggregation="constant")
    assert row.objective in ("clip", "cispo")
    assert distance(certify(fixture, row, group_size=4).mean, gradient_of(fixture)) < EXACT


def test_gspo_ascends_the_advantage_over_the_length(fixture):
    row = make_algorithm("gspo", scale="none", advantages="leave_one_out")
    tree, found = fixture.tree, certify(fixture, row, group_size=4)
    # The other members' mean is J of the prompt in expectation: (R - J) / length, paid at the end.
    baseline = fixture.exact.values.prompt_objective[tree.prompt][:, None]
    paid = np.where(tree.ends, (tree.reward - baseline) / (tree.depth[:, None] + 1), 0.0)
    truth = flat(exact_gradient(fixture.policy, replace(tree, reward=paid)).gradient)
    assert distance(found.mean, truth) < EXACT
    assert distance(found.mean, gradient_of(fixture)) > 0.1


def test_biased_estimators_are_seen_to_be(fixture):
    truth = gradient_of(fixture)
    for name in ("grpo", "gspo"):
        found = certify(fixture, ALGORITHMS[name], group_size=4).mean
        assert found @ truth / np.linalg.norm(found) / np.linalg.norm(truth) < 0.97


@pytest.mark.parametrize(("group_size", "weight"), [(2, 0.707), (4, 1.426), (8, 1.902), (16, 2.140)])
def test_what_grpo_weighs_a_binary_reward_with(group_size, weight):
    success = 0.755
    env = TextGenEnv(
        tokenizer=["a", "b"],
        prompts=["b"],
        max_new_tokens=1,
        reward=lambda completions: [float(text == "a") for text in completions],
    )
    policy = TransformerPolicy.small(2, d_model=4, num_layers=1, dtype=torch.float64)
    with torch.no_grad():  # the last layer reads (1, 0, 0, 0) whatever it is given: logits are 0 and the log odds
        policy.model.transformer.ln_f.weight.zero_()
        policy.model.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        policy.model.transformer.wte.weight.zero_()
        policy.model.transformer.wte.weight[1, 0] = math.log((1 - success) / success)
    bandit = make_fixture(policy, enumerate_tree(env))
    assert bandit.exact.objective == pytest.approx(success, rel=1e-14)
    found = certify(bandit, ALGORITHMS["grpo"], group_size).mean
    truth = gradient_of(bandit)
    assert found @ truth / (truth @ truth) == pytest.approx(weight, abs=5e-4)
    assert distance(found, binary_weight(success, group_size) * truth) < EXACT


def binary_weight(success: float, size: int) -> float:
    """Over k of G successes: a success weighs ∇p/p, a failure -∇p/(1-p), each with its standardised reward."""
    total = 0.0
    for k in range(1, size):
        rewards = [1.0] * k + [0.0] * (size - k)
        high, low = ((r - np.mean(rewards)) / np.std(rewards, ddof=1) for r in (1, 0))
        chance = math.comb(size, k) * success**k * (1 - success) ** (size - k)
        total += chance * (k * high / success - (size - k) * low / (1 - success)) / size
    return total


# --- the KL term


@pytest.fixture(scope="module")
def reference(fixture: Fixture) -> TransformerPolicy:
    return make_policy(TextGenEnv(reward=score, **KEYWORDS), seed=1)


def test_each_form_of_the_kl_term_descends_what_it_says(fixture, reference):
    policy, tree = fixture.policy, fixture.tree
    log_probs, ref_log_probs = node_log_probs(policy, tree), node_log_probs(reference, tree)
    visited = fixture.exact.values.visitation[:, None]
    exact = flat(kl_gradient(policy, tree, ref_log_probs).gradient)
    reverse = visited * np.exp(log_probs) * (log_probs - ref_log_probs)  # ∇KL(π‖π_ref) in a state
    forward = -visited * np.exp(ref_log_probs)  # ∇KL(π_ref‖π) in a state
    fixed = flat(score_gradient(policy, tree, reverse))
    other = flat(score_gradient(policy, tree, forward))
    truths = {"k1_reward": exact, "k2_sequence": exact, "k2": fixed, "frozen": fixed, "k3": other}
    assert set(truths) | {"k1"} == set(KL_FORMS) - {"none"}
    found = {form: -certify_kl(fixture, form, reference).mean for form in [*truths, "k1"]}
    for form, truth in truths.items():
        assert distance(found[form], truth) < EXACT, form
    assert np.linalg.norm(found["k1"]) < EXACT * np.linalg.norm(exact)
    for one, another in itertools.combinations((exact, fixed, other), 2):
        assert distance(one, another) > 0.1


def test_a_term_of_mean_zero_still_varies(fixture, reference):
    assert certify_kl(fixture, "k1", reference).variance > 1


# --- potential-based shaping


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "dapo", "gspo"])
def test_a_potential_changes_nothing_for_the_advantages_of_a_group(name, fixture, shaped):
    assert np.abs(shaped.rollout.rewards - fixture.rollout.rewards).max() > 0.4
    plain, other = (ALGORITHMS[name].advantages_of(one.rollout._replace(group=one.prompt)) for one in (fixture, shaped))
    assert np.abs(plain).max() > 0.4
    np.testing.assert_allclose(other, plain, rtol=0, atol=1e-14)


def test_with_rewards_to_go_a_potential_is_the_baseline(fixture, shaped):
    row, rollout = ALGORITHMS["reinforce_to_go"], fixture.rollout
    plain, other = row.advantages_of(rollout), row.advantages_of(shaped.rollout)
    for episode, step in zip(*np.nonzero(rollout.mask), strict=True):
        start = rollout.prompt_length[episode]
        so_far = rollout.tokens[episode, start : start + step].tolist()
        [phi] = potential([rollout.vocabulary.decode(so_far)])
        assert other[episode, step] == pytest.approx(plain[episode, step] - phi, abs=1e-14)
    assert distance(certify(shaped, row, group_size=4).mean, gradient_of(fixture)) < EXACT


# --- the command


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("estimators") / "mine"
    assert main(["estimators", "--output", str(folder)]) == 0
    assert {file.name for file in folder.iterdir()} == {"summary.json", "table.md"}
    return json.loads((folder / "summary.json").read_text()), (folder / "table.md").read_text()


def test_the_command_certifies_everything(command):
    summary, table = command
    lines = {line["name"]: line for line in summary["estimators"]}
    assert set(ALGORITHMS) < set(lines)
    unbiased = ("reinforce", "reinforce_baseline", "reinforce_to_go", "rloo", "a2c")
    for name in (*unbiased, "rloo with a potential", "reinforce_to_go with a potential Φ"):
        assert lines[name]["bias"] < 1e-9
    for name in ("dr_grpo", "rloo with the group's mean"):
        assert lines[name]["projection"] == pytest.approx(3 / 4, rel=1e-12)
        assert lines[name]["bias"] == pytest.approx(1 / 4, rel=1e-12)
        assert lines[name]["cosine"] == pytest.approx(1, rel=1e-12)
    assert lines["grpo"]["cosine"] < 0.97 and lines["rloo, sequence_mean"]["cosine"] < 0.97
    assert lines["rloo with a potential"]["variance"] == pytest.approx(lines["rloo"]["variance"], rel=1e-9)
    assert lines["a2c"]["variance"] < lines["rloo"]["variance"] < lines["reinforce"]["variance"]
    for name, row in ALGORITHMS.items():
        assert lines[name]["ascends"] == row.ascends and f"| {name} " in table
    forms = {line["name"]: line for line in summary["kl_forms"]}
    assert set(forms) == set(KL_FORMS) - {"none"}
    assert forms["k1_reward"]["bias"] < 1e-9 and forms["k2_sequence"]["bias"] < 1e-9
    assert forms["k1"]["cosine"] is None and abs(forms["k1"]["projection"]) < 1e-9
    assert forms["k3"]["cosine"] < 0.97 and forms["k2"]["cosine"] < 0.97


def test_the_table_shows_what_was_found(command):
    summary, table = command
    assert f"    {summary['command']}\n" in table and "682 complete texts" in table and "G = 4" in table
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if "|" in line
    }
    assert cells["rloo"][:4] == ["4", "0", "1.000", "1.000"]
    assert cells["dr_grpo"][:4] == ["4", "0.250", "1.000", "0.750"]
    assert cells["k1"][2] == "-" and cells["k1"][5] == "-"
    variance, per_signal = (float(cells["dr_grpo"][column]) for column in (4, 5))
    assert variance / per_signal == pytest.approx(0.75**2, rel=1e-3)


@pytest.mark.parametrize("group_size", ["1", "9"])
def test_a_group_size_out_of_range_is_wrong_usage(group_size, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["estimators", "--group-size", group_size]) == 2
    assert f"--group-size {group_size}; give 2 to 8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(monkeypatch, tmp_path, capsys):
    findings = estimators.Findings(3, 682, 0.5, 1.0, 2.0, [], [])
    monkeypatch.setattr(estimators, "run", lambda group_size: findings._replace(group_size=group_size))
    monkeypatch.chdir(tmp_path)
    for size in ("2", "3"):
        assert main(["estimators", "--group-size", size]) == 0
    summaries = [
        json.loads((tmp_path / "results" / name / "summary.json").read_text())
        for name in ("estimators", "estimators-2")
    ]
    assert [summary["group_size"] for summary in summaries] == [2, 3]
    assert "G = 3" in capsys.readouterr().out
