"""Rows of the table and one's own: what is refused, how axes are replaced, and that they combine."""

import json
import math
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from agents import kl, losses
from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import ADVANTAGES, AGGREGATIONS, AXES, IMPORTANCE, KL_FORMS, OBJECTIVES, SCALES, Algorithm
from agents.learner import PolicyGradient
from agents.rollout import Rollout, collect
from agents.surrogate import Batch, surrogate
from tests.agents import hand_made, tiny
from tests.names import stable

# --- refusals


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        (
            dict(advantages="leave_one_in"),
            r"algorithm 'mine': unknown advantages 'leave_one_in'; .*mean 'leave_one_out'",
        ),
        (dict(scale="group_sdt"), "unknown scale 'group_sdt'; .*Did you mean 'group_std'"),
        (dict(objective="clipp"), "unknown objective 'clipp'; .*Did you mean 'clip'"),
        (dict(importance="tokens"), "unknown importance 'tokens'; .*Did you mean 'token'"),
        (dict(aggregation="seq_mean"), "unknown aggregation 'seq_mean'; .*Did you mean 'sequence_mean'"),
        (dict(kl="k4"), "unknown kl 'k4'; allowed: frozen, k1, k1_reward"),
        (dict(num_epochs=2), "2 steps on the same episodes .*'policy_gradient'.*give objective='clip'"),
        (dict(num_minibatches=3), "3 steps on the same episodes"),
        (dict(num_epochs=2, num_minibatches=3), "6 steps on the same episodes"),
        (dict(clip_epsilon=0.2), "clipping is set, and the objective 'policy_gradient' has no ratio"),
        (dict(clip_epsilon_high=0.2), "clipping is set"),
        (dict(importance="sequence"), "importance or clipping is set"),
        (dict(sampling_rounds=2, advantages="gae"), "sampling_rounds=2 leaves out groups .*'group_mean'"),
        (dict(sampling_rounds=2, advantages="batch_leave_one_out"), "sampling_rounds=2"),
        (dict(sampling_rounds=2, advantages=lambda rollout: rollout.rewards), "sampling_rounds=2"),
        (dict(num_epochs=0), "num_epochs is 0 of type int; give an integer of at least 1"),
        (dict(num_minibatches=-1), "num_minibatches is -1"),
        (dict(sampling_rounds=1.0), "sampling_rounds is 1.0 of type float; give an integer"),
        (dict(min_group_size=True), "min_group_size is True of type bool"),
        (dict(min_episodes="2"), "min_episodes is '2' of type str"),
        (dict(objective="clip", clip_epsilon=-0.1), "clip_epsilon is -0.1 of type float; give a number from 0 to 1"),
        (dict(objective="clip", clip_epsilon=1.5), "clip_epsilon is 1.5"),
        (dict(objective="clip", clip_epsilon_high=-1), "clip_epsilon_high is -1 .*give a finite number of at least 0"),
        (dict(objective="clip", clip_epsilon=math.nan), "clip_epsilon is nan"),
        (dict(gamma=1.01), "gamma is 1.01 of type float; give a number from 0 to 1"),
        (dict(gamma=math.nan), "gamma is nan"),
        (dict(gamma=None), "gamma is None of type NoneType"),
        (dict(gae_lambda=-0.5), "gae_lambda is -0.5"),
        (dict(value_coef=-1.0), "value_coef is -1.0 .*finite number of at least 0"),
        (dict(value_coef=math.inf), "value_coef is inf .*finite number"),
        (dict(overlong_buffer=2), "overlong_buffer is 2 of type int; give a number from 0 to 1"),
        (dict(overlong_buffer=True), "overlong_buffer is True"),
        (dict(gamma=0.9), "gamma is 0.9 .*, which nothing reads; give advantages='to_go' or 'gae' too"),
        (dict(advantages="to_go", gae_lambda=0.9), "gae_lambda is 0.9 .*, which nothing reads; .*='gae' too"),
        (dict(value_coef=0.1), "value_coef is 0.1 .*, which nothing reads"),
    ],
    ids=stable,
)
def test_a_choice_that_is_none_is_refused(axes, match):
    with pytest.raises(ValueError, match=match):
        Algorithm("mine", **axes)
    with pytest.raises(ValueError, match=match.replace("'mine'", "'rloo'")):
        make_algorithm("rloo", **axes)


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        (dict(advantages=3), "advantages is 3 of type int; give one of return, to_go, .*, or a function"),
        (dict(objective=None), "objective is None of type NoneType; give one of policy_gradient, clip, cispo, or a"),
        (dict(kl=len), "kl is .*; give one of none, k1_reward"),
        (dict(scale=abs), "scale is .*; give one of none, group_std, whiten$"),
    ],
)
def test_a_choice_of_another_type_is_refused(axes, match):
    with pytest.raises(TypeError, match=match):
        Algorithm("mine", **axes)


def test_a_name_or_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="unknown algorithm 'gropo'; .*Did you mean 'grpo'"):
        make_algorithm("gropo")
    with pytest.raises(TypeError, match="'grpo': unknown axis 'agregation'; .*Did you mean 'aggregation'"):
        make_algorithm("grpo", agregation="token_mean")
    with pytest.raises(TypeError, match="unknown axis 'name'"):
        make_algorithm("grpo", name="mine")
    with pytest.raises(TypeError, match="algorithm is 7; give one of a2c, .*, or an Algorithm"):
        make_algorithm(7)


# --- replacing


def test_axes_are_replaced_one_by_one_and_the_table_stays():
    row = make_algorithm("grpo", aggregation="token_mean", clip_epsilon_high=0.28)
    assert (row.name, row.aggregation, row.clip_range) == ("grpo", "token_mean", (0.8, 1.28))
    for axis in set(AXES) - {"aggregation", "clip_epsilon_high"}:
        assert getattr(row, axis) == getattr(ALGORITHMS["grpo"], axis), axis
    assert ALGORITHMS["grpo"].aggregation == "sequence_mean"
    assert make_algorithm("grpo") is ALGORITHMS["grpo"] and make_algorithm(row) is row
    assert make_algorithm(row, aggregation="constant").clip_epsilon_high == 0.28


def test_what_advantages_need_comes_and_goes_with_them():
    assert [(row.name, row.min_group_size, row.min_episodes, row.critic) for row in ALGORITHMS.values()] == [
        ("reinforce", 1, 1, False),
        ("reinforce_baseline", 1, 2, False),
        ("reinforce_to_go", 1, 1, False),
        *((name, 2, 2, False) for name in ("rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo")),
        ("reinforce_pp", 1, 1, False),
        ("a2c", 1, 1, True),
        ("ppo", 1, 1, True),
    ]
    for name, other, expected in (
        ("ppo", "leave_one_out", (2, 2, False)),
        ("grpo", "to_go", (1, 1, False)),
        ("rloo", "gae", (1, 1, True)),
    ):
        row = make_algorithm(name, advantages=other)
        assert (row.min_group_size, row.min_episodes, row.critic) == expected
    mine = Algorithm("mine", tiny.score, min_group_size=3, critic=True)
    assert (mine.min_group_size, mine.critic) == (3, True) and not make_algorithm(mine, advantages="return").critic


def test_bounds_of_the_ratio():
    def bounds(low: float | None, high: float | None) -> Any:
        return Algorithm("mine", objective="clip", clip_epsilon=low, clip_epsilon_high=high).clip_range

    assert bounds(None, None) == (None, None)
    assert bounds(0.25, None) == (0.75, 1.25)
    assert bounds(None, 4.0) == (None, 5.0)
    assert bounds(0.25, 0.5) == (0.75, 1.5)


def test_numbers_of_numpy_are_taken_and_are_json():
    row = make_algorithm("ppo", num_epochs=np.int64(2), num_minibatches=4, gamma=np.float64(0.9))
    assert (row.num_steps, row.gamma) == (8, 0.9)
    json.dumps([getattr(row, axis) for axis in AXES])


def test_the_names_are_those_of_the_functions():
    """They stand twice, so that they can be checked before torch is loaded."""
    assert set(OBJECTIVES) == set(losses.OBJECTIVES) and set(AGGREGATIONS) == set(losses.AGGREGATIONS)
    assert set(IMPORTANCE) == set(losses.RATIOS)
    assert KL_FORMS == ("none", "k1_reward", *kl.FORMS)


# --- combining

NAMED = {
    "advantages": tuple(ADVANTAGES),
    "scale": SCALES,
    "objective": OBJECTIVES,
    "importance": IMPORTANCE,
    "aggregation": AGGREGATIONS,
    "kl": KL_FORMS,
}


def combined() -> list[Algorithm]:
    """Every combination of names on the axes that is not refused."""
    rows = []
    for choice in product(*NAMED.values()):
        axes: dict[str, Any] = dict(zip(NAMED, choice, strict=True))
        if axes["objective"] != "policy_gradient":
            axes |= dict(clip_epsilon=0.2, num_epochs=2)
        elif axes["importance"] == "sequence":
            continue
        rows.append(Algorithm("mine", **axes))
    assert len(rows) == 6 * 3 * (1 + 2 * 2) * 3 * 7
    return rows


def test_every_combination_of_names_has_a_finite_gradient():
    rollout = hand_made.rollout()
    mask, generator = torch.tensor(rollout.mask), torch.Generator().manual_seed(0)
    old, ref, by = (-torch.rand(mask.shape, generator=generator, dtype=torch.float64) for _ in range(3))
    for row in combined():
        new = (old + 0.3 * by).requires_grad_()
        advantages = row.advantages_of(rollout)
        assert advantages.dtype == np.float64 and not advantages[~rollout.mask].any()
        batch = Batch(torch.tensor(advantages), mask, 4, 9, old, ref)
        [gradient] = torch.autograd.grad(surrogate(row, new, batch, 0.1).loss, new)
        assert gradient.isfinite().all() and gradient.any() and not gradient[~mask].any(), row


def test_every_pair_of_names_goes_through_the_learner():
    """At the first step and after one, with a KL term, an entropy bonus and, where there is one, a critic."""
    envs = tiny.make_envs(8)
    rollout = collect(tiny.make_policy(envs), envs, 8, np.random.default_rng(0), group_size=4)
    policy, other = tiny.make_policy(envs, scale=1.1), tiny.make_policy(envs, seed=1)  # not the one that sampled
    settings: dict[str, Any] = dict(group_size=4, episodes_per_update=8, kl_coef=0.1, reference=other)
    learner = PolicyGradient(policy, envs, make_algorithm("ppo", num_minibatches=2), **settings)
    start, rows = {name: value.clone() for name, value in policy.state_dict().items()}, combined()[::13]
    pairs = {pair for row in combined() for pair in pairs_of(row)}
    assert {pair for row in rows for pair in pairs_of(row)} == pairs
    learner._collect = lambda: rollout
    for row in rows:
        learner.algorithm, updates = row, []
        learner.learn(1, updates.append)
        assert all(map(math.isfinite, updates[0].metrics.values())) and updates[0].metrics["grad_norm"] > 0, row
        assert all(parameter.isfinite().all() for parameter in policy.parameters()), row
        policy.load_state_dict(start)


def pairs_of(row: Algorithm) -> set[tuple[str, str]]:
    return set(combinations([f"{axis}={getattr(row, axis)}" for axis in NAMED], 2))


# --- one's own


def first_token_only(rollout: Rollout) -> np.ndarray:
    return np.where(np.arange(rollout.mask.shape[1]) == 0, rollout.returns[:, None], 0.0)


def squared(log_probs, ratio, advantages, low, high):
    return -advantages.detach() * (1 - ratio).square()


def longest_counts(per_token, mask, num_episodes, num_tokens):
    return per_token.masked_fill(~mask, 0.0).sum(dim=-1).max() / num_episodes


@pytest.mark.parametrize(
    "axes",
    [
        dict(advantages=first_token_only),
        dict(advantages="group_mean", objective=squared, num_epochs=2),
        dict(advantages="group_mean", aggregation=longest_counts),
    ],
    ids=["advantages", "objective", "aggregation"],
)
def test_a_row_with_a_function_of_ones_own_trains(axes, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "mine", Algorithm("mine", **axes))
    envs = tiny.make_envs()
    learner = PolicyGradient(tiny.make_policy(envs), envs, "mine", group_size=4, episodes_per_update=8)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in learner.policy.parameters()])
    learner.learn(30)
    after = torch.cat([parameter.detach().flatten() for parameter in learner.policy.parameters()])
    assert after.isfinite().all() and not torch.equal(before, after)


def test_a_function_is_what_it_says():
    rollout = tiny.rollout_of(tiny.every_episode()[:6])
    row = Algorithm("mine", first_token_only)
    assert (row.advantages_of(rollout) == first_token_only(rollout)).all()
    assert (make_algorithm(row, scale="whiten").advantages_of(rollout)[rollout.mask].sum()) == pytest.approx(
        0, abs=1e-9
    )
