"""Rows of prompts from lists, dicts and .jsonl files, as the environment and the reward function see them."""

import json

import gymnasium as gym
import numpy as np
import pytest

SYMBOLS = ["a", "b", "ab", "<eos>"]


def make(prompts, seen=None, **keywords):
    """An environment over the prompts whose reward function notes the keywords of its calls in `seen`."""

    def note(**received):
        if seen is not None:
            seen.append(received)
        return [0.0] * len(received["completions"])

    return gym.make(
        "textgym:TextGen-v0", prompts=prompts, tokenizer=SYMBOLS, reward=note, **{"max_new_tokens": 1, **keywords}
    )


def columns_of(prompts, index):
    seen = []
    env = make(prompts, seen)
    env.reset(options={"prompt_index": index})
    env.step(0)
    [received] = seen
    return {name: received[name] for name in received if name not in ("completions", "completion_ids")}


@pytest.mark.parametrize("as_file", [False, True], ids=["list", "jsonl"])
def test_a_missing_column_is_none(tmp_path, as_file):
    rows = [{"prompt": "a", "answer": "x"}, {"prompt": "b", "level": {"deep": [1, None]}}]
    if as_file:
        path = tmp_path / "prompts.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        rows = str(path)
    assert columns_of(rows, 0) == {"prompts": ["a"], "answer": ["x"], "level": [None]}
    assert columns_of(rows, 1) == {"prompts": ["b"], "answer": [None], "level": [{"deep": [1, None]}]}


def test_texts_and_dicts_may_be_mixed():
    assert columns_of(["a", {"prompt": "b", "answer": 1}], 0) == {"prompts": ["a"], "answer": [None]}


def test_a_file_may_have_blank_lines_windows_line_ends_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "ab"}\r\n')
    env = make(path).unwrapped
    assert [env.problem.prompts[index].text for index in range(len(env.problem.prompts))] == ["a", "ab"]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "note": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert columns_of(path, 0)["note"] == ["x\u2028y\x85z"]


def test_room_is_made_for_the_longest_prompt():
    env = make(["a", "abba", "b"], max_new_tokens=2)  # ab, b, a
    assert env.observation_space.shape == (3 + 2,)
    assert env.reset(options={"prompt_index": 0})[0].tolist() == [0, 4, 4, 4, 4]
    assert env.reset(options={"prompt_index": 1})[0].tolist() == [2, 1, 0, 4, 4]


def test_each_prompt_is_drawn_equally_often():
    envs = gym.make_vec(
        "textgym:TextGen-v0",
        num_envs=3000,
        prompts=["a", "b", "ab", "a"],
        tokenizer=SYMBOLS,
        reward=lambda completions: [0.0] * len(completions),
        max_new_tokens=1,
    )
    counts = np.bincount(envs.reset(seed=0)[0][:, 0], minlength=3)
    expected = np.array([1500, 750, 750])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-squared, 2 degrees of freedom, p = .001


def test_a_row_that_the_reward_function_changed_is_handed_out_unchanged_next_time():
    def spoil(completions, completion_ids, prompts, answer):
        answer[0] = prompts[0] = "spoilt"
        completion_ids[0].clear()
        return [1.0] * len(completions)

    prompts = [{"prompt": "a", "answer": "kept"}]
    env = gym.make("textgym:TextGen-v0", prompts=prompts, tokenizer=SYMBOLS, reward=spoil, max_new_tokens=1)
    for _ in range(2):
        env.reset()
        assert env.step(1)[0].tolist() == [0, 1]
    assert env.unwrapped.problem.prompts[0].columns == {"answer": "kept"}
