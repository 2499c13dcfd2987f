"""Prompts: rows of a `prompt` and any other columns, from lists, files, indexable objects and functions.

How a file is read is left to `textgym.prompt_files`, what a row must hold to `textgym.prompt_rows`.
"""

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from textgym.escape import escape, shown, told, type_name
from textgym.prompt_files import Row, read_file
from textgym.prompt_rows import Prompt, encode_rows
from textgym.vocabulary import Vocabulary

MANY_ROWS = 100_000  # an object with more than these is never read at once
_MEMO_LIMIT = 65_536  # encoded rows of a lazy source that are kept
_ALLOWED = (
    "a list of str or of dicts with a 'prompt', the path of a .txt, .jsonl, .csv or .parquet file, a sized and "
    "indexable object, or a function of a generator"
)


class Rows(Protocol):
    """Anything sized and indexable by an integer."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Prompts:
    """The prompts of an environment, encoded.

    Args:
        rows: a sized and indexable source of str or dict rows, or of a file's rows.
        vocabulary: encodes the text of each row.
        max_tokens: the longest prompt allowed, in tokens; None takes the longest of the rows.
        lazy: rows are read and encoded when first asked for; otherwise all are checked now.

    Attributes:
        sized: whether there are rows to count and to index.
        checked: whether every row has been read: none can fail any more, and all columns are known.
        max_tokens: the longest prompt allowed, in tokens.
        column_names: all columns but `prompt`; a row without one has None there.
        score_answer: how a reasoning-gym dataset scores an answer to one of its entries; None for other sources.
    """

    sized = True
    checked = True
    score_answer: Callable[..., Any] | None = None

    def __init__(self, rows: Rows, vocabulary: Vocabulary, max_tokens: int | None = None, lazy: bool = False) -> None:
        self._count = len(rows)
        if self._count == 0:
            raise ValueError("prompts is empty; give at least one prompt")
        self._rows, self._vocabulary = rows, vocabulary
        self._memo: dict[int, Prompt] | None = None
        if lazy:
            assert max_tokens is not None
            self.checked = False
            self._memo = {}
            self.max_tokens = max_tokens
            self.column_names = tuple(self[0].columns)
        else:
            self._read_all(max_tokens)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Prompt:
        index = operator.index(index)
        if not 0 <= index < self._count:
            raise IndexError(f"prompt {index} of {self._count}")
        if self._memo is None:
            ids = self._ids[self._starts[index] : self._starts[index + 1]]
            return Prompt(self._texts[index], ids, dict(zip(self.column_names, self._values[index], strict=True)))
        prompt = self._memo.get(index)
        if prompt is None:
            prompt = _only(encode_rows([_row(self._rows, index)], self._vocabulary, self.max_tokens))
            if len(self._memo) < _MEMO_LIMIT:
                self._memo[index] = prompt
        return prompt

    def draw(self, generator: np.random.Generator) -> Prompt:
        """A prompt, each with the same probability; takes one integer from the generator."""
        return self[int(generator.integers(len(self)))]

    def _read_all(self, max_tokens: int | None) -> None:
        """Read, check and encode every row, and keep them compactly: one array for all ids, one tuple a row."""
        rows = (_row(self._rows, index) for index in range(self._count))
        prompts = list(_without_problems(encode_rows(rows, self._vocabulary, max_tokens)))
        self._rows = ()  # all that is needed of them is kept below
        lengths = [len(prompt.ids) for prompt in prompts]
        self.max_tokens = max(lengths) if max_tokens is None else max_tokens
        self.column_names = tuple(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
        self._texts = [prompt.text for prompt in prompts]
        self._values = [tuple(map(prompt.columns.get, self.column_names)) for prompt in prompts]
        self._ids = np.concatenate([prompt.ids for prompt in prompts])  # int64 [tokens of all prompts]
        self._ids.flags.writeable = False  # a prompt's ids are a view into it
        self._starts = np.cumsum([0, *lengths])


class DrawnPrompts(Prompts):
    """Prompts that a function makes; there are no rows to count or to index.

    Args:
        function: takes a generator and returns a str or a dict with a 'prompt'.
        vocabulary: encodes the text.
        max_tokens: the longest prompt allowed, in tokens.
    """

    sized = False
    checked = False

    def __init__(self, function: Callable[..., Any], vocabulary: Vocabulary, max_tokens: int | None) -> None:
        self._name = escape(str(getattr(function, "__name__", type(function).__name__)))
        if max_tokens is None:
            raise ValueError(
                f"prompts come from the function '{self._name}', so that the longest is not known; give "
                "max_prompt_tokens"
            )
        _check_takes_generator(function, self._name)
        self._function, self._vocabulary, self.max_tokens = function, vocabulary, max_tokens
        self.column_names = ()  # not known before a row is drawn, and each may have others

    def __len__(self) -> int:
        raise TypeError(f"prompts come from the function '{self._name}': they have no number and no index")

    def __getitem__(self, index: int) -> Prompt:
        raise TypeError(f"prompts come from the function '{self._name}': they have no number and no index")

    def draw(self, generator: np.random.Generator) -> Prompt:
        """The prompt that the function makes with the generator.

        Raises:
            TypeError, ValueError: the function raised, or did not return a row.
        """
        try:
            value = self._function(generator)
        except Exception as error:
            raise ValueError(f"the prompts function '{self._name}' raised {told(error)}") from error
        row = Row(f"what the prompts function '{self._name}' returned", value)
        return _only(encode_rows([row], self._vocabulary, self.max_tokens))


def load_prompts(prompts: Any, vocabulary: Vocabulary, max_tokens: int | None = None) -> Prompts:
    """The prompts that the keyword `prompts` describes: a list, the path of a file, an indexable object or a function.

    Raises:
        FileNotFoundError, ImportError, OSError, TypeError, ValueError: nothing there, or a malformed or over-long row,
            with its place.
    """
    if isinstance(prompts, str | Path):
        return Prompts(list(read_file(Path(prompts))), vocabulary, max_tokens)
    if isinstance(prompts, list | tuple):
        return Prompts(prompts, vocabulary, max_tokens)
    if isinstance(prompts, Mapping):
        raise TypeError(f"prompts is a {type_name(prompts)} with the keys {shown(list(prompts))}; give {_ALLOWED}")
    if hasattr(type(prompts), "__len__") and hasattr(type(prompts), "__getitem__"):
        return _object_prompts(prompts, vocabulary, max_tokens)
    if callable(prompts):
        return DrawnPrompts(prompts, vocabulary, max_tokens)
    raise TypeError(f"prompts is of type {type_name(prompts)}; give {_ALLOWED}")


class _Questions:
    """The rows of a reasoning-gym dataset, which call the prompt a question; column `entry` is what it scores by."""

    def __init__(self, dataset: Rows) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        row = self._dataset[index]
        if not isinstance(row, dict) or "prompt" in row or "question" not in row:
            return row
        return {"prompt" if name == "question" else name: value for name, value in row.items()} | {"entry": row}


def _object_prompts(rows: Any, vocabulary: Vocabulary, max_tokens: int | None) -> Prompts:
    if len(rows) > MANY_ROWS and max_tokens is None:
        raise ValueError(
            f"prompts of type {type_name(rows)} has {len(rows)} rows, too many to read them all for the longest; give "
            "max_prompt_tokens"
        )
    score_answer = getattr(rows, "score_answer", None)
    source = _Questions(rows) if callable(score_answer) else rows
    prompts = Prompts(source, vocabulary, max_tokens, lazy=len(rows) > MANY_ROWS)
    if callable(score_answer):
        prompts.score_answer = score_answer
    return prompts


def _row(rows: Rows, index: int) -> Row:
    place = f"prompts[{index}]"
    try:
        value = rows[index]
    except Exception as error:
        return Row(place, problem=ValueError(f"{place} cannot be read: {told(error)}; give {_ALLOWED}"))
    return value if isinstance(value, Row) else Row(place, value)


def _without_problems(prompts: Iterable[Prompt | Exception]) -> Iterator[Prompt]:
    for prompt in prompts:
        if isinstance(prompt, Exception):
            raise prompt
        yield prompt


def _only(prompts: Iterable[Prompt | Exception]) -> Prompt:
    [prompt] = _without_problems(prompts)
    return prompt


def _check_takes_generator(function: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(f"the prompts function '{name}' is called with a generator alone: {error}") from error
