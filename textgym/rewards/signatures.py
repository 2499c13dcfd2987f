"""What a function asks for by name: its keywords, and the two other shapes that run as reward functions unchanged.

TRL's functions may name `trainer_state`, `log_extra` and `log_metric`; reasoning-gym's `score_answer(answer, entry)`
scores one text a call.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from textgym.escape import told
from textgym.rewards.values import Refused


class Accepts(NamedTuple):
    """The keywords of a function."""

    names: frozenset[str]  # those that it names
    needed: frozenset[str]  # those of them without a default
    others: bool  # it takes any others too

    @property
    def columns(self) -> frozenset[str] | None:
        """The names that reach it, None for all."""
        return None if self.others else self.names


def accepts(function: Callable[..., Any]) -> Accepts:
    """The keywords of a function; one without a signature, as some builtins are, takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Accepts(frozenset(), frozenset(), True)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [parameter for parameter in parameters if parameter.kind in by_name]
    return Accepts(
        frozenset(parameter.name for parameter in named),
        frozenset(parameter.name for parameter in named if parameter.default is parameter.empty),
        any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters),
    )


def own_name(function: Callable[..., Any]) -> str:
    """The function's own name, or that of its class."""
    return str(getattr(function, "__name__", type(function).__name__))


def _unheard(*_: Any, **__: Any) -> None:
    """Stands for TRL's `log_extra(column, values)` and `log_metric(name, value)`."""


TRAINER_KEYWORDS: dict[str, Any] = {"trainer_state": None, "log_extra": _unheard, "log_metric": _unheard}


def trainer_keywords(names: frozenset[str]) -> dict[str, Any]:
    """What TRL's trainer hands to a function that names it, without a trainer: no state, and logs that nobody reads."""
    return {name: value for name, value in TRAINER_KEYWORDS.items() if name in names}


def as_batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or one that calls `score_answer(answer, entry)` for each completion."""
    names, _, others = accepts(function)
    of_texts = names & {"prompts", "completions", "completion_ids"}
    return _EachAnswer(function) if {"answer", "entry"} <= names and not of_texts and not others else function


class _EachAnswer:
    """A function of one answer as a function of all completions; `entry` is a column, the row of the data set."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = own_name(function)
        self._function = function

    def __call__(self, *, completions: list[str], entry: list[Any] | None = None) -> list[Any]:
        if entry is None:
            raise Refused("asks for the column 'entry', which the prompts do not have; give each row its 'entry'")
        return [self._score(row, *pair) for row, pair in enumerate(zip(completions, entry, strict=True))]

    def _score(self, row: int, answer: str, entry: Any) -> Any:
        try:
            return self._function(answer=answer, entry=entry)
        except (Exception, SystemExit) as error:
            raise Refused(f"raised {told(error)}", row) from error
