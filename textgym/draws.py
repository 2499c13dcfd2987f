"""The generators of the rows, and the prompts that are drawn with them or come in order."""

import json
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from gymnasium.utils import seeding

from textgym.prompt_rows import Prompt
from textgym.prompts import Prompts
from textgym.rewards.texts import generator_states, put_back

GeneratorOf = Callable[[int], np.random.Generator]


class RowGenerators:
    """The generators of N rows, made when first asked for: one a row, or one for all.

    Args:
        num_rows: N.
        shared: whether the rows share one generator.

    Attributes:
        count: how many generators there are.
    """

    def __init__(self, num_rows: int, shared: bool) -> None:
        self.num_rows, self.shared = num_rows, shared
        self.count = 1 if shared else num_rows
        self._generators: dict[int, np.random.Generator] = {}
        self._seeds: dict[int, int | None] = {}

    def __call__(self, row: int) -> np.random.Generator:
        """The generator of a row."""
        place = 0 if self.shared else row
        if place not in self._generators:
            self._generators[place], self._seeds[place] = seeding.np_random()
        return self._generators[place]

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each row, N values."""
        return tuple(self._seeds.get(0 if self.shared else row) for row in range(self.num_rows))

    def seed(self, rows: np.ndarray, seed: int | Sequence[int | None] | None) -> np.ndarray:
        """Seed the generators of `rows`.

        Args:
            rows: int64 [n].
            seed: an integer s gives row i the seed s + i, or a shared generator s; a sequence holds one a row, None
                for a generator that goes on as it is.

        Returns:
            The rows that were seeded, int64.

        Raises:
            TypeError, ValueError: no integer, or a wrong number of them.
        """
        if seed is None:
            return rows[:0]
        seeds = self._each(seed)
        seeded = [row for row in rows.tolist() if seeds[row] is not None]
        for place in dict.fromkeys(0 if self.shared else row for row in seeded):
            self._generators[place], self._seeds[place] = seeding.np_random(seeds[place])
        return np.array(seeded, dtype=np.int64)

    def _each(self, seed: int | Sequence[int | None]) -> list[int | None]:
        if not isinstance(seed, Sequence | np.ndarray):
            first = operator.index(seed)
            return [first if self.shared else first + row for row in range(self.num_rows)]
        if self.shared:
            raise ValueError(f"seed is a list of {len(seed)} values; with rng='shared' give one integer")
        if len(seed) != self.num_rows:
            raise ValueError(
                f"seed has {len(seed)} values; give an integer, or one for each of the {self.num_rows} rows"
            )
        return [None if one is None else operator.index(one) for one in seed]

    @contextmanager
    def undone_on_failure(self, rows: np.ndarray) -> Iterator[None]:
        """Put the generators of `rows`, their seeds and their draws, back where the block raises."""
        places = [0] if self.shared else rows.tolist()
        before = {place: (self._generators[place], self._seeds[place]) for place in places if place in self._generators}
        states = generator_states(generator for generator, _ in before.values())
        try:
            yield
        except BaseException:
            for place in places:
                self._generators.pop(place, None), self._seeds.pop(place, None)
            for place, (generator, seed) in before.items():
                self._generators[place], self._seeds[place] = generator, seed
            put_back(states)
            raise

    def state(self) -> list[str]:
        """The generators, as texts of `generator_state`."""
        return [generator_state(self(place), self._seeds[place]) for place in range(self.count)]

    def restore(self, generators: Sequence[tuple[np.random.Generator, int | None]]) -> None:
        """Put other generators, with their seeds, in place."""
        for place, (generator, seed) in enumerate(generators):
            self._generators[place], self._seeds[place] = generator, seed


def generator_state(generator: np.random.Generator, seed: int | None) -> str:
    """A generator and the seed that it began with, as a JSON text.

    Raises:
        TypeError: a generator whose state JSON cannot hold.
    """
    try:
        return json.dumps({"state": generator.bit_generator.state, "seed": seed})
    except TypeError as error:
        kind = type(generator.bit_generator).__name__
        raise TypeError(f"the state of a generator over {kind} is not JSON; use numpy's default, PCG64") from error


def generator_from_state(state: str) -> tuple[np.random.Generator, int | None]:
    """The generator and the seed of a text that `generator_state` made.

    Raises:
        ValueError: another text.
    """
    try:
        content = json.loads(state)
        bits = np.random.PCG64()
        bits.state = content["state"]
        return np.random.Generator(bits), content["seed"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no state of a PCG64 generator: {state!r:.80}") from error


class PromptDraws:
    """What each row starts its next episode from.

    Args:
        prompts: the prompts.
        sequential: each row walks them in order, from the first; otherwise each is drawn with the row's generator.
        generator_of: the generator of a row.
        num_rows: N.
        shared: whether the rows share one generator; it then draws for several rows in one call.

    Attributes:
        next_index: int64 [N], the prompt that comes next in each row's walk.
    """

    def __init__(
        self,
        prompts: Prompts,
        sequential: bool,
        generator_of: GeneratorOf,
        num_rows: int = 1,
        shared: bool = False,
    ) -> None:
        self._prompts, self._sequential, self._generator_of = prompts, sequential, generator_of
        self._at_once = shared and not sequential and prompts.sized
        self.next_index = np.zeros(num_rows, dtype=np.int64)

    def __call__(self, rows: np.ndarray) -> list[Prompt]:
        """The next prompt of each of `rows`, int64 [n]."""
        if self._at_once:
            indices = self._generator_of(0).integers(len(self._prompts), size=len(rows))
            return [self._prompts[index] for index in indices.tolist()]
        return [self.one(row) for row in rows.tolist()]

    def one(self, row: int) -> Prompt:
        """The next prompt of a row."""
        if not self._sequential:
            return self._prompts.draw(self._generator_of(row))
        index = int(self.next_index[row])
        self.next_index[row] = (index + 1) % len(self._prompts)
        return self._prompts[index]

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Put the walks back where the block raises."""
        before = self.next_index.copy()
        try:
            yield
        except BaseException:
            self.next_index[:] = before
            raise

    def rewind(self, rows: np.ndarray) -> None:
        """Begin the walks of `rows` at the first prompt again."""
        self.next_index[rows] = 0
