"""What each task pays, and what it lets write, on texts worked out by hand."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest

from tests.textgym.task_walk import EPSILON, leaves, played
from textgym import TASKS, make_task
from textgym.tasks.brackets import CanBeBalanced

ARMS = {1: 3, 2: 10, 3: 32}


@pytest.mark.parametrize("prompt", ["0000", "7301", "0007", "6655", "1234"])
def test_sort_after_one_prompt_by_enumeration_of_all_completions(prompt):
    index = int(prompt, 8)  # row i is i in base 8
    completions = np.array(list(itertools.product(range(8), repeat=4)))
    paid = played("sort", 1, [index] * 8**4, completions)
    assert (paid.mean(), paid.max(), paid.min()) == (1 / 8, 1.0, 0.0)
    assert (paid == 1.0).sum() == 1  # one right answer
    assert (paid == 0.75).sum() == 4 * 7  # one of four places wrong, in seven ways


def test_the_reward_of_copy_sort_and_reverse_is_the_share_of_right_places():
    index = int("3120", 8)
    assert played("sort", 1, [index] * 3, np.array([[0, 1, 2, 3], [0, 1, 3, 3], [3, 2, 1, 0]])).tolist() == [1, 0.75, 0]
    index = int("3120", 4)
    assert played("reverse", 1, [index] * 2, np.array([[0, 2, 1, 3], [0, 1, 2, 3]])).tolist() == [1, 0.5]
    assert played("copy", 1, [index] * 2, np.array([[3, 1, 2, 0], [3, 2, 1, 0]])).tolist() == [1, 0.5]


@pytest.mark.parametrize(("level", "arms"), ARMS.items())
def test_the_best_arm_of_the_bandit_is_neither_the_first_nor_the_last(level, arms):
    paid = played("bandit", level, [0] * arms, np.arange(arms)[:, None])
    np.testing.assert_allclose(sorted(paid), np.linspace(0, 1, arms), rtol=1e-15)
    assert 0 < paid.argmax() < arms - 1


@pytest.mark.parametrize("level", TASKS["combination_lock"].levels)
def test_a_change_anywhere_breaks_the_key_and_no_bug_finds_it(level):
    task = make_task("combination_lock", level)
    key = task.solution("")
    changed = [
        key[:place] + symbol + key[place + 1 :]
        for place in range(len(key))
        for symbol in task.tokenizer
        if symbol != key[place]
    ]
    assert task.reward(completions=[key, *changed]) == [1.0] + [0.0] * len(key) * (len(task.tokenizer) - 1)
    assert key not in ("".join(sorted(key)), "".join(sorted(key, reverse=True)), key[::-1])
    assert len(set(key)) > 1


@pytest.mark.parametrize("name", ["delayed_bit", "length_trap"])
def test_only_the_first_token_counts(name):
    for level in TASKS[name].levels:
        task = make_task(name, level)
        right = task.solution("")[0]
        others = [symbol for symbol in task.tokenizer if symbol not in (right, "<eos>")]
        for symbol in (right, *others):
            texts = [symbol + tail for tail in ("", right, others[0] * 3, right * (task.max_new_tokens - 1))]
            assert task.reward(completions=texts) == [float(symbol == right)] * 4
        assert task.reward(completions=[""]) == [0.0]


def test_the_length_of_a_right_text_of_the_length_trap_is_free():
    envs = gym.make_vec("TextGen-v0", num_envs=3, task="length_trap", autoreset_mode="Disabled")
    envs.reset()
    tokens = np.array([[1, 2, 2, 2, 2, 2, 2, 2, 2, 2], [1, 0, 0, 2, 2, 2, 2, 2, 2, 2], [1] * 10])
    for step in tokens.T:
        infos = envs.step(step)[-1]
    assert infos["length"].tolist() == [2, 4, 10]
    assert infos["score"].tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [("9+8=", "17", 1), ("9+8=", "1", 0), ("9+8=", "017", 0), ("9+8=", "17+", 0), ("0+0=", "0", 1), ("0+0=", "", 0)],
)
def test_a_sum_is_right_as_a_whole(prompt, completion, expected):
    assert make_task("addition").reward(prompts=[prompt], completions=[completion]) == [expected]


def test_a_sum_must_be_ended_by_the_stop_token():
    digits, stop = {"1": 1, "7": 7}, 12
    tokens = np.array(
        [[digits["1"], digits["7"], stop], [digits["1"], digits["7"], digits["7"]], [digits["1"], stop, 0]]
    )
    assert played("addition", 1, [98] * 3, tokens).tolist() == [1, 0, 0]  # row 98 asks for 9+8


def test_a_prompt_that_asks_for_no_sum_is_named():
    with pytest.raises(ValueError, match="'7-2=' asks for no sum; write it as '12[+]7='"):
        make_task("addition").reward(prompts=["7-2="], completions=["5"])


@pytest.mark.parametrize(("level", "epsilon"), EPSILON.items())
def test_the_noisy_verifier_flips_verdicts_at_its_rate(level, epsilon):
    task, count = make_task("noisy_verifier", level), 20_000
    for completion, truth in (("17", 1.0), ("18", 0.0)):
        rng = [np.random.default_rng(7)] * count
        known = {"prompts": ["9+8="] * count, "completions": [completion] * count}
        verdicts = np.array(task.reward(**known, rng=rng))
        assert set(verdicts) == {0.0, 1.0}
        deviation = (verdicts != truth).mean() - epsilon
        assert abs(deviation) < 4 * math.sqrt(epsilon * (1 - epsilon) / count)
        assert set(task.true_reward(**known)) == {truth}


def test_the_noise_of_a_row_depends_on_its_own_generator_alone():
    task = make_task("noisy_verifier", 2)

    def verdicts(seeds):
        rows = len(seeds)
        rng = [np.random.default_rng(seed) for seed in seeds]
        return task.reward(prompts=["1+1="] * rows, completions=["2"] * rows, rng=rng)

    alone = [verdicts([seed])[0] for seed in range(50)]
    assert verdicts(range(50)) == alone
    assert verdicts(range(49, -1, -1)) == alone[::-1]


@pytest.mark.parametrize("level", TASKS["memorise"].levels)
def test_pairs_to_memorise_are_distinct_and_arbitrary(level):
    task = make_task("memorise", level)
    answers = [pair["answer"] for pair in task.prompts]
    assert len({pair["prompt"] for pair in task.prompts}) == len(task.prompts) == 8**level
    assert {len(answer) for answer in answers} == {task.max_new_tokens}
    firsts = np.bincount([task.tokenizer.index(answer[0]) for answer in answers], minlength=len(task.tokenizer))
    expected = len(answers) / len(task.tokenizer)
    assert ((firsts - expected) ** 2 / expected).sum() < 4 * len(task.tokenizer)  # χ² of V - 1 degrees of freedom


@pytest.mark.parametrize(("kinds", "level"), [(1, 1), (2, 2)])
def test_legal_texts_of_brackets_are_the_balanced_ones(kinds, level):
    task = make_task("brackets", level)
    pairs = task.max_new_tokens // 2
    catalan = [math.comb(2 * n, n) // (n + 1) for n in range(pairs + 1)]
    texts = [completion for _, completion in leaves(task, "")]
    assert len(set(texts)) == len(texts) == sum(kinds**n * catalan[n] for n in range(1, pairs + 1))
    for completion in texts:
        reduced = completion
        while any(pair in reduced for pair in ("()", "[]")):
            reduced = reduced.replace("()", "").replace("[]", "")
        assert reduced == "" != completion


def test_the_mask_of_brackets_matters():
    task = make_task("brackets", 2)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("()[]"), size=12)) for _ in range(2000)]
    assert np.mean(task.reward(completions=texts)) < task.uniform / 10


@pytest.mark.parametrize(
    ("ids", "legal"),
    [
        ([], "([{"),  # not ended while empty
        ([0], "([{)"),
        ([0, 2], "([{]"),  # the inner bracket closes first
        ([0, 1], "([{<eos>"),
        ([0, 2, 4] * 4, "}"),  # as many left as are open
        ([0, 1] * 11, "([{<eos>"),
        ([0, 1] * 11 + [4], "}"),
        ([1], ""),  # what can never be balanced
        ([0, 3], ""),
        ([0, 1, 6], ""),  # ended already
        ([0] * 13, ""),  # more open than tokens left
    ],
)
def test_a_legal_bracket_is_one_that_can_still_be_balanced(ids, legal):
    task = make_task("brackets", 3)
    mask = task.constraint("", ids, task.max_new_tokens - len(ids))
    symbols = ("(", "[", "{", ")", "]", "}", "<eos>")
    assert "".join(symbol for symbol in symbols if mask[task.tokenizer.index(symbol)]) == legal


def test_an_odd_horizon_leaves_the_last_token_to_the_stop():
    constraint = CanBeBalanced(kinds=1)
    assert constraint("", [0, 1, 0, 1], 1).tolist() == [False, False, True]  # an opening could not be closed any more
    assert constraint("", [0, 0], 3).tolist() == [False, True, False]
