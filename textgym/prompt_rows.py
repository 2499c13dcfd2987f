"""What a row of prompts must hold: checked, encoded, and its place (file and line, or index) named in the error."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from textgym.chat import Messages, checked_prompt
from textgym.errors import did_you_mean
from textgym.escape import excerpt, shown, type_name
from textgym.prompt_files import Row
from textgym.vocabulary import Vocabulary

# Names that a reward function receives for other things; a column of that name would be lost.
RESERVED_COLUMNS = frozenset({"prompts", "completions", "completion_ids", "rng"})
_BATCH = 4096  # rows that are encoded together


class Prompt(NamedTuple):
    """One prompt: its text, its token ids, and the other columns of its row."""

    text: str
    ids: np.ndarray  # int64 [P]
    columns: dict[str, Any]


class Written(NamedTuple):
    """The text of a prompt before it is encoded."""

    text: str
    rendered: bool  # by a chat template, which writes the special tokens itself


def encode_rows(
    rows: Iterable[Row], vocabulary: Vocabulary, max_tokens: int | None = None
) -> Iterator[Prompt | Exception]:
    """Each row as a prompt, or what is wrong with it, in order.

    Args:
        rows: of a file or another source.
        vocabulary: encodes the texts.
        max_tokens: the longest prompt allowed, in tokens; None for any length.

    Yields:
        A `Prompt`, with the columns that the row itself has, or a TypeError or ValueError whose text names the place.
    """
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH)):
        written = [_attempt(_write_row, row, vocabulary) for row in batch]
        ids = iter(_encode([item[0] for item in written if not isinstance(item, Exception)], vocabulary))
        for row, item in zip(batch, written, strict=True):
            yield item if isinstance(item, Exception) else _checked(row.place, item, next(ids), max_tokens)


def parse_row(row: Row) -> tuple[str | Messages, dict[str, Any]]:
    """The text or the messages, and the other columns of a row; messages are the column `messages`, if it has no other.

    Raises:
        TypeError, ValueError: it cannot be read, or is no row; the text names its place.
    """
    place, value = row.place, row.value
    if row.problem is not None:
        raise row.problem
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict):
        raise TypeError(f"{place} is of type {type_name(value)}; give a str, or a dict with a 'prompt'")
    if "prompt" not in value:
        hint = did_you_mean("prompt", [str(key) for key in value])
        raise ValueError(f"{place} has no field 'prompt', only {shown(list(value), limit=200)}.{hint}")
    prompt = checked_prompt(value["prompt"], f"{place}: field 'prompt'")
    columns = {name: item for name, item in value.items() if name != "prompt"}
    check_columns(columns, place)
    return prompt, with_messages(columns, prompt)


def with_messages(columns: dict[str, Any], prompt: str | Messages) -> dict[str, Any]:
    """The columns and, where the prompt is a chat, its messages, unless a column has that name already."""
    return columns if isinstance(prompt, str) else {**columns, "messages": columns.get("messages", prompt)}


def write(prompt: str | Messages, vocabulary: Vocabulary) -> Written:
    """The text of a prompt.

    Raises:
        ImportError, ValueError: the vocabulary cannot write these messages.
    """
    return Written(prompt, False) if isinstance(prompt, str) else Written(vocabulary.render(prompt), True)


def check_columns(columns: dict[str, Any], where: str) -> None:
    """Refuse column names that a reward function could not receive."""
    for name in columns:
        if not isinstance(name, str):
            raise TypeError(f"{where}: the column name {shown(name)} is of type {type_name(name)}; give a str")
        if name in RESERVED_COLUMNS:
            raise ValueError(f"{where}: a column may not be called {name!r}, reward functions get that name otherwise")


def _attempt(step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except (TypeError, ValueError) as error:
        return error


def _write_row(row: Row, vocabulary: Vocabulary) -> tuple[Written, dict[str, Any]]:
    prompt, columns = parse_row(row)
    try:
        return write(prompt, vocabulary), columns
    except ValueError as error:
        raise ValueError(f"{row.place}: field 'prompt': {error}") from error


def _encode(written: list[Written], vocabulary: Vocabulary) -> list[list[int] | ValueError]:
    try:
        return list(vocabulary.encode_batch([one.text for one in written], [one.rendered for one in written]))
    except ValueError:  # one of them; which, is asked of each
        return [_attempt(vocabulary.encode, *one) for one in written]


def _checked(
    place: str, item: tuple[Written, dict[str, Any]], ids: list[int] | ValueError, max_tokens: int | None
) -> Prompt | ValueError:
    (text, _), columns = item
    if isinstance(ids, ValueError):
        return ValueError(f"{place}: field 'prompt': {ids}")
    if max_tokens is not None and len(ids) > max_tokens:
        return ValueError(
            f"{place}: field 'prompt' has {len(ids)} tokens, more than max_prompt_tokens={max_tokens}: "
            f"{excerpt(text)}. Shorten it or raise max_prompt_tokens"
        )
    return Prompt(text, np.array(ids, dtype=np.int64), columns)
