"""Named environment configurations: every built-in task at every level, and problems that stress the seams.

The contract suite walks this table; a task or an option joins it by a row, a built-in task by existing.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from textgym import TASKS, make_task

MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


def answer_share(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float]:
    """Share of the answer's characters that occur in the completion; prompts without an answer ask for their own."""
    wanted = [own if own is not None else prompt for prompt, own in zip(prompts, answer, strict=True)]
    return [sum(char in text for char in want) / max(len(want), 1) for text, want in zip(completions, wanted)]  # noqa: B905


def weighted_ids(completion_ids: list[list[int]], **columns: list[Any]) -> np.ndarray:
    """A score that tells any two short sequences of ids apart, the stop token included, and may be negative."""
    return np.array([sum((id_ + 1) * 0.37**place for place, id_ in enumerate(ids)) - 1 for ids in completion_ids])


_SYMBOLS = ["a", "b", "ab", "<eos>"]
_COLUMNS = [{"prompt": "ab", "answer": "ba"}, {"prompt": "abba", "hint": [1, 2]}, {"prompt": "a", "answer": None}]
_OWN: dict[str, dict[str, Any]] = {
    "columns": dict(tokenizer=_SYMBOLS, prompts=_COLUMNS, reward=answer_share, max_new_tokens=5),
    "empty_prompt": dict(tokenizer=_SYMBOLS, prompts=[""], reward=weighted_ids, max_new_tokens=4),
    "several_stops": dict(
        tokenizer=_SYMBOLS, prompts=["a", "abb"], reward=weighted_ids, max_new_tokens=6, stop_ids=[0, 3]
    ),
    "stop_in_prompt": dict(tokenizer=_SYMBOLS, prompts=["a<eos>b", ""], reward=weighted_ids, max_new_tokens=3),
    "no_stops": dict(tokenizer=_SYMBOLS, prompts=["", "b"], reward=weighted_ids, max_new_tokens=3, stop_ids=[]),
    "prefix_delta": dict(
        tokenizer=_SYMBOLS, prompts=_COLUMNS, reward=answer_share, max_new_tokens=5, scheme="prefix_delta"
    ),
    "prefix_delta_task": dict(task="sort", scheme="prefix_delta"),
    "horizon_one": dict(tokenizer=_SYMBOLS, prompts=["a", ""], reward=weighted_ids, max_new_tokens=1),
    "only_stop": dict(tokenizer=["<eos>"], prompts=[""], reward=weighted_ids, max_new_tokens=3),
    "wide": dict(tokenizer=_SYMBOLS, prompts=["ab", ""], reward=weighted_ids, max_new_tokens=9, max_prompt_tokens=7),
    "own_prompts_alone": dict(prompts=["31", "2"]),
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    **{
        f"{name}-{level}": dict(task=name, level=level)
        for name, family in TASKS.items()
        for level in family.levels
        if make_task(name, level).true_reward is None
    },
    **_OWN,
}


def make(name: str, **keywords: Any) -> gym.Env:
    """The scalar environment of a case."""
    return gym.make("TextGen-v0", **CASES[name], **keywords)


def make_vec(name: str, num_envs: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    """The native vector environment of a case."""
    return gym.make_vec("TextGen-v0", num_envs=num_envs, autoreset_mode=mode, **CASES[name])


def make_sync(name: str, num_envs: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    """Gymnasium's own vector environment over scalar ones, of a case."""
    return gym.make_vec(
        "TextGen-v0",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **CASES[name],
    )


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every array in a nest of dicts, tuples and object arrays."""
    if isinstance(value, np.ndarray):
        yield value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.dtype == object):
        for part in value:
            yield from arrays(part)


def assert_same(actual: Any, expected: Any, place: str = "result") -> None:
    """The same values in the same types, dtypes and shapes, all the way down."""
    assert type(actual) is type(expected), f"{place}: {type(actual)} against {type(expected)}"
    if isinstance(expected, dict):
        assert set(actual) == set(expected), place
        for key in expected:
            assert_same(actual[key], expected[key], f"{place}[{key!r}]")
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected), place
        for position, (left, right) in enumerate(zip(actual, expected, strict=True)):
            assert_same(left, right, f"{place}[{position}]")
    elif isinstance(expected, np.ndarray):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), place
        if expected.dtype == object:
            assert_same(list(actual), list(expected), place)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=place)
    else:
        assert actual == expected, f"{place}: {actual!r} against {expected!r}"
