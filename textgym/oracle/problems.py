"""What is to be solved: the problem behind an environment, a task or its name, and the weights of its prompts.

Refuses what has no exact value: rewards that draw, and for a tree prompts that a function draws. How large a tree may
be is left to `textgym.oracle.size`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from textgym.errors import unknown
from textgym.escape import shown, type_name
from textgym.problem import Problem, make_problem
from textgym.rewards import load_reward
from textgym.tasks import TASKS
from textgym.tasks.base import Task


def problem_of(env: Any) -> Problem:
    """The problem of an environment (scalar or vector, wrapped or not), of a `Problem`, a `Task` or a task's name.

    Raises:
        TypeError, ValueError: something else, no such task, or a reward that draws.
    """
    if isinstance(env, str):
        if env not in TASKS:
            raise ValueError(unknown("task", env, TASKS))
        env = make_problem(task=env)
    elif isinstance(env, Task):
        env = _problem_of_task(env)
    problem = env if isinstance(env, Problem) else getattr(getattr(env, "unwrapped", env), "problem", None)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{shown(env)} of type {type_name(env)} is neither an environment nor a task; give a TextGen-v0 "
            "environment, a task such as textgym.make_task('sort'), or a task's name"
        )
    _check_not_drawn(problem)
    return problem


def check_listed(problem: Problem) -> None:
    """Refuse prompts that are not a list.

    Raises:
        ValueError: they come from a function.
    """
    if not problem.prompts.sized:
        raise ValueError(
            "the prompts come from a function, so that there is no list of them to enumerate; give prompts= a list"
        )


def prompt_weights(weights: Any, count: int) -> np.ndarray:
    """The probability of each prompt, float64 [P].

    Args:
        weights: P numbers that need not sum to 1; None for the environment's own draw, each prompt alike.
        count: P.

    Raises:
        TypeError, ValueError: no P finite numbers of at least 0 with a sum above 0.
    """
    if weights is None:
        return np.full(count, 1 / count)
    try:
        given = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"weights is {shown(weights)} of type {type_name(weights)}; give {count} numbers") from error
    if given.shape != (count,):
        raise ValueError(f"weights has the shape {given.shape}; give one number for each of the {count} prompts")
    bad = ~(np.isfinite(given) & (given >= 0))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"weights[{place}] is {given[place]}; give finite numbers of at least 0")
    with np.errstate(over="ignore"):
        total = given.sum()
    if not 0 < total < np.inf:
        raise ValueError(f"weights add up to {total}; give at least one above 0, and a finite sum")
    return given / total


def _problem_of_task(task: Task) -> Problem:
    """The problem that `gym.make` would build of a task that need not be registered."""
    problem = make_problem(
        prompts=task.prompts,
        tokenizer=list(task.tokenizer),
        reward=task.reward,
        max_new_tokens=task.max_new_tokens,
        max_prompt_tokens=task.max_prompt_tokens,
    )
    return replace(
        problem,
        true_reward=None if task.true_reward is None else load_reward(task.true_reward, what="true reward function"),
        constraint=task.constraint,
        automaton=task.automaton,
        task=task,
        optimum=task.optimum,
        uniform=task.uniform,
    )


def _check_not_drawn(problem: Problem) -> None:
    if problem.draws:
        names = [shown(name) for scorer in problem.scorers if scorer.draws for name in scorer.names]
        raise ValueError(
            f"the reward is drawn: {'one of ' if len(names) > 1 else ''}{', '.join(names)} asks for a generator, rng, "
            "and an exact value needs a score that is the same each time; give reward= its expectation instead"
        )
