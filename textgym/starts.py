"""Where an episode starts: a drawn prompt, or what the reset options name.

Options: `prompt` (a text or messages), `prompt_ids` or `prompt_index`; `columns` beside one of the first two;
`completion_ids` to start from a prefix. A vector environment takes `rows` too: the same keys with one value a row.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from textgym.chat import Messages, checked_prompt
from textgym.constraints import legal_tokens
from textgym.errors import did_you_mean
from textgym.escape import excerpt, shown, type_name
from textgym.problem import Problem
from textgym.prompt_rows import Prompt, check_columns, with_messages, write

_NO_TOKENS = np.zeros(0, dtype=np.int64)
_SOURCES = ("prompt", "prompt_ids", "prompt_index")
OPTIONS = (*_SOURCES, "columns", "completion_ids")


class Start(NamedTuple):
    """The first state of an episode."""

    prompt: Prompt
    completion_ids: np.ndarray = _NO_TOKENS  # int64 [P], tokens that count as generated already


def make_start(problem: Problem, options: dict[str, Any], draw: Callable[[], Prompt]) -> Start:
    """The start that the options name; `draw` supplies the prompt where they name none.

    Raises:
        TypeError, ValueError: options that are unknown, contradict each other, or name a state outside the process.
    """
    check_options(options, OPTIONS)
    given = [name for name in _SOURCES if options.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"reset options name {' and '.join(given)}; give one of them")
    columns = options.get("columns")
    if columns is not None and given not in (["prompt"], ["prompt_ids"]):
        raise ValueError(
            "the reset option 'columns' goes with 'prompt' or 'prompt_ids'; a prompt of the list has its own"
        )
    prefix = _prefix(problem, options.get("completion_ids"))
    if not given:
        prompt = draw()
    elif given == ["prompt_index"]:
        prompt = problem.prompts[_index(options["prompt_index"], problem)]
    else:
        prompt = _own_prompt(problem, options, columns or {})
    _check_legal(problem, prompt, prefix.tolist())
    return Start(prompt, prefix)


def check_options(options: dict[str, Any], allowed: Sequence[str]) -> None:
    """Refuse what is no dict of options, and an option that nothing reads."""
    if not isinstance(options, Mapping):
        raise TypeError(
            f"the reset options are {shown(options)} of type {type_name(options)}; give None, or a dict with any of "
            f"{', '.join(allowed)}"
        )
    for name in options:
        if name not in allowed:
            raise ValueError(
                f"unknown reset option {shown(name)}; allowed: {', '.join(allowed)}.{did_you_mean(name, allowed)}"
            )


def row_options(options: dict[str, Any], num_rows: int) -> list[dict[str, Any]]:
    """The options of each row of a vector environment: the shared ones, and the row's own out of `rows`.

    Raises:
        TypeError, ValueError: `rows` is no dict of one value a row, or repeats a shared option.
    """
    check_options(options, (*OPTIONS, "rows", "reset_mask"))
    shared = {name: value for name, value in options.items() if name not in ("rows", "reset_mask")}
    rows = options.get("rows")
    if rows is None:
        return [shared] * num_rows
    if not isinstance(rows, dict):
        raise TypeError(f"the reset option 'rows' is of type {type(rows).__name__}; give a dict of one value a row")
    check_options(rows, OPTIONS)
    lists = {}
    for name, values in rows.items():
        if name in shared:
            raise ValueError(f"the reset option {name!r} is given for all rows and in 'rows'; give it once")
        if not _is_list(values):
            raise ValueError(
                f"the reset option rows[{name!r}] is {shown(values)} of type {type_name(values)}; give a list with one "
                f"value for each of the {num_rows} rows"
            )
        if len(values) != num_rows:
            raise ValueError(
                f"the reset option rows[{name!r}] has {len(values)} values; give one value for each of the {num_rows} "
                "rows"
            )
        lists[name] = list(values)
    return [shared | {name: values[row] for name, values in lists.items()} for row in range(num_rows)]


def _is_list(values: Any) -> bool:
    """Whether the values have places 0, 1, ...: a sequence that is no text, or an array."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        return False
    return isinstance(values, Sequence) or getattr(values, "ndim", 0) >= 1


def _own_prompt(problem: Problem, options: dict[str, Any], columns: dict[str, Any]) -> Prompt:
    if isinstance(options.get("prompt"), Prompt):  # one that was drawn, checked and encoded already
        return options["prompt"]
    if not isinstance(columns, dict):
        raise TypeError(f"the reset option 'columns' is of type {type(columns).__name__}; give a dict")
    check_columns(columns, "the reset option 'columns'")
    if "prompt" in columns:
        raise ValueError("the reset option 'columns' holds 'prompt', which is an option of its own; leave it out")
    if options.get("prompt") is None:
        ids = _ids(problem, "prompt_ids", options["prompt_ids"])
        text = problem.vocabulary.decode(ids.tolist())
    else:
        prompt = checked_prompt(options["prompt"], "the reset option 'prompt'")
        text, ids = _encoded(problem, prompt)
        columns = with_messages(columns, prompt)
    if len(ids) > problem.max_prompt_tokens:
        raise ValueError(
            f"the prompt of the reset options has {len(ids)} tokens, more than max_prompt_tokens="
            f"{problem.max_prompt_tokens}: {excerpt(text)}; shorten it, or make the environment with a larger "
            "max_prompt_tokens"
        )
    others = dict.fromkeys(problem.prompts.column_names)  # None where the options name no value
    return Prompt(text, ids, others | columns)


def _encoded(problem: Problem, prompt: str | Messages) -> tuple[str, np.ndarray]:
    try:
        written = write(prompt, problem.vocabulary)
        return written.text, np.array(problem.vocabulary.encode(*written), dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"the reset option 'prompt': {error}") from error


def _prefix(problem: Problem, completion_ids: Any) -> np.ndarray:
    if completion_ids is None:
        return _NO_TOKENS
    ids = _ids(problem, "completion_ids", completion_ids)
    ended = "the reset option 'completion_ids' ends the episode already:"
    stops = np.isin(ids, problem.vocabulary.stop_ids)
    if stops.any():
        place = int(stops.argmax())
        raise ValueError(f"{ended} place {place} is the stop token {ids[place]}")
    if len(ids) >= problem.max_new_tokens:
        raise ValueError(f"{ended} it has {len(ids)} tokens, and max_new_tokens={problem.max_new_tokens}")
    text = problem.vocabulary.decode(ids.tolist()) if problem.stop else ""
    if problem.stop.cut(text) != text:
        raise ValueError(
            f"{ended} its text {excerpt(text)} holds one of the stop strings {shown(problem.stop.strings)}"
        )
    return ids


def _check_legal(problem: Problem, prompt: Prompt, ids: list[int]) -> None:
    """Refuse a prefix that the task's constraint does not let an agent write."""
    if problem.constraint is None:
        return
    for place, token in enumerate(ids):
        left = problem.max_new_tokens - place
        if not legal_tokens(problem.constraint, prompt.text, ids[:place], left, problem.vocabulary.size)[token]:
            raise ValueError(
                f"the reset option 'completion_ids' breaks the task's constraint: token {token} at place {place} is "
                f"illegal after {ids[:place]} and the prompt {excerpt(prompt.text)}"
            )


def _ids(problem: Problem, name: str, value: Any) -> np.ndarray:
    try:
        ids = np.asarray(value if len(value) else _NO_TOKENS)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the reset option {name!r} is {value!r:.80}; give a list of token ids") from error
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"the reset option {name!r} is {value!r:.80}; give a flat list of integers")
    size = problem.vocabulary.size
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        place = int(outside.argmax())
        raise ValueError(f"the reset option {name!r} holds {ids[place]} at place {place}; ids are 0 to {size - 1}")
    return ids.astype(np.int64)


def _index(value: Any, problem: Problem) -> int:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"the reset option 'prompt_index' is {value!r} of type {type(value).__name__}; give an integer")
    if not problem.prompts.sized:
        raise ValueError(
            "the reset option 'prompt_index' needs a list of prompts, and these come from a function; give 'prompt' or "
            "'prompt_ids'"
        )
    index, count = operator.index(value), len(problem.prompts)
    if not 0 <= index < count:
        raise ValueError(f"the reset option 'prompt_index' is {index}; there are prompts 0 to {count - 1}")
    return index
