"""Score equal texts once: a reward function with a memory, for functions that always say the same of the same text.

What a function says is kept by all that it receives for a text. Errors are never kept, and a text with a column that
has no plain text form (an array, an object) is scored anew each time.
"""

import functools
import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from textgym.escape import excerpt, shown, type_name
from textgym.rewards.plain_json import dumps
from textgym.rewards.signatures import TRAINER_KEYWORDS, accepts, as_batched, own_name
from textgym.rewards.sources import import_function
from textgym.rewards.values import Entry, Refused, read, refusal


def cached(function: Callable[..., Any] | str, max_size: int = 100_000) -> "Cached":
    """A reward function that scores equal texts once.

    Args:
        function: a function, async too, "module:function" or "file.py:function".
        max_size: scores that are kept; the one that was not asked for longest gives way.

    Raises:
        TypeError: it cannot be called, or `max_size` is no integer.
        ValueError: it draws (names `rng`), or `max_size` is below 1.

    >>> length = cached(lambda completions: [len(text) for text in completions])
    >>> length(completions=["a", "bb", "a"]), length.hits, length.misses
    ([1.0, 2.0, 1.0], 1, 2)
    """
    return Cached(import_function(function) if isinstance(function, str) else function, max_size)


class Cached:
    """What `cached` returns; it is called as the function is, and has its name and signature.

    Attributes:
        hits: texts whose score was known, or asked for twice in one call.
        misses: texts that the function was asked for.
    """

    def __init__(self, function: Callable[..., Any], max_size: int) -> None:
        if not callable(function):
            raise TypeError(f"cached: {shown(function)} of type {type_name(function)} is not a function")
        if isinstance(max_size, bool) or not isinstance(max_size, int):
            raise TypeError(f"cached: max_size is {shown(max_size)} of type {type_name(max_size)}; give an integer")
        if max_size < 1:
            raise ValueError(f"cached: max_size={max_size}; give an integer of at least 1")
        if "rng" in accepts(function).names:
            raise ValueError(
                f"cached: {excerpt(own_name(function))} names 'rng', so that equal texts need not score the same; "
                "leave cached out"
            )
        functools.update_wrapper(self, function, updated=())
        self.__name__ = own_name(function)
        self._given, self._function, self._max_size = function, as_batched(function), max_size
        try:
            self.__signature__ = inspect.signature(self._function)
        except (TypeError, ValueError):
            pass  # some builtins have none
        self._scores: OrderedDict[bytes, float | None] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __call__(self, **keywords: Any) -> Any:
        """The scores of the texts, a list; an awaitable of it where the function had to be asked and gave one."""
        columns = {name: values for name, values in keywords.items() if not _is_of_trainer(name, values)}
        if not columns:
            return self._function(**keywords)
        work = _Work(columns)
        with self._lock:
            self._look_up(work)
        if not work.rows:
            return work.entries
        asked = {name: [values[row] for row in work.asked] for name, values in columns.items()}
        try:
            returned = self._function(**(keywords | asked))
        except (Exception, SystemExit) as error:
            raise work.failed(error) from error
        return self._later(returned, work) if inspect.isawaitable(returned) else self._filled(returned, work)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Cached":
        return self  # specs of environments are copied deeply; the scores stay shared

    def __reduce__(self) -> Any:
        return Cached, (self._given, self._max_size)  # another process starts with no scores

    async def _later(self, returned: Any, work: "_Work") -> list[Entry]:
        try:
            returned = await returned
        except (Exception, SystemExit) as error:
            raise work.failed(error) from error
        return self._filled(returned, work)

    def _look_up(self, work: "_Work") -> None:
        for row, key in enumerate(work.keys):
            if key in self._scores:
                work.entries[row] = self._scores[key]
                self._scores.move_to_end(key)
            else:
                work.rows.setdefault(key, []).append(row)
        self.misses += len(work.rows)
        self.hits += len(work.keys) - len(work.rows)

    def _filled(self, returned: Any, work: "_Work") -> list[Entry]:
        entries = read(returned, len(work.rows))
        with self._lock:
            for (key, rows), entry in zip(work.rows.items(), entries, strict=True):
                for row in rows:
                    work.entries[row] = entry
                if isinstance(key, bytes) and not isinstance(entry, Refused):
                    self._scores[key] = entry
            while len(self._scores) > self._max_size:
                self._scores.popitem(last=False)
        return work.entries


class _Work:
    """The texts of one call.

    Attributes:
        keys: what tells a text from others; its row where it cannot be told.
        entries: the score of each text.
        rows: the texts that the function must be asked for, by key.
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        names = sorted(columns)
        texts = zip(*(columns[name] for name in names), strict=True)
        self.keys: list[Any] = [_key(names, values, row) for row, values in enumerate(texts)]
        self.entries: list[Entry] = [None] * len(self.keys)
        self.rows: dict[Any, list[int]] = {}

    @property
    def asked(self) -> list[int]:
        """The first text of each key that the function must be asked for."""
        return [rows[0] for rows in self.rows.values()]

    def failed(self, error: BaseException) -> Refused:
        """The failure of a call for `asked`, with the row that it has among all texts."""
        refused = refusal(error)
        return Refused(str(refused), self.asked[min(refused.row, len(self.rows) - 1)])


def _key(names: list[str], values: tuple[Any, ...], row: int) -> bytes | int:
    try:
        text = dumps([names, *values])
    except TypeError:
        return row
    return hashlib.sha256(text.encode()).digest()


def _is_of_trainer(name: str, values: Any) -> bool:
    return name in TRAINER_KEYWORDS and not isinstance(values, list)
