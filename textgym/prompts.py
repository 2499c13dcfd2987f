"""Prompts: rows of a `prompt` and any other columns, from lists, .jsonl files and indexable objects of a task.

Every row is checked, and its place (file and line, or index) named in the error. Does not draw: the environment picks a
row with the generator of the row that asks.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from textgym.errors import NotBuiltError, did_you_mean
from textgym.escape import excerpt
from textgym.vocabulary import Vocabulary

# Names that a reward function receives for other things; a column of that name would be lost.
RESERVED_COLUMNS = frozenset({"prompts", "completions", "completion_ids", "rng"})
_LATER_FILES = frozenset({".txt", ".csv", ".parquet"})
_MEMO_LIMIT = 65_536  # encoded rows of a lazy source that are kept


class Prompt(NamedTuple):
    """One prompt: its text, its token ids, and the other columns of its row."""

    text: str
    ids: np.ndarray  # int64 [P]
    columns: dict[str, Any]


class Rows(Protocol):
    """Anything sized and indexable by an integer."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Prompts:
    """The prompts of an environment, encoded.

    Args:
        rows: a sized and indexable source of str or dict rows.
        vocabulary: encodes the text of each row.
        max_tokens: the longest prompt allowed, in tokens; None takes the longest of the rows.
        lazy: rows are encoded when first asked for (a task's generated rows); otherwise all are checked now.
        place: names the place of row i in an error.

    Attributes:
        max_tokens: the longest prompt allowed, in tokens.
        column_names: all columns but `prompt`; a row without one has None there.
    """

    def __init__(
        self,
        rows: Rows,
        vocabulary: Vocabulary,
        max_tokens: int | None = None,
        lazy: bool = False,
        place: Callable[[int], str] = "prompts[{}]".format,
    ) -> None:
        if len(rows) == 0:
            raise ValueError("prompts is empty; give at least one prompt")
        self._rows, self._vocabulary, self._place = rows, vocabulary, place
        self._memo: dict[int, Prompt] = {}
        self.column_names: tuple[str, ...] = ()
        if lazy:
            assert max_tokens is not None
            self.max_tokens = max_tokens
            self.column_names = tuple(self[0].columns)
        else:
            self.max_tokens = self._encode_all(max_tokens)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Prompt:
        if index in self._memo:
            return self._memo[index]
        text, columns = self._parse(index)
        prompt = self._checked(index, text, self._vocabulary.encode(text), columns)
        if len(self._memo) < _MEMO_LIMIT:
            self._memo[index] = prompt
        return prompt

    def _encode_all(self, max_tokens: int | None) -> int:
        parsed = [self._parse(index) for index in range(len(self._rows))]
        self.column_names = tuple(dict.fromkeys(name for _, columns in parsed for name in columns))
        try:
            encoded = self._vocabulary.encode_batch([text for text, _ in parsed])
        except ValueError:
            encoded = [self._encode_one(index, text) for index, (text, _) in enumerate(parsed)]
        self.max_tokens = max(map(len, encoded)) if max_tokens is None else max_tokens
        for index, ((text, columns), ids) in enumerate(zip(parsed, encoded, strict=True)):
            complete = {name: columns.get(name) for name in self.column_names}
            self._memo[index] = self._checked(index, text, ids, complete)
        return self.max_tokens

    def _encode_one(self, index: int, text: str) -> list[int]:
        try:
            return self._vocabulary.encode(text)
        except ValueError as error:
            raise ValueError(f"{self._place(index)}: {error}") from error

    def _parse(self, index: int) -> tuple[str, dict[str, Any]]:
        row = self._rows[index]
        if isinstance(row, str):
            return row, {}
        where = self._place(index)
        if not isinstance(row, dict):
            raise TypeError(f"{where} is of type {type(row).__name__}; give a str, or a dict with a 'prompt'")
        if "prompt" not in row:
            hint = did_you_mean("prompt", [str(key) for key in row])
            raise ValueError(f"{where} has no field 'prompt', only {list(row)}.{hint}")
        if not isinstance(row["prompt"], str):
            kind = type(row["prompt"]).__name__
            raise TypeError(f"{where}: field 'prompt' is {row['prompt']!r} of type {kind}; give a str")
        columns = {name: value for name, value in row.items() if name != "prompt"}
        check_columns(columns, where)
        return row["prompt"], columns

    def _checked(self, index: int, text: str, ids: Sequence[int], columns: dict[str, Any]) -> Prompt:
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"{self._place(index)}: field 'prompt' has {len(ids)} tokens, more than max_prompt_tokens="
                f"{self.max_tokens}: {excerpt(text)}. Shorten it or raise max_prompt_tokens"
            )
        return Prompt(text, np.array(ids, dtype=np.int64), columns)


def check_columns(columns: dict[str, Any], where: str) -> None:
    """Refuse column names that a reward function could not receive."""
    for name in columns:
        if not isinstance(name, str):
            raise TypeError(f"{where}: the column name {name!r} is of type {type(name).__name__}; give a str")
        if name in RESERVED_COLUMNS:
            raise ValueError(f"{where}: a column may not be called {name!r}, reward functions get that name otherwise")


def load_prompts(prompts: Any, vocabulary: Vocabulary, max_tokens: int | None = None) -> Prompts:
    """The prompts that the keyword `prompts` describes: a list of str or dict rows, or the path of a .jsonl file.

    Raises:
        FileNotFoundError, TypeError, ValueError: nothing there, or a malformed or over-long row, with its place.
    """
    if isinstance(prompts, str | Path):
        path = Path(prompts)
        rows, lines = _read_jsonl(path)
        return Prompts(rows, vocabulary, max_tokens, place=lambda index: f"{path} line {lines[index]}")
    if isinstance(prompts, list | tuple):
        return Prompts(prompts, vocabulary, max_tokens)
    allowed = "a list of str or of dicts with a 'prompt', or the path of a .jsonl file"
    if callable(prompts) or (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")):
        raise NotBuiltError(f"prompts of type {type(prompts).__name__} are not built yet; give {allowed}")
    raise TypeError(f"prompts is of type {type(prompts).__name__}; give {allowed}")


def _read_jsonl(path: Path) -> tuple[list[Any], list[int]]:
    if path.suffix in _LATER_FILES:
        raise NotBuiltError(f"prompts {str(path)!r}: {path.suffix} files are not built yet; give a .jsonl file")
    if path.suffix != ".jsonl":
        raise ValueError(f"prompts {str(path)!r} is not a .jsonl file; to use texts directly, give a list of them")
    if not path.is_file():
        raise FileNotFoundError(f"prompts: there is no file {str(path)!r}")
    rows, lines = [], []
    for number, line in _decoded_lines(path):
        if line.strip():
            rows.append(_json_row(path, number, line))
            lines.append(number)
    if not rows:
        raise ValueError(f"prompts {str(path)!r} holds no rows; give one JSON object with a 'prompt' on each line")
    return rows, lines


def _decoded_lines(path: Path) -> Iterable[tuple[int, str]]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte-order mark belongs to no field
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} line {number} is not UTF-8: {error}. Save the file as UTF-8") from error


def _json_row(path: Path, number: int, line: str) -> Any:
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except _RefusedRow as error:
        raise ValueError(f"{path} line {number} {error}: {excerpt(line.strip())}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} line {number} is not JSON: {error}: {excerpt(line.strip())}") from error
    if not isinstance(row, dict):
        raise TypeError(f"{path} line {number} is a JSON {type(row).__name__}; give an object with a 'prompt'")
    return row


class _RefusedRow(ValueError):
    """A row that Python's JSON reader would take, and lose or change something."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedRow(f"has the key {excerpt(twice)} twice; give each key once")
    return result


def _refuse_constant(name: str) -> Any:
    raise _RefusedRow(f"holds {name}, which JSON does not have; write null or a string")
