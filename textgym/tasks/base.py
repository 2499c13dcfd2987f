"""What a task declares, built-in or a user's own.

Checks what can be told without an episode; prompts, rewards and constraints are called by the environment alone.
"""

import math
import numbers
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from textgym.automata import Automaton
from textgym.constraints import Constraint
from textgym.escape import excerpt, shown, type_name
from textgym.prompts import Rows
from textgym.vocabulary import Vocabulary

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]*")  # also part of the name of a run's folder


@dataclass(frozen=True)
class Task:
    """A task: everything that an environment needs, and what is known of its returns.

    Attributes:
        name: what `task=` calls it.
        level: its difficulty, 1 the easiest.
        tokenizer: the symbols; `<eos>` among them is the stop token.
        prompts: rows with a `prompt`; each is drawn with the same probability.
        max_prompt_tokens: tokens of the longest prompt.
        max_new_tokens: the horizon W.
        reward: scores whole texts; those of the built-in tasks within [0, 1].
        optimum: J*, the expected score of the best policy; None where it is not known.
        uniform: J(uniform), the expected score of the policy that draws every legal token with the same probability;
            None where it is not known.
        true_reward: the hidden gold reward, where `reward` is only a proxy of it.
        constraint: which tokens are legal next, bool [V], given the prompt's text, the ids of the completion so far
            and the number of tokens left; None where all are.
        solution: a best completion of a prompt's text, without the stop token, where one is known.
        description: one line: what is asked, and what it diagnoses.
        automaton: tells by the tokens of a completion what `reward` pays for it, whatever the prompt, where there is
            one. The process then folds, and `textgym.oracle` solves it at any horizon; `textgym.oracle.fold` compares
            it with `reward`, on a sample of texts only.

    Raises:
        TypeError, ValueError: an attribute of a wrong type or out of range; the message names the task and attribute.
    """

    name: str
    level: int
    tokenizer: Sequence[str]
    prompts: Rows
    max_prompt_tokens: int
    max_new_tokens: int
    reward: Callable[..., Any]
    optimum: float | None = None
    uniform: float | None = None
    true_reward: Callable[..., Any] | None = None
    constraint: Constraint | None = None
    solution: Callable[[str], str] | None = None
    description: str = ""
    automaton: Automaton | None = None

    def __post_init__(self) -> None:
        for attribute in ("tokenizer", "prompts"):  # tasks are cached: nobody may change a part of one
            if isinstance(getattr(self, attribute), list):
                object.__setattr__(self, attribute, tuple(getattr(self, attribute)))
        check_name(self.name)
        self._check_integer("level")
        self._check_integer("max_prompt_tokens", least=0)
        self._check_integer("max_new_tokens", least=1)
        self._check_symbols()
        self._check_prompts()
        self._check_function("reward", needed=True)
        for attribute in ("true_reward", "constraint", "solution"):
            self._check_function(attribute)
        self._check_automaton()
        self._check_return("optimum")
        self._check_return("uniform")
        if self.optimum is not None and self.uniform is not None and self.uniform > self.optimum:
            raise ValueError(
                f"task {self.name!r}: uniform is {self.uniform}, more than the optimum {self.optimum}; no policy "
                "exceeds the optimum"
            )
        check_description(self.description, f"task {self.name!r}")

    def _check_integer(self, attribute: str, least: int | None = None) -> None:
        value = getattr(self, attribute)
        bound = "" if least is None else f" of at least {least}"
        if not is_integer(value):
            raise TypeError(f"{self._told(attribute)}; give an integer{bound}")
        if least is not None and value < least:
            raise ValueError(f"task {self.name!r}: {attribute}={value}; give an integer{bound}")

    def _check_symbols(self) -> None:
        if isinstance(self.tokenizer, str) or not isinstance(self.tokenizer, Sequence):
            raise TypeError(f"{self._told('tokenizer')}; give a list of symbols, such as ['a', 'b', '<eos>']")
        try:
            Vocabulary.from_symbols(self.tokenizer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"task {self.name!r}: {error}") from None

    def _check_prompts(self) -> None:
        is_rows = hasattr(self.prompts, "__len__") and hasattr(self.prompts, "__getitem__")
        if not is_rows or isinstance(self.prompts, str | bytes | dict):
            raise TypeError(f"{self._told('prompts')}; give a list of str, or of dicts with a 'prompt'")
        if len(self.prompts) == 0:
            raise ValueError(f"task {self.name!r}: prompts is empty; give at least one prompt, '' for none")

    def _check_function(self, attribute: str, needed: bool = False) -> None:
        value = getattr(self, attribute)
        if not callable(value) and (needed or value is not None):
            raise TypeError(f"{self._told(attribute)}; give a function{'' if needed else ', or None'}")

    def _check_automaton(self) -> None:
        automaton = self.automaton
        if automaton is None:
            return
        if not isinstance(automaton, Automaton):
            raise TypeError(f"{self._told('automaton')}; give a textgym.automata.Automaton, or None")
        if automaton.num_tokens != len(self.tokenizer):
            raise ValueError(
                f"task {self.name!r}: the automaton reads {automaton.num_tokens} tokens, and the tokenizer has "
                f"{len(self.tokenizer)}; give transitions [{automaton.num_states}, {len(self.tokenizer)}]"
            )
        if self.constraint is not None:
            raise ValueError(
                f"task {self.name!r} has a constraint and an automaton, which knows of no illegal tokens; leave one out"
            )

    def _check_return(self, attribute: str) -> None:
        value = getattr(self, attribute)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{self._told(attribute)}; give a number, or None where it is not known")
        if not math.isfinite(value):
            raise ValueError(f"task {self.name!r}: {attribute} is {value}; give a finite number, or None")

    def _told(self, attribute: str) -> str:
        value = getattr(self, attribute)
        return f"task {self.name!r}: {attribute} is {shown(value)} of type {type_name(value)}"


@dataclass(frozen=True)
class TaskFamily:
    """A task at all its levels.

    Attributes:
        name: what `task=` calls it.
        make: the task at a level.
        levels: what `level=` may be, ascending; the first is the default.
        description: one line: what is asked, and what it diagnoses.

    Raises:
        TypeError, ValueError: an attribute of a wrong type or out of range.
    """

    name: str
    make: Callable[[int], Task]
    levels: tuple[int, ...] = (1,)
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        where = f"task {self.name!r}"
        if not callable(self.make):
            raise TypeError(
                f"{where}: make is {shown(self.make)} of type {type_name(self.make)}; give a function of the level"
            )
        check_description(self.description, where)
        object.__setattr__(self, "levels", _ascending(self.levels, where))

    def task(self, level: int) -> Task:
        """What `make` makes of a level, checked; its description is the family's where it has none of its own.

        Raises:
            TypeError, ValueError: it is no task, or one of another name or level.
        """
        task = self.make(level)
        if not isinstance(task, Task):
            raise TypeError(
                f"task {self.name!r}: make({level}) returned {shown(task)} of type {type_name(task)}; return a "
                "textgym.Task"
            )
        if (task.name, task.level) != (self.name, level):
            raise ValueError(
                f"task {self.name!r}: make({level}) returned a task with name={task.name!r}, level={task.level}; "
                f"give it name={self.name!r}, level={level}"
            )
        return task if task.description else replace(task, description=self.description)


def check_name(name: Any) -> None:
    """Refuse what cannot be the name of a task."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a task is {shown(name)} of type {type_name(name)}; give a str, such as 'vowels'")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of a task is {excerpt(name)}; give one of letters, digits, '_' and '-' that begins with a "
            "letter or digit"
        )


def check_description(description: Any, where: str) -> None:
    """Refuse a description that is not one line."""
    if not isinstance(description, str):
        raise TypeError(f"{where}: description is {shown(description)} of type {type_name(description)}; give a str")
    if len(description.splitlines()) > 1:
        raise ValueError(f"{where}: description is {excerpt(description)}; give one line")


def is_integer(value: Any) -> bool:
    """Whether a value counts as an integer: Python's or numpy's, no truth value."""
    if isinstance(value, bool | np.bool_) or np.ndim(value) > 0:
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _ascending(levels: Any, where: str) -> tuple[int, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        hint = f"({levels},)" if is_integer(levels) else "(1, 2)"
        raise TypeError(
            f"{where}: levels is {shown(levels)} of type {type_name(levels)}; give a tuple of integers, such as {hint}"
        )
    if len(levels) == 0:
        raise ValueError(f"{where}: levels is empty; give at least one integer, such as (1,)")
    for level in levels:
        if not is_integer(level):
            raise TypeError(f"{where}: levels holds {shown(level)} of type {type_name(level)}; give integers")
    if len(set(levels)) < len(levels):
        raise ValueError(f"{where}: levels is {shown(levels)}; give each level once")
    return tuple(sorted(map(int, levels)))
