"""Runs: pairs that share their random numbers, honest counts, one meter for every scheme."""

from dataclasses import fields, replace

import numpy as np
import pytest

from benchmarks.schemes import Row, evaluate, make_learner, mean_over_tokens, normalize, run, sweep
from textgym.tasks import TASKS, make_task
from textgym.tasks.base import TaskFamily

# Steps large enough that four updates tell one run from another.
TINY = {"episodes_per_update": 16, "evaluation_episodes": 64, "d_model": 16, "num_layers": 1, "learning_rate": 0.03}


def tiny(scheme: str = "terminal", **settings) -> Row:
    return Row(**{"task": "reverse", "scheme": scheme, "total_timesteps": 200, **TINY, **settings})


def first_rollout(row: Row):
    seen = []
    learner = make_learner(row, make_task(row.task, row.level).reward)
    learner.learn(1, lambda update: seen.append(update.rollout))
    return seen[0]


def test_schemes_of_one_seed_start_from_the_same_episodes():
    terminal, delta = first_rollout(tiny()), first_rollout(tiny("prefix_delta"))
    assert np.array_equal(terminal.tokens, delta.tokens)
    assert np.array_equal(terminal.log_probs, delta.log_probs)
    assert np.array_equal(terminal.score, delta.score)
    assert not np.array_equal(terminal.rewards, delta.rewards)


def test_seeds_differ():
    assert not np.array_equal(first_rollout(tiny()).tokens, first_rollout(tiny(seed=1)).tokens)


def test_at_horizon_one_the_schemes_are_the_same_problem():
    terminal, delta = (run(tiny(scheme, task="bandit")) for scheme in ("terminal", "prefix_delta"))
    assert replace(terminal, row=delta.row) == delta


def test_a_return_paid_otherwise_is_the_same_to_a_sequence_level_algorithm():
    # The scores are quarters, so that the differences add up without rounding.
    terminal, delta = (run(tiny(scheme, algorithm="rloo")) for scheme in ("terminal", "prefix_delta"))
    assert (terminal.score, terminal.curve) == (delta.score, delta.curve)


def test_reward_to_go_tells_the_schemes_apart():
    assert run(tiny()).curve != run(tiny("prefix_delta")).curve


def test_every_prefix_that_was_scored_is_counted():
    # 200 tokens take four updates of 16 episodes of 4 tokens.
    terminal, delta = run(tiny()), run(tiny("prefix_delta"))
    assert terminal.num_tokens == delta.num_tokens == 4 * 16 * 4
    assert (terminal.reward_calls, terminal.texts_scored) == (4, 4 * 16)
    assert (delta.reward_calls, delta.texts_scored) == (4 * 4, 4 * 16 * 4)
    assert [tokens for tokens, _ in delta.curve] == [64, 128, 192, 256]


def test_a_run_is_a_function_of_its_row():
    assert run(tiny("prefix_delta")) == run(tiny("prefix_delta"))


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_both_schemes_learn(scheme):
    # Two thousand evaluation episodes of 4 tokens, each right with probability 1/4 under a uniform policy.
    row = Row(task="reverse", scheme=scheme, total_timesteps=12_000, evaluation_episodes=2000, seed=100)
    uniform, deviation = 0.25, np.sqrt(0.25 * 0.75 / 8000)
    assert run(row).score > uniform + 10 * deviation


class Reverser:
    """Writes the prompt, of four tokens, backwards."""

    def act(self, observations, generator=None):
        length = (observations != 4).sum(axis=1)
        return observations[np.arange(len(length)), 7 - length], np.zeros(len(length), dtype=np.float32)


@pytest.mark.parametrize("scheme", ["terminal", "prefix_delta"])
def test_every_scheme_is_judged_by_the_score_of_the_whole_text(scheme):
    assert evaluate(Reverser(), tiny(scheme)) == 1.0


def test_a_task_without_known_returns_is_refused_before_the_training(monkeypatch):
    def make(level):
        return replace(make_task("bandit"), name="unknown_returns", uniform=None)

    monkeypatch.setitem(TASKS, "unknown_returns", TaskFamily("unknown_returns", make))
    with pytest.raises(ValueError, match="task 'unknown_returns' has no known optimum and uniform"):
        run(Row(task="unknown_returns", total_timesteps=10**9))


def test_normalized_score_is_0_for_uniform_and_1_for_the_best():
    reverse = make_task("reverse")  # four symbols: a guess is right once in four
    assert [normalize(score, reverse) for score in (0.25, 0.625, 1.0)] == [0.0, 0.5, 1.0]


def test_area_weighs_updates_by_their_tokens():
    assert mean_over_tokens([(10, 1.0), (30, 0.0), (40, 0.5)]) == pytest.approx((10 * 1.0 + 10 * 0.5) / 40)


def test_every_setting_changes_the_hash():
    row = Row()
    others = [
        replace(row, **{field.name: value + ("_" if isinstance(value, str) else 1)})
        for field in fields(row)
        for value in [getattr(row, field.name)]
    ]
    assert row.config_hash == Row().config_hash
    assert len({row.config_hash, *(other.config_hash for other in others)}) == 1 + len(fields(row))


def test_a_sweep_pairs_every_seed():
    rows = sweep(3, task="reverse", total_timesteps=5)
    assert {(row.scheme, row.seed) for row in rows} == {
        (scheme, seed) for scheme in ("terminal", "prefix_delta") for seed in range(3)
    }
    assert {replace(row, scheme="", seed=0) for row in rows} == {Row("reverse", scheme="", total_timesteps=5)}
