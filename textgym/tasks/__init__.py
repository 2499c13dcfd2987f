"""The tasks: a table of the built-in ones, one file each, which `register_task` adds a user's own to."""

import functools
import operator
from collections.abc import Callable, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

from textgym.errors import unknown
from textgym.escape import escape, shown, type_name
from textgym.tasks import (
    addition,
    bandit,
    brackets,
    combination_lock,
    copy,
    delayed_bit,
    length_trap,
    memorise,
    noisy_verifier,
    palindrome,
    regex,
    reverse,
    sort,
)
from textgym.tasks.base import Task, TaskFamily, check_name, is_integer


def _family(module: ModuleType) -> TaskFamily:
    name = module.__name__.rpartition(".")[2]
    return TaskFamily(name, module.make, tuple(module.LEVELS), module.DESCRIPTION)


TASKS: dict[str, TaskFamily] = {
    family.name: family
    for family in (
        _family(addition),
        _family(bandit),
        _family(brackets),
        _family(combination_lock),
        _family(copy),
        _family(delayed_bit),
        _family(length_trap),
        _family(memorise),
        _family(noisy_verifier),
        _family(palindrome),
        _family(regex),
        _family(reverse),
        _family(sort),
    )
}
DEFAULT_TASK = "sort"
_BUILT_IN = MappingProxyType(dict(TASKS))


def make_task(name: str, level: int | None = None) -> Task:
    """A built-in or registered task.

    Args:
        name: one of `TASKS`.
        level: its difficulty; the lowest, the easiest, by default.

    Raises:
        TypeError, ValueError: no such task, no such level of it, or what a registered function made is no such task.

    >>> make_task("sort").optimum
    1.0
    """
    if not isinstance(name, str):
        raise TypeError(f"task is {shown(name)} of type {type_name(name)}; give one of {', '.join(sorted(TASKS))}")
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    family = TASKS[name]
    if level is None:
        level = family.levels[0]
    if not is_integer(level):
        raise TypeError(f"level is {shown(level)} of type {type_name(level)}; give an integer")
    if level not in family.levels:
        raise ValueError(f"level={level} of task {name!r}; allowed: {', '.join(map(str, family.levels))}")
    level = operator.index(level)
    return _built_in(name, level) if family is _BUILT_IN.get(name) else family.task(level)


@functools.cache  # a task is immutable, and a vector of scalar environments asks for it once a row
def _built_in(name: str, level: int) -> Task:
    return _BUILT_IN[name].task(level)


def register_task(
    name: str, make: Callable[[int], Task] | None = None, levels: Sequence[int] = (1,), description: str = ""
) -> Any:
    """Add a task of your own, for `gym.make("TextGen-v0", task=name, level=level)`.

    Also a decorator: `@textgym.register_task("vowels", levels=(1, 2))`.

    Args:
        name: letters, digits, `_` and `-`.
        make: makes the `textgym.Task` of a level.
        levels: what `level=` may be; the lowest is the default.
        description: one line: what is asked, and what it diagnoses.

    Returns:
        `make`, unchanged; without it, the decorator.

    Raises:
        TypeError, ValueError: an argument of a wrong type or out of range, or a name that another function has.
    """
    check_name(name)  # before a decorator without its name takes the function for one
    if make is None:
        return functools.partial(register_task, name, levels=levels, description=description)
    family = TaskFamily(name, make, levels, description)  # type: ignore[arg-type]  # any sequence becomes a tuple
    known = TASKS.get(name)
    if known is not None and (name in _BUILT_IN or known.make != make):
        way_out = "" if name in _BUILT_IN else f", or take the other away first: del textgym.TASKS[{name!r}]"
        place = f"{known.make.__module__}.{getattr(known.make, '__qualname__', type(known.make).__qualname__)}"
        raise ValueError(f"the task name {name!r} is taken, by {escape(place)}; give another name{way_out}")
    TASKS[name] = family
    return make
