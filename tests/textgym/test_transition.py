"""The decision process against a table written by hand."""

import gymnasium as gym
import numpy as np
import pytest

import textgym
from textgym.finish import FinishReason
from textgym.problem import make_problem
from textgym.starts import Start
from textgym.transition import Transition

SCORE = {"": 0.1, "a": 0.2, "b": 0.3, "aa": 0.4, "ab": 0.5, "ba": 0.6, "bb": 0.7}
A, B, STOP, PAD = 0, 1, 2, 3
KEYWORDS = dict(tokenizer=["a", "b", "<eos>"], prompts=["b"], max_new_tokens=2)

# completion so far, action -> history after it, finish reason, reward
TABLE = {
    ((), A): ([B, A, PAD], 0, 0.0),
    ((), B): ([B, B, PAD], 0, 0.0),
    ((), STOP): ([B, STOP, PAD], 1, 0.1),
    ((A,), A): ([B, A, A], 2, 0.4),
    ((A,), B): ([B, A, B], 2, 0.5),
    ((A,), STOP): ([B, A, STOP], 1, 0.2),
    ((B,), A): ([B, B, A], 2, 0.6),
    ((B,), B): ([B, B, B], 2, 0.7),
    ((B,), STOP): ([B, B, STOP], 1, 0.3),
}


def score(completions):
    return [SCORE[text] for text in completions]


def started(reward=score, completions=((),)):
    """A transition with a row for each completion, that far into the episode."""
    problem = make_problem(reward=reward, **KEYWORDS)
    transition = Transition(problem, len(completions), lambda row: np.random.default_rng(row))
    starts = [Start(problem.prompts[0], np.array(ids, dtype=np.int64)) for ids in completions]
    transition.begin(transition.plan(np.arange(len(completions)), starts))
    return transition


@pytest.mark.parametrize(("state", "action"), TABLE, ids=str)
def test_every_transition_of_a_small_process(state, action):
    history, reason, reward = TABLE[state, action]
    env = gym.make("TextGen-v0", reward=score, **KEYWORDS)
    env.reset()
    for token in state:
        env.step(token)
    observation, paid, terminated, truncated, info = env.step(action)
    assert observation.tolist() == history
    assert (paid, terminated, truncated) == (reward, reason > 0, False)
    assert (info["finish_reason"], info["score"], info["length"]) == (reason, reward, 2 + len(state))


def test_all_transitions_side_by_side():
    transition = started(completions=[state for state, _ in TABLE])
    transition.step(np.array([action for _, action in TABLE]), np.arange(9))
    assert transition.tokens.tolist() == [history for history, _, _ in TABLE.values()]
    assert transition.finish_reason.tolist() == [reason for _, reason, _ in TABLE.values()]
    assert transition.reward.tolist() == [reward for _, _, reward in TABLE.values()]
    assert transition.running.tolist() == [reason == 0 for _, reason, _ in TABLE.values()]


def test_rows_that_are_not_named_stay_as_they_are():
    transition = started(completions=[(), (A,), ()])
    transition.step(np.array([-7, B, 99]), np.array([1]))
    assert transition.tokens.tolist() == [[B, PAD, PAD], [B, A, B], [B, PAD, PAD]]
    assert transition.running.tolist() == [True, False, True]
    assert transition.reward.tolist() == [0.0, 0.5, 0.0]


def snapshot(transition):
    arrays = {name: value.tolist() for name, value in vars(transition).items() if isinstance(value, np.ndarray)}
    return {**arrays, "view": transition.view(0)}


@pytest.mark.parametrize("actions", [[A, B], [STOP, A]])
def test_a_failed_reward_leaves_the_state_unchanged(actions):
    def fail(completions):
        raise OSError("no connection")

    transition = started(fail, completions=[(A,), ()])
    before = snapshot(transition)
    with pytest.raises(textgym.RewardError, match="no connection"):
        transition.step(np.array(actions), np.arange(2))
    assert snapshot(transition) == before


@pytest.mark.parametrize("actions", [[A, 3], [-1, A], [10**9, STOP]])
def test_an_illegal_id_leaves_the_state_unchanged(actions):
    transition = started(completions=[(A,), ()])
    before = snapshot(transition)
    with pytest.raises(ValueError, match="0 to 2"):
        transition.step(np.array(actions), np.arange(2))
    assert snapshot(transition) == before


def test_a_failed_first_score_of_a_prefix_leaves_the_episode_that_runs():
    failures = [False, True, False, False, False]

    def sometimes(completions):
        if failures.pop(0):
            raise OSError
        return score(completions)

    env = gym.make("TextGen-v0", reward=sometimes, scheme="prefix_delta", **KEYWORDS).unwrapped
    env.reset()
    env.step(A)  # an episode is running when the next one fails to start
    with pytest.raises(textgym.RewardError):
        env.reset(options={"completion_ids": [A]})
    assert env.step(B)[0].tolist() == [B, A, B]
    env.reset(options={"completion_ids": [A]})
    assert env.step(B)[1] == pytest.approx(0.5 - 0.2)


def test_finish_reasons_are_the_documented_integers():
    assert {reason.name: int(reason) for reason in FinishReason} == {
        "RUNNING": 0,
        "STOP": 1,
        "LIMIT": 2,
        "DEAD_END": 3,
        "ILLEGAL_ACTION": 4,
    }
