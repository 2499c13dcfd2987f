"""When and how a score is paid, on numbers worked by hand."""

import gymnasium as gym
import numpy as np
import pytest

import textgym
from tests.textgym.cases import CASES, legal_actions
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


def test_a_second_episode_pays_as_the_first():
    env = make("prefix_delta")
    for _ in range(2):
        assert play(env, [0, 1, 0])[0] == [3, -5, 6]


def test_scores_of_prefixes_are_paid_and_not_told_before_the_end():
    env = make("prefix_delta")
    env.reset()
    running, ended = ([env.step(action)[4] for action in actions] for actions in ([0, 1], [0]))
    assert [(info["score"], info["scores"].tolist(), info["scores_valid"].tolist()) for info in running] == [
        (0.0, [0.0], [False])
    ] * 2
    assert (ended[0]["scores"].tolist(), ended[0]["scores_valid"].tolist()) == ([4.0], [True])


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


# Rewards that draw or drop, and schemes that pay something else, have no deltas that sum to the terminal score.
_NO_SUM = ("prefix_delta", "noisy", "several_rewards", "dropped", "shaped", "masked_dict")


@pytest.mark.parametrize("name", [name for name in CASES if not any(word in name for word in _NO_SUM)])
def test_on_every_case_the_deltas_sum_to_the_terminal_score(name):
    keywords = dict(CASES[name], num_envs=16, autoreset_mode="Disabled")
    by_delta, at_end = (gym.make_vec("TextGen-v0", **keywords, scheme=name) for name in ("prefix_delta", "terminal"))
    rng, paid = np.random.default_rng(5), np.zeros((2, 16))
    by_delta.reset(seed=2), at_end.reset(seed=2)
    for _ in range(by_delta.unwrapped.problem.max_new_tokens):
        actions = legal_actions(by_delta, rng)
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


# Φ of every text that the episodes below pass.
PHI = {"": 0.5, "a": 2.0, "ab": -1.0, "aba": 7.0, "b": 0.25}


def phi(completions):
    return [PHI[text] for text in completions]


def log_prob(observations, actions):
    """Tells the state before the step by its tokens, PAD = 3, and the action."""
    LOGGED.append((observations.tolist(), actions.tolist()))
    return [-float(action) - 1 for action in actions]


LOGGED = []


@pytest.mark.parametrize(
    ("scheme", "actions", "rewards"),
    [
        (schemes.Length(0.25), [0, 1, 0], [-0.25, -0.25, 3.75]),
        (schemes.Length(0.25), [2], [4.75]),  # the stop token costs too
        (schemes.Length(-1), [0, 2], [1, 4]),
        (schemes.Potential(phi), [0, 1, 0], [1.5, -3, 4 + 1]),  # Φ at the end is 0, not 7
        (schemes.Potential(phi), [0, 1, 2], [1.5, -3, -2 + 1]),
        (schemes.Potential(phi, gamma=0.5), [0, 1, 2], [1 - 0.5, -0.5 - 2, -2 + 1]),
        (schemes.Potential(phi), [2], [5 - 0.5]),
        (schemes.Reference(log_prob, beta=2.0), [0, 1, 2], [-2, -4, -2 - 6]),
        (["prefix_delta"], [0, 1, 0], [3, -5, 6]),
        (["prefix_delta", schemes.Length(0.5)], [0, 1, 0], [2.5, -5.5, 5.5]),
        ([schemes.Length(0.5), "terminal"], [0, 1, 0], [-0.5, -0.5, 3.5]),
        ([schemes.Length(0.5), schemes.Potential(phi)], [0, 1, 0], [1, -3.5, 4.5]),  # terminal is paid once
        ([schemes.Potential(phi), schemes.Potential(phi, gamma=0)], [0, 2], [1.5 - 0.5, 3 - 2 - 2]),
        ((schemes.Length(1), schemes.Length(2)), [2], [2]),
    ],
    ids=repr,
)
def test_rewards_with_extra_terms(scheme, actions, rewards):
    paid, scores = play(make(scheme), actions)
    assert paid == pytest.approx(rewards)
    assert scores[-1] == SCORE["".join("ab"[action] for action in actions if action < 2)]


def test_a_potential_adds_up_to_minus_that_of_the_start():
    for actions in ([0, 1, 0], [1, 2], [2]):
        paid, scores = play(make(schemes.Potential(phi)), actions)
        assert sum(paid) == pytest.approx(scores[-1] - PHI[""])


def test_each_of_two_potentials_has_its_own_values():
    scheme = [schemes.Potential(phi), schemes.Potential(lambda completions: [10.0 * len(text) for text in completions])]
    assert play(make(scheme), [0, 1, 0])[0] == [1.5 + 10, -3 + 10, 4 + 1 - 20]


@pytest.mark.parametrize("on_limit", ["terminate", "truncate"])
def test_the_potential_of_an_end_is_zero_whatever_flag_it_sets(on_limit):
    paid, _ = play(make(schemes.Potential(phi), on_limit=on_limit), [0, 1, 0])
    assert paid == [2 - 0.5, -1 - 2, 4 + 1]


def test_a_potential_is_called_as_a_reward_function_is():
    calls = []

    def worth(prompts, completions, completion_ids, answer, hint):
        calls.append((prompts, completions, completion_ids, answer, hint))
        return [0.0] * len(prompts)

    env = make(schemes.Potential(worth))
    env.reset(options={"prompt": "a", "columns": {"answer": 3, "hint": None, "unasked": 1}})
    env.step(0), env.step(2)
    assert calls == [(["a"], [""], [[]], [3], [None]), (["a"], ["a"], [[0]], [3], [None])]


def test_a_potential_from_a_prefix_begins_there():
    paid, scores = play(make(schemes.Potential(phi)), [1, 0], completion_ids=[0])
    assert paid == [-1 - 2, 4 + 1]
    assert scores[-1] == SCORE["aba"]


def test_a_reference_sees_the_state_before_the_step():
    LOGGED.clear()
    play(make(schemes.Reference(log_prob, beta=1.0)), [0, 2])
    assert LOGGED == [([[1, 3, 3, 3]], [0]), ([[1, 0, 3, 3]], [2])]


def test_potentials_of_rows_that_begin_or_go_on_together_are_asked_for_in_one_call():
    calls = []

    def counting(completions):
        calls.append(len(completions))
        return phi(completions)

    keywords = dict(tokenizer=["a", "b", "<eos>"], prompts=[""], reward=phi, max_new_tokens=3)
    envs = gym.make_vec(
        "TextGen-v0", num_envs=3, scheme=schemes.Potential(counting), autoreset_mode="Disabled", **keywords
    )
    envs.reset(seed=0)
    envs.step(np.array([0, 2, 1]))
    envs.step(np.array([2, 0, 2]))
    assert calls == [3, 2]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([float("-inf")], "returned -inf for the action 0.*finite numbers"),
        ([1.0, 2.0], r"shape \(2,\) for 1 actions"),
        (None, r"returned nan|shape \(\)"),
    ],
)
def test_a_reference_that_returns_something_else(returned, words):
    env = make(schemes.Reference(lambda observations, actions: returned, beta=1.0))
    env.reset()
    with pytest.raises(textgym.RewardError, match=f"log-prob function .* of Reference.*{words}|{words}"):
        env.step(0)


def test_a_reference_that_raises_is_named_and_the_step_can_be_taken_again():
    failures = [True, False]

    def down(observations, actions):
        if failures.pop(0):
            raise OSError("no model")
        return -np.ones(len(actions))

    env = make(schemes.Reference(down, beta=1.0))
    env.reset()
    with pytest.raises(textgym.RewardError, match="log-prob function 'down' of Reference raised OSError: no model"):
        env.step(0)
    assert env.step(0)[0].tolist() == [1, 0, 3, 3]


def test_a_potential_that_fails_is_named():
    def broken(completions):
        return [float("nan")] * len(completions)

    with pytest.raises(textgym.RewardError, match="potential function 'broken' returned nan"):
        make(schemes.Potential(broken)).reset()


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: schemes.Potential(3), TypeError, "potential is 3 of type int"),
        (lambda: schemes.Potential(phi, gamma="1"), TypeError, "gamma is '1' of type str"),
        (lambda: schemes.Potential(phi, gamma=float("nan")), ValueError, "gamma=nan; give a finite number"),
        (lambda: schemes.Length(True), TypeError, "price is True of type bool"),
        (lambda: schemes.Reference(None, 1.0), TypeError, "log_prob is None of type NoneType; give a function"),
        (lambda: schemes.Reference(log_prob, float("inf")), ValueError, "beta=inf"),
        (lambda: make("potential"), ValueError, r"'potential' needs arguments; give textgym.schemes.Potential\("),
        (lambda: make("length"), ValueError, r"give textgym.schemes.Length\(price\)"),
        (lambda: make("reference"), ValueError, r"give textgym.schemes.Reference\(log_prob, beta\)"),
        (lambda: make([]), ValueError, "empty list"),
        (lambda: make(["terminal", "prefix_delta"]), ValueError, r"Terminal\(\) and PrefixDelta\(\), which both pay"),
        (lambda: make(["terminal", "lenght"]), ValueError, "'lenght'.*Did you mean 'length'"),
        (lambda: make(schemes.Length), TypeError, "of type type; give one of"),
        (lambda: make({"terminal": 1}), TypeError, "of type dict"),
    ],
)
def test_no_scheme(build, error, words):
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize("paid", [lambda n: np.zeros(n + 1), lambda n: np.full(n, np.nan), lambda n: 0.0])
def test_a_scheme_that_pays_something_else(paid):
    class Wrong:
        def pay(self, payment):
            return paid(len(payment.ended))

    env = make(Wrong())
    env.reset()
    with pytest.raises(textgym.RewardError, match="the scheme Wrong paid .*; pay one finite number for each"):
        env.step(0)


def test_an_own_extra_term_is_added_to_the_base():
    class Bonus:
        def extra(self, payment):
            return (payment.actions == 1).astype(float)

    assert play(make(["prefix_delta", Bonus()]), [0, 1, 0])[0] == [3, -4, 6]


def test_what_a_scheme_is_made_of_is_not_copied_with_the_environment():
    class Model:
        def __call__(self, observations, actions):
            return np.zeros(len(actions))

        def __deepcopy__(self, memo):
            raise AssertionError("a model is not to be copied")

    gym.make("TextGen-v0", scheme=[schemes.Reference(Model(), 1.0)])


@pytest.mark.parametrize("scheme", [schemes.Length(0.1), schemes.Potential(phi), ["prefix_delta", schemes.Length(1)]])
def test_with_an_extra_term_the_optimum_of_a_task_is_not_known(scheme):
    assert gym.make("TextGen-v0", scheme=scheme).unwrapped.optimum is None
    assert gym.make("TextGen-v0", scheme=["prefix_delta"]).unwrapped.optimum == 1.0


def test_what_a_reward_drew_is_drawn_again_after_a_scheme_failed():
    failures = [True, False, False]

    def sometimes(observations, actions):
        if failures.pop(0):
            raise OSError
        return np.zeros(len(actions))

    def drawn(completions, rng):
        return [float(generator.random()) for generator in rng]

    keywords = dict(tokenizer=["a", "<eos>"], prompts=["a"], reward=drawn, scheme=schemes.Reference(sometimes, 1.0))
    failing, fine = gym.make("TextGen-v0", **keywords), gym.make("TextGen-v0", **keywords)
    failing.reset(seed=2), fine.reset(seed=2)
    with pytest.raises(textgym.RewardError):
        failing.step(1)
    assert failing.step(1)[1] == fine.step(1)[1] > 0
