"""Named environment configurations: every built-in task at every level, and problems that stress the seams.

The contract suite walks this table; a task or an option joins it by a row, a built-in task by existing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

import textgym
from textgym import TASKS, schemes

# What a reward function of some cases gets said the first time that it drops an episode.
DROPPED = "(?s).*the episode is dropped"
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


def answer_share(prompts: list[str], completions: list[str], answer: list[str | None]) -> list[float]:
    """Share of the answer's characters that occur in the completion; prompts without an answer ask for their own."""
    wanted = [own if own is not None else prompt for prompt, own in zip(prompts, answer, strict=True)]
    return [sum(char in text for char in want) / max(len(want), 1) for text, want in zip(completions, wanted)]  # noqa: B905


def weighted_ids(completion_ids: list[list[int]], **columns: list[Any]) -> np.ndarray:
    """A score that tells any two short sequences of ids apart, the stop token included, and may be negative."""
    return np.array([sum((id_ + 1) * 0.37**place for place, id_ in enumerate(ids)) - 1 for ids in completion_ids])


def half_known(completions: list[str]) -> list[float | None]:
    """A score of texts of even length alone."""
    return [None if len(text) % 2 else text.count("a") / 4 for text in completions]


def drawn(completions: list[str], rng: list[np.random.Generator]) -> list[float]:
    """A score that is drawn with the row's own generator."""
    return [len(text) * float(generator.random()) for text, generator in zip(completions, rng, strict=True)]


def often_broken(completion_ids: list[list[int]]) -> list[float]:
    """Not a number for every text that ends in a `b`."""
    return [float("nan") if ids[-1:] == [1] else len(ids) / 8 for ids in completion_ids]


def promise(prompts: list[str], completions: list[str]) -> list[float]:
    """A potential of an unfinished text."""
    return [
        len(text) - text.count("b") / 3 - len(prompt) / 7 for prompt, text in zip(prompts, completions, strict=True)
    ]


def log_prob(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """A reference that likes low ids, the more so the longer the history."""
    return -(actions + 1.0) * (observations < 4).sum(axis=1) / 5


def said(completions: list[str], messages: list[list[dict[str, Any]] | None]) -> list[float]:
    """How often letters of the first message come in the completion, and an eighth for every message."""
    asked = [chat or [{"content": ""}] for chat in messages]
    return [
        sum(text.count(char) for char in set(chat[0]["content"])) + len(chat) / 8
        for text, chat in zip(completions, asked, strict=True)
    ]


def any_prompt(generator: np.random.Generator) -> dict[str, Any]:
    """A row of up to four letters, and the number of its `a`."""
    text = "".join("ab"[int(place)] for place in generator.integers(2, size=int(generator.integers(5))))
    return {"prompt": text, "answer": str(text.count("a"))}


def no_repeat(prompt: str, completion_ids: Sequence[int], tokens_left: int) -> np.ndarray:
    """No token twice, and none that the prompt holds; none at all once three are written."""
    legal = ~np.isin(np.arange(5), [*completion_ids, *("abcd".index(char) for char in prompt)])
    legal[4] = len(completion_ids) > 1  # the stop token
    return legal & (len(completion_ids) < 3)


def make_no_repeat(level: int) -> textgym.Task:
    """A task whose mask matters, forbids the stop token at times, and leads to dead ends."""
    return textgym.Task(
        name="no_repeat",
        level=level,
        tokenizer=["a", "b", "c", "d", "<eos>"],
        prompts=["a", "", {"prompt": "bc"}],
        max_prompt_tokens=2,
        max_new_tokens=4,
        reward=half_known_or_zero,
        true_reward=lambda completions: [len(text) / 3 for text in completions],
        constraint=no_repeat,
        optimum=None,
        uniform=None,
    )


def half_known_or_zero(completions: list[str]) -> list[float]:
    """The share of `a` and `c` in a text of up to three letters."""
    return [sum(char in "ac" for char in text) / 3 for text in completions]


textgym.register_task("no_repeat", make_no_repeat)

_SYMBOLS = ["a", "b", "ab", "<eos>"]
_COLUMNS = [{"prompt": "ab", "answer": "ba"}, {"prompt": "abba", "hint": [1, 2]}, {"prompt": "a", "answer": None}]
_CHATS = [
    {"prompt": [{"role": "user", "content": "ab"}]},
    {"prompt": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]},
    "ba",
]
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
    "truncate": dict(task="reverse", on_limit="truncate"),
    "truncate_or_stop": dict(
        tokenizer=_SYMBOLS, prompts=["a", ""], reward=weighted_ids, max_new_tokens=3, on_limit="truncate"
    ),
    "sequential": dict(
        tokenizer=_SYMBOLS, prompts=_COLUMNS, reward=answer_share, max_new_tokens=2, prompt_order="sequential"
    ),
    "drawn_prompts": dict(
        tokenizer=_SYMBOLS, prompts=any_prompt, max_prompt_tokens=4, reward=answer_share, max_new_tokens=4
    ),
    "stop_strings": dict(
        tokenizer=_SYMBOLS, prompts=["ba", "a"], reward=weighted_ids, max_new_tokens=6, stop=["ba", "bbb"]
    ),
    "dict": dict(tokenizer=_SYMBOLS, prompts=_COLUMNS, reward=answer_share, max_new_tokens=3, observation="dict"),
    "text_info": dict(
        tokenizer=_SYMBOLS, prompts=_COLUMNS, reward=answer_share, max_new_tokens=4, text_info=True, stop=["aa"]
    ),
    "chat": dict(
        tokenizer=str(Path(__file__).parent / "chat_model"),
        prompts=_CHATS,
        reward=said,
        max_new_tokens=4,
        text_info=True,
    ),
    "several_rewards": dict(
        tokenizer=_SYMBOLS,
        prompts=["ab", ""],
        reward={"ids": (weighted_ids, 0.5), "half": half_known, "drawn": (drawn, -2)},
        max_new_tokens=4,
    ),
    "dropped": dict(
        tokenizer=_SYMBOLS, prompts=["ab", ""], reward=often_broken, max_new_tokens=4, on_reward_error="drop"
    ),
    "dropped_prefixes": dict(
        tokenizer=_SYMBOLS,
        prompts=["ab", ""],
        reward=[often_broken, drawn],
        max_new_tokens=4,
        on_reward_error="drop",
        scheme=["prefix_delta", schemes.Length(0.1)],
    ),
    "shaped": dict(
        tokenizer=_SYMBOLS,
        prompts=["ab", ""],
        reward=weighted_ids,
        max_new_tokens=5,
        scheme=[
            schemes.Length(0.25),
            schemes.Potential(promise, gamma=0.9),
            schemes.Reference(log_prob, beta=0.5),
            schemes.Potential(half_known_or_zero),
        ],
    ),
    "masked": dict(task="no_repeat", on_illegal_action="terminate", text_info=True),
    "masked_dict": dict(
        task="no_repeat",
        on_illegal_action="terminate",
        observation="dict",
        scheme=["prefix_delta", schemes.Potential(promise)],
        on_limit="truncate",
    ),
}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    **{
        f"{name}-{level}": dict(task=name, level=level, on_illegal_action="terminate")
        for name, family in TASKS.items()
        for level in family.levels
        if name != "no_repeat"
    },
    **_OWN,
}


def legal_actions(env: Any, rng: np.random.Generator) -> np.ndarray:
    """Random actions for all rows, or the one of a scalar environment; legal ones where an illegal one would raise."""
    env = env.unwrapped
    masks = np.atleast_2d(env.action_masks())
    if env.problem.on_illegal_action == "terminate":
        masks = masks | (rng.random((len(masks), 1)) < 0.2)
    actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
    return actions if hasattr(env, "num_envs") else actions[0]


def tokens_of(observation: Any) -> np.ndarray:
    """The histories of an observation of either kind."""
    return observation["tokens"] if isinstance(observation, dict) else observation


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
