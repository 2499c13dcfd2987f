"""`textgym tasks`: the built-in tasks as plain tables; needs nothing beyond the base install."""

import argparse
from collections.abc import Sequence

import numpy as np

from agents.tables import aligned
from textgym.errors import unknown
from textgym.escape import escape, excerpt
from textgym.tasks import TASKS, make_task
from textgym.tasks.base import Task, TaskFamily

_NUMBERS = ("tokens", "horizon", "prompts", "optimum", "uniform")
_LEGEND = (
    "tokens: V, the stop token included. horizon: W, the most tokens of a completion. optimum: the mean score of the\n"
    "best policy. uniform: that of the policy that draws every legal token with the same probability."
)


def tasks(arguments: Sequence[str]) -> str:
    """What the command prints: every task, or the levels of the one that is named.

    Ends the process with 2 at a flag that is not one, with 0 after the help.

    Raises:
        ValueError: no such task.
    """
    parser = argparse.ArgumentParser(prog="textgym tasks", description="List the built-in tasks, or show one of them.")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a task: show its levels, and a prompt with a right answer"
    )
    name = parser.parse_args(arguments).name
    if name is None:
        return list_tasks()
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return show_task(TASKS[name])


def list_tasks() -> str:
    """Every task on a line, with the numbers of its easiest level."""
    rows: list[tuple[str, ...]] = [("task", "levels", *_NUMBERS, "what is asked; what it diagnoses")]
    for name in sorted(TASKS):
        family = TASKS[name]
        levels = ",".join(map(str, family.levels))
        rows.append((name, levels, *_numbers(make_task(name)), escape(family.description)))
    command = "Numbers of the easiest level; `textgym tasks NAME` shows every one."
    return f"{aligned(rows, _NUMBERS)}\n\n{_LEGEND}\n{command}"


def show_task(family: TaskFamily) -> str:
    """The levels of a task, a line each, and a prompt of the easiest one with a right answer."""
    made = [make_task(family.name, level) for level in family.levels]
    rows: list[tuple[str, ...]] = [("level", *_NUMBERS, "")]
    for task in made:
        own = "" if task.description == family.description else escape(task.description)
        rows.append((str(task.level), *_numbers(task), own))
    parts = [f"{family.name}: {escape(family.description)}", aligned(rows, _NUMBERS), _LEGEND]
    if any(task.constraint is not None for task in made):
        parts.append("A constraint says which tokens are legal next.")
    if any(task.true_reward is not None for task in made):
        parts.append("The reward is a proxy; the true score is reported beside it and never paid.")
    return "\n\n".join([*parts, _example(made[0])])


def _numbers(task: Task) -> tuple[str, ...]:
    sizes = (len(task.tokenizer), task.max_new_tokens, len(task.prompts))
    return (*map(_count, sizes), *map(_known, (task.optimum, task.uniform)))


def _count(number: int) -> str:
    """A whole number; its order of magnitude where it is long.

    >>> _count(4096), _count(10**10)
    ('4096', '1.0e+10')
    """
    return str(number) if number < 10**6 else f"{number:.1e}"


def _known(value: float | None) -> str:
    """Three digits of a return, or that it is not known.

    >>> _known(1.0), _known(8.0**-16), _known(None)
    ('1', '3.55e-15', 'unknown')
    """
    return "unknown" if value is None else f"{value:.3g}"


def _example(task: Task) -> str:
    """A prompt that stands for the others, drawn with a fixed seed, and what to write after it."""
    row = task.prompts[int(np.random.default_rng(0).integers(len(task.prompts)))]
    prompt = row if isinstance(row, str) else row["prompt"]
    symbols = " ".join(escape(symbol) for symbol in task.tokenizer)
    answer = "" if task.solution is None else f"   a right answer: {excerpt(task.solution(prompt))}"
    return f"level {task.level}, tokens: {symbols}\nlevel {task.level}, prompt: {excerpt(prompt)}{answer}"
