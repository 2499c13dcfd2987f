"""The built-in tasks: one file each, one row of this table each."""

import functools
import operator
from types import ModuleType

from textgym.errors import unknown
from textgym.tasks import bandit, reverse, sort
from textgym.tasks.base import Task

TASKS: dict[str, ModuleType] = {"bandit": bandit, "reverse": reverse, "sort": sort}
DEFAULT_TASK = "sort"


def make_task(name: str, level: int | None = None) -> Task:
    """A built-in task.

    Args:
        name: one of `TASKS`.
        level: its difficulty; 1, the easiest, by default.

    Raises:
        TypeError, ValueError: no such task, or no such level of it.

    >>> make_task("sort").optimum
    1.0
    """
    if not isinstance(name, str):
        raise TypeError(f"task is {name!r} of type {type(name).__name__}; give one of {', '.join(sorted(TASKS))}")
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    levels = TASKS[name].LEVELS
    if level is None:
        level = min(levels)
    if isinstance(level, bool) or not hasattr(level, "__index__"):
        raise TypeError(f"level is {level!r} of type {type(level).__name__}; give an integer")
    if level not in levels:
        raise ValueError(f"level={level} of task {name!r}; allowed: {', '.join(map(str, levels))}")
    return _cached(name, operator.index(level))


@functools.cache  # a task is immutable, and a vector of scalar environments asks for it once a row
def _cached(name: str, level: int) -> Task:
    return TASKS[name].make(level)
