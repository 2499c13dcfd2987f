"""Playing: which environments can be driven, and one episode in each of their rows, as arrays.

Every episode is played to its end. Which prompts are played, and how often, is left to `agents.rollout`.
"""

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
        where a token is legal.
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
) -> dict[str, np.ndarray]:
    """Play one episode in each of the first n rows to its end.

    Args:
        policy: acts.
        envs: what `rollout_env` returns.
        starts: reset options with one value an episode, n of them; n is at most the number of rows.
        seed: seeds the generators of the rows, which reward functions may draw with; None lets them go on.
        generator: draws the actions; the policy's own without one.

    Returns:
        The arrays of a `Rollout` by name, the steps as wide as the horizon; `action_mask` and `true_score` only where
        the task has them.
    """
    problem, count = problem_of(envs), len(next(iter(starts.values())))
    used = np.arange(envs.num_envs) < count
    # Rows that are not used need a value too; it is not looked at.
    rows = {name: values + values[:1] * (envs.num_envs - count) for name, values in starts.items()}
    observations, infos = envs.reset(seed=seed, options={"rows": rows, "reset_mask": used})
    steps = _empty_steps(problem, count)
    actions = np.zeros(envs.num_envs, dtype=np.int64)
    running = np.arange(count)
    for step in range(problem.max_new_tokens):
        legal = {} if problem.constraint is None else {"action_mask": infos["action_mask"][running] != 0}
        actions[running], log_probs = policy.act(tokens_of(observations)[running], generator=generator, **legal)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        taken = {"actions": actions[running], "mask": True, "log_probs": log_probs, "rewards": rewards[running]}
        for name, values in (taken | legal).items():
            steps[name][running, step] = values
        running = running[~(terminated | truncated)[running]]
        if not len(running):
            break
    assert not len(running), "an episode outlived the horizon"
    names = _REPORTED if problem.true_reward is None else (*_REPORTED, "true_score")
    ends = {name: infos[name][:count] for name in names}
    assert (ends["finish_reason"] != FinishReason.RUNNING).all()
    # A copy: the next episodes may be written over the observations.
    return {"tokens": tokens_of(observations)[:count].copy(), **ends, **steps}


def _empty_steps(problem: Problem, count: int) -> dict[str, np.ndarray]:
    shape = (count, problem.max_new_tokens)
    steps = {
        "actions": np.zeros(shape, dtype=np.int64),
        "mask": np.zeros(shape, dtype=bool),
        "log_probs": np.zeros(shape, dtype=np.float32),
        "rewards": np.zeros(shape),
    }
    if problem.constraint is not None:
        steps["action_mask"] = np.ones((*shape, problem.vocabulary.size), dtype=bool)
    return steps
