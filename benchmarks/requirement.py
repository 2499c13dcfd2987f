"""What one timed piece of work has to be beside another, and whether it is."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from benchmarks.timing import Spread, Timing, ratio


class Requirement(NamedTuple):
    """One piece of work against another: how many times as fast it is, and has to be."""

    first: Hashable  # keys of timings
    second: Hashable
    at_least: float | None  # None: for information

    def measured(self, timings: Mapping[Any, Timing]) -> Spread | None:
        """How many times as fast, repeat by repeat; None where one of them is missing."""
        return ratio(timings[self.first], timings[self.second])

    def verdict(self, measured: Spread | None) -> str:
        """What the median ratio says of the requirement; what is missing has beaten nothing, and was not beaten."""
        if measured is None:
            return "not measured"
        if self.at_least is None:
            return ""
        return "met" if measured.median >= self.at_least else "NOT MET"
