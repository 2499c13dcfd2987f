"""What `speed env` measured, as tables and as a JSON object. Measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.finding import bracketed, requirement_table
from benchmarks.memory import LONGEST_PROMPT, MIB, MemoryCase, Peaks
from benchmarks.speed_env import COMPARISONS, NUM_ENVS, Row
from benchmarks.tables import markdown_table
from benchmarks.timing import Spread, Timing
from benchmarks.toy import HORIZON, MAX_LENGTH, VOCABULARY_SIZE

Timings = Mapping[tuple[str, int], Timing]
WORKLOAD = (
    f"{VOCABULARY_SIZE} tokens, histories of up to {MAX_LENGTH}, episodes of {HORIZON} steps; the score is the share of"
    " one token; random actions, drawn beforehand."
)
_NOTES = f"""\
ToyEnv is the least that does the same job: no texts, an empty info, no checks. The machine's own limit is a copy of the
observations: a step returns a fresh one, int64 [N, L]. Ratios are taken repeat by repeat. What
is missing was not measured, and nothing is said of it. Three histories, int64 [N, L] each, are what a step holds at its
peak: the environment's, the observation before and the one after it. Prompts have up to {LONGEST_PROMPT} tokens.
"""


def how(repeats: int) -> str:
    """What was timed, and how often, for a heading."""
    return f"{WORKLOAD}\nMedians of {repeats} repeats in turns, the range in brackets."


def speed_table(timings: Timings) -> str:
    """Thousand steps a second, a line for each environment and a column for each N."""
    names = dict.fromkeys(name for name, _ in timings)
    rows = [
        [name, *(_rate(timings[name, num_envs]) if (name, num_envs) in timings else "" for num_envs in NUM_ENVS)]
        for name in names
    ]
    return markdown_table(["thousand steps a second", *(f"N = {num_envs:,}" for num_envs in NUM_ENVS)], rows)


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
            requirement_table(COMPARISONS, timings, _name),
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
            for comparison in COMPARISONS
            for measured in [comparison.measured(timings)]
        ],
        "memory": {**asdict(case), **peaks._asdict(), "above_import": peaks.above_import},
    }


def _rate(timing: Timing) -> str:
    if timing.spread is None:
        return "missing"
    return bracketed(Spread(*(rate / 1000 for rate in timing.spread)), ",.0f")


def _name(row: tuple[str, int]) -> str:
    return f"{row[0]}, N = {row[1]:,}"
