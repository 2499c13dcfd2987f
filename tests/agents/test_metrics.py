"""The metrics of a rollout, against numbers worked out by hand."""

import numpy as np
import pytest

from agents.metrics import rollout_metrics
from agents.rollout import Rollout
from tests.agents import tiny
from tests.agents.tiny import STOP, A, B, C
from textgym.finish import FinishReason


def four_ends() -> Rollout:
    """One episode for each way to end: a stop, the horizon, a dead end, a forbidden token; 2, 3, 1 and 2 tokens."""
    return tiny.rollout_of(
        [
            tiny.Episode(0, [A], [B, STOP], [0.0, 1.0], FinishReason.STOP),
            tiny.Episode(0, [A], [A, A, A], [0.0, 0.0, 2.0], FinishReason.LIMIT),
            tiny.Episode(0, [A], [C], [4.0], FinishReason.DEAD_END),
            tiny.Episode(0, [A], [B, B], [0.0, 0.0], FinishReason.ILLEGAL_ACTION),
        ],
        group=[0, 0, 1, 1],
    )


def test_only_the_horizon_clips_and_only_a_stop_is_a_stop():
    metrics = rollout_metrics(four_ends(), ["score"])
    assert metrics["completions/clipped_ratio"] == 0.25
    assert metrics["completions/mean_terminated_length"] == 2
    assert (metrics["completions/min_length"], metrics["completions/max_length"]) == (1, 3)
    assert metrics["completions/mean_length"] == 2


def test_without_a_stop_there_is_no_length_of_stopped_ones():
    metrics = rollout_metrics(four_ends().select(np.array([1, 2])), ["score"])
    assert metrics["completions/mean_terminated_length"] == 0


def test_a_function_is_measured_where_it_scored():
    scores = np.array([[1.0, 5.0], [3.0, 0.0], [0.0, 9.0], [0.0, 7.0]])
    valid = np.array([[True, False], [True, False], [False, False], [False, True]])
    metrics = rollout_metrics(four_ends()._replace(scores=scores, scores_valid=valid), ["first", "second"])
    assert (metrics["rewards/first/mean"], metrics["rewards/first/std"]) == (2, 1)
    assert (metrics["rewards/second/mean"], metrics["rewards/second/std"]) == (7, 0)


def test_a_function_that_scored_nothing_measures_0():
    metrics = rollout_metrics(four_ends()._replace(scores_valid=np.zeros((4, 1), dtype=bool)), ["score"])
    assert (metrics["rewards/score/mean"], metrics["rewards/score/std"]) == (0, 0)


def test_a_hidden_score_is_measured_where_there_is_one():
    assert "true_score" not in rollout_metrics(four_ends(), ["score"])
    hidden = four_ends()._replace(true_score=np.array([0.5, 1.0, 0.0, 9.0]), valid=np.array([True, True, True, False]))
    metrics = rollout_metrics(hidden, ["score"])
    assert metrics["true_score"] == 0.5
    assert metrics["reward"] == pytest.approx(7 / 3)
    assert list(metrics)[:3] == ["reward", "reward_std", "true_score"]
