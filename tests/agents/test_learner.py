"""PolicyGradient: it learns, it repeats itself, it continues where it was saved, and it refuses what cannot work."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.algorithms import ALGORITHMS, make_algorithm
from agents.axes import Algorithm
from agents.learner import PolicyGradient, Update
from agents.metrics import rollout_metrics
from agents.policy import TransformerPolicy
from agents.rollout import Rollout
from tests.agents import tiny
from tests.agents.tiny import STOP, A, B, C

SMALL: dict[str, Any] = dict(group_size=2, episodes_per_update=8, entropy_coef=0.01)


def make_learner(algorithm: Any = "rloo", seed: int = 0, envs: Any = None, **settings: Any) -> PolicyGradient:
    envs = tiny.make_envs() if envs is None else envs
    policy = TransformerPolicy.small(envs, d_model=16, num_layers=1, seed=0)
    return PolicyGradient(policy, envs, algorithm, seed=seed, **(SMALL | settings))


def weights(learner: PolicyGradient) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in learner.policy.parameters())


def recorded(learner: PolicyGradient, total_timesteps: int) -> list[Update]:
    updates: list[Update] = []
    learner.learn(total_timesteps, updates.append)
    return updates


def metrics(updates: list[Update]) -> list[dict[str, float]]:
    return [update.metrics for update in updates]


# --- learning


@pytest.mark.parametrize("algorithm", ["reinforce", "reinforce_baseline", "reinforce_to_go", "rloo"])
def test_the_best_arm_is_found(algorithm):
    envs = gym.make_vec("TextGen-v0", num_envs=64, task="bandit", level=2)
    learner = make_learner(
        algorithm, envs=envs, group_size=8, episodes_per_update=64, learning_rate=1e-2, entropy_coef=0.0
    )
    updates = recorded(learner, 64 * 60)
    assert 0.2 < updates[0].metrics["reward"] < 0.8  # a uniform policy gets 1/2
    assert np.mean([update.metrics["reward"] for update in updates[-5:]]) > 0.85


def test_a_constant_reward_moves_nothing_under_a_baseline():
    envs = tiny.make_envs(reward=lambda completions: [0.1] * len(completions))
    for algorithm in ("rloo", "reinforce_baseline"):
        learner = make_learner(algorithm, envs=envs, entropy_coef=0.0)
        before = weights(learner)
        learner.learn(100)
        assert weights(learner) == before


def test_the_entropy_bonus_keeps_the_policy_random():
    entropy = {}
    for coefficient in (0.0, 1.0):
        learner = make_learner(learning_rate=1e-2, entropy_coef=coefficient)
        entropy[coefficient] = recorded(learner, 1200)[-1].metrics["entropy"]
    assert entropy[0.0] < entropy[1.0] - 0.1 and entropy[1.0] > 0.9 * np.log(4)


# --- counting and callbacks


def test_learning_goes_on_until_the_tokens_are_generated():
    learner = make_learner()
    updates = recorded(learner, 50)
    counts = np.cumsum([update.rollout.num_tokens for update in updates])
    assert counts[-2] < 50 <= counts[-1] == learner.num_timesteps
    assert [update.num_timesteps for update in updates] == counts.tolist()
    assert [update.metrics["num_tokens"] for update in updates] == counts.tolist()
    assert [update.step for update in updates] == list(range(1, len(updates) + 1))
    assert learner.num_updates == len(updates)
    further = recorded(learner, 1)
    assert [update.step for update in further] == [len(updates) + 1]


def test_a_callback_sees_the_update_and_may_end_it():
    learner = make_learner()
    seen = []

    def stop_at_the_third(update):
        seen.append(update)
        return update.step < 3

    assert learner.learn(10_000, stop_at_the_third) is learner
    assert learner.num_updates == len(seen) == 3
    last = seen[-1]
    np.testing.assert_array_equal(last.advantages, learner.algorithm.advantages_of(last.rollout))
    assert last.metrics["reward"] == pytest.approx(last.rollout.returns.mean())
    assert len(last.rollout.mask) == 8 and last.rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_callback_that_returns_nothing_goes_on():
    assert len(recorded(make_learner(), 60)) > 2


def test_metrics_of_a_rollout():
    rollout = tiny.rollout_of(
        [
            tiny.Episode(0, [A], [STOP], [1.0], 1),
            tiny.Episode(0, [A], [B, STOP], [0.0, 1.0], 1),
            tiny.Episode(1, [B, C], [A, A, A], [0.0, 0.0, 2.0], 2),
            tiny.Episode(1, [B, C], [C, C, C], [0.0, 0.0, 4.0], 2),
        ],
        group=[0, 0, 1, 1],
    )
    assert rollout_metrics(rollout, ["score"]) == pytest.approx(
        {
            "reward": 2.0,
            "reward_std": 1.5**0.5,
            "frac_reward_zero_std": 0.5,
            "completions/mean_length": 2.25,
            "completions/min_length": 1,
            "completions/max_length": 3,
            "completions/mean_terminated_length": 1.5,
            "completions/clipped_ratio": 0.5,
            "rewards/score/mean": 2.0,
            "rewards/score/std": 1.5**0.5,
            "episodes/dropped": 0,
        }
    )


def test_metrics_of_an_update_are_plain_and_finite():
    for update in recorded(make_learner(), 40):
        assert all(type(value) in (int, float) and np.isfinite(value) for value in update.metrics.values())
        assert {"reward", "loss", "entropy", "grad_norm", "num_tokens", "rewards/score/mean"} <= set(update.metrics)
        assert 0 < update.metrics["entropy"] <= np.log(4)


# --- repetition


def test_the_same_seed_repeats_metrics_and_weights():
    first, again, other = make_learner(seed=1), make_learner(seed=1), make_learner(seed=2)
    histories = [json.dumps(metrics(recorded(learner, 120))) for learner in (first, again, other)]
    assert histories[0] == histories[1] != histories[2]
    assert weights(first) == weights(again) != weights(other)


def test_rollouts_after_the_first_are_scored_as_they_were_sampled():
    learner = make_learner(learning_rate=0.05)
    for update in recorded(learner, 40):  # the weights move far between rollouts that share a cache's memory
        sampling = [update.metrics[f"sampling/importance_sampling_ratio/{what}"] for what in ("min", "max")]
        assert sampling == pytest.approx([1.0, 1.0], abs=1e-4)
    assert len(weights(learner)) and learner.num_updates > 2


def test_a_model_put_in_the_place_of_another_is_sampled_from():
    learner = make_learner()
    learner.learn(1)
    other = TransformerPolicy.small(learner.envs, d_model=16, num_layers=1, seed=1)
    learner.policy.model = other.model
    rollout = learner._collect()
    with torch.no_grad():
        np.testing.assert_allclose(other.log_probs(rollout).numpy(), rollout.log_probs, atol=1e-5)


def test_the_global_generators_do_not_matter():
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        learner = make_learner()
        state = torch.get_rng_state()
        learner.learn(60)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(learner))
    assert results[0] == results[1]


def test_a_saved_learner_continues_exactly(tmp_path):
    original = make_learner()
    original.learn(80)
    original.predict(np.array([A, B]))  # the policy's own generator has moved, too
    original.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, tiny.make_envs())
    assert (loaded.num_timesteps, loaded.num_updates) == (original.num_timesteps, original.num_updates)
    assert loaded.settings == original.settings and loaded.algorithm is original.algorithm
    assert weights(loaded) == weights(original)
    assert metrics(recorded(loaded, 80)) == metrics(recorded(original, 80))
    assert weights(loaded) == weights(original)
    observations = np.tile([A, B], (50, 1))
    assert loaded.predict(observations)[0].tolist() == original.predict(observations)[0].tolist()


def test_a_learner_saved_before_its_first_update_continues_exactly(tmp_path):
    original = make_learner(algorithm="reinforce", learning_rate=0.02)
    original.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, tiny.make_envs())
    assert metrics(recorded(loaded, 50)) == metrics(recorded(original, 50))
    assert weights(loaded) == weights(original)


def test_the_step_size_falls_as_it_is_told_and_goes_on_so_when_loaded(tmp_path):
    original = make_learner(learning_rate=0.02, decay_timesteps=np.array([40, 120]))
    first = recorded(original, 60)
    original.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, tiny.make_envs())
    later = recorded(loaded, 100)
    assert metrics(later) == metrics(recorded(original, 100)) and weights(loaded) == weights(original)
    # By the tokens generated before each update: whole up to 40, a tenth from 120 on, linear in between.
    begun = [0, *(update.num_timesteps for update in [*first, *later])]
    expected = [0.02 * (0.1 + 0.9 * min(1.0, max(0.0, (120 - tokens) / 80))) for tokens in begun[:-1]]
    found = [update.metrics["learning_rate"] for update in [*first, *later]]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == 0.02 and found[-1] == pytest.approx(0.002) and len({*found}) > 3
    assert loaded.optimizer.param_groups[0]["lr"] == found[-1]


def test_optimizer_moments_are_part_of_what_is_saved(tmp_path):
    """Without them the continuation would differ: the check above is worth something."""
    original = make_learner()
    original.learn(80)
    original.save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, tiny.make_envs())
    loaded.optimizer.state.clear()
    loaded.learn(80)
    original.learn(80)
    assert weights(loaded) != weights(original)


def test_a_temperature_is_saved(tmp_path):
    envs = tiny.make_envs()
    learner = PolicyGradient(TransformerPolicy.small(envs, d_model=16, temperature=1.5), envs, **SMALL)
    learner.save(tmp_path)
    assert PolicyGradient.load(tmp_path, envs).policy.temperature == 1.5


def test_a_learner_of_a_bare_number_of_tokens_is_saved_with_the_environments_tokens(tmp_path):
    envs = tiny.make_envs()
    learner = PolicyGradient(TransformerPolicy.small(4, d_model=16), envs, **SMALL)
    learner.save(tmp_path)
    assert PolicyGradient.load(tmp_path, envs).policy.vocabulary.decode([A, STOP]) == "a<eos>"


def test_loading_from_nowhere_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="learner.json"):
        PolicyGradient.load(tmp_path, tiny.make_envs())


# --- predict


def test_predict_takes_one_observation_or_several():
    learner = make_learner()
    one, state = learner.predict(np.array([A, 4, 4, 4, 4]), deterministic=True)
    assert state is None and np.ndim(one) == 0 and one in range(4)
    histories = np.array([[A, 4, 4, 4, 4], [B, C, A, 4, 4], [B, C, 4, 4, 4]])
    several, state = learner.predict(histories, deterministic=True)
    assert state is None and several.shape == (3,) and several.dtype == np.int64
    assert several[0] == one
    with torch.no_grad():
        logits = learner.policy.model(input_ids=torch.tensor([[B, C, A]])).logits[0, -1, :4]
    assert several[1] == logits.argmax()


def test_predict_draws_unless_it_is_deterministic():
    learner = make_learner()
    histories = np.tile([A, B], (200, 1))
    assert len(set(learner.predict(histories)[0].tolist())) > 1
    assert len(set(learner.predict(histories, deterministic=True)[0].tolist())) == 1


def test_stable_baselines3_evaluates_it():
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    from stable_baselines3.common.monitor import Monitor

    envs = gym.make_vec("TextGen-v0", num_envs=32, task="bandit", level=2)
    learner = make_learner(envs=envs, group_size=8, episodes_per_update=64, learning_rate=1e-2, entropy_coef=0.0)
    learner.learn(64 * 60)
    env = Monitor(gym.make("TextGen-v0", task="bandit", level=2))
    mean, spread = evaluation.evaluate_policy(learner, env, n_eval_episodes=10, deterministic=True)
    assert (mean, spread) == (1.0, 0.0)


# --- algorithms


def test_an_unknown_algorithm_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="Did you mean 'reinforce'"):
        make_learner("reinforc")


def last_token_only(rollout: Rollout) -> np.ndarray:
    return np.where(rollout.actions == STOP, 1.0, 0.0) * rollout.mask


def test_a_row_of_ones_own_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(ALGORITHMS, "stopper", Algorithm("stopper", last_token_only))
    learner = make_learner("stopper", learning_rate=1e-2, entropy_coef=0.0)
    updates = recorded(learner, 600)
    assert updates[-1].metrics["completions/mean_length"] < updates[0].metrics["completions/mean_length"] - 0.5
    learner.save(tmp_path)
    assert PolicyGradient.load(tmp_path, tiny.make_envs()).algorithm is ALGORITHMS["stopper"]


def test_a_row_that_is_not_in_the_table_is_taken_too(tmp_path):
    row = Algorithm("not_registered", last_token_only)
    assert make_algorithm(row) is row
    learner = make_learner(row)
    learner.learn(30)
    learner.save(tmp_path)
    with pytest.raises(ValueError, match="unknown algorithm 'not_registered'"):
        PolicyGradient.load(tmp_path, tiny.make_envs())
    assert PolicyGradient.load(tmp_path, tiny.make_envs(), algorithm=row).num_updates == learner.num_updates


# --- refusals


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(group_size=3), "no positive multiple of group_size=3"),
        (dict(group_size=0), "group_size=0"),
        (dict(episodes_per_update=0), "episodes_per_update=0"),
        (dict(group_size=1), "needs group_size of at least 2"),
        (dict(learning_rate=0.0), "learning_rate="),
        (dict(learning_rate=float("nan")), "learning_rate="),
        (dict(max_grad_norm=-1.0), "max_grad_norm="),
        (dict(tokens_per_microbatch=0), "tokens_per_microbatch="),
        (dict(entropy_coef=-0.1), "entropy_coef="),
        (dict(entropy_coef=float("nan")), "entropy_coef="),
        (dict(decay_timesteps=(5, 5)), "decay_timesteps="),
        (dict(decay_timesteps=(-1, 5)), "decay_timesteps="),
        (dict(decay_timesteps=(1, 2, 3)), "decay_timesteps="),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        make_learner("rloo", **settings)


def test_one_episode_has_no_baseline():
    with pytest.raises(ValueError, match="episodes_per_update of at least 2"):
        make_learner("reinforce_baseline", group_size=1, episodes_per_update=1)
    make_learner("reinforce", group_size=1, episodes_per_update=1).learn(1)


def test_a_policy_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="the policy has 5 tokens and the environment 4"):
        PolicyGradient(TransformerPolicy.small(5, d_model=16), tiny.make_envs())


def test_a_model_shorter_than_the_histories_is_refused():
    policy = TransformerPolicy.small(4, d_model=16, num_layers=1)
    PolicyGradient(policy, tiny.make_envs(max_new_tokens=1023))  # 2 + 1023 tokens; the last is never read
    with pytest.raises(ValueError, match="histories have up to 1026 tokens and the model takes 1024"):
        PolicyGradient(policy, tiny.make_envs(max_new_tokens=1024))


def test_an_environment_that_cannot_be_driven_is_refused():
    with pytest.raises(TypeError, match="native vector environment"):
        PolicyGradient(TransformerPolicy.small(4, d_model=16), gym.make_vec("CartPole-v1", num_envs=1))


@pytest.mark.parametrize("advantage", [np.nan, np.inf, 1e300])
def test_a_gradient_that_is_not_finite_changes_nothing(advantage):
    def broken(rollout):
        return np.where(rollout.mask, advantage, 0.0)

    learner = make_learner(Algorithm("broken", broken))
    before = weights(learner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy on the overflow of 1e300
        with pytest.raises(FloatingPointError, match="update 1; nothing was changed"):
            learner.learn(10)
    assert weights(learner) == before
    assert (learner.num_updates, learner.num_timesteps) == (0, 0)
    assert not learner.optimizer.state_dict()["state"]


def test_a_failing_reward_reaches_the_caller():
    from textgym import RewardError

    def fail(completions):
        raise KeyError("no such word")

    learner = make_learner(envs=tiny.make_envs(reward=fail))
    before = weights(learner)
    with pytest.raises(RewardError, match="fail"):
        learner.learn(10)
    assert weights(learner) == before


def test_saving_writes_no_pickle(tmp_path: Path):
    learner = make_learner()
    learner.learn(10)
    learner.save(tmp_path)
    names = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert names <= {".json", ".safetensors"}


def test_deterministic_is_the_second_argument_of_predict():
    envs = gym.make_vec("TextGen-v0", num_envs=500, task="bandit")
    learner = PolicyGradient(TransformerPolicy.small(envs, d_model=32), envs)
    observations, _ = envs.reset()
    greedy, _ = learner.predict(observations, True)
    assert len(set(greedy.tolist())) == 1
    assert len(set(learner.predict(observations)[0].tolist())) > 1


def test_double_precision_and_numpy_integers_are_saved_and_continue(tmp_path):
    envs = gym.make_vec("TextGen-v0", num_envs=16, task="bandit")
    policy = TransformerPolicy.small(envs, d_model=32).double()
    original = PolicyGradient(policy, envs, episodes_per_update=np.int64(16), seed=np.int64(3))
    original.learn(16).save(tmp_path)
    loaded = PolicyGradient.load(tmp_path, envs)
    for learner in (original, loaded):
        learner.learn(16)
    for expected, found in zip(original.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert found.dtype == torch.float64
        assert torch.equal(expected, found)


def test_a_bos_of_ones_own_is_saved(tmp_path):
    policy = TransformerPolicy.small(4, d_model=32)
    policy.bos_id = 1
    policy.save_pretrained(tmp_path)
    assert TransformerPolicy.from_pretrained(tmp_path).bos_id == 1
