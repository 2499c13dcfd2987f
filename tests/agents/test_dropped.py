"""Dropped episodes: learning goes on as if they had not been played; only the tokens generated count them."""

import json
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from agents.algorithms import ALGORITHMS
from agents.axes import Algorithm
from agents.learner import PolicyGradient, Update
from agents.metrics import rollout_metrics
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, collect
from tests.agents import tiny
from tests.agents.tiny import STOP, A, B, C
from textgym.rewards import Scores, Texts
from textgym.vector_env import TextGenVectorEnv

# Two groups of three, of which the first loses its second episode and the second all but its last.
EPISODES = [
    tiny.Episode(0, [A], [STOP], [1.0], 1),
    tiny.Episode(0, [A], [B, C, STOP], [0.0, 50.0, 50.0], 1),
    tiny.Episode(0, [A], [B, STOP], [0.0, 4.0], 1),
    tiny.Episode(1, [B, C], [A, A, B], [0.0, 0.0, -70.0], 2),
    tiny.Episode(1, [B, C], [A, A, A], [0.0, 0.0, -70.0], 2),
    tiny.Episode(1, [B, C], [C, STOP], [0.0, 10.0], 1),
]
GROUP = [0, 0, 0, 1, 1, 1]
VALID = np.array([True, False, True, False, False, True])
# By hand, of the episodes 0, 2 and 5, with returns 1, 4 and 10; the others' means are 7, 5.5 and 2.5 in the batch. Of
# the first group 1 and 4 are left, ∓1.5 from their mean with a deviation of 3/√2; the last episode is alone.
_S = 0.5**0.5
_BY_GROUP = [[-_S, 0], [_S, _S], [0, 0]]


def _whitened(one: float, *others: float) -> list[list[float]]:
    """Over the five tokens, as the standard library has mean and deviation."""
    values = [one, *others]
    one, *rest = [(value - statistics.mean(values)) / statistics.stdev(values) for value in values]
    return [[one, 0], rest[:2], rest[2:]]


ADVANTAGES = {
    "reinforce": [[1, 0], [4, 4], [10, 10]],
    "reinforce_to_go": [[1, 0], [4, 4], [10, 10]],
    "reinforce_baseline": [[-6, 0], [-1.5, -1.5], [7.5, 7.5]],
    "rloo": [[-3, 0], [3, 3], [0, 0]],
    "grpo": _BY_GROUP,
    "dr_grpo": [[-1.5, 0], [1.5, 1.5], [0, 0]],
    "dapo": _BY_GROUP,
    "gspo": _BY_GROUP,
    "cispo": _BY_GROUP,
    "reinforce_pp": _whitened(1, 4, 4, 10, 10),
    # A new critic says 0 of every state.
    "a2c": [[1, 0], [4, 4], [10, 10]],
    "ppo": _whitened(1, 0.95 * 4, 4, 0.95 * 10, 10),
}


def with_dropped(episodes: list[tiny.Episode] = EPISODES) -> Rollout:
    return tiny.rollout_of(episodes, GROUP)._replace(valid=VALID)


def without() -> Rollout:
    return tiny.rollout_of([EPISODES[0], EPISODES[2], EPISODES[5]], [0, 0, 1])


def make_learner(algorithm: Any = "rloo", envs: VectorEnv | None = None, **settings: Any) -> PolicyGradient:
    envs = tiny.make_envs() if envs is None else envs
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1).double()
    own: dict[str, Any] = dict(group_size=4, episodes_per_update=8, entropy_coef=0.1, max_grad_norm=1e9)
    return PolicyGradient(policy, envs, algorithm, **(own | settings))


def weights(learner: PolicyGradient) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in learner.policy.parameters())


def recorded(learner: PolicyGradient, total_timesteps: int) -> list[Update]:
    updates: list[Update] = []
    learner.learn(total_timesteps, updates.append)
    return updates


class PartlyBroken:
    """A reward of one's own: drops the texts of some prompts or beginnings, pays 1 for each b in the others."""

    names = ("partly_broken",)
    draws = False

    def __init__(self, *begin: str) -> None:
        self.begin = begin

    def __call__(self, texts: Texts) -> Scores:
        whole = [prompt + text for prompt, text in zip(texts.prompts, texts.completions, strict=True)]
        kept = np.array([not text.startswith(self.begin) for text in whole])
        score = np.where(kept, [float(text.count("b")) for text in whole], 0.0)
        return Scores(score, score[:, None], kept[:, None], kept)


def dropping_envs(*begin: str, **keywords: Any) -> VectorEnv:
    """The small environment, in which every text is dropped that begins so, the prompt included."""
    problem = tiny.make_envs(**keywords).unwrapped.problem
    return TextGenVectorEnv(
        8, autoreset_mode=AutoresetMode.DISABLED, problem=replace(problem, reward=PartlyBroken(*begin))
    )


# --- by hand


def test_the_others_remain_in_their_groups():
    kept = with_dropped().without_dropped()
    assert kept.group.tolist() == [0, 0, 1] and kept.returns.tolist() == [1, 4, 10]
    assert kept.mask.tolist() == [[True, False], [True, True], [True, True]]  # cut: the longest was dropped
    whole = tiny.rollout_of(EPISODES, GROUP)
    assert whole.without_dropped() is whole


def test_a_rollout_of_dropped_episodes_alone_leaves_nothing():
    none = with_dropped()._replace(valid=np.zeros(6, dtype=bool)).without_dropped()
    assert (none.tokens.shape, none.mask.shape, none.group.shape, none.num_tokens) == ((0, 0), (0, 0), (0,), 0)


def advantages_of(learner: PolicyGradient, rollout: Rollout) -> np.ndarray:
    return learner.experience(rollout.without_dropped()).advantages


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_those_without_the_dropped_ones(name):
    learner = make_learner(name)
    np.testing.assert_allclose(advantages_of(learner, with_dropped()), ADVANTAGES[name], rtol=1e-14)
    np.testing.assert_array_equal(advantages_of(learner, with_dropped()), advantages_of(learner, without()))


def test_every_algorithm_has_its_numbers_here():
    assert set(ADVANTAGES) >= set(ALGORITHMS)


def updated(name: str, rollout: Rollout, tokens_per_microbatch: int) -> tuple[bytes, Update]:
    """The weights after an update on these episodes, and what a callback saw."""
    learner = make_learner(name, tokens_per_microbatch=tokens_per_microbatch)
    learner._collect = lambda: rollout
    [update] = recorded(learner, 1)
    return weights(learner), update


@pytest.mark.parametrize("tokens_per_microbatch", [1, 8, 10_000])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_update_is_that_without_the_dropped_ones(name, tokens_per_microbatch):
    expected, plain = updated(name, without(), tokens_per_microbatch)
    found, update = updated(name, with_dropped(), tokens_per_microbatch)
    assert found == expected != weights(make_learner(name))
    assert update.metrics == plain.metrics | {"episodes/dropped": 3, "num_tokens": with_dropped().num_tokens}
    assert not update.advantages[~VALID].any()
    np.testing.assert_array_equal(update.advantages[VALID, :2], plain.advantages)


@pytest.mark.parametrize("paid", [0.0, 1e6, np.nan, np.inf])
def test_what_a_dropped_episode_was_paid_changes_nothing(paid):
    learner, changed = make_learner(), with_dropped()
    changed.rewards[~VALID] = paid
    for rollout in (with_dropped(), changed):
        learner.accumulate_gradient(learner.experience(rollout.without_dropped()))
        assert learner._measured(rollout) == learner._measured(with_dropped())
    gradient = tiny.stored_gradient(learner.policy).clone()
    learner.accumulate_gradient(learner.experience(without()))
    assert torch.equal(tiny.stored_gradient(learner.policy), gradient)


def test_an_algorithm_sees_no_dropped_episode():
    seen = []

    def own(rollout: Rollout) -> np.ndarray:
        seen.append(rollout)
        return rollout.rewards

    advantages_of(make_learner(Algorithm("own", own)), with_dropped())
    assert [rollout.returns.tolist() for rollout in seen] == [[1, 4, 10]]


def test_metrics_leave_them_out_and_count_them():
    # Returns 1, 4 and 10 of mean 5 and variance (16 + 1 + 25) / 3; lengths 1, 2, 2, each ended by a stop.
    metrics = rollout_metrics(with_dropped(), ["score"])
    assert metrics == pytest.approx(
        {
            "reward": 5.0,
            "reward_std": 14**0.5,
            "frac_reward_zero_std": 0.5,  # a group of one tells nothing apart
            "completions/mean_length": 5 / 3,
            "completions/min_length": 1,
            "completions/max_length": 2,
            "completions/mean_terminated_length": 5 / 3,
            "completions/clipped_ratio": 0,
            "rewards/score/mean": 5.0,
            "rewards/score/std": 14**0.5,
            "episodes/dropped": 3,
        }
    )


def test_metrics_without_an_episode_are_0():
    metrics = rollout_metrics(with_dropped()._replace(valid=np.zeros(6, dtype=bool)), ["score"])
    assert metrics.pop("episodes/dropped") == 6
    assert set(metrics) == set(rollout_metrics(without(), ["score"])) - {"episodes/dropped"}
    assert set(metrics.values()) == {0.0}


# --- in the environment


def test_collect_plays_and_marks_dropped_episodes():
    envs = dropping_envs("aa", "bcc")
    rollout = collect(TransformerPolicy.small(envs, d_model=16), envs, 40, np.random.default_rng(0), group_size=4)
    wholes = ["".join(rollout.texts(row)) for row in range(40)]
    assert rollout.valid.tolist() == [not whole.startswith(("aa", "bcc")) for whole in wholes]
    assert 0 < rollout.valid.sum() < 40
    assert (rollout.returns[~rollout.valid] == 0).all() and not rollout.scores_valid[~rollout.valid].any()
    assert rollout.num_tokens == (rollout.length - rollout.prompt_length).sum()


def test_learning_goes_on_without_them():
    learner = make_learner(envs=dropping_envs("ab"), learning_rate=1e-2, entropy_coef=0.01)
    updates = recorded(learner, 3000)
    assert sum(update.metrics["episodes/dropped"] for update in updates) > 20
    for update in updates:
        assert (update.advantages[~update.rollout.valid] == 0).all()
        assert update.metrics["episodes/dropped"] == (~update.rollout.valid).sum()
    assert learner.num_timesteps == sum(update.rollout.num_tokens for update in updates)
    rewards = [update.metrics["reward"] for update in updates if update.rollout.valid.any()]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.5


def test_an_update_without_an_episode_changes_nothing_and_is_counted():
    learner = make_learner(envs=dropping_envs("a", "b"))  # both prompts
    learner.envs = dropping_envs("x")
    recorded(learner, 40)  # Adam has moments now, which a step without a gradient would follow
    moments = {index: dict(state) for index, state in learner.optimizer.state_dict()["state"].items()}
    before, tokens, done = weights(learner), learner.num_timesteps, learner.num_updates
    learner.envs = dropping_envs("a", "b")
    updates = recorded(learner, 60)
    assert weights(learner) == before
    for index, state in learner.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[name], moments[index][name]) for name in state)
    assert learner.num_updates == done + len(updates) and len(updates) >= 3
    assert learner.num_timesteps == tokens + sum(update.rollout.num_tokens for update in updates)
    for update in updates:
        assert update.metrics["episodes/dropped"] == 8
        assert (update.metrics["loss"], update.metrics["entropy"], update.metrics["grad_norm"]) == (0, 0, 0)
        json.dumps(update.metrics, allow_nan=False)
        assert not update.advantages.any() and update.advantages.shape == update.rollout.mask.shape


def test_a_prefix_that_fails_drops_the_whole_episode():
    """Paid step by step: what was paid before the failure counts no more than the rest."""
    envs = dropping_envs("abb", prompts=["a"], scheme="prefix_delta")
    learner = make_learner(envs=envs, group_size=8)
    rollout = collect(learner.policy, envs, 80, np.random.default_rng(0), group_size=8)
    paid = rollout.returns[~rollout.valid]
    assert len(paid) and (paid > 0).all()  # 1 for the first b, before the second
    learner._collect = lambda: rollout
    assert not recorded(learner, 1)[0].advantages[~rollout.valid].any()
