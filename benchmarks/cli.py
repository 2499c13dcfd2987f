"""The `textgym-bench` command.

Reads arguments, runs a benchmark, shows its table and writes its files. What is measured and how is left to the modules
that it calls; they, torch and scipy are loaded once the arguments are read.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.machine import torch_threads, versions
from benchmarks.options import GROUP_SIZES, AgentsOptions, EstimatorsOptions, SchemesOptions, SpeedOptions
from benchmarks.speed import PARTS
from textgym.errors import unknown
from textgym.escape import escape
from textgym.tasks import make_task

if TYPE_CHECKING:
    from benchmarks.schemes import Row, RunResult

Options = TypeVar("Options")

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
LATER = ("diagnostics",)
QUICK_TIMESTEPS = 40_000
QUICK_EVALUATION_EPISODES = 1024
HELP = """\
usage: textgym-bench COMMAND [options]

Compare ways of rewarding text, with intervals over seeds; measure what estimators ascend, and how fast things are.

commands:
  schemes      train under the schemes terminal and prefix_delta, and compare what comes of it
  estimators   exact bias and variance of every algorithm's gradient, by enumeration of a small task
  agents       train agents of other libraries by their own scripts, and measure them on one meter
  speed        all of the following
    env        steps a second of the environment, beside Gymnasium's own ways, and its peak memory
    exact      seconds that an exact gradient of a small policy takes, and its peak memory
    rollout    episodes sampled, beside `generate` of transformers
    update     gradients, beside a padded forward and backward pass
    train      whole steps of training, beside TRL's GRPOTrainer
    loop       stable-baselines3's PPO over the environment, with and without the prefix cache
    memory     peak memory of an update with a large vocabulary
    scaling    cost against horizon, vocabulary, environments and group size

textgym-bench COMMAND --help lists the options of a command.
"""


class UsageError(Exception):
    """Arguments that make no sense; the message says which and what is allowed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those after the command's name; the process's own by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except UsageError as error:
        return _complain(error, WRONG_USAGE)
    except ModuleNotFoundError as error:
        message = f'{error.name} is not installed; run pip install -e ".[benchmarks]" in the folder of the repository'
        return _complain(message, FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted; runs that were finished are kept in runs.jsonl", INTERRUPTED)
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(HELP, end="", file=sys.stdout if given else sys.stderr)
        return DONE if given else WRONG_USAGE
    command, *rest = given
    if command in LATER:
        raise UsageError(f"{command!r} is not built yet; built: {', '.join(COMMANDS)}")
    if command not in COMMANDS:
        raise UsageError(unknown("command", command, COMMANDS))
    return COMMANDS[command](rest, shlex.join(["textgym-bench", *given]))


def schemes(arguments: list[str], command: str) -> int:
    """Run `textgym-bench schemes`.

    Args:
        arguments: those after `schemes`.
        command: the whole command line, for the files.
    """
    options = _options(SchemesOptions, arguments, "schemes")
    _check(options)
    rows = _rows(options)

    from benchmarks.comparison import compare
    from benchmarks.run_folder import new_folder, write_summary

    folder = new_folder(options.output or Path("results") / f"schemes-{options.task}-{options.algorithm}")
    _say(f"{len(rows)} runs of {rows[0].total_timesteps:,} tokens each; files go to {folder}")
    comparison = compare(_run_all(rows, folder))
    table = f"{_heading(rows[0], command)}\n{comparison.markdown()}"
    used = versions(("textgym", "torch", "transformers", "numpy", "scipy"))
    write_summary(folder, {"command": command, "versions": used, **comparison.record()}, table)
    print(f"{table}\nFiles: {escape(str(folder))}")
    return DONE


def estimators(arguments: list[str], command: str) -> int:
    """Run `textgym-bench estimators`.

    Args:
        arguments: those after `estimators`.
        command: the whole command line, for the files.
    """
    options = _options(EstimatorsOptions, arguments, "estimators")
    if options.group_size not in GROUP_SIZES:
        raise UsageError(f"--group-size {options.group_size}; give {GROUP_SIZES[0]} to {GROUP_SIZES[-1]}")

    from benchmarks.estimators import record, report, run
    from benchmarks.run_folder import new_folder, write_summary

    folder = new_folder(options.output or Path("results") / "estimators")
    _say(f"every batch of a small task is enumerated; files go to {folder}")
    with torch_threads(1):
        findings = run(options.group_size)
    used = versions(("textgym", "torch", "transformers", "numpy"))
    table = report(findings, command, used)
    write_summary(folder, {"command": command, "versions": used, **record(findings)}, table)
    print(f"{table}\nFiles: {escape(str(folder))}")
    return DONE


def agents(arguments: list[str], command: str) -> int:
    """Run `textgym-bench agents`.

    Args:
        arguments: those after `agents`.
        command: the whole command line, for the files.
    """
    options = _options(AgentsOptions, arguments, "agents")

    from benchmarks import compatibility
    from benchmarks.finding import heading
    from benchmarks.machine import machine
    from benchmarks.run_folder import append_run, new_folder, write_summary

    known = {plugin.script: plugin for plugin in compatibility.PLUGINS}
    for script in options.only:
        if script not in known:
            raise UsageError(unknown("script", script, known))
    if options.add_to is not None and options.output is not None:
        raise UsageError(f"--add-to {options.add_to} and --output {options.output}; give one of them")
    folder = options.add_to or new_folder(options.output or Path("results") / "agents")
    folder.mkdir(parents=True, exist_ok=True)
    found, failed = compatibility.read(folder), 0
    _say(f"files go to {folder}")
    for plugin in [known[script] for script in options.only] or compatibility.PLUGINS:
        missing = compatibility.missing(plugin)
        if missing:
            _say(f"{plugin.script}: {missing}")
            failed += bool(options.only)
            continue
        try:
            reached = compatibility.measure(plugin)
        except RuntimeError as error:  # the others are measured all the same
            _say(f"{plugin.script}: FAILED: {error}")
            failed += 1
            continue
        append_run(folder, reached._asdict())
        found[plugin.script] = reached
        failed += reached.verdict != "met" and not plugin.remark
        _say(
            f"{plugin.script}: {reached.mean:.3f} of {reached.optimum:g} in {reached.seconds:.0f} s, {reached.verdict}"
        )
    used, facts = versions(("textgym",)), machine(1)
    page = f"{heading('Agents of other libraries', command, used, facts, compatibility.HOW)}\n"
    page += f"{compatibility.table(found)}\n{compatibility.remarks(found)}"
    runs = {script: reached._asdict() for script, reached in found.items()}
    write_summary(folder, {"command": command, "versions": used, "machine": facts, "runs": runs}, page)
    print(f"{page}\nFiles: {escape(str(folder))}")
    return FAILED if failed else DONE


def speed(arguments: list[str], command: str) -> int:
    """Run `textgym-bench speed`.

    Args:
        arguments: those after `speed`: a part, all that are built without one, and options.
        command: the whole command line, for the files.
    """
    from benchmarks.run_folder import new_folder

    parts = list(PARTS)
    if arguments and not arguments[0].startswith("-"):
        part, *arguments = arguments
        if part not in PARTS:
            raise UsageError(unknown("part of speed", part, PARTS))
        parts = [part]
    options = _options(SpeedOptions, arguments, "speed")
    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}; give at least 1")
    for part in parts:
        wanted = Path("results") / f"speed-{part}"
        if options.output is not None:
            wanted = options.output if len(parts) == 1 else options.output / wanted.name
        folder = new_folder(wanted)
        _say(f"files go to {folder}; leave the machine alone meanwhile")
        PARTS[part](options, folder, command, _say)
    return DONE


COMMANDS: dict[str, Callable[[list[str], str], int]] = {
    "schemes": schemes,
    "estimators": estimators,
    "agents": agents,
    "speed": speed,
}


def _options(kind: type[Options], arguments: list[str], command: str) -> Options:
    import tyro

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    return tyro.cli(kind, args=arguments, prog=f"textgym-bench {command}", config=config)


def _check(options: SchemesOptions) -> None:
    """Refuse what can be refused before anything heavy is loaded."""
    try:
        make_task(options.task, options.level)
    except ValueError as error:
        raise UsageError(error) from error
    if options.seeds < 2:
        raise UsageError(f"--seeds {options.seeds}; give at least 2, an interval needs them")
    if options.total_timesteps is not None and options.total_timesteps < 1:
        raise UsageError(f"--total-timesteps {options.total_timesteps}; give at least 1")


def _rows(options: SchemesOptions) -> "list[Row]":
    from agents.algorithms import make_algorithm
    from benchmarks.schemes import sweep

    try:
        make_algorithm(options.algorithm)
    except ValueError as error:
        raise UsageError(error) from error
    settings: dict[str, Any] = {"task": options.task, "level": options.level, "algorithm": options.algorithm}
    if options.quick:
        settings |= {"total_timesteps": QUICK_TIMESTEPS, "evaluation_episodes": QUICK_EVALUATION_EPISODES}
    if options.total_timesteps is not None:
        settings["total_timesteps"] = options.total_timesteps
    return sweep(options.seeds, **settings)


def _run_all(rows: "list[Row]", folder: Path) -> "list[RunResult]":
    from benchmarks.run_folder import append_run
    from benchmarks.schemes import run

    results: list[RunResult] = []
    for row in rows:
        start = time.monotonic()
        with torch_threads(1):
            result = run(row)
        append_run(folder, result.record())
        results.append(result)
        _say(
            f"run {len(results)} of {len(rows)}: {row.scheme}, seed {row.seed}: score {result.normalized_score:.3f} "
            f"({time.monotonic() - start:.0f} s)"
        )
    return results


def _heading(row: "Row", command: str) -> str:
    return (
        f"# Reward schemes on {row.task}, level {row.level}, with {row.algorithm}\n\n"
        f"    {escape(command)}\n\n"
        f"{row.total_timesteps:,} generated tokens a run. Scores are normalised: 0 is the uniform policy, 1 the "
        "optimum.\n"
        "In brackets 95% t intervals over seeds; p values are two-sided and not corrected for each other.\n"
    )


def _say(line: str) -> None:
    """Show progress, apart from the table."""
    print(escape(line), file=sys.stderr, flush=True)


def _complain(problem: object, code: int) -> int:
    print(f"textgym-bench: error: {escape(str(problem), keep=chr(10))}", file=sys.stderr)
    return code
