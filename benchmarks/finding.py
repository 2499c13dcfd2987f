"""Finding: what a part of `speed` found, and how it is shown: a heading, tables, notes; and what is kept as JSON."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.requirement import Requirement
from benchmarks.tables import markdown_table
from benchmarks.timing import Spread, Timing
from textgym.escape import escape


class Finding(NamedTuple):
    """What a part found.

    `record` is what JSON holds of it; `draw` writes plots into a folder, where there are any.
    """

    title: str  # "Speed of rollouts"
    workload: str  # a sentence or more: shapes, numbers
    repeats: int
    tables: Sequence[str]  # Markdown
    notes: str
    record: dict[str, Any]
    draw: Callable[[Path], None] | None = None

    def page(self, command: str, versions: Mapping[str, str], machine: Mapping[str, str | int]) -> str:
        """Everything as Markdown.

        Args:
            command: the whole command line.
            versions: of the libraries.
            machine: see `benchmarks.machine.machine`.
        """
        how = f"{self.workload}\nMedians of {self.repeats} repeats in turns, the range in brackets."
        return "\n".join([heading(self.title, command, versions, machine, how), *self.tables, f"{self.notes}\n"])


def heading(title: str, command: str, versions: Mapping[str, str], machine: Mapping[str, str | int], how: str) -> str:
    """What was run, on what, and how; see `Finding.page` for the arguments.

    Args:
        title: of the page.
        command: see there.
        versions: see there.
        machine: see there.
        how: whole sentences.
    """
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return (
        f"# {title}\n\n"
        f"    {escape(command)}\n\n"
        f"{escape(libraries)}.\n"
        f"{escape(str(machine['cpu']))}, {machine['cpus']} CPUs, {escape(str(machine['system']))}; {threads}.\n"
        f"{how}\n"
    )


def bracketed(spread: Spread, form: str) -> str:
    """A median with its range.

    >>> bracketed(Spread(2.0, 1.5, 3.0), ".1f")
    '2.0 (1.5-3.0)'
    """
    return f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"


def rate(timing: Timing, form: str = ",.0f") -> str:
    """Steps a second, or that there are none."""
    return "missing" if timing.spread is None else bracketed(timing.spread, form)


def of_limit(timing: Timing, limit: float) -> str:
    """The share of a limit that the median rate reaches.

    >>> of_limit(Timing((20.0,)), 80.0)
    '25%'
    """
    return "" if timing.spread is None else f"{timing.spread.median / limit:.0%}"


def requirement_table(
    requirements: Sequence[Requirement], timings: Mapping[Any, Timing], name: Callable[[Any], str] = str
) -> str:
    """The ratio of each requirement, and what it has to be."""
    rows = []
    for requirement in requirements:
        found = requirement.measured(timings)
        required = "" if requirement.at_least is None else f"at least {requirement.at_least:.3g}"
        shown = "missing" if found is None else bracketed(found, ".2f")
        rows.append([name(requirement.first), shown, name(requirement.second), required, requirement.verdict(found)])
    return markdown_table(["this is", "times as fast", "as this", "required", "verdict"], rows)


def requirement_records(
    requirements: Sequence[Requirement], timings: Mapping[Any, Timing], name: Callable[[Any], str] = str
) -> list[dict[str, Any]]:
    """The same as JSON objects."""
    found = [(requirement, requirement.measured(timings)) for requirement in requirements]
    return [
        {
            "first": name(requirement.first),
            "second": name(requirement.second),
            "at_least": requirement.at_least,
            "ratio": measured and measured._asdict(),
            "verdict": requirement.verdict(measured),
        }
        for requirement, measured in found
    ]


def missing_lines(timings: Mapping[Hashable, Timing], name: Callable[[Any], str] = str) -> str:
    """Why what is missing is, a line each; "" where nothing is."""
    return "".join(f"Missing: {name(key)}: {timing.missing}.\n" for key, timing in timings.items() if timing.missing)
