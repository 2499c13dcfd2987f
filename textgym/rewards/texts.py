"""What reward functions see, texts, and what is made of what they say, scores."""

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_CONSTANT = frozenset({str, int, float, bool, type(None)})  # values of these types cannot be changed in place


class Texts(NamedTuple):
    """What a reward function sees: n texts."""

    prompts: list[str]
    completions: list[str]  # without the stop token
    completion_ids: list[list[int]]  # the stop token included
    columns: dict[str, list[Any]]  # n values each
    generators: Sequence[np.random.Generator] = ()  # those of the rows, n of them, perhaps the same; or none

    def keywords(self, accepted: Collection[str] | None = None) -> dict[str, list[Any]]:
        """The keyword arguments of a call, all or the accepted ones; a generator is never among them.

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

    def only(self, row: int) -> "Texts":
        """The text of one row."""
        one = slice(row, row + 1)
        columns = {name: values[one] for name, values in self.columns.items()}
        return Texts(self.prompts[one], self.completions[one], self.completion_ids[one], columns, self.generators[one])


class Scores(NamedTuple):
    """What K reward functions said of n texts."""

    score: np.ndarray  # float64 [n], the weighted sum
    scores: np.ndarray  # float64 [n, K], one a function, without its weight; 0 where it returned None
    valid: np.ndarray  # bool [n, K], False where a function returned None
    kept: np.ndarray  # bool [n], False where the episode is dropped; its scores are 0 and not valid


GeneratorStates = Sequence[tuple[np.random.BitGenerator, Any]]


def generator_states(generators: Iterable[np.random.Generator]) -> GeneratorStates:
    """The states of the generators, each once."""
    distinct = {id(generator): generator.bit_generator for generator in generators}
    return [(bits, bits.state) for bits in distinct.values()]


def put_back(states: GeneratorStates) -> None:
    """Undo the draws since the states were taken."""
    for bits, state in states:
        bits.state = state


def _own_copy(value: Any) -> Any:
    """A deep copy; the value itself where Python cannot copy it, a lock or an open connection."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
