"""Random keywords, options, actions, saves and restores: the vector environment, scalar ones and a plain model agree.

The model is written without the package's transition: a history, the rules of an end, and the reward functions called
on the text by hand.
"""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.textgym.cases import (
    DROPPED,
    MODES,
    any_prompt,
    assert_same,
    drawn,
    half_known,
    half_known_or_zero,
    log_prob,
    often_broken,
    promise,
    tokens_of,
    weighted_ids,
)
from textgym import schemes

pytestmark = pytest.mark.filterwarnings(f"ignore:{DROPPED}")
_SYMBOLS = ["a", "b", "ab", "<eos>"]
_ROWS = [{"prompt": "ab", "answer": "ba"}, {"prompt": "abba"}, {"prompt": "", "answer": None}, "b"]


def by_answer(prompts, completions, answer):
    return [
        len(text) - 2 * text.count(right or prompt[:1] or "a")
        for prompt, text, right in zip(prompts, completions, answer, strict=True)
    ]


_SCHEMES = [
    "terminal",
    "prefix_delta",
    schemes.Length(0.5),
    ["prefix_delta", schemes.Potential(promise), schemes.Length(-0.1)],
    [schemes.Reference(log_prob, beta=0.3), schemes.Potential(promise, gamma=0.9)],
]
_REWARDS: list[Any] = [
    weighted_ids,
    by_answer,
    drawn,
    {"ids": (weighted_ids, 2.0), "half": (half_known, -1), "drawn": drawn},
    [by_answer, often_broken],
]
_common = {
    "on_limit": st.sampled_from(["terminate", "truncate"]),
    "observation": st.sampled_from(["tokens", "dict"]),
    "text_info": st.booleans(),
    "copy": st.booleans(),
    "scheme": st.sampled_from(_SCHEMES),
}
_own = st.fixed_dictionaries(
    {
        "tokenizer": st.just(_SYMBOLS),
        "prompts": st.sampled_from([_ROWS, _ROWS[:1], any_prompt]),
        "max_prompt_tokens": st.just(4),
        "reward": st.sampled_from(_REWARDS),
        "on_reward_error": st.just("drop"),
        "max_new_tokens": st.integers(1, 5),
        "stop_ids": st.sampled_from([None, [], [0], [3, 1]]),
        "stop": st.sampled_from([None, ["ba"], ["bb", "aab"]]),
    }
    | _common,
    optional={"prompt_order": st.sampled_from(["random", "sequential"])},
).map(lambda keywords: keywords if keywords["prompts"] is not any_prompt else {**keywords, "prompt_order": "random"})
_masked = st.fixed_dictionaries(
    {"task": st.just("no_repeat"), "on_illegal_action": st.just("terminate")} | _common,
)
_prefixes = st.lists(st.integers(0, 2), max_size=1)


class Machine(RuleBasedStateMachine):
    """N scalar environments and a vector environment of N rows, driven alike."""

    @initialize(
        keywords=_own | _masked, num_envs=st.integers(1, 3), mode=st.sampled_from(MODES), seed=st.integers(0, 9)
    )
    def begin(self, keywords, num_envs, mode, seed):
        self.keywords, self.mode, self.count = keywords, mode, num_envs
        self.build()
        self.saved: list[Any] = []
        singles = [env.reset(seed=seed + row) for row, env in enumerate(self.scalars)]
        self.compare_reset(self.vector.reset(seed=seed), singles)
        self.model = [Model(self.scalars[row], tokens_of(self.observations)[row]) for row in range(num_envs)]

    def build(self):
        self.scalars = [gym.make("TextGen-v0", **self.keywords).unwrapped for _ in range(self.count)]
        self.vector = gym.make_vec(
            "TextGen-v0", num_envs=self.count, autoreset_mode=self.mode, **self.keywords
        ).unwrapped
        self.ended = [False] * self.count

    def compare_reset(self, result, singles, rows=None):
        self.observations, infos = result
        rows = range(self.count) if rows is None else rows
        for row, (observation, info) in zip(rows, singles, strict=True):
            assert_same(part(self.observations, row), observation)
            assert_same(row_info(infos, row, info), info)
            self.ended[row] = False

    @rule(
        seed=st.sampled_from([None, 3, 4]),
        options=st.sampled_from(["none", "prompt", "prompt_ids", "index", "rows"]),
    )
    def reset(self, seed, options):
        each = [self.options(options, row) for row in range(self.count)]
        together = {"rows": {name: [one[name] for one in each] for name in each[0]}} if options == "rows" else each[0]
        singles = [
            env.reset(seed=None if seed is None else seed + row, options=each[row] if options == "rows" else each[0])
            for row, env in enumerate(self.scalars)
        ]
        self.compare_reset(self.vector.reset(seed=seed, options=together), singles)
        self.model = [Model(self.scalars[row], tokens_of(self.observations)[row]) for row in range(self.count)]

    def options(self, kind, row):
        masked = "task" in self.keywords
        if kind == "index" and self.keywords.get("prompts") is not any_prompt:
            return {"prompt_index": 0}
        if kind == "prompt":
            return {"prompt": "b"} if masked else {"prompt": "ab", "columns": {"answer": "a"}}
        if kind == "prompt_ids":
            return {"prompt_ids": [1]}
        if kind == "rows":
            return {"prompt": "ab"[row % 2]}
        return {}

    @precondition(lambda self: self.mode is AutoresetMode.DISABLED)
    @rule(data=st.data())
    def reset_some(self, data):
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=self.count, max_size=self.count)))
        mask[0] |= not mask.any()
        rows = np.flatnonzero(mask).tolist()
        result = self.vector.reset(options={"reset_mask": mask})
        self.compare_reset(result, [self.scalars[row].reset() for row in rows], rows)
        for row in rows:
            self.model[row] = Model(self.scalars[row], tokens_of(self.observations)[row])

    @rule(data=st.data())
    def step(self, data):
        size = self.vector.single_action_space.n
        actions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=self.count, max_size=self.count)))
        self.observations, rewards, terminated, truncated, infos = self.vector.step(actions)
        for row, env in enumerate(self.scalars):
            if self.ended[row] and self.mode is AutoresetMode.DISABLED:
                assert rewards[row] == 0.0 and (terminated[row] or truncated[row])
                continue
            if self.ended[row]:
                observation, info = env.reset()
                self.model[row], self.ended[row] = Model(env, tokens_of(observation)), False
                result = (observation, 0.0, False, False, info)
            else:
                result = env.step(actions[row])
                self.model[row].step(int(actions[row]), result)
                self.ended[row] = result[2] or result[3]
            self.compare_step(row, result, (rewards, terminated, truncated, infos))

    def compare_step(self, row, result, together):
        observation, reward, terminated, truncated, info = result
        rewards, all_terminated, all_truncated, infos = together
        assert (rewards[row], all_terminated[row], all_truncated[row]) == (reward, terminated, truncated)
        if self.mode is AutoresetMode.SAME_STEP and (terminated or truncated):
            assert_same(infos["final_obs"][row], observation)
            assert_same(row_info(infos["final_info"], row, info), info)
            observation, info = self.scalars[row].reset()
            self.model[row], self.ended[row] = Model(self.scalars[row], tokens_of(observation)), False
        assert_same(part(self.observations, row), observation)
        assert_same(row_info(infos, row, info), info)

    @rule()
    def save(self):
        models = [model.copy() for model in self.model]
        states = [through_a_file(env.get_state()) for env in (self.vector, *self.scalars)]
        self.saved.append((states, models, list(self.ended)))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def restore(self, data, fresh):
        states, models, ended = data.draw(st.sampled_from(self.saved))
        if fresh:
            self.build()
        for env, state in zip((self.vector, *self.scalars), states, strict=True):
            env.set_state(state)
        self.ended, self.model = list(ended), [model.copy() for model in models]
        for model, env in zip(self.model, self.scalars, strict=True):
            model.env = env


class Model:
    """An episode by the rules of the page: prompt and actions, when it ends, what its text scores."""

    def __init__(self, env, tokens):
        self.env = env
        self.prompt = [token for token in tokens.tolist() if token != env.vocabulary.size]
        self.actions: list[int] = []
        self.paid = 0.0

    def copy(self):
        other = Model(self.env, np.array(self.prompt, dtype=int))
        other.actions, other.paid = list(self.actions), self.paid
        return other

    def step(self, action, result):
        observation, reward, terminated, truncated, info = result
        problem = self.env.problem
        illegal = problem.constraint is not None and not self.legal()[action]
        self.actions.append(action)
        self.paid += reward
        history = self.prompt + self.actions
        tokens = tokens_of(observation).tolist()
        assert tokens == history + [problem.vocabulary.size] * (len(tokens) - len(history))
        reason = 4 if illegal else self.reason()
        assert info["finish_reason"] == reason
        assert truncated == (reason == 2 and problem.on_limit == "truncate")
        assert terminated == (reason > 0 and not truncated)
        if reason and problem.text_info:
            assert info["completion"] == self.text()
        if reason and reason != 4 and info["valid"] and problem.task is not None:
            assert info["score"] == half_known_or_zero([self.text()])[0]
        if reason and info["valid"] and problem.scheme.pays_score:
            assert self.paid == pytest.approx(info["score"], abs=1e-9)

    def legal(self):
        text = "".join("abcd"[token] for token in self.prompt)
        return self.env.problem.constraint(text, self.actions, self.env.problem.max_new_tokens - len(self.actions))

    def text(self):
        symbols = ["a", "b", "c", "d", "<eos>"] if self.env.problem.task is not None else _SYMBOLS
        shown = self.actions[:-1] if self.actions[-1] in self.env.vocabulary.stop_ids else self.actions
        text = "".join(symbols[token] for token in shown)
        return text[: min((text.find(stop) for stop in self.env.problem.stop.strings if stop in text), default=None)]

    def reason(self):
        problem = self.env.problem
        whole = "".join(_SYMBOLS[token] for token in self.actions) if problem.task is None else ""
        if self.actions[-1] in problem.vocabulary.stop_ids or any(stop in whole for stop in problem.stop.strings):
            return 1
        if len(self.actions) == problem.max_new_tokens:
            return 2
        return 3 if problem.constraint is not None and not self.legal().any() else 0


def part(observations, row):
    if isinstance(observations, dict):
        return {name: values[row] for name, values in observations.items()}
    return observations[row]


def row_info(infos, row, like):
    """The row's entries, in the types of a scalar environment."""
    values = {name: values[row] for name, values in infos.items() if not name.startswith("_") and "final" not in name}
    return {name: type(like[name])(value) if np.ndim(value) == 0 else value for name, value in values.items()}


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **state, allow_pickle=False)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def run(examples):
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_two_hundred_walks():
    run(200)


@pytest.mark.full
def test_five_thousand_walks():
    run(5000)
