"""Score whole texts with a user's function, and refuse anything that is not one finite number per text.

The call is TRL's: by keyword, batched, `f(prompts=, completions=, completion_ids=, **columns)`. When and how a score is
paid along the trajectory is the scheme's business, not this module's.
"""

import importlib
import importlib.util
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from textgym.errors import NotBuiltError, RewardError, did_you_mean
from textgym.escape import escape, excerpt


class Texts(NamedTuple):
    """What a reward function sees: n texts."""

    prompts: list[str]
    completions: list[str]  # without the stop token
    completion_ids: list[list[int]]  # the stop token included
    columns: dict[str, list[Any]]  # n values each

    def keywords(self) -> dict[str, list[Any]]:
        """The keyword arguments of the call."""
        return {
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
            **self.columns,
        }


class Scores(NamedTuple):
    """What K reward functions said of n texts."""

    score: np.ndarray  # float64 [n], the weighted sum
    scores: np.ndarray  # float64 [n, K], one a function
    valid: np.ndarray  # bool [n, K], False where a function returned None


class Reward:
    """A reward function with its call contract checked.

    Args:
        function: called by keyword once for all texts that must be scored; returns one number per completion.
        name: what errors and metrics call it; the function's own name by default.

    Attributes:
        names: the name of each function, K of them.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.names = (self.name,)
        self._accepted = _accepted_keywords(function, self.name)

    def __call__(self, texts: Texts) -> Scores:
        """Score n texts.

        Raises:
            RewardError: the function raised, or returned a wrong count, a wrong type, None, NaN or an infinity.
        """
        keywords = texts.keywords()
        if self._accepted is not None:
            keywords = {name: value for name, value in keywords.items() if name in self._accepted}
        try:
            returned = self.function(**keywords)
        except (Exception, SystemExit) as error:
            raise RewardError(self._about(texts, 0, f"raised {type(error).__name__}: {escape(str(error))}")) from error
        score = self._numbers(returned, texts)
        return Scores(score, score[:, None].copy(), np.ones((len(score), 1), dtype=bool))

    def _numbers(self, returned: Any, texts: Texts) -> np.ndarray:
        count = len(texts.completions)
        if inspect.isawaitable(returned):
            if inspect.iscoroutine(returned):
                returned.close()
            raise RewardError(self._about(texts, 0, "returned an awaitable; async reward functions are not built yet"))
        if isinstance(returned, str | bytes | dict) or not hasattr(returned, "__len__"):
            kind = type(returned).__name__
            raise RewardError(
                self._about(texts, 0, f"returned {returned!r:.80} of type {kind}; return a list of floats")
            )
        if len(returned) != count:
            raise RewardError(
                self._about(texts, 0, f"returned {len(returned)} values for {count} completions; return one for each")
            )
        return np.array([self._number(value, texts, row) for row, value in enumerate(returned)], dtype=np.float64)

    def _number(self, value: Any, texts: Texts, row: int) -> float:
        if value is None:
            raise RewardError(self._about(texts, row, "returned None, and no other function scores this completion"))
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, numbers.Real | np.bool_):
            kind = type(value).__name__
            raise RewardError(self._about(texts, row, f"returned {value!r:.80} of type {kind}; return a float"))
        number = float(value)
        if not math.isfinite(number):
            raise RewardError(self._about(texts, row, f"returned {number}; return a finite number"))
        return number

    def _about(self, texts: Texts, row: int, problem: str) -> str:
        others = f" (completion {row} of {len(texts.completions)} in this call)" if len(texts.completions) > 1 else ""
        return (
            f"reward function '{self.name}' {problem}{others}\n"
            f"  prompt: {excerpt(texts.prompts[row])}\n"
            f"  completion: {excerpt(texts.completions[row])}"
        )


def load_reward(reward: Any) -> Reward:
    """The reward that the keyword `reward` describes: a callable, "module:function" or "file.py:function".

    Raises:
        FileNotFoundError, ImportError, AttributeError, TypeError, ValueError: it cannot be found or called.
    """
    if isinstance(reward, str):
        return Reward(_import_function(reward))
    if isinstance(reward, list | tuple | dict):
        raise NotBuiltError("several reward functions are not built yet; give one function that adds them up")
    if not callable(reward):
        raise TypeError(
            f"reward is {reward!r:.80} of type {type(reward).__name__}; give a function, 'module:function' or "
            "'file.py:function'"
        )
    return Reward(reward)


def _accepted_keywords(function: Callable[..., Any], name: str) -> frozenset[str] | None:
    """The keywords that a function names; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    if any(parameter.name == "rng" for parameter in parameters):
        raise NotBuiltError(f"reward function '{name}' names a parameter 'rng', which is not built yet; remove it")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def _import_function(place: str) -> Callable[..., Any]:
    source, colon, name = place.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"reward {place!r} is not a place; write 'module:function' or 'file.py:function'")
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    function = getattr(module, name, None)
    if function is None:
        raise AttributeError(f"reward {place!r}: {source} has no {name!r}.{did_you_mean(name, vars(module))}")
    if not callable(function):
        raise TypeError(f"reward {place!r} is of type {type(function).__name__}; name a function")
    return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"reward: there is no file {str(path)!r}")
    name = f"textgym_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ImportError(f"reward file {str(path)!r} raised {type(error).__name__}: {error}") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        with _current_folder_on_path():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"reward module {name!r} is not found ({error}); for a file, write '{name}.py:...'"
        ) from error


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    # A console script, unlike `python`, does not have the current folder on the path.
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
