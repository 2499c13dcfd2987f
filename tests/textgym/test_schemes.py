"""When and how a score is paid, on numbers worked by hand."""

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.cases import CASES
from textgym import schemes

# f of every text that the episodes below pass; f("") is not 0 on purpose.
SCORE = {"": 5.0, "a": 3.0, "ab": -2.0, "aba": 4.0, "b": 0.5}


def make(scheme, **keywords):
    return gym.make(
        "TextGen-v0",
        tokenizer=["a", "b", "<eos>"],
        prompts=["b"],
        reward=lambda completions: [SCORE[text] for text in completions],
        max_new_tokens=3,
        scheme=scheme,
        **keywords,
    )


def play(env, actions, **options):
    env.reset(options=options)
    results = [env.step(action) for action in actions]
    return [reward for _, reward, *_ in results], [info["score"] for *_, info in results]


@pytest.mark.parametrize(
    ("scheme", "actions", "rewards"),
    [
        ("terminal", [0, 1, 0], [0, 0, 4]),
        ("terminal", [0, 1, 2], [0, 0, -2]),
        ("terminal", [2], [5]),
        (schemes.Terminal(), [0, 2], [0, 3]),
        ("prefix_delta", [0, 1, 0], [3, -5, 6]),
        ("prefix_delta", [0, 1, 2], [3, -5, 0]),  # the stop token adds no text
        ("prefix_delta", [2], [5]),  # f(empty) := 0 before the step
        (schemes.PrefixDelta(), [1, 2], [0.5, 0]),
    ],
)
def test_rewards_of_an_episode(scheme, actions, rewards):
    paid, scores = play(make(scheme), actions)
    assert paid == rewards
    assert sum(paid) == scores[-1]
    assert scores[:-1] == [0.0] * (len(actions) - 1)


def test_prefix_delta_pays_from_a_prefix_what_the_whole_episode_pays_from_there():
    whole, _ = play(make("prefix_delta"), [0, 1, 0])
    for start in (1, 2):
        paid, scores = play(make("prefix_delta"), [0, 1, 0][start:], completion_ids=[0, 1, 0][:start])
        assert paid == whole[start:]
        assert scores[-1] == SCORE["aba"]


@pytest.mark.parametrize(("scheme", "scored"), [("terminal", [1, 1]), ("prefix_delta", [2, 2, 1])])
def test_a_scheme_asks_for_the_scores_that_it_needs(scheme, scored):
    calls = []
    envs = gym.make_vec(
        "TextGen-v0",
        num_envs=2,
        tokenizer=["a", "b", "<eos>"],
        prompts=[""],
        reward=lambda completions: calls.append(len(completions)) or [1.0] * len(completions),
        max_new_tokens=3,
        scheme=scheme,
        autoreset_mode="Disabled",
    )
    envs.reset(seed=0)
    for actions in ([0, 0], [0, 2], [1, 0], [0, 0]):
        envs.step(np.array(actions))
    assert calls == scored


@pytest.mark.parametrize("name", [name for name in CASES if "prefix_delta" not in name])
def test_on_every_case_the_deltas_sum_to_the_terminal_score(name):
    keywords = dict(CASES[name], num_envs=16, autoreset_mode="Disabled")
    by_delta, at_end = (gym.make_vec("TextGen-v0", **keywords, scheme=name) for name in ("prefix_delta", "terminal"))
    rng, paid = np.random.default_rng(5), np.zeros((2, 16))
    by_delta.reset(seed=2), at_end.reset(seed=2)
    for _ in range(by_delta.unwrapped.problem.max_new_tokens):
        actions = rng.integers(by_delta.single_action_space.n, size=16)
        results = by_delta.step(actions), at_end.step(actions)
        paid += [result[1] for result in results]
    np.testing.assert_allclose(paid[0], paid[1], atol=1e-12)
    np.testing.assert_array_equal(results[0][4]["score"], paid[1])


def test_an_own_scheme_pays_what_it_says():
    class PricePerToken:
        scores_prefixes = False

        def pay(self, payment):
            return np.where(payment.ended, payment.score, 0.0) - 0.25

    assert play(make(PricePerToken()), [0, 1, 0])[0] == [-0.25, -0.25, 3.75]
