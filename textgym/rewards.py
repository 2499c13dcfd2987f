"""Score whole texts with a user's function, and refuse anything that is not one finite number per text.

The call is TRL's: by keyword, batched, `f(prompts=, completions=, completion_ids=, **columns)`. When and how a score is
paid along the trajectory is the scheme's business, not this module's.
"""

import copy
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections import UserString
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from textgym.errors import NotBuiltError, RewardError, did_you_mean
from textgym.escape import escape, excerpt, shown, told, type_name

_CONSTANT = frozenset({str, int, float, bool, type(None)})  # values of these types cannot be changed in place


class Texts(NamedTuple):
    """What a reward function sees: n texts."""

    prompts: list[str]
    completions: list[str]  # without the stop token
    completion_ids: list[list[int]]  # the stop token included
    columns: dict[str, list[Any]]  # n values each

    def keywords(self, accepted: Collection[str] | None = None) -> dict[str, list[Any]]:
        """The keyword arguments of a call, all or the accepted ones.

        The function may change what it gets: rows and calls share no value of a column that can be changed in place.
        """
        texts: dict[str, list[Any]] = {
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completion_ids": [list(ids) for ids in self.completion_ids],
        }
        columns = {
            name: [value if type(value) in _CONSTANT else _own_copy(value) for value in values]
            for name, values in self.columns.items()
            if accepted is None or name in accepted
        }
        return {name: values for name, values in texts.items() if accepted is None or name in accepted} | columns


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
        self.name = escape(name or str(getattr(function, "__name__", type(function).__name__)))
        self.names = (self.name,)
        self._accepted = _accepted_keywords(function, self.name)

    def __call__(self, texts: Texts) -> Scores:
        """Score n texts.

        Raises:
            RewardError: the function raised, or returned a wrong count, a wrong type, None, NaN or an infinity.
        """
        try:
            returned = self.function(**texts.keywords(self._accepted))
        except (Exception, SystemExit) as error:
            raise RewardError(self._about(texts, 0, f"raised {told(error)}")) from error
        score = self._numbers(returned, texts)
        return Scores(score, score[:, None].copy(), np.ones((len(score), 1), dtype=bool))

    def _numbers(self, returned: Any, texts: Texts) -> np.ndarray:
        """The returned numbers, float64 [n]; whatever reading them raises is the function's failure."""
        score, row = np.zeros(len(texts.completions)), 0
        try:
            for row, value in enumerate(_values(returned, len(score))):  # noqa: B007, the error names the row
                score[row] = _number(value)
        except _RefusedValue as error:
            raise RewardError(self._about(texts, row, str(error))) from None
        except (Exception, SystemExit) as error:
            problem = f"returned what cannot be read as a number per completion: {told(error)}"
            raise RewardError(self._about(texts, row, problem)) from error
        return score

    def _about(self, texts: Texts, row: int, problem: str) -> str:
        others = f" (completion {row} of {len(texts.completions)} in this call)" if len(texts.completions) > 1 else ""
        return (
            f"reward function '{self.name}' {problem}{others}\n"
            f"  prompt: {excerpt(texts.prompts[row])}\n"
            f"  completion: {excerpt(texts.completions[row])}"
        )


class _RefusedValue(ValueError):
    """What a reward function returned is not one finite number per completion."""


def _values(returned: Any, count: int) -> list[Any]:
    """The `count` values of a list, another sequence or a one-dimensional array; a set or a view has no order."""
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()
        raise _RefusedValue("returned an awaitable; async reward functions are not built yet")
    is_text = isinstance(returned, str | bytes | bytearray | memoryview | UserString)
    is_list = isinstance(returned, Sequence) or getattr(returned, "ndim", None) == 1  # an array, a torch tensor
    if is_text or not is_list or isinstance(returned, np.ma.MaskedArray):
        raise _RefusedValue(f"returned {shown(returned)} of type {type_name(returned)}; return a list of floats")
    values = list(islice(returned, count)) if len(returned) == count else []
    if len(values) != count:
        raise _RefusedValue(f"returned {len(returned)} values for {count} completions; return one for each")
    return values


def _number(value: Any) -> float:
    """A finite float of a returned number or an array without dimensions."""
    if value is None:
        raise _RefusedValue("returned None, and no other function scores this completion")
    number = value
    if isinstance(value, np.ndarray):
        number = value[()] if value.ndim == 0 and not isinstance(value, np.ma.MaskedArray) else None
    elif not isinstance(value, numbers.Real) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        number = value.item()  # a torch tensor
    if not isinstance(number, numbers.Real | np.bool_) or isinstance(number, np.timedelta64):
        raise _RefusedValue(f"returned {shown(value)} of type {type_name(value)}; return a float")
    number = float(number)
    if not math.isfinite(number):
        raise _RefusedValue(f"returned {number}; return a finite number")
    return number


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
            f"reward is {shown(reward)} of type {type_name(reward)}; give a function, 'module:function' or "
            "'file.py:function'"
        )
    return Reward(reward)


def _own_copy(value: Any) -> Any:
    """A deep copy; the value itself where Python cannot copy it, a lock or an open connection."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


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
        raise AttributeError(f"reward {place!r}: {source!r} has no {name!r}.{did_you_mean(name, vars(module))}")
    if not callable(function):
        raise TypeError(f"reward {place!r} is of type {type_name(function)}; name a function")
    return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"reward: there is no file {str(path)!r}")
    name = f"textgym_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        with _on_path(path.resolve().parent):  # where Python looks for the neighbours of a script
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)  # half made
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, Exception | SystemExit):
            raise ImportError(f"reward file {str(path)!r} {_why_not_imported(error)}") from error
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if name.startswith("."):
        raise ValueError(
            f"reward module {name!r} is a relative name; write the full one, 'package.module:function', or "
            "'file.py:function'"
        )
    try:
        with _on_path(Path.cwd()):  # a console script, unlike `python`, does not have it there
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importlib itself takes a half-made module away
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ImportError(
                f"reward module {name!r} is not found ({told(error)}); for a file, write {name + '.py:...'!r}"
            ) from error
        raise ImportError(f"reward module {name!r} {_why_not_imported(error)}") from error


def _why_not_imported(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"imports a module that is not found ({told(error)}); install it, or put it next to the file"
    if isinstance(error, SystemExit):
        return f"raised {told(error)} while it was imported; keep what ends the process out of an imported module"
    return f"raised {told(error)} while it was imported"


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported, before any others."""
    importlib.invalidate_caches()  # a file may have been written just now
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:  # the module may have changed the path itself
            sys.path.remove(entry)
