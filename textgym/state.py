"""Episodes and generators as a dict of arrays that `np.savez` stores without pickling, and back.

The prompts and columns of running episodes travel as JSON; the problem itself does not travel: a state is put back into
an environment that was made with the same keywords.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from textgym.draws import PromptDraws, generator_from_state
from textgym.episodes import Episodes
from textgym.escape import excerpt, shown, type_name
from textgym.finish import FinishReason

_VERSION = 1
_TEXTS = ("prompts", "columns", "generators")


def get_state(episodes: Episodes, draws: PromptDraws, generators: Sequence[str]) -> dict[str, np.ndarray]:
    """The episodes, their places in the list of prompts, and their generators as texts.

    Raises:
        TypeError: a column holds what JSON cannot.
    """
    for row, columns in enumerate(episodes.columns):
        for name, value in columns.items():
            _check_json(value, f"column {name!r} of row {row}")
    texts = {"prompts": episodes.prompts, "columns": episodes.columns, "generators": list(generators)}
    arrays = {name: array.copy() for name, array in _arrays(episodes, draws).items()}
    return arrays | {name: np.array(json.dumps(value)) for name, value in texts.items()}  # ASCII: no NUL at the end


def set_state(
    episodes: Episodes, draws: PromptDraws, state: Any, own: dict[str, np.ndarray], num_generators: int
) -> tuple[list[tuple[np.random.Generator, int | None]], dict[str, np.ndarray]]:
    """Put rows and walks of a state in place; nothing changes where it does not fit.

    Args:
        episodes: the rows.
        draws: their places in the list of prompts.
        state: what `get_state` returned, or what `np.load` read of it.
        own: further arrays of the caller, which the state must hold with these shapes.
        num_generators: how many generators the state must hold.

    Returns:
        The generators with their seeds, and the arrays of the state.

    Raises:
        TypeError, ValueError: no state, one of another environment, or of another version.
    """
    arrays = _checked(state, _arrays(episodes, draws) | own)
    _check_rows(episodes, draws, arrays)
    count = len(episodes.length)
    prompts, columns = _texts(arrays, "prompts", str, count), _texts(arrays, "columns", dict, count)
    generators = [generator_from_state(one) for one in _texts(arrays, "generators", str, num_generators)]
    legal = _legal(episodes, prompts, arrays)
    for name in Episodes.ARRAYS:
        getattr(episodes, name)[...] = arrays[name]
    episodes.prompts, episodes.columns = prompts, columns
    episodes.legal[...] = legal
    draws.next_index[:] = arrays["next_index"]
    return generators, arrays


def _legal(episodes: Episodes, prompts: list[str], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the constraint allows in the rows that run, bool [N, V]; [N, 0] without one."""
    legal = np.zeros_like(episodes.legal)
    rows = np.flatnonzero(arrays["running"]).tolist()
    ids = [arrays["tokens"][row, arrays["prompt_length"][row] : arrays["length"][row]].tolist() for row in rows]
    legal[rows] = episodes.legal_next([prompts[row] for row in rows], ids)
    return legal


def _arrays(episodes: Episodes, draws: PromptDraws) -> dict[str, np.ndarray]:
    arrays = {name: getattr(episodes, name) for name in Episodes.ARRAYS}
    return {"version": np.array(_VERSION), **arrays, "next_index": draws.next_index}


def _checked(state: Any, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a state that has the entries of `expected`, in their shapes, and the texts."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is of type {type_name(state)}; give what get_state() returned, or what np.load read of it"
        )
    arrays = {str(name): np.asarray(state[name]) for name in state}
    names = {*expected, *_TEXTS}
    for name in sorted(names - set(arrays)):
        raise ValueError(f"the state has no entry {name!r}; give all that get_state() returned")
    for name in sorted(set(arrays) - names):
        raise ValueError(f"the state has an entry {excerpt(name)} that this environment does not know")
    for name, array in arrays.items():
        like = expected.get(name, np.array(""))
        if array.shape != like.shape or array.dtype.kind != like.dtype.kind:
            raise ValueError(
                f"the state's {name!r} is {array.dtype} {array.shape}, and this environment's is {like.dtype} "
                f"{like.shape}: it is of another environment; make this one with the same keywords and num_envs"
            )
    if int(arrays["version"]) != _VERSION:
        raise ValueError(f"the state is of version {arrays['version']}; this is version {_VERSION}")
    return arrays


def _check_rows(episodes: Episodes, draws: PromptDraws, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse numbers that no state of this environment holds."""
    size, horizon = episodes.problem.vocabulary.size, episodes.problem.max_new_tokens
    tokens, length, start = arrays["tokens"], arrays["length"], arrays["prompt_length"]
    written = length - start
    if (start < 0).any() or (written < 0).any() or (written > horizon).any() or (length > tokens.shape[1]).any():
        raise ValueError("the state's lengths do not fit this environment; make it with the same keywords")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"the state's {name!r} holds numbers that are not finite; give what get_state() returned")
    is_token = np.arange(tokens.shape[1]) < length[:, None]
    if ((tokens < 0) | (tokens > size) | (is_token != (tokens != size))).any():
        raise ValueError("the state's tokens do not fit this environment; make it with the same tokenizer")
    reasons, running = arrays["finish_reason"], arrays["running"]
    contradiction = running & ((reasons != FinishReason.RUNNING) | (written >= horizon) | arrays.get("ended", False))
    if not np.isin(reasons, list(FinishReason)).all() or contradiction.any():
        raise ValueError(
            "the state's finish_reason, length and running contradict each other; give what get_state() returned"
        )
    most = len(episodes.problem.prompts) if episodes.problem.prompts.sized else 1
    if ((arrays["next_index"] < 0) | (arrays["next_index"] >= most)).any():
        raise ValueError(f"the state's next_index is outside 0 to {most - 1}; make this one with the same prompts")


def _texts(arrays: Mapping[str, np.ndarray], name: str, kind: type, count: int) -> list[Any]:
    try:
        values = json.loads(str(arrays[name]))
    except ValueError as error:
        raise ValueError(f"the state's {name!r} is not JSON: {shown(str(arrays[name]))}") from error
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"the state's {name!r} holds no list of {count}; give what get_state() returned")
    return values


def _check_json(value: Any, where: str) -> None:
    """Refuse what would not come back from JSON as the same value."""
    if value is None or type(value) in (str, bool, int):
        return
    if type(value) is float and np.isfinite(value):
        return
    if type(value) is list:
        for item in value:
            _check_json(item, where)
    elif type(value) is dict and all(type(key) is str for key in value):
        for item in value.values():
            _check_json(item, where)
    else:
        raise TypeError(
            f"{where} holds {shown(value)} of type {type_name(value)}, which JSON cannot hold, so the state cannot be "
            "saved; use str, int, float, bool, None, lists and dicts with str keys in columns"
        )
