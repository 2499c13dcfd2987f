"""What `speed env` measured, as tables and as a JSON object. Measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.memory import LONGEST_PROMPT, MIB, MemoryCase, Peaks
from benchmarks.speed_env import COMPARISONS, NUM_ENVS, Row, compare
from benchmarks.tables import markdown_table
from benchmarks.timing import Spread, Timing
from benchmarks.toy import HORIZON, MAX_LENGTH, VOCABULARY_SIZE
from textgym.escape import escape

Timings = Mapping[tuple[str, int], Timing]
WORKLOAD = (
    f"{VOCABULARY_SIZE} tokens, histories of up to {MAX_LENGTH}, episodes of {HORIZON} steps; the score is the share of"
    " one token; random actions, drawn beforehand."
)
_NOTES = f"""\
ToyEnv is the least that does the same job: no texts, an empty info, no checks. Ratios are taken repeat by repeat. What
is missing was not measured, and nothing is said of it. Three histories, int64 [N, L] each, are what a step holds at its
peak: the environment's, the observation before and the one after it. Prompts have up to {LONGEST_PROMPT} tokens.
"""


def heading(command: str, versions: Mapping[str, str], machine: Mapping[str, str | int], repeats: int) -> str:
    """What was run, on what, and how."""
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return (
        "# Speed of the environment\n\n"
        f"    {escape(command)}\n\n"
        f"{escape(libraries)}.\n"
        f"{escape(str(machine['cpu']))}, {machine['cpus']} CPUs, {escape(str(machine['system']))}; {threads}.\n"
        f"{WORKLOAD}\n"
        f"Medians of {repeats} repeats in turns, the range in brackets.\n"
    )


def speed_table(timings: Timings) -> str:
    """Thousand steps a second, a line for each environment and a column for each N."""
    names = dict.fromkeys(name for name, _ in timings)
    rows = [
        [name, *(_rate(timings[name, num_envs]) if (name, num_envs) in timings else "" for num_envs in NUM_ENVS)]
        for name in names
    ]
    return markdown_table(["thousand steps a second", *(f"N = {num_envs:,}" for num_envs in NUM_ENVS)], rows)


def comparison_table(timings: Timings) -> str:
    """The ratio of each comparison, and what it has to be."""
    rows = []
    for comparison, measured in zip(COMPARISONS, compare(timings), strict=True):
        required = "" if comparison.at_least is None else f"at least {comparison.at_least:.3g}"
        first, second = (f"{name}, N = {num_envs:,}" for name, num_envs in (comparison.first, comparison.second))
        ratio = "missing" if measured is None else _bracketed(measured, ".2f")
        rows.append([first, ratio, second, required, comparison.verdict(measured)])
    return markdown_table(["this is", "times as fast", "as this", "required", "verdict"], rows)


def memory_table(case: MemoryCase, peaks: Peaks) -> str:
    """The peak of a case above the import, and its bound."""
    shape = (case.num_envs, case.vocabulary_size, case.max_length, case.num_prompts)
    memory = (peaks.imported, 3 * case.histories, peaks.above_import, case.bound)
    header = ["peak memory, MiB", "N", "V", "L", "prompts", "import", "three histories", "above import", "bound"]
    cells = [*(f"{number:,}" for number in shape), *(f"{size / MIB:,.0f}" for size in memory)]
    verdict = "met" if peaks.above_import < case.bound else "NOT MET"
    return markdown_table([*header, "verdict"], [["TextGenVectorEnv", *cells, verdict]])


def report(timings: Timings, case: MemoryCase, peaks: Peaks) -> str:
    """All tables, and how to read them."""
    missing = [f"Missing: {name}: {timing.missing}." for (name, _), timing in timings.items() if timing.missing]
    return "\n".join(
        [
            speed_table(timings),
            *dict.fromkeys(f"{line}\n" for line in missing),
            comparison_table(timings),
            memory_table(case, peaks),
            _NOTES,
        ]
    )


def row_record(row: Row, timing: Timing) -> dict[str, Any]:
    """One timed row as a JSON object."""
    workload = {"num_envs": row.num_envs, "episodes": row.episodes, "steps": row.steps}
    return {"name": row.name, **workload, "rates": list(timing.rates), "missing": timing.missing}


def record(rows: Sequence[Row], timings: Timings, case: MemoryCase, peaks: Peaks) -> dict[str, Any]:
    """Everything that was measured as a JSON object."""
    return {
        "workload": WORKLOAD,
        "rows": [row_record(row, timings[row.name, row.num_envs]) for row in rows],
        "comparisons": [
            {**comparison._asdict(), "ratio": measured and measured._asdict(), "verdict": comparison.verdict(measured)}
            for comparison, measured in zip(COMPARISONS, compare(timings), strict=True)
        ],
        "memory": {**asdict(case), **peaks._asdict(), "above_import": peaks.above_import},
    }


def _rate(timing: Timing) -> str:
    if timing.spread is None:
        return "missing"
    return _bracketed(Spread(*(rate / 1000 for rate in timing.spread)), ",.0f")


def _bracketed(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"
