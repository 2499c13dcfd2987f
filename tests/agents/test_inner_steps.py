"""Steps within an update: ratios begin at 1, episodes come as often as they should, parts add up to the whole."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.algorithms import ALGORITHMS, KL_FORMS, Algorithm, make_algorithm
from agents.experience import Experience, minibatches
from agents.learner import PolicyGradient
from agents.losses import AGGREGATIONS
from agents.policy import TransformerPolicy
from agents.rollout import collect
from tests.agents import hand_made, tiny
from tests.agents.family import make_learner, updates_of, weights


def several_steps(name: str, **axes: Any) -> Algorithm:
    """A row's algorithm with two epochs."""
    objective = ALGORITHMS[name].objective
    return make_algorithm(name, num_epochs=2, objective="clip" if objective == "policy_gradient" else objective, **axes)


# --- the ratio at the first step

SAMPLINGS: dict[str, dict[str, Any]] = {
    "all tokens": {},
    "top-p": dict(top_p=0.9, temperature=0.8),
    "a critic": dict(value_head=True),
}


@pytest.mark.parametrize("tokens_per_microbatch", [1, 100, 100_000])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("task", ["sort", "brackets"])
def test_the_ratio_is_exactly_1_before_the_first_step(task, sampling, tokens_per_microbatch):
    envs = gym.make_vec("TextGen-v0", num_envs=16, task=task)
    policy = TransformerPolicy.small(envs, d_model=32, **SAMPLINGS[sampling])
    row = several_steps("a2c" if sampling == "a critic" else "grpo", clip_epsilon=0.2)
    settings = dict(group_size=4, episodes_per_update=16, tokens_per_microbatch=tokens_per_microbatch)
    learner = PolicyGradient(policy, envs, row, learning_rate=0.01, **settings)
    experience = learner.experience(collect(policy, envs, 16, np.random.default_rng(0), group_size=4))
    metrics = learner.accumulate_gradient(experience)
    assert metrics["ratio/min"] == metrics["ratio/max"] == 1
    assert metrics["approx_kl/k1"] == metrics["approx_kl/k3"] == 0
    assert metrics["clip_ratio/region_mean"] == 0
    # What the sampler said itself, through its cache: the same up to the last digits of float32.
    for kind in ("mean", "min", "max"):
        assert abs(metrics[f"sampling/importance_sampling_ratio/{kind}"] - 1) < 1e-5
    learner.optimizer.step()
    again = learner.accumulate_gradient(experience)
    assert again["ratio/min"] < 1 < again["ratio/max"] and again["approx_kl/k3"] > 0
    assert again["sampling/importance_sampling_ratio/mean"] == metrics["sampling/importance_sampling_ratio/mean"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_ratio_of_every_row_is_1_before_the_first_step(name):
    learner = make_learner(several_steps(name))
    experience = learner.experience(collect(learner.policy, tiny.make_envs(8), 8, np.random.default_rng(0), 4))
    metrics = learner.accumulate_gradient(experience)
    assert (metrics["ratio/min"], metrics["ratio/mean"], metrics["ratio/max"]) == (1, 1, 1)


def test_where_there_is_one_step_nothing_is_computed_twice():
    learner = make_learner("grpo")
    experience = learner.experience(collect(learner.policy, tiny.make_envs(8), 8, np.random.default_rng(0), 4))
    assert experience.old_log_probs is None and experience.targets is None
    assert learner.accumulate_gradient(experience)["ratio/max"] == 1


def test_the_approximate_kl_is_that_of_what_was_sampled():
    # By hand: log-probabilities .1 above the old ones on four tokens, and .2 below on five.
    learner, rollout = make_learner(several_steps("dr_grpo")), hand_made.rollout()
    gap = np.where(np.arange(4)[:, None] < 2, 0.1, -0.2)
    new = learner.policy.log_probs(rollout).detach().double().numpy()
    experience = Experience(rollout, np.zeros(rollout.mask.shape), old_log_probs=np.where(rollout.mask, new - gap, 0.0))
    metrics = learner.accumulate_gradient(experience)
    assert metrics["approx_kl/k1"] == pytest.approx(-(4 * 0.1 - 5 * 0.2) / 9, abs=1e-6)
    expected = (4 * (np.exp(0.1) - 1 - 0.1) + 5 * (np.exp(-0.2) - 1 + 0.2)) / 9
    assert metrics["approx_kl/k3"] == pytest.approx(expected, abs=1e-6)
    assert metrics["ratio/min"] == pytest.approx(np.exp(-0.2), abs=1e-6)
    assert metrics["ratio/max"] == pytest.approx(np.exp(0.1), abs=1e-6)


# --- epochs and minibatches


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 1), (1, 4), (3, 1), (2, 3), (2, 50)])
def test_every_episode_comes_once_an_epoch(num_epochs, num_minibatches):
    learner = make_learner(make_algorithm("ppo", num_epochs=num_epochs, num_minibatches=num_minibatches), group_size=1)
    steps, seen, step, accumulate = [], [], learner.optimizer.step, learner.accumulate_gradient

    def note(experience: Experience, tally: Any) -> Any:
        seen.append(experience.rollout.group.tolist())  # which is the episode's number, in groups of one
        return accumulate(experience, tally)

    learner.accumulate_gradient, learner.optimizer.step = note, lambda: (steps.append(1), step())
    updates_of(learner, 1)
    parts = min(num_minibatches, 8)
    assert len(steps) == len(seen) == num_epochs * parts
    epochs = [seen[first : first + parts] for first in range(0, len(seen), parts)]
    for epoch in epochs:
        assert sorted(sum(epoch, [])) == list(range(8))
        assert max(map(len, epoch)) - min(map(len, epoch)) <= 1
    if num_epochs > 1 and num_minibatches > 1:
        assert epochs[0] != epochs[1]  # drawn anew


def test_minibatches_draw_nothing_where_there_is_one():
    generator = np.random.default_rng(0)
    [rows] = minibatches(5, 1, generator)
    assert rows.tolist() == [0, 1, 2, 3, 4] and minibatches(0, 1, generator) == minibatches(0, 4, generator) == []
    assert generator.random() == np.random.default_rng(0).random()


# --- parts of a sum, in float64 and with episodes of very unequal lengths


def experience_of(row: Algorithm) -> tuple[PolicyGradient, Experience]:
    """Episodes that another policy sampled, so that ratios are not 1, with all that a row may read."""
    envs = tiny.make_envs(8, prompts=["a", "bcab"], max_new_tokens=9)
    policy, sampler = tiny.make_policy(envs), tiny.make_policy(envs, seed=1)
    settings: dict[str, Any] = dict(group_size=4, episodes_per_update=16, entropy_coef=0.1, max_grad_norm=1e9)
    kl = dict(kl_coef=0.2, reference=tiny.make_policy(envs, seed=2)) if row.kl != "none" else {}
    learner = PolicyGradient(policy, envs, row, **settings, **kl)
    rollout = collect(sampler, envs, 16, np.random.default_rng(3), 4, torch.Generator().manual_seed(3))
    assert rollout.length.max() >= 2 * rollout.length.min()
    old = sampler.log_probs(rollout).detach().numpy() if row.num_steps > 1 else None
    return learner, learner.experience(rollout)._replace(old_log_probs=old)


def gradient(learner: PolicyGradient, experience: Experience, budget: int) -> tuple[torch.Tensor, dict[str, float]]:
    learner.settings["tokens_per_microbatch"] = budget
    metrics = learner.accumulate_gradient(experience)
    return tiny.stored_gradient(learner.policy).clone(), metrics


ROWS = [
    *(make_algorithm("rloo", aggregation=aggregation) for aggregation in AGGREGATIONS),
    *(several_steps("grpo", aggregation=aggregation) for aggregation in AGGREGATIONS),
    *(several_steps("gspo", aggregation=aggregation, clip_epsilon=0.5) for aggregation in AGGREGATIONS),
    *(several_steps("dr_grpo", kl=form) for form in KL_FORMS),
    *(several_steps(name) for name in ("cispo", "dapo", "reinforce_pp", "a2c", "ppo")),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.aggregation}-{row.kl}-{row.num_steps}")
def test_microbatches_add_up_for_every_choice(row):
    learner, experience = experience_of(row)
    whole, expected = gradient(learner, experience, 1_000_000)
    assert whole.norm() > 1e-3
    for budget in (1, 17, 40):
        found, metrics = gradient(learner, experience, budget)
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-12)
        assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("aggregation", "weigh"), [("constant", "episodes"), ("token_mean", "tokens")])
def test_minibatches_have_denominators_of_their_own(aggregation, weigh):
    """The whole's gradient is the mean of theirs, weighed by their share of the episodes or of the tokens."""
    learner, experience = experience_of(make_algorithm("grpo", aggregation=aggregation, kl="none"))
    learner.settings["entropy_coef"] = 0.0
    whole, _ = gradient(learner, experience, 1000)
    parts = [experience.select(rows) for rows in (np.arange(3), np.arange(3, 16))]
    shares = {
        "episodes": [3 / 16, 13 / 16],
        "tokens": [part.rollout.num_tokens / experience.rollout.num_tokens for part in parts],
    }
    assert abs(shares["tokens"][0] - 3 / 16) > 0.01
    mean = sum(share * gradient(learner, part, 1000)[0] for share, part in zip(shares[weigh], parts, strict=True))
    assert tiny.relative_error(mean, whole) < 1e-9


def test_a_part_is_cut_with_everything_that_belongs_to_it():
    _, experience = experience_of(several_steps("ppo"))
    lengths = experience.rollout.mask.sum(axis=1)
    rows = np.argsort(lengths)[:3]
    part = experience.select(rows)
    assert part.rollout.mask.shape == (3, lengths[rows].max()) != experience.rollout.mask.shape
    for name in ("advantages", "old_log_probs", "ref_log_probs", "targets"):
        expected = getattr(experience, name)[rows, : lengths[rows].max()]
        np.testing.assert_array_equal(getattr(part, name), expected)
        assert expected.any()


def test_a_step_that_is_not_finite_is_refused_in_the_middle_too():
    def broken(log_probs: Any, ratio: Any, advantages: Any, low: Any, high: Any) -> Any:
        return log_probs * (float("nan") if (ratio != 1).any() else 1.0)

    learner = make_learner(Algorithm("mine", objective=broken, num_epochs=2))
    before = weights(learner)
    with pytest.raises(FloatingPointError, match="norm is nan at update 1; nothing was changed by this step"):
        updates_of(learner, 1)
    assert weights(learner) != before and np.isfinite(np.frombuffer(weights(learner), dtype=np.float32)).all()
    assert learner.num_updates == 0
