"""A tree that is too large is refused before its time, with the number, the limit and what to do."""

import gymnasium as gym
import numpy as np
import pytest

import textgym
from textgym.oracle import enumerate_tree
from textgym.oracle.size import full_tree


def env_of(symbols="ab", **keywords):
    own = dict(tokenizer=list(symbols), prompts=[""], reward=lambda completions: [0.0] * len(completions))
    return gym.make("TextGen-v0", **(own | keywords))


def never(completions):
    raise AssertionError("nothing is scored")


@pytest.mark.parametrize(
    ("size", "stops", "horizon", "sequences", "nodes"),
    [
        (2, 0, 4, 16, 15),
        (3, 1, 2, 1 + 2 + 4, 3),
        (4, 2, 3, 2 + 4 + 8 + 8, 7),
        (1, 0, 5, 1, 5),
        (1, 1, 5, 1, 1),
        (2, 1, 3, 4, 3),
    ],
)
def test_the_count_beforehand_is_that_of_the_tree(size, stops, horizon, sequences, nodes):
    assert full_tree(size, stops, horizon) == (sequences, nodes)
    tree = enumerate_tree(env_of("abcd"[:size], stop_ids=list(range(stops)), max_new_tokens=horizon))
    assert (tree.num_sequences, tree.num_nodes) == (sequences, nodes)


def test_the_count_is_told_before_a_text_is_scored():
    words = (
        r"too large to enumerate: 16,777,216 complete sequences \(4,096 prompts, V=8, max_new_tokens=4\), and "
        r"limit=1000000\. Lower max_new_tokens, or give fewer prompts.*give limit=16777216"
    )
    with pytest.raises(ValueError, match=words):
        enumerate_tree("sort")
    with pytest.raises(ValueError, match=r"16 complete sequences \(1 prompts, V=2.*give limit=16"):
        enumerate_tree(env_of(max_new_tokens=4, reward=never), limit=15)
    assert enumerate_tree(env_of(max_new_tokens=4), limit=16).num_sequences == 16


def test_several_prompts_count():
    env = env_of(max_new_tokens=2, prompts=["", "a", "b"])
    assert enumerate_tree(env, limit=12).num_sequences == 12
    with pytest.raises(ValueError, match=r"12 complete sequences \(3 prompts"):
        enumerate_tree(env, limit=11)


def test_a_huge_tree_and_a_long_list_of_prompts_are_refused_at_once():
    with pytest.raises(ValueError, match=r"more than 10\^30 complete sequences.*give a larger limit"):
        enumerate_tree(env_of(max_new_tokens=100_000))
    with pytest.raises(ValueError, match=r"\(100,000,000 prompts"):
        enumerate_tree(textgym.make_task("sort", 3))


def test_stop_strings_are_counted_while_the_tree_grows():
    env = env_of(max_new_tokens=12, stop=["b"])  # b, ab, aab, ..., and the twelve a
    assert enumerate_tree(env, limit=13).num_sequences == 13
    with pytest.raises(ValueError, match=r"at least 13 complete sequences.*limit=12\. .*give a larger limit"):
        enumerate_tree(env, limit=12)


def test_masks_are_counted_while_the_tree_grows():
    assert enumerate_tree("brackets", limit=22).num_sequences == 22
    with pytest.raises(ValueError, match=r"at least \d+ complete sequences \(1 prompts, V=3.*limit=21\."):
        enumerate_tree("brackets", limit=21)
    with pytest.raises(ValueError, match=r"at least [\d,]+ complete sequences"):
        enumerate_tree(textgym.make_task("brackets", 3), limit=2_000)


def test_more_prompts_than_the_limit_are_refused_before_one_is_read():
    env = env_of(max_new_tokens=3, prompts=["a"] * 9, stop=["b"], reward=never)
    with pytest.raises(ValueError, match=r"at least 9 complete sequences \(9 prompts"):
        enumerate_tree(env, limit=8)


def test_tables_are_counted_where_masks_leave_few_tokens():
    def one_way(prompt, completion_ids, tokens_left):
        return np.arange(500) == len(completion_ids)

    task = textgym.Task(
        name="one_way",
        level=1,
        tokenizer=[f"<{place}>" for place in range(500)],
        prompts=[""],
        max_prompt_tokens=0,
        max_new_tokens=300,
        reward=lambda completions: [0.0] * len(completions),
        constraint=one_way,
    )
    assert enumerate_tree(task).num_sequences == 1
    with pytest.raises(ValueError, match=r"at least \d+ states with tables of 500 numbers each.*limit=1000\."):
        enumerate_tree(task, limit=1_000)


@pytest.mark.parametrize(
    ("limit", "error", "words"),
    [
        (0, ValueError, "limit=0; give an integer of at least 1"),
        (1e6, TypeError, "limit is 1000000.0 of type float; give an integer"),
        (True, TypeError, "limit is True of type bool"),
        ("many", TypeError, "limit is 'many' of type str"),
    ],
)
def test_malformed_limits(limit, error, words):
    with pytest.raises(error, match=words):
        enumerate_tree("bandit", limit=limit)
