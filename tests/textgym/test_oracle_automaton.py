"""Dynamic programming over an automaton: by hand, by whole texts, by the tree and through the environment."""

import itertools
import math
import re
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import textgym
from textgym import Task, make_task, oracle
from textgym.automata import Automaton
from textgym.languages import literal, one_of, star
from textgym.oracle import (
    Folded,
    NGram,
    fold,
    folded_kl,
    folded_optimum,
    folded_soft_optimum,
    folded_values,
)

ODD = Automaton([[1, 0], [0, 1]], score=[0.0, 1.0])  # an odd number of a; token 0 is a, token 1 stops
E = math.e


def random_model(size, order, rng, share_of_zeros=0.0):
    """An n-gram model of random distributions, some tokens of which never come."""
    weights = rng.exponential(size=(size + 1,) * (order - 1) + (size,)) + 0.01
    weights *= rng.random(weights.shape) >= share_of_zeros
    weights[..., 0] += weights.sum(axis=-1) == 0
    with np.errstate(divide="ignore"):
        return NGram(np.log(weights / weights.sum(axis=-1, keepdims=True)))


# By hand: with two tokens at most, the texts are "stop" (0), "a stop" (1) and "a a" (0).


def test_two_states_by_hand_under_the_uniform_policy():
    folded = Folded(ODD, horizon=2, stop_ids=(1,))
    uniform = NGram.uniform(2)
    assert folded_optimum(folded).objective == 1.0
    found = folded_values(folded, uniform)
    assert found.objective == 0.25
    assert found.v[:, :, 0].tolist() == [[0.25, 0.75], [0.5, 0.5]]  # after t tokens, in each state
    best = folded_soft_optimum(folded, uniform, beta=1.0)
    partition = 0.75 + 0.25 * E
    assert best.log_partition == best.objective == pytest.approx(math.log(partition), rel=1e-15)
    first, second = np.exp(best.policy.log_probs([])), np.exp(best.policy.log_probs([0]))
    assert first == pytest.approx([0.25 * (1 + E) / partition, 0.5 / partition], rel=1e-15)
    assert second == pytest.approx([1 / (1 + E), E / (1 + E)], rel=1e-15)
    right = 0.25 * E / partition
    assert folded_values(folded, best.policy).objective == pytest.approx(right, rel=1e-14)
    wrong = 1 - right
    by_texts = right * math.log(right / 0.25) + wrong * math.log(wrong / 0.75)
    assert folded_kl(best.policy, uniform) == pytest.approx(by_texts, rel=1e-13)


def test_two_states_by_hand_under_a_bigram():
    folded = Folded(ODD, horizon=2, stop_ids=(1,))
    bigram = NGram(np.log([[0.3, 0.7], [0.5, 0.5], [0.8, 0.2]]))  # after a, after the stop token, at the beginning
    assert folded_values(folded, bigram).objective == pytest.approx(0.8 * 0.7, rel=1e-15)
    best = folded_soft_optimum(folded, bigram, beta=0.5)
    partition = 0.44 + 0.56 * E**2
    assert best.log_partition == pytest.approx(math.log(partition), rel=1e-15)
    assert best.objective == pytest.approx(0.5 * math.log(partition), rel=1e-15)
    assert np.exp(best.policy.log_probs([])) == pytest.approx(
        [(0.56 * E**2 + 0.24) / partition, 0.2 / partition], rel=1e-14
    )
    assert np.exp(folded.policy(bigram).log_probs([[2], [0]])) == pytest.approx(np.array([[0.8, 0.2], [0.3, 0.7]]))


def test_the_best_policy_writes_the_lowest_of_the_best_tokens():
    policy = folded_optimum(Folded(ODD, horizon=2, stop_ids=(1,))).policy
    assert np.exp(policy.log_probs([])).tolist() == [1.0, 0.0]
    assert np.exp(policy.log_probs([0])).tolist() == [0.0, 1.0]
    assert np.exp(folded_optimum(Folded(ODD, 3, ())).policy.log_probs([0, 1])).tolist() == [0.0, 1.0]


# Whole texts: every complete one with its probability, which is the product along it.


def whole_texts(folded, reference):
    """Probability and score of every complete text."""
    size, order = reference.contexts.size, reference.contexts.order
    table = np.exp(reference.log_probs).reshape((size + 1,) * (order - 1) + (size,))
    found = []
    for ids in itertools.product(range(size), repeat=folded.horizon):
        stop = next((place for place, token in enumerate(ids) if token in folded.stop_ids), None)
        if stop is not None and any(ids[stop + 1 :]):
            continue  # one of the ways to go on after the end
        written = ids if stop is None else ids[: stop + 1]
        padded = (size,) * (order - 1) + written
        probability = math.prod(table[padded[place : place + order]] for place in range(len(written)))
        state = folded.automaton.start
        for token in written if stop is None else written[:-1]:
            state = folded.automaton.transitions[state, token]
        found.append((written, probability, folded.automaton.score[state]))
    return found


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32), horizon=st.integers(1, 4), order=st.integers(1, 3), beta=st.sampled_from([0.2, 1, 5])
)
def test_random_automata_against_all_whole_texts(seed, horizon, order, beta):
    rng = np.random.default_rng(seed)
    states, size = rng.integers(1, 5, size=2)
    automaton = Automaton(rng.integers(0, states, (states, size)), rng.normal(size=states), int(rng.integers(states)))
    folded = Folded(automaton, horizon, tuple(np.flatnonzero(rng.random(size) < 0.3).tolist()))
    reference = random_model(size, order, rng, share_of_zeros=0.2)
    texts = whole_texts(folded, reference)
    probabilities, scores = (np.array(column, dtype=float) for column in list(zip(*texts, strict=True))[1:])
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert folded_optimum(folded).objective == scores.max()
    assert folded_values(folded, reference).objective == pytest.approx(probabilities @ scores, abs=1e-12)
    best = folded_soft_optimum(folded, reference, beta)
    weights = probabilities * np.exp(scores / beta)
    assert best.log_partition == pytest.approx(math.log(weights.sum()), abs=1e-12)
    optimal = weights / weights.sum()
    assert folded_values(folded, best.policy).objective == pytest.approx(optimal @ scores, abs=1e-12)
    possible = optimal > 0
    by_texts = optimal[possible] @ np.log(optimal[possible] / probabilities[possible])
    assert folded_kl(best.policy, reference) == pytest.approx(by_texts, abs=1e-11)
    for (ids, _, _), probability in zip(texts, optimal, strict=True):
        steps = [best.policy.log_probs(ids[:place])[token] for place, token in enumerate(ids)]
        assert math.exp(sum(steps)) == pytest.approx(probability, abs=1e-12)


# The tree, which takes every step in the environment.


def own_task(tokenizer, transitions, score):
    """A task with two prompts and scores of its own, told by ids; it need not be registered."""
    automaton = Automaton(transitions, score)
    stops = [place for place, symbol in enumerate(tokenizer) if symbol == "<eos>"]

    def reward(completion_ids):
        return [automaton.score_of([token for token in ids if token not in stops]) for ids in completion_ids]

    return Task(
        name="own",
        level=1,
        tokenizer=tokenizer,
        prompts=["", "a"],
        max_prompt_tokens=1,
        max_new_tokens=4,
        reward=reward,
        automaton=automaton,
    )


RNG = np.random.default_rng(11)
SMALL = {
    "regex-1": gym.make("TextGen-v0", task="regex", level=1),
    "regex-3": gym.make("TextGen-v0", task="regex", level=3, max_new_tokens=6),
    "regex-4": gym.make("TextGen-v0", task="regex", level=4, max_new_tokens=5),
    "prefix_delta": gym.make("TextGen-v0", task="regex", scheme="prefix_delta", on_limit="truncate"),
    "vector": gym.make_vec("TextGen-v0", num_envs=2, task="regex", level=2, max_new_tokens=4),
    "length_trap": gym.make("TextGen-v0", task="length_trap", max_new_tokens=5),
    "delayed_bit": "delayed_bit",  # no stop token
    "combination_lock": make_task("combination_lock", 2),
    "own": own_task(["a", "b", "<eos>", "c"], RNG.integers(0, 5, (5, 4)), RNG.normal(size=5)),
    "own_without_stop": own_task(["a", "b"], RNG.integers(0, 3, (3, 2)), RNG.normal(size=3)),
    "one_token": own_task(["a"], [[1], [2], [2]], [1.0, -1.0, 3.0]),
    "only_stop": own_task(["a", "<eos>"], [[0, 0]], [0.5]),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_folded_and_unfolded_are_the_same(name, order):
    tree, folded = oracle.enumerate_tree(SMALL[name]), fold(SMALL[name])
    assert folded.horizon == tree.problem.max_new_tokens
    texts = tree.completions()
    rng = np.random.default_rng(order)

    best, folded_best = oracle.optimum(tree), folded_optimum(folded)
    assert folded_best.objective == pytest.approx(best.objective, abs=1e-12)
    chosen = folded_best.policy.log_probs(texts)
    assert oracle.values(tree, chosen).objective == pytest.approx(best.objective, abs=1e-12)

    uniform = folded_values(folded, NGram.uniform(tree.size)).objective
    assert uniform == pytest.approx(oracle.values(tree, tree.uniform()).objective, abs=1e-12)

    for zeros, beta in ((0.0, 0.1), (0.3, 1.0)):
        reference = random_model(tree.size, order, rng, zeros)
        log_ref = folded.policy(reference).log_probs(texts)
        expected = oracle.values(tree, log_ref)
        found = folded_values(folded, reference)
        assert found.objective == pytest.approx(expected.objective, abs=1e-12)

        soft, folded_soft = oracle.soft_optimum(tree, log_ref, beta), folded_soft_optimum(folded, reference, beta)
        assert folded_soft.objective == pytest.approx(soft.objective, abs=1e-12)
        assert soft.log_partition == pytest.approx(folded_soft.log_partition, abs=1e-11)  # of every prompt
        optimal = folded_soft.policy.log_probs(texts)
        np.testing.assert_allclose(optimal, soft.log_probs, atol=1e-11, rtol=0)
        np.testing.assert_allclose(np.exp(optimal), np.exp(soft.log_probs), atol=1e-12, rtol=0)
        divergence = folded_kl(folded_soft.policy, reference)
        assert divergence == pytest.approx(oracle.kl(tree, soft.log_probs, log_ref), abs=1e-11)
        gained = folded_values(folded, folded_soft.policy).objective
        assert gained == pytest.approx(oracle.values(tree, soft.log_probs).objective, abs=1e-12)


def test_a_known_context_is_read_with_the_oldest_token_first():
    table = np.zeros((3, 3, 2))
    table[..., 0], table[..., 1] = 0.5, 0.5
    table[2, 2], table[2, 0], table[2, 1], table[0, 1] = [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]
    trigram = NGram(np.log(table))
    policy = Folded(Automaton([[0, 0]], [0.0]), horizon=5).policy(trigram)
    for text, expected in (([], 0.9), ([0], 0.8), ([1], 0.7), ([0, 1], 0.6), ([1, 0], 0.5), ([1, 1, 0, 1], 0.6)):
        assert np.exp(policy.log_probs(text)[0]) == pytest.approx(expected, rel=1e-15)
        assert (policy.log_probs([*text, 2]) == policy.log_probs(text)).all() or len(text) == 5


# Large horizons, where closed forms are known.


@pytest.mark.parametrize("beta", [1e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("horizon", [300, 500])
def test_a_large_horizon_of_the_pattern_of_one_letter_between_two(horizon, beta):
    folded = fold("regex", horizon=horizon)  # ab*a
    lengths = range(2, horizon)
    right = math.fsum([3.0 ** -(length + 1) for length in lengths] + [3.0**-horizon])
    check_binary(folded, NGram.uniform(3), math.log(right), beta)


@pytest.mark.parametrize("beta", [1e-3, 0.05, 1.0])
def test_one_text_in_3_to_the_401(beta):
    """Only logarithms hold what follows: the right text has probability 3^-401, and e^{1/β} overflows."""
    folded = Folded(literal("a" * 400).automaton(["a", "b", "<eos>"]), horizon=500, stop_ids=(2,))
    check_binary(folded, NGram.uniform(3), -401 * math.log(3), beta)


@pytest.mark.parametrize(("level", "size"), [(4, 4), (3, 4)])
def test_the_first_token_decides_at_any_horizon(level, size):
    check_binary(fold(make_task("delayed_bit", level), horizon=400), NGram.uniform(size, order=2), -math.log(size), 0.2)


def check_binary(folded, reference, log_right, beta):
    """All that is known of a score of 0 or 1 which the reference gets with probability e^log_right."""
    assert folded_optimum(folded).objective == 1.0
    assert folded_values(folded, reference).objective == pytest.approx(math.exp(log_right), rel=1e-11)
    best = folded_soft_optimum(folded, reference, beta)
    log_wrong = math.log1p(-math.exp(log_right))
    log_partition = np.logaddexp(log_wrong, log_right + 1 / beta)
    assert best.log_partition == pytest.approx(log_partition, abs=1e-10)
    reached = math.exp(log_right + 1 / beta - log_partition)
    gained, divergence = folded_values(folded, best.policy).objective, folded_kl(best.policy, reference)
    assert gained == pytest.approx(reached, abs=1e-10)
    assert best.objective == pytest.approx(gained - beta * divergence, abs=1e-10)
    sums = np.exp(best.policy.table).sum(axis=-1)
    np.testing.assert_allclose(sums, 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gain_less_divergence_is_the_objective_at_horizon_500(order):
    folded = fold(make_task("regex", 4), horizon=500)
    reference = random_model(6, order, np.random.default_rng(order))
    previous = folded_values(folded, reference).objective
    for beta in (0.5, 0.1, 0.02):
        best = folded_soft_optimum(folded, reference, beta)
        gained, divergence = folded_values(folded, best.policy).objective, folded_kl(best.policy, reference)
        assert best.objective == pytest.approx(gained - beta * divergence, abs=1e-11)
        assert previous < gained <= 1.0 + 1e-14  # the smaller β, the more is gained
        previous = gained
    assert folded_optimum(folded).objective == 1.0


@pytest.mark.parametrize("beta", [0.01, 1e-310])
def test_what_the_reference_never_writes_is_never_written(beta):
    with np.errstate(divide="ignore"):
        no_b = NGram(np.log([0.5, 0.0, 0.5]))
    folded = Folded(literal("ab").automaton(["a", "b", "<eos>"]), horizon=400, stop_ids=(2,))
    best = folded_soft_optimum(folded, no_b, beta)
    assert best.objective == folded_values(folded, best.policy).objective == 0.0
    assert folded_kl(best.policy, no_b) == pytest.approx(0.0, abs=1e-12)
    assert (best.policy.table[..., 1] == -np.inf).all()
    writes_b = folded.policy(NGram.uniform(3))
    assert folded_kl(writes_b, no_b) == math.inf
    assert folded_kl(folded.policy(no_b), NGram.uniform(3)) == pytest.approx(2 * math.log(1.5), rel=1e-9)  # 2 tokens


@pytest.mark.parametrize("beta", [1e12, 1e300])
def test_a_huge_temperature_is_the_reference(beta):
    folded, reference = fold("regex", horizon=300), NGram(np.log([0.3, 0.6, 0.1]))  # ab*a
    stopped = sum(0.3 * 0.6**between * 0.3 * 0.1 for between in range(300))
    best = folded_soft_optimum(folded, reference, beta)
    assert best.objective == pytest.approx(stopped, abs=1e-12)
    assert best.log_partition == pytest.approx(stopped / beta, rel=1e-9, abs=0)
    np.testing.assert_allclose(np.exp(best.policy.table), [[[[0.3, 0.6, 0.1]]] * 4] * 300, atol=1e-11)


def test_a_temperature_at_which_the_partition_overflows():
    with pytest.raises(ValueError, match="beta=1e-310 is too small: log Z = V/β overflows, V being 1; give a larger"):
        folded_soft_optimum(fold("regex"), NGram.uniform(3), 1e-310)


def test_texts_drawn_from_the_optimum_score_what_it_promises():
    horizon, count = 100, 4000
    envs = gym.make_vec(
        "TextGen-v0", num_envs=count, task="regex", level=4, max_new_tokens=horizon, autoreset_mode="Disabled"
    )
    folded = fold(envs)
    reference = random_model(6, 2, np.random.default_rng(1))
    rare = folded_values(folded, reference).objective
    beta = 1 / math.log(1 / rare)  # the optimum then writes about as many right texts as wrong ones
    best = folded_soft_optimum(folded, reference, beta)
    expected = folded_values(folded, best.policy).objective
    assert 0.3 < expected < 0.7 and rare < 0.02

    texts = best.policy.sample(count, np.random.default_rng(2))
    assert texts.shape == (count, horizon) and (texts == best.policy.sample(count, np.random.default_rng(2))).all()
    envs.reset(seed=0)
    paid, log_ratio, running = np.zeros(count), np.zeros(count), np.ones(count, dtype=bool)
    reference_policy = folded.policy(reference)
    for step, tokens in enumerate(texts.T):
        assert ((tokens < 6) == running).all()  # a text is drawn to its end and no further
        rows = np.flatnonzero(running)
        for policy, sign in ((best.policy, 1), (reference_policy, -1)):
            log_probs = policy.log_probs(texts[rows, :step])
            log_ratio[rows] += sign * log_probs[np.arange(len(rows)), tokens[rows]]
        _, rewards, terminated, _, _ = envs.step(np.where(running, tokens, 0))
        paid += rewards
        running &= ~terminated
    assert not running.any()
    written = [[token for token in text if token < 5] for text in texts.tolist()]
    assert paid.tolist() == [folded.automaton.score_of(ids) for ids in written]
    assert abs(paid.mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / count)
    divergence = folded_kl(best.policy, reference)
    assert abs(log_ratio.mean() - divergence) < 5 * log_ratio.std() / math.sqrt(count)


def test_a_token_of_probability_0_is_never_drawn():
    class Lowest:
        def random(self, shape):
            return np.zeros(shape)

    class Highest:
        def random(self, shape):
            return np.full(shape, np.nextafter(1.0, 0.0))

    with np.errstate(divide="ignore"):
        model = NGram(np.log([0.0, 0.1, 0.2, 0.7, 0.0]))
    policy = Folded(Automaton([[0] * 5], [0.0]), horizon=3).policy(model)
    assert policy.sample(2, Lowest()).tolist() == [[1, 1, 1]] * 2
    assert policy.sample(2, Highest()).tolist() == [[3, 3, 3]] * 2


# What is refused.


def test_which_tasks_fold_is_told():
    words = "task 'sort' has no automaton to fold into; combination_lock, delayed_bit, length_trap, regex have one"
    with pytest.raises(ValueError, match=words):
        fold("sort")
    own = gym.make("TextGen-v0", prompts=["a"], tokenizer=["a", "<eos>"], reward=lambda completions: [0.0])
    with pytest.raises(ValueError, match="your own problem has no automaton .*automaton=.*enumerate_tree"):
        fold(own)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        (
            dict(reward=lambda completions: [0.0] * len(completions)),
            "automaton of task 'regex' knows its own .*reward=",
        ),
        (dict(stop_ids=[]), "leave out tokenizer=, stop_ids="),
        (dict(stop_ids=[0, 2]), "leave out tokenizer=, stop_ids="),
        (dict(tokenizer=["b", "a", "<eos>"]), "leave out tokenizer="),
        (dict(stop=["aa"]), r"stop=\['aa'\]: the automaton does not know stop strings"),
        (dict(scheme=textgym.schemes.Length(0.1)), "the scheme pays something else than the score"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_of_ones_own_that_the_automaton_does_not_know(keywords, words):
    env = gym.make("TextGen-v0", task="regex", **keywords)
    with pytest.raises(ValueError, match=words):
        fold(env)


def test_parts_of_ones_own_that_do_not_matter_to_it():
    env = gym.make("TextGen-v0", task="regex", prompts=["ab", "b"], max_new_tokens=50, observation="dict")
    assert fold(env).horizon == 50
    assert env.unwrapped.optimum is None and folded_optimum(fold(env)).objective == 1.0


def test_prompts_of_a_function_do_not_matter_to_it():
    env = gym.make("TextGen-v0", task="regex", prompts=lambda generator: "ab", max_prompt_tokens=2)
    assert folded_optimum(fold(env)).objective == 1.0
    uniform = NGram.uniform(3)
    assert folded_values(fold(env), uniform).objective == folded_values(fold("regex"), uniform).objective


def test_a_reward_that_draws_does_not_fold():
    task = own_task(["a", "b"], [[0, 0]], [0.0])
    drawn = replace(task, reward=lambda completions, rng: [float(generator.random()) for generator in rng])
    with pytest.raises(ValueError, match="the reward is drawn: '<lambda>' asks for a generator, rng, and an exact"):
        fold(drawn)


@pytest.mark.parametrize("given", [None, 3])
def test_what_is_nothing_to_fold(given):
    with pytest.raises(TypeError, match="is neither an environment nor a task; give a TextGen-v0 environment, a task"):
        fold(given)


@pytest.mark.parametrize(
    ("log_probs", "error", "words"),
    [
        ("abc", TypeError, "log_probs is 'abc' of type str"),
        (0.0, ValueError, r"shape \(\); give \[V\], \[V [+] 1, V\]"),
        (np.zeros((0,)), ValueError, r"shape \(0,\)"),
        (np.zeros((2, 2)), ValueError, r"shape \(2, 2\); give"),
        (np.zeros((3, 2, 2)), ValueError, r"shape \(3, 2, 2\)"),
        (np.log([0.5, 0.4]), ValueError, r"sum to 0.9 in the context \(\)"),
        (np.log([[0.5, 0.5], [0.5, 0.5], [0.5, 0.6]]), ValueError, r"sum to 1.1 in the context \(2,\)"),
        ([np.nan, 0.0], ValueError, "sum to nan"),
        ([np.inf, 0.0], ValueError, "sum to inf"),
        ([-np.inf, -np.inf], ValueError, "sum to 0 in"),
        (np.log(np.float32([0.1, 0.9])), ValueError, "give log-probabilities in float64"),
    ],
)
def test_what_is_no_n_gram_model(log_probs, error, words):
    with pytest.raises(error, match=words):
        NGram(log_probs)


@pytest.mark.parametrize("arguments", [(0,), (2, 0), (2.0,), (2, "1"), (True,)])
def test_sizes_of_a_uniform_model(arguments):
    with pytest.raises(ValueError, match="of an n-gram model is .*; give an integer of at least 1"):
        NGram.uniform(*arguments)


def test_policies_that_do_not_fit():
    folded = fold("regex", horizon=50)
    other = fold("regex", horizon=50)
    uniform = NGram.uniform(3)
    with pytest.raises(TypeError, match="'uniform' is no n-gram model; give a textgym.oracle.NGram"):
        folded_values(folded, "uniform")
    with pytest.raises(ValueError, match="the n-gram model has 4 tokens, and the task 3; give one of 3"):
        folded_soft_optimum(folded, NGram.uniform(4), 1.0)
    with pytest.raises(ValueError, match="belongs to another task or horizon"):
        folded_values(folded, other.policy(uniform))
    with pytest.raises(ValueError, match="contexts of order 1, the reference of 2"):
        folded_kl(folded.policy(uniform), NGram.uniform(3, order=2))
    with pytest.raises(ValueError, match="lower the order n=10 or the horizon"):
        folded_values(folded, NGram.uniform(3, order=10))


@pytest.mark.parametrize(
    ("beta", "error"), [(0, ValueError), (-1.0, ValueError), (math.inf, ValueError), ("1", TypeError)]
)
def test_temperatures_that_are_none(beta, error):
    with pytest.raises(error, match="beta"):
        folded_soft_optimum(fold("regex"), NGram.uniform(3), beta)


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "9"])
def test_horizons_that_are_none(horizon):
    with pytest.raises(ValueError, match="horizon is .*; give an integer of at least 1"):
        fold("regex", horizon=horizon)


def test_a_stop_token_outside_the_vocabulary():
    with pytest.raises(ValueError, match="stop_ids holds 2; tokens are 0 to 1"):
        Folded(ODD, 3, (2,))


@pytest.mark.parametrize(
    ("completions", "words"),
    [
        ([4], "an id outside of 0 to 2, and PAD = 3"),
        ([-1], "an id outside of 0 to 2"),
        ([0.5], r"completions are float64 \(1,\); give token ids"),
        ([[[0]]], r"int64 \(1, 1, 1\)"),
        ([[0, 3], [3, 0]], "a token after PAD = 3"),
        ([0, 2], "has ended, by a stop token .2. or at the horizon of 4 tokens"),
        ([0, 1, 1, 1], "has ended"),
    ],
)
def test_texts_after_which_nothing_comes(completions, words):
    policy = fold("regex", horizon=4).policy(NGram.uniform(3))
    with pytest.raises(ValueError, match=words):
        policy.log_probs(completions)


def test_many_texts_at_once_and_none():
    policy = fold("regex", horizon=4).policy(NGram.uniform(3))
    assert policy.log_probs(np.zeros((0, 4), dtype=int)).shape == (0, 3)
    assert policy.log_probs([[], []]).shape == (2, 3)
    assert policy.log_probs([]).shape == (3,)


def test_the_language_may_be_ones_own():
    words = star(one_of("ab")).automaton(["a", "b", "c"])
    task = Task(
        "letters",
        1,
        ["a", "b", "c"],
        [""],
        0,
        6,
        lambda completions: [float(re.fullmatch("[ab]*", text) is not None) for text in completions],
        automaton=words,
    )
    assert folded_values(fold(task), NGram.uniform(3)).objective == pytest.approx((2 / 3) ** 6, rel=1e-14)
