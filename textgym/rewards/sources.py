"""Find the functions that a keyword such as `reward` describes: functions, places that name one, lists and dicts.

A file is imported under a name of its own, with its neighbours in reach; what is then done with a function is left to
the reward.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from textgym.errors import did_you_mean
from textgym.escape import excerpt, shown, told, type_name
from textgym.rewards.signatures import own_name
from textgym.rewards.values import finite_number

_ONE = "a function, 'module:function' or 'file.py:function'"


class Named(NamedTuple):
    """A function, what errors and metrics call it, and its share of the score."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    place: str | None = None  # "module:function" or "/folder/file.py:function", where one was given


def named_functions(reward: Any, keyword: str = "reward") -> list[Named]:
    """The functions that the value of a keyword describes.

    Args:
        reward: a function, "module:function", "file.py:function", a list of those, or a dict of name to one of those or
            to (one of those, weight).
        keyword: what errors call the value.

    Returns:
        At least one; names are told apart (`score`, `score_2`).

    Raises:
        FileNotFoundError, ImportError, AttributeError, TypeError, ValueError: one cannot be found or called, or its
            name or weight is malformed.

    >>> [(name, weight) for name, _, weight, _ in named_functions([len, len])], named_functions({"a": (len, 2)})[0][2]
    ([('len', 1.0), ('len_2', 1.0)], 2.0)
    """
    if isinstance(reward, list | tuple | dict) and not reward:
        raise ValueError(f"{keyword} is empty; give at least one function")
    if isinstance(reward, dict):
        return [_weighted(name, value, keyword) for name, value in reward.items()]
    if isinstance(reward, list | tuple):
        found = [_found(value, f"{keyword}[{index}]", keyword) for index, value in enumerate(reward)]
        names = _told_apart([name for name, *_ in found])
        return [one._replace(name=name) for name, one in zip(names, found, strict=True)]
    return [_found(reward, keyword, keyword)]


def _weighted(name: Any, value: Any, keyword: str) -> Named:
    if not isinstance(name, str) or not name:
        raise TypeError(f"{keyword} has the name {shown(name)} of type {type_name(name)}; give a str that is not empty")
    what = f"{keyword}[{excerpt(name)}]"
    if not isinstance(value, list | tuple):
        return _found(value, what, keyword)._replace(name=name)
    if len(value) != 2:
        raise ValueError(f"{what} has {len(value)} parts; give a function, or (function, weight)")
    weight = finite_number(value[1], f"the weight of {what}")
    return _found(value[0], f"{what}[0]", keyword)._replace(name=name, weight=weight)


def _told_apart(names: Sequence[str]) -> list[str]:
    taken: dict[str, None] = {}
    for name in names:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken[free] = None
    return list(taken)


def _found(value: Any, what: str, keyword: str) -> Named:
    if isinstance(value, str):
        function = import_function(value, keyword)
        return Named(own_name(function), function, place=_absolute(value))
    if not callable(value):
        hint = "; for weights, give a dict of name to (function, weight)" if what != keyword else ""
        raise TypeError(f"{what} is {shown(value)} of type {type_name(value)}; give {_ONE}{hint}")
    return Named(own_name(value), value)


def _absolute(place: str) -> str:
    source, _, name = place.rpartition(":")
    return f"{Path(source).resolve()}:{name}" if source.endswith(".py") else place


def importable_place(function: Any, name: str) -> str:
    """The "module:function" that a function can be imported from once more.

    Raises:
        ValueError: there is none: it is made by running code, or stands in the script that runs.
    """
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module in ("__main__", "__mp_main__"):
        why = "it is defined in the script that runs, which is not run a second time"
    elif not isinstance(module, str) or not isinstance(path, str):
        why = f"it is an object of type {type_name(function)}, not a function of a module"
    elif "<" in path:
        why = "it is a lambda or is defined inside another function"
    elif _follow(sys.modules.get(module), path) is not function:
        why = f"{module}:{path} is another object"
    else:
        return f"{module}:{path}"
    raise ValueError(
        f"{excerpt(name)} cannot be isolated: {why}. isolate_reward=True needs a function that can be imported again; "
        "put it at the top level of a file of its own and give 'file.py:function'"
    )


def _follow(module: Any, path: str) -> Any:
    """The object at a dotted path, None where there is none."""
    for part in path.split("."):
        module = getattr(module, part, None)
    return module


def import_function(place: str, keyword: str = "reward", must_be_callable: bool = True) -> Callable[..., Any]:
    """The function, or another object, of "module:function" or "file.py:function".

    Raises:
        FileNotFoundError, ImportError, AttributeError, TypeError, ValueError: it cannot be found or called.

    >>> import_function("math:hypot")(3, 4)
    5.0
    """
    source, colon, name = place.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{keyword} {place!r} is not a place; write 'module:function' or 'file.py:function'")
    module = _import_file(Path(source), keyword) if source.endswith(".py") else _import_module(source, keyword)
    function = _follow(module, name)
    if function is None:
        raise AttributeError(f"{keyword} {place!r}: {source!r} has no {name!r}.{did_you_mean(name, vars(module))}")
    if must_be_callable and not callable(function):
        raise TypeError(f"{keyword} {place!r} is of type {type_name(function)}; name a function")
    return function


def _import_file(path: Path, keyword: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{keyword}: there is no file {str(path)!r}")
    name = f"textgym_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        folder = path.resolve().parent
        with _on_path(folder), _own_neighbours(folder):  # where Python looks for the neighbours of a script
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)  # half made
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, Exception | SystemExit):
            raise ImportError(f"{keyword} file {str(path)!r} {_why_not_imported(error)}") from error
        raise
    return module


def _import_module(name: str, keyword: str) -> ModuleType:
    if name.startswith("."):
        raise ValueError(
            f"{keyword} module {name!r} is a relative name; write the full one, 'package.module:function', or "
            "'file.py:function'"
        )
    try:
        with _on_path(Path.cwd()):  # a console script, unlike `python`, does not have it there
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importlib itself takes a half-made module away
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise ImportError(
                f"{keyword} module {name!r} is not found ({told(error)}); for a file, write {name + '.py:...'!r}"
            ) from error
        raise ImportError(f"{keyword} module {name!r} {_why_not_imported(error)}") from error


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


_neighbours: dict[str, Path] = {}  # modules and packages that a file imported from its own folder, and that folder


@contextmanager
def _own_neighbours(folder: Path) -> Iterator[None]:
    """A neighbour of a file in another folder does not stand in for the one of this folder that shares its name.

    The first keeps its name in `sys.modules`; a later one lives on in the file that imported it.
    """
    others = {name for name, home in _neighbours.items() if home != folder and _stands_in(folder, name)}
    before = set(sys.modules)
    hidden = {name: sys.modules.pop(name) for name in before if _root(name) in others}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _root(name) in others]:
            del sys.modules[name]
        sys.modules.update(hidden)
        new = {_root(name) for name in set(sys.modules) - before}
        _neighbours.update({name: folder for name in new if _stands_in(folder, name)})


def _root(name: str) -> str:
    return name.partition(".")[0]


def _stands_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()
