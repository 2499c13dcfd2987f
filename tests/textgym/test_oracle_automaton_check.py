"""What `fold` finds where an automaton differs from the reward: on texts to its states, and on random ones."""

from dataclasses import replace

import pytest

import textgym
from textgym import Task, make_task, oracle
from textgym.automata import Automaton
from textgym.languages import literal, one_of, star
from textgym.oracle import fold, folded_optimum
from textgym.oracle.problems import problem_of
from textgym.rewards import load_reward

SYMBOLS = ["a", "b", "<eos>"]


def task_of(automaton, reward, **changed):
    parts = dict(
        name="own",
        level=1,
        tokenizer=SYMBOLS,
        prompts=[""],
        max_prompt_tokens=1,
        max_new_tokens=6,
        reward=reward,
        automaton=automaton,
    )
    return Task(**parts | changed)


def test_an_automaton_of_another_language_is_refused():
    task = task_of(literal("abba").automaton(SYMBOLS), lambda completions: [0.0] * len(completions))
    assert oracle.optimum(oracle.enumerate_tree(task)).objective == 0.0
    with pytest.raises(
        ValueError,
        match="automaton says that the completion 'abba' scores 1.0, and the reward scores it 0.0, after the prompt ''",
    ):
        fold(task)


def ends(folded):
    """The states that a complete text may lead to."""
    reached, found = {folded.automaton.start}, set()
    content = [token for token in range(folded.automaton.num_tokens) if token not in folded.stop_ids]
    for _ in range(folded.horizon):
        found |= reached if folded.stop_ids else set()
        reached = {int(folded.automaton.transitions[state, token]) for state in reached for token in content}
    return sorted(found | reached)


@pytest.mark.parametrize("name", ["regex", "length_trap", "delayed_bit", "combination_lock"])
@pytest.mark.parametrize("horizon", [None, 3, 60])
def test_the_score_of_each_state_counts(name, horizon):
    for level in textgym.TASKS[name].levels:
        task = make_task(name, level)
        right = task.automaton
        for state in ends(fold(task, horizon)):
            score = right.score.copy()
            score[state] = 1 - score[state]
            lying = Automaton(right.transitions, score, right.start)
            with pytest.raises(ValueError, match="the automaton says that the completion"):
                fold(replace(task, automaton=lying), horizon)


def test_a_difference_in_long_texts_alone():
    automaton = star(one_of("ab")).automaton(SYMBOLS)
    task = task_of(automaton, lambda completions: [float(len(text) < 10) for text in completions])
    assert folded_optimum(fold(task)).objective == 1.0
    with pytest.raises(ValueError, match="'[ab]{10,}' scores 1.0, and the reward scores it 0.0"):
        fold(task, horizon=40)


def test_a_reward_that_sees_the_prompt_or_a_column():
    automaton = star(one_of("ab")).automaton(SYMBOLS)
    rows = [{"prompt": "a", "factor": 1.0}, {"prompt": "b", "factor": 0.5}]

    def of_column(completions, factor):
        return list(factor)

    with pytest.raises(ValueError, match="scores 1.0, and the reward scores it 0.5, after the prompt 'b'"):
        fold(task_of(automaton, of_column, prompts=rows))
    assert folded_optimum(fold(task_of(automaton, of_column, prompts=rows[:1]))).objective == 1.0


def test_without_a_stop_token_texts_are_as_long_as_the_horizon():
    seen = []

    def reward(completions):
        seen.extend(completions)
        return [float(text[0] == "b") for text in completions]

    first = Automaton([[1, 2], [1, 1], [2, 2]], score=[0.0, 0.0, 1.0])
    fold(task_of(first, reward, tokenizer=["a", "b"]), horizon=9)
    assert {len(text) for text in seen} == {9}
    with pytest.raises(ValueError, match="'a[ab]{8}' scores 0.25, and the reward scores it 0.0"):
        fold(task_of(Automaton(first.transitions, [0, 0.25, 1]), reward, tokenizer=["a", "b"]), horizon=9)


def test_the_reward_sees_what_an_episode_shows_it():
    """The stop token in the ids and not in the text, and no stop token at the horizon."""
    seen = []

    def reward(prompts, completions, completion_ids):
        seen.extend(zip(prompts, completions, completion_ids, strict=True))
        return [float(len(text)) for text in completions]

    counting = Automaton([[1, 1, 0], [2, 2, 0], [3, 3, 0], [3, 3, 0]], score=[0.0, 1.0, 2.0, 3.0])
    fold(task_of(counting, reward, max_new_tokens=3, prompts=["a", "b"]))
    assert {prompt for prompt, _, _ in seen} == {"a", "b"}
    for _, text, ids in seen:
        assert ids == ["ab".index(char) for char in text] + [2] * (len(text) < 3)
    assert {len(text) for _, text, _ in seen} == {0, 1, 2, 3}
    again, seen[:] = list(seen), []
    fold(task_of(counting, reward, max_new_tokens=3, prompts=["a", "b"]))
    assert seen == again


def test_a_difference_by_rounding_is_none():
    automaton = Automaton([[0, 0, 0]], score=[0.3])
    assert fold(task_of(automaton, lambda completions: [0.1 + 0.2] * len(completions))).automaton is automaton
    with pytest.raises(ValueError, match="scores 0.3, and the reward scores it 0.30001"):
        fold(task_of(automaton, lambda completions: [0.30001] * len(completions)))


@pytest.mark.parametrize("symbols", [SYMBOLS, ["a", "b"]])
def test_a_huge_horizon_is_tried_on_few_texts(symbols):
    counts = []

    def reward(completions):
        counts.append(sum(map(len, completions)))
        return [0.0] * len(completions)

    fold(task_of(Automaton([[0] * len(symbols)], [0.0]), reward, tokenizer=symbols), horizon=200_000)
    assert 0 < sum(counts) <= 2**19


def test_a_reward_that_fails_or_drops():
    def broken(completions):
        raise OSError("gone")

    automaton = Automaton([[0, 0, 0]], score=[0.0])
    with pytest.raises(textgym.RewardError, match="gone"):
        fold(task_of(automaton, broken))

    dropping = replace(problem_of(task_of(automaton, broken)), reward=load_reward(broken, on_error="drop"))
    with (
        pytest.warns(UserWarning, match="the episode is dropped"),
        pytest.raises(ValueError, match="scores 0.0, and the reward fails on it"),
    ):
        fold(dropping)
