"""Automata and regular languages: against Python's `re`, and numbers worked out by hand."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym import Task, make_task
from textgym.automata import Automaton
from textgym.languages import either, literal, one_of, repeat, sequence, star
from textgym.tasks import TASKS

TEXTS = ["".join(text) for length in range(8) for text in itertools.product("ab.", repeat=length)]

# A language, the pattern that a person would write for it, and the states of its smallest automaton over a, b and the
# point, the dead one included.
LANGUAGES = [
    (literal(""), "", 2),
    (literal("ab.a"), r"ab\.a", 6),
    (one_of("ab"), "[ab]", 3),
    (one_of("."), r"\.", 3),
    (star("ab"), "(ab)*", 3),
    (star(either("", "a")), "a*", 2),
    (star(star(one_of("ab"))), "[ab]*", 2),
    (sequence("a", star("b"), "a"), "ab*a", 4),
    (either("ab", "a", star(".")), r"ab|a|\.*", 5),
    (either("", "a"), "a?", 3),
    (repeat("a", 2), "a{2,}", 4),
    (repeat("ab", 0, 2), "(ab){0,2}", 6),
    (repeat(one_of("ab"), 2, 4), "[ab]{2,4}", 6),
    (repeat("a", 3, 3), "a{3}", 5),
    (repeat("b", 0, 0), "", 2),
    (star(sequence(one_of("ab"), either("a", ".b"))), r"([ab](a|\.b))*", 4),
    (sequence(star(one_of("ab")), "a", one_of("ab"), one_of("ab")), "[ab]*a[ab][ab]", 9),  # 2^3, and the dead one
    (sequence(star(either("aa", "b")), star(".")), r"(aa|b)*\.*", 4),
]


@pytest.mark.parametrize(("language", "pattern", "states"), LANGUAGES, ids=[row[1] for row in LANGUAGES])
def test_a_language_is_what_the_pattern_says_on_every_short_text(language, pattern, states):
    automaton = language.automaton("ab.")
    expected = [re.fullmatch(pattern, text) is not None for text in TEXTS]
    assert [automaton.score_of(map("ab.".index, text)) == 1.0 for text in TEXTS] == expected
    assert [re.fullmatch(language.pattern, text) is not None for text in TEXTS] == expected
    assert automaton.num_states == states


def grow(parts):
    return st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(lambda some: sequence(*some)),
        st.lists(parts, min_size=1, max_size=3).map(lambda some: either(*some)),
        parts.map(star),
        st.builds(lambda part, least, more: repeat(part, least, least + more), parts, st.integers(0, 2), st.just(1)),
    )


LEAVES = st.text("ab.", max_size=2).map(literal) | st.text("ab.", min_size=1).map(one_of)


@settings(max_examples=150, deadline=None)
@given(st.recursive(LEAVES, grow, max_leaves=5))
def test_a_random_language_is_what_its_pattern_says(language):
    automaton, pattern = language.automaton("ab."), re.compile(language.pattern)
    for text in TEXTS[:364]:  # up to five characters
        assert automaton.score_of(map("ab.".index, text)) == float(pattern.fullmatch(text) is not None)


def test_tokens_of_several_characters_count_by_the_text_that_they_spell():
    symbols = ["a", "ab", "<eos>", "ba"]
    automaton = star("ab").automaton(symbols)
    for ids in itertools.product((0, 1, 3), repeat=4):
        text = "".join(symbols[token] for token in ids)
        assert automaton.score_of(ids) == float(re.fullmatch("(ab)*", text) is not None)
    assert automaton.score_of([0, 3, 1]) == 0.0 and automaton.score_of([1, 0]) == 0.0


def test_the_stop_token_writes_nothing():
    automaton = literal("a").automaton(["a", "<eos>"])
    assert automaton.transitions[:, 1].tolist() == [0, 1, 2]


def test_a_pattern_escapes_what_has_a_meaning():
    characters = "]^-\\[.*+?(){}|$"
    language = sequence(one_of(characters), "".join(characters))
    for first in characters:
        assert re.fullmatch(language.pattern, first + characters)
    assert not re.fullmatch(language.pattern, "a" + characters)


def test_the_smallest_automaton_has_the_same_scores_and_states_in_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        automaton = Automaton(rng.integers(0, 8, (8, 2)), rng.integers(0, 2, 8) / 2, start=int(rng.integers(8)))
        smallest = automaton.minimal()
        assert smallest.start == 0
        texts = [ids for length in range(9) for ids in itertools.product(range(2), repeat=length)]
        assert [smallest.score_of(ids) for ids in texts] == [automaton.score_of(ids) for ids in texts]
        found = list(dict.fromkeys(smallest.state_after(ids) for ids in texts))
        assert found == list(range(smallest.num_states))  # every state is reached, the next one by the next text
        behaviours = {tuple(smallest.score[state_from(smallest, state, ids)] for ids in texts) for state in found}
        assert len(behaviours) == smallest.num_states  # no two states do the same


def state_from(automaton, state, ids):
    for token in ids:
        state = automaton.transitions[state, token]
    return state


def test_nobody_changes_an_automaton():
    transitions, score = np.array([[0, 1], [1, 1]]), np.array([0.0, 1.0])
    automaton = Automaton(transitions, score)
    transitions[0, 0], score[0] = 1, 5.0
    assert (automaton.transitions[0, 0], automaton.score[0]) == (0, 0.0)
    for array in (automaton.transitions, automaton.score):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([0, 1], [0]), ValueError, r"shape \(2,\); give \[states, tokens\]"),
        ((np.zeros((2, 0), int), [0, 1]), ValueError, r"shape \(2, 0\)"),
        (([[0], [0, 1]], [0, 1]), ValueError, "no table; give .*equally long rows"),
        (([[0.0]], [1]), TypeError, "dtype float64; give integers"),
        (([[True]], [1]), TypeError, "dtype bool"),
        (([[0, 1]], [1]), ValueError, "transitions of an automaton: there is no state 1; states are 0 to 0"),
        (([[0, -1]], [1]), ValueError, "there is no state -1"),
        (([[0]], [1, 2]), ValueError, r"score of an automaton has shape \(2,\); give one number .* its 1 states"),
        (([[0]], 1.0), ValueError, r"shape \(\)"),
        (([[0]], ["a"]), TypeError, r"score of an automaton is \['a'\] of type list; give a number"),
        (([[0]], [float("inf")]), ValueError, "holds NaN or an infinity"),
        (([[0]], [1], 1), ValueError, "start of an automaton: there is no state 1"),
        (([[0]], [1], 0.0), TypeError, "start of an automaton is 0.0; give the number of a state"),
    ],
)
def test_what_is_no_automaton(arguments, error, words):
    with pytest.raises(error, match=words):
        Automaton(*arguments)


@pytest.mark.parametrize("token", [-1, 2])
def test_a_token_outside_the_vocabulary(token):
    with pytest.raises(ValueError, match=f"there is no token {token}; the automaton reads 0 to 1"):
        Automaton([[0, 0]], [1]).score_of([0, token])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: literal(3), TypeError, "a part of a language is 3 of type int; give a str or a language"),
        (lambda: sequence("a", None), TypeError, "a part of a language is None"),
        (lambda: one_of(""), ValueError, "give at least one character"),
        (lambda: one_of(["a"]), TypeError, "one_of: .* of type list; give a str"),
        (lambda: either(), ValueError, "give at least one language"),
        (lambda: repeat("a", -1), ValueError, "least=-1, most=None; give 0 <= least <= most"),
        (lambda: repeat("a", 2, 1), ValueError, "least=2, most=1"),
        (lambda: repeat("a", 1.0), TypeError, "least=1.0, most=None; give integers"),
        (lambda: repeat("a", 1, "2"), TypeError, "most='2'; give integers"),
    ],
)
def test_what_is_no_language(make, error, words):
    with pytest.raises(error, match=words):
        make()


FOLDED = [
    (name, level)
    for name, family in TASKS.items()
    if family.make.__module__.startswith("textgym.") and make_task(name).automaton is not None
    for level in family.levels
]


def test_which_tasks_have_an_automaton():
    assert {name for name, _ in FOLDED} == {"combination_lock", "delayed_bit", "length_trap", "regex"}


@pytest.mark.parametrize(("name", "level"), FOLDED)
def test_the_automaton_of_a_task_scores_texts_as_its_reward_does(name, level):
    task = make_task(name, level)
    rng = np.random.default_rng(level)
    content = [token for token, symbol in enumerate(task.tokenizer) if symbol != "<eos>"]
    right = [list(task.tokenizer).index(symbol) for symbol in task.solution("")]
    texts = [rng.choice(content, size=rng.integers(task.max_new_tokens + 1)).tolist() for _ in range(300)]
    for _ in range(300):  # a right text with a token changed, and its beginnings
        changed = list(right)
        changed[rng.integers(len(right))] = int(rng.choice(content))
        texts += [changed, right[: rng.integers(len(right) + 1)]]
    written = ["".join(task.tokenizer[token] for token in ids) for ids in texts]
    scores = task.reward(completions=written)
    assert [task.automaton.score_of(ids) for ids in texts] == scores
    assert set(scores) == {0.0, 1.0}


def task(**changed):
    parts = dict(
        name="own",
        level=1,
        tokenizer=["a", "b", "<eos>"],
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=3,
        reward=lambda completions: [float(text == "a") for text in completions],
    )
    return Task(**parts | changed)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        (
            dict(automaton="ab*a"),
            TypeError,
            "task 'own': automaton is 'ab[*]a' of type str; give a .*Automaton, or None",
        ),
        (dict(automaton=star("a").automaton("ab")), ValueError, r"reads 2 tokens, .* has 3; give transitions \[2, 3\]"),
        (
            dict(automaton=star("a").automaton("ab."), constraint=lambda *_: np.ones(3, bool)),
            ValueError,
            "task 'own' has a constraint and an automaton",
        ),
    ],
)
def test_what_cannot_be_the_automaton_of_a_task(changed, error, words):
    assert task().automaton is None
    with pytest.raises(error, match=words):
        task(**changed)
