"""Playing: which environments can be driven, and episodes in their rows, as arrays.

Every episode is played to its end. Which prompts are played, and how often, is left to `agents.rollout`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from agents.observations import tokens_of
from textgym.finish import FinishReason
from textgym.problem import Problem
from textgym.vector_env import TextGenVectorEnv

if TYPE_CHECKING:  # names of the table of algorithms are checked before torch is loaded
    import torch

_REPORTED = ("prompt_length", "length", "score", "scores", "scores_valid", "valid", "finish_reason")


class Actor(Protocol):
    """What `collect` needs of a policy."""

    def act(
        self, observations: np.ndarray, generator: "torch.Generator | None" = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions int64 [N] and their log-probs float32 [N] in the states of `observations`, int64 [N, L].

        Where the task constrains actions, and only there, the keyword `action_mask` is given too: bool [N, V], True
        where a token is legal. An actor that has a method `prefix_cache` gets what it returns as the keyword `cache`,
        one for all the episodes of a call of `collect`. One with a true attribute `truncation` is asked through a
        method `choose` with the same arguments, which returns a third array: bool [N, V], what it sampled from.
        """
        ...


def rollout_env(envs: VectorEnv) -> VectorEnv:
    """The environment that `collect` can drive: in DISABLED mode, where an ended row is frozen.

    A bare native environment in another mode, or in the middle of its owner's episodes, gets a twin over the same
    problem and is itself left alone. A wrapper or a subclass must be made in DISABLED mode, since it cannot be copied.

    Raises:
        TypeError, ValueError: not a native TextGen-v0 vector environment, or a wrapped one in another mode.
    """
    if not isinstance(envs.unwrapped, TextGenVectorEnv):
        raise TypeError(
            f"envs is {type(envs).__name__}; give the native vector environment, gym.make_vec('TextGen-v0', num_envs=N)"
        )
    native = envs.unwrapped
    own = type(envs) is not TextGenVectorEnv  # a wrapper or a subclass, whose behaviour a twin would lose
    if native.autoreset_mode is AutoresetMode.DISABLED and (own or not native.any_running):
        return envs
    if own:
        raise ValueError(
            f"envs is a wrapper or subclass ({type(envs).__name__}) and not in DISABLED mode; make it with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
        )
    problem = replace(native.problem, observation="tokens", text_info=False, copy=True)  # all that is read here
    return TextGenVectorEnv(native.num_envs, autoreset_mode=AutoresetMode.DISABLED, problem=problem)


def problem_of(envs: VectorEnv) -> Problem:
    """The problem of what `rollout_env` returns."""
    native = envs.unwrapped
    assert isinstance(native, TextGenVectorEnv)
    return native.problem


def play(
    policy: Actor,
    envs: VectorEnv,
    starts: dict[str, list[Any]],
    seed: int | None,
    generator: "torch.Generator | None",
    cache: Any = None,
) -> dict[str, np.ndarray]:
    """Play episodes to their ends, as many at a time as there are rows.

    Args:
        policy: acts.
        envs: what `rollout_env` returns.
        starts: reset options with one value an episode, B of them.
        seed: seeds the generators of the rows, which reward functions may draw with; None lets them go on.
        generator: draws the actions; the policy's own without one.
        cache: of the policy, see `agents.rollout.collect`.

    Returns:
        The arrays of a `Rollout` by name, the steps as wide as the horizon; `action_mask`, `true_score` and `cut_off`
        only where there are such things.
    """
    problem = problem_of(envs)
    count = len(next(iter(starts.values())))
    record = _empty_record(problem, count, truncates=bool(getattr(policy, "truncation", False)))
    rows = _Rows(envs, starts, count, seed)
    choose = _chooser(policy, problem, generator, cache)
    actions = np.zeros(envs.num_envs, dtype=np.int64)
    while True:
        rows.refill()
        if problem.constraint is not None:  # a row that is not played may run, left by whoever used it last
            actions = rows.infos["action_mask"].argmax(axis=1)
        running = np.flatnonzero(rows.running)
        if not len(running):
            return record
        episode, step = rows.episode[running], rows.step[running]
        taken = choose(tokens_of(rows.observations)[running], rows.infos, running)
        actions[running] = taken["actions"]
        rewards, ended = rows.play(actions)
        for name, values in (taken | {"mask": True, "rewards": rewards[running]}).items():
            record[name][episode, step] = values
        if ended.any():
            finished = np.flatnonzero(ended)
            _keep_ends(record, rows.episode[finished], tokens_of(rows.observations)[finished], rows.infos, finished)


class _Rows:
    """The rows of an environment, and which episode each is at."""

    def __init__(self, envs: VectorEnv, starts: dict[str, list[Any]], count: int, seed: int | None) -> None:
        self.envs, self.starts, self.count, self.seed = envs, starts, count, seed
        self.started = 0  # episodes so far
        self.running = np.zeros(envs.num_envs, dtype=bool)
        self.episode = np.zeros(envs.num_envs, dtype=np.int64)
        self.step = np.zeros(envs.num_envs, dtype=np.int64)
        self.observations: Any = None
        self.infos: dict[str, Any] = {}

    def refill(self) -> None:
        """Start the next episodes where half the rows or more stand idle: many prompts at once are cheaper to read."""
        idle = np.flatnonzero(~self.running)
        if self.started == self.count or 2 * len(idle) < self.envs.num_envs:
            return
        used = idle[: self.count - self.started]
        episodes = self.started + np.arange(len(used))
        # Rows that are not reset need a value too; it is not looked at.
        place = np.full(self.envs.num_envs, episodes[0])
        place[used] = episodes
        options = {name: [values[index] for index in place] for name, values in self.starts.items()}
        mask = np.isin(np.arange(self.envs.num_envs), used)
        self.observations, self.infos = self.envs.reset(seed=self.seed, options={"rows": options, "reset_mask": mask})
        self.seed = None  # the rows' generators go on
        self.running[used], self.episode[used], self.step[used] = True, episodes, 0
        self.started += len(used)

    def play(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step; the rewards of all rows, float64 [N], and the rows whose episode ended, bool [N]."""
        self.observations, rewards, terminated, truncated, self.infos = self.envs.step(actions)
        ended = self.running & (terminated | truncated)
        self.step[self.running] += 1
        self.running &= ~ended
        return rewards, ended


def _chooser(
    policy: Any, problem: Problem, generator: "torch.Generator | None", cache: Any
) -> Callable[[np.ndarray, dict[str, Any], np.ndarray], dict[str, np.ndarray]]:
    """What asks the policy, and returns by name what a rollout keeps of its answer."""
    fixed: dict[str, Any] = {"generator": generator}
    if cache is not None:
        cache.forget()
        fixed["cache"] = cache
    elif callable(getattr(policy, "prefix_cache", None)):
        fixed["cache"] = policy.prefix_cache()
    truncates = bool(getattr(policy, "truncation", False))

    def choose(histories: np.ndarray, infos: dict[str, Any], rows: np.ndarray) -> dict[str, np.ndarray]:
        legal = {} if problem.constraint is None else {"action_mask": infos["action_mask"][rows] != 0}
        if not truncates:
            actions, log_probs = policy.act(histories, **fixed, **legal)
            return {"actions": actions, "log_probs": log_probs, **legal}
        actions, log_probs, support = policy.choose(histories, **fixed, **legal)
        return {"actions": actions, "log_probs": log_probs, "cut_off": np.packbits(~support, axis=-1), **legal}

    return choose


def _keep_ends(
    record: dict[str, np.ndarray], episodes: np.ndarray, tokens: np.ndarray, infos: dict[str, Any], rows: np.ndarray
) -> None:
    assert (infos["finish_reason"][rows] != FinishReason.RUNNING).all()
    record["tokens"][episodes] = tokens
    for name in record.keys() & {*_REPORTED, "true_score"}:
        record[name][episodes] = infos[name][rows]


def _empty_record(problem: Problem, count: int, truncates: bool) -> dict[str, np.ndarray]:
    steps, functions, size = (count, problem.max_new_tokens), len(problem.reward.names), problem.vocabulary.size
    record = {
        "tokens": np.full((count, problem.max_length), problem.vocabulary.pad_id, dtype=np.int64),
        "actions": np.zeros(steps, dtype=np.int64),
        "mask": np.zeros(steps, dtype=bool),
        "log_probs": np.zeros(steps, dtype=np.float32),
        "rewards": np.zeros(steps),
        "prompt_length": np.zeros(count, dtype=np.int64),
        "length": np.zeros(count, dtype=np.int64),
        "score": np.zeros(count),
        "scores": np.zeros((count, functions)),
        "scores_valid": np.zeros((count, functions), dtype=bool),
        "valid": np.zeros(count, dtype=bool),
        "finish_reason": np.zeros(count, dtype=np.int64),
    }
    if problem.constraint is not None:
        record["action_mask"] = np.ones((*steps, size), dtype=bool)
    if problem.true_reward is not None:
        record["true_score"] = np.zeros(count)
    if truncates:
        # Zeros, whose memory the system gives when it is written to: few episodes are as long as the horizon.
        record["cut_off"] = np.zeros((*steps, -(-size // 8)), dtype=np.uint8)
    return record
