"""Every algorithm through the learner: it trains, repeats itself, is saved and continues to the last bit."""

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import Algorithm
from agents.experience import Experience
from agents.gradient import critic_metrics
from agents.learner import PolicyGradient
from agents.lora import is_lora
from agents.tally import Tally
from tests.agents import hand_made, tiny
from tests.agents.family import make_learner, make_policy, updates_of, weights
from tests.agents.tiny import STOP, A, B, C

# --- training and repetition


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_trains_and_repeats_itself(name):
    first, again, other = make_learner(name, seed=1), make_learner(name, seed=1), make_learner(name, seed=2)
    before = weights(first)
    histories = [[update.metrics for update in updates_of(learner, 2)] for learner in (first, again, other)]
    assert json.dumps(histories[0], allow_nan=False) == json.dumps(histories[1]) != json.dumps(histories[2])
    assert before != weights(first) == weights(again) != weights(other)
    for metrics in histories[0]:
        assert all(type(value) in (int, float) for value in metrics.values())
        assert metrics["grad_norm"] > 0 and 0 < metrics["entropy"] < math.log(4)
        assert metrics["ratio/min"] <= metrics["ratio/mean"] <= metrics["ratio/max"]
        assert ("value_loss" in metrics) == ("explained_variance" in metrics) == ALGORITHMS[name].critic
        assert "kl" not in metrics and "kl_coef" not in metrics


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.min_episodes > 1])
def test_a_constant_reward_moves_nothing_where_episodes_are_compared(name):
    envs = tiny.make_envs(8, reward=lambda completions: [0.1] * len(completions))
    learner = make_learner(make_algorithm(name, overlong_buffer=0.0), envs, entropy_coef=0.0)
    before = weights(learner)
    for update in updates_of(learner, 3):
        assert not update.advantages.any() and update.metrics["frac_reward_zero_std"] == 1
    assert weights(learner) == before


def test_a_cost_of_the_kl_that_is_0_moves_nothing():
    """At the reference it is 0 to the last digit: a group's deviation would make a signal of anything else."""
    envs = tiny.make_envs(8, reward=lambda completions: [0.1] * len(completions))
    learner = make_learner(make_algorithm("grpo", kl="k1_reward"), envs, entropy_coef=0.0, kl_coef=0.1)
    before = weights(learner)
    assert not updates_of(learner, 1)[0].advantages.any() and weights(learner) == before


def test_without_a_comparison_a_constant_reward_moves_the_policy():
    """The check above is worth something."""
    envs = tiny.make_envs(8, reward=lambda completions: [0.1] * len(completions))
    learner = make_learner("reinforce", envs, entropy_coef=0.0)
    before = weights(learner)
    updates_of(learner, 1)
    assert weights(learner) != before


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "reinforce_pp", "a2c", "ppo"])
def test_the_best_arm_is_found(name):
    envs = gym.make_vec("TextGen-v0", num_envs=64, task="bandit", level=2)
    settings: dict[str, Any] = dict(group_size=8, episodes_per_update=64, learning_rate=1e-2, entropy_coef=0.0)
    updates = updates_of(make_learner(name, envs, **settings), 30)
    assert np.mean([update.metrics["reward"] for update in updates[-5:]]) > 0.85


# --- saved in the middle of a training


def continues(learner: PolicyGradient, folder: Path, algorithm: Any = None) -> PolicyGradient:
    """Two updates, saved, and two more by both: the same metrics and weights to the last bit."""
    updates_of(learner, 2)
    learner.save(folder)
    loaded = PolicyGradient.load(folder, tiny.make_envs(8), algorithm)
    assert weights(loaded) == weights(learner) and loaded.settings == learner.settings
    assert loaded.algorithm == learner.algorithm and loaded.kl_coef == learner.kl_coef
    expected, found = updates_of(learner, 2), updates_of(loaded, 2)
    assert all(update.advantages.any() for update in expected)  # there was something to learn
    assert [update.metrics for update in found] == [update.metrics for update in expected]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one.advantages, other.advantages)
        np.testing.assert_array_equal(one.rollout.tokens, other.rollout.tokens)
    assert weights(loaded) == weights(learner)
    return loaded


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_continues_exactly(name, tmp_path):
    continues(make_learner(name), tmp_path)


CHANGED = {
    "minibatches": make_algorithm("ppo", num_minibatches=3, num_epochs=2, gae_lambda=0.5, gamma=0.9),
    "several axes": make_algorithm(
        "grpo", aggregation="token_mean", scale="none", clip_epsilon_high=0.28, num_epochs=2
    ),
    "another advantage": make_algorithm("ppo", advantages="leave_one_out"),
    "a critic": make_algorithm("rloo", advantages="gae", gae_lambda=0.9, value_coef=0.1),
    "no bound": make_algorithm("dapo", clip_epsilon=None, sampling_rounds=1),
}


@pytest.mark.parametrize("changed", CHANGED)
def test_changed_axes_continue_exactly(changed, tmp_path):
    row = CHANGED[changed]
    assert continues(make_learner(row), tmp_path).algorithm == row != ALGORITHMS[row.name]


@pytest.mark.parametrize(
    "settings",
    [dict(kl_coef=0.1), dict(kl_coef=0.1, kl_target=0.01), dict(kl_coef=0.1, kl_target=0.01, lora_rank=2)],
    ids=["a reference", "an adapted coefficient", "a model without its adapters"],
)
@pytest.mark.parametrize("name", ["rloo", "grpo", "ppo"])
def test_with_a_reference_it_continues_exactly(name, settings, tmp_path):
    settings, envs = dict(settings), tiny.make_envs(8)
    policy = make_policy(envs, lora_rank=settings.pop("lora_rank", None))
    learner = make_learner(name, envs, policy, **settings)
    loaded = continues(learner, tmp_path)
    assert (loaded.kl_coef != 0.1) == ("kl_target" in settings)
    assert (tmp_path / "learner-reference").exists() != is_lora(policy.model)


def test_a_reference_with_adapters_continues_exactly(tmp_path):
    """It is saved as it computes, rather than with its adapters added to its weights."""
    envs = tiny.make_envs(8)
    other = make_policy(envs, seed=5, lora_rank=2)
    updates_of(make_learner("rloo", envs, other), 2)
    continues(make_learner("rloo", envs, kl_coef=0.1, reference=other), tmp_path)


def test_a_reference_of_another_precision_continues_exactly(tmp_path):
    envs = tiny.make_envs(8)
    continues(make_learner("rloo", envs, kl_coef=0.1, reference=make_policy(envs, seed=5).double()), tmp_path)


def test_minibatches_are_drawn_by_a_generator_that_is_saved(tmp_path):
    """Without it the continuation would differ: the checks above are worth something."""
    learner = make_learner(CHANGED["minibatches"])
    updates_of(learner, 2)
    learner.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, tiny.make_envs(8))
    loaded.minibatch_generator = np.random.default_rng(99)
    updates_of(learner, 1), updates_of(loaded, 1)
    assert weights(learner) != weights(loaded)


def half_of_group_mean(rollout: Any) -> np.ndarray:
    return make_algorithm("dr_grpo").advantages_of(rollout) / 2


def test_a_row_with_a_function_must_be_given_again(tmp_path):
    row = make_algorithm("grpo", advantages=half_of_group_mean)
    learner = make_learner(row)
    learner.save(tmp_path)
    with pytest.raises(ValueError, match="'grpo' has a function of one's own for \\['advantages'\\], .*load"):
        PolicyGradient.load(tmp_path, tiny.make_envs(8))
    continues(learner, tmp_path, algorithm=row)


# --- the critic


def test_explained_variance_by_hand():
    # Targets .5; 1.25, 1, 2; 1, 1, 1; 3, 3 and errors .25; .75, 1.5, 1; .5, .25, .75; 2, 1, as numpy has variances.
    rollout, row = hand_made.rollout(), ALGORITHMS["a2c"]
    experience = Experience(rollout, row.advantages_of(rollout), targets=row.targets_of(rollout))
    explained = 1 - np.var([0.25, 0.75, 1.5, 1, 0.5, 0.25, 0.75, 2, 1]) / np.var([0.5, 1.25, 1, 2, 1, 1, 1, 3, 3])
    assert critic_metrics(Tally(), experience) == {"value_loss": 0.0, "explained_variance": pytest.approx(explained)}
    right = rollout._replace(values=row.targets_of(rollout))
    assert critic_metrics(Tally(), experience._replace(rollout=right))["explained_variance"] == 1
    same = experience._replace(targets=np.ones(rollout.mask.shape))
    assert critic_metrics(Tally(), same)["explained_variance"] == 0


def test_a_critic_learns_the_value_of_each_state():
    # The prompt alone decides: 1 for one letter, 2 for two.
    envs = tiny.make_envs(32, prompts=["a", "b", "bc"], reward=lambda prompts: [float(len(p)) for p in prompts])
    learner = make_learner("a2c", envs, group_size=1, episodes_per_update=32, learning_rate=0.01, entropy_coef=1.0)
    updates = updates_of(learner, 60)
    assert updates[0].metrics["explained_variance"] == 0  # it says 0 of every state
    assert np.mean([update.metrics["explained_variance"] for update in updates[-10:]]) > 0.4
    assert updates[0].metrics["value_loss"] > 1 > 0.2 > updates[-1].metrics["value_loss"]
    values = learner.policy.values(np.array([[A, 4, 4], [B, 4, 4], [B, C, 4]])).detach()
    np.testing.assert_allclose(values, [1, 1, 2], atol=0.3)


def test_the_gradient_of_the_critic_is_that_of_its_mean_square():
    """On top of the policy's own: half the coefficient has half of it."""
    envs, rollout = tiny.make_envs(), hand_made.rollout()
    gradients = []
    for value_coef in (0.0, 0.5, 1.0):
        row = make_algorithm("a2c", value_coef=value_coef)
        learner = PolicyGradient(tiny.make_policy(envs), envs, row, entropy_coef=0.0, max_grad_norm=1e9)
        learner.accumulate_gradient(Experience(rollout, row.advantages_of(rollout), targets=row.targets_of(rollout)))
        gradients.append(tiny.stored_gradient(learner.policy))
    nothing, half, whole = gradients
    assert tiny.relative_error(whole - nothing, 2 * (half - nothing)) < 1e-9
    bias = [name for name, _ in learner.policy.named_parameters()].index("value_head.linear.bias")
    assert list(learner.policy.parameters())[bias].grad.item() == pytest.approx(
        # It says 0 of each of nine states, whose targets are the rewards to go.
        -2 * (0.5 + 1.25 + 1 + 2 + 1 + 1 + 1 + 3 + 3) / 9,
        rel=1e-12,
    )


def test_a_row_that_reads_values_has_them():
    seen = []

    def own(rollout: Any) -> np.ndarray:
        seen.append(rollout.values)
        return np.where(rollout.mask, rollout.actions == STOP, 0.0)

    learner = make_learner(Algorithm("mine", own, critic=True))
    [update] = updates_of(learner, 1)
    assert seen[0].shape == update.rollout.mask.shape and learner.policy.value_head is not None
    assert update.metrics["value_loss"] > 0 and "explained_variance" in update.metrics
