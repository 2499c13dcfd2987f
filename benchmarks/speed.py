"""The parts of `textgym-bench speed`: each measures, prints its tables and writes its files.

What is measured and how is left to the modules that are called; they are loaded when a part runs.
"""

import importlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.finding import heading
from benchmarks.machine import machine, tokenizer_threads, torch_threads, versions
from benchmarks.options import SpeedOptions
from textgym.escape import escape

if TYPE_CHECKING:
    from benchmarks.timing import Timing

Say = Callable[[str], None]


def run_env(options: SpeedOptions, folder: Path, command: str, say: Say) -> None:
    """Steps a second of the environment, and its peak memory.

    Args:
        options: of the command.
        folder: new, for the files.
        command: the whole command line, for the files.
        say: shows progress.
    """
    from benchmarks import memory
    from benchmarks.run_folder import append_run
    from benchmarks.speed_env import QUICK_REPEATS, REPEATS, groups, measure
    from benchmarks.speed_report import how, record, report, row_record

    repeats = QUICK_REPEATS if options.quick else REPEATS
    case = memory.SMALL if options.quick else memory.LARGE
    with tokenizer_threads(options.threads):
        peaks = memory.measure(case)
        timings: dict[tuple[str, int], Timing] = {}
        rows = groups(options.quick)
        for group in rows:
            measured = measure(group, repeats)
            for row in group:
                append_run(folder, row_record(row, measured[row.name, row.num_envs]))
            timings |= measured
            say(f"N = {group[0].num_envs:,}: timed")
    used = versions(("textgym", "numpy", "gymnasium", "tokenizers", "stable-baselines3"))
    facts = machine(options.threads)
    table = f"{heading('Speed of the environment', command, used, facts, how(repeats))}\n{report(timings, case, peaks)}"
    everything = record(list(itertools.chain(*rows)), timings, case, peaks)
    _finish(folder, {"command": command, "versions": used, "machine": facts, **everything}, table)


def run_exact(options: SpeedOptions, folder: Path, command: str, say: Say) -> None:
    """Seconds that an exact gradient takes, and its peak memory; see `run_env` for the arguments."""
    from benchmarks import speed_exact
    from benchmarks.run_folder import append_run

    found = {}
    for case in speed_exact.QUICK_CASES if options.quick else speed_exact.CASES:
        found[case] = speed_exact.measure(case, options.threads)
        append_run(folder, speed_exact.case_record(case, found[case]))
        say(f"W = {case.horizon}, d_model = {case.d_model}, {case.dtype}: timed")
    used = versions(("textgym", "torch", "transformers", "numpy"))
    facts = machine(options.threads)
    table = (
        f"{heading('Speed of the exact gradient', command, used, facts, speed_exact.HOW)}\n{speed_exact.report(found)}"
    )
    rows = [speed_exact.case_record(case, measured) for case, measured in found.items()]
    _finish(folder, {"command": command, "versions": used, "machine": facts, "rows": rows}, table)


def run_module(module: str, options: SpeedOptions, folder: Path, command: str, say: Say) -> None:
    """Run a part that a module of its own measures; see `run_env` for the other arguments.

    Args:
        module: its function `measure(quick, threads, say)` returns a `benchmarks.finding.Finding`.
        options: of the command.
        folder: new, for the files.
        command: the whole command line, for the files.
        say: shows progress.
    """
    measure = importlib.import_module(module).measure
    with torch_threads(options.threads), tokenizer_threads(options.threads):
        finding = measure(options.quick, options.threads, say)
    used = versions(
        ("textgym", "torch", "transformers", "tokenizers", "numpy", "gymnasium", "trl", "stable-baselines3")
    )
    facts = machine(options.threads)
    if finding.draw is not None:
        finding.draw(folder)
    summary = {"command": command, "versions": used, "machine": facts, **finding.record}
    _finish(folder, summary, finding.page(command, used, facts))


Part = Callable[[SpeedOptions, Path, str, Say], None]
PARTS: dict[str, Part] = {
    "env": run_env,
    "exact": run_exact,
    **{
        part: partial(run_module, f"benchmarks.speed_{part}")
        for part in ("rollout", "update", "train", "loop", "memory", "scaling")
    },
}


def _finish(folder: Path, summary: dict[str, Any], table: str) -> None:
    from benchmarks.run_folder import write_summary

    write_summary(folder, summary, table)
    print(f"{table}\nFiles: {escape(str(folder))}")
