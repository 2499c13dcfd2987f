"""Time pieces of work against each other: in turns after a warm-up, with medians and ranges.

Whatever slows the machine for a while slows neighbours in time alike, so that ratios are taken repeat by repeat. What
is timed, and what a ratio has to be, is left to others.
"""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[], int]  # does the work, the same amount at every call, and returns how many steps it took


class Spread(NamedTuple):
    """The median of some numbers and their range."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """How fast a piece of work went.

    Attributes:
        rates: steps per second, one a repeat; none where it could not be run.
        missing: why there are none, "" where there are some.
    """

    rates: tuple[float, ...] = ()
    missing: str = ""

    @property
    def spread(self) -> Spread | None:
        """The median rate and the range, None without rates."""
        return spread(self.rates) if self.rates else None


def interleave(
    works: Mapping[Key, Work | str],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: Mapping[Key, Callable[[], object]] | None = None,
) -> dict[Key, Timing]:
    """Time each piece of work `repeats` times: A B, which are not timed, then A B A B ...

    Args:
        works: what to time; a text stands for work that cannot be run here, and says why.
        repeats: at least 1.
        clock: tells the time in seconds.
        warm_up: what is done before, instead of a piece of work itself, where that is enough.

    Returns:
        A timing for each piece of work, in the order of `works`.
    """
    runnable = {key: work for key, work in works.items() if not isinstance(work, str)}
    for key, work in runnable.items():
        (warm_up or {}).get(key, work)()
    rates: dict[Key, list[float]] = {key: [] for key in runnable}
    for _ in range(repeats):
        for key, work in runnable.items():
            gc.collect()  # what the others left
            start = clock()
            steps = work()
            rates[key].append(steps / (clock() - start))
    return {
        key: Timing(missing=work) if isinstance(work, str) else Timing(tuple(rates[key])) for key, work in works.items()
    }


def ratio(first: Timing, second: Timing) -> Spread | None:
    """How many times as fast the first is, repeat by repeat; None where one of them is missing.

    >>> ratio(Timing((20.0, 30.0)), Timing((10.0, 10.0)))
    Spread(median=2.5, low=2.0, high=3.0)
    """
    if first.missing or second.missing:
        return None
    return spread([one / other for one, other in zip(first.rates, second.rates, strict=True)])


def spread(values: Sequence[float]) -> Spread:
    """The median and the range of some numbers, at least one.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))
