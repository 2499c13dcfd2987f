"""The `textgym` command: reads flags, calls the command, turns errors into one clear message and an exit code.

Imports nothing heavy until it knows what to do; a base install without the `agents` extra is told how to get it.
"""

import importlib.util
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textgym.errors import did_you_mean
from textgym.escape import escape

if TYPE_CHECKING:
    from agents.settings import TrainSettings

_COMMANDS = {
    "train": "train a policy with policy gradients",
    "tasks": "list the built-in tasks",
    "check": "check a prompt file, and try a reward function on it",
}
_LATER = (
    "sample",
    "evaluate",
    "doctor",
    "report",
    "pretrain",
    "train-reward",
    "lint-reward",
    "replay",
)
_NEEDED = ("torch", "transformers", "safetensors", "tyro", "rich", "tensorboard")
_LINE_END = "\n"
_DONE, _FAILED, _WRONG_USAGE, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 after SIGINT and SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that lacks a character ends no training
    try:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return _DONE if arguments else _WRONG_USAGE
    command, *rest = arguments
    if command in _LATER:
        return _complain(f"the command {command!r} is not built yet; built: {', '.join(_COMMANDS)}", _WRONG_USAGE)
    if command not in _COMMANDS:
        hint = did_you_mean(command, [*_COMMANDS, *_LATER])
        return _complain(f"unknown command {command!r}; allowed: {', '.join(_COMMANDS)}.{hint}", _WRONG_USAGE)
    if command == "tasks":
        return _tasks(rest)
    if command == "check":
        return _check(rest)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        needed = f"{', '.join(missing)} not installed; the command needs the extra 'agents'"
        return _complain(
            f"{needed}: pip install 'textgym[agents]', or pip install -e '.[agents]' in a checkout", _FAILED
        )
    return _train(rest)


def _tasks(arguments: list[str]) -> int:
    from agents.tasks import tasks

    try:
        print(tasks(arguments))
    except ValueError as error:
        return _complain(str(error), _WRONG_USAGE)
    return _DONE


def _check(arguments: list[str]) -> int:
    from agents.check import check
    from textgym.errors import RewardError

    try:
        check(arguments)
    except (RewardError, ImportError, AttributeError, OSError, TypeError, ValueError) as error:
        return _complain(str(error), _FAILED)
    return _DONE


def _train(arguments: list[str]) -> int:
    from agents.settings import check_usage

    settings = _parse(arguments)
    try:
        check_usage(settings)
    except (TypeError, ValueError) as error:
        return _complain(str(error), _WRONG_USAGE)
    from agents.train import SetupError, train
    from textgym.errors import RewardError

    try:
        return train(settings)
    except (SetupError, RewardError, FloatingPointError, OSError, ValueError) as error:
        return _complain(str(error), _FAILED)


def _parse(arguments: list[str]) -> "TrainSettings":
    """The settings that the flags name; ends the process with 2 at a flag that is not one, with 0 after the help."""
    import tyro

    from agents.settings import AdvancedSettings, TrainSettings

    class _Short(TrainSettings):
        advanced: tyro.conf.Suppress[tyro.conf.OmitArgPrefixes[AdvancedSettings]]

    # What is suppressed is not parsed either, so the short form serves the help alone.
    short = any(flag in arguments for flag in ("-h", "--help"))
    if "--help-all" in arguments:
        arguments = ["--help"]
    return tyro.cli(
        _Short if short else TrainSettings,
        prog="textgym train",
        description=TrainSettings.__doc__,
        args=arguments,
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.UseAppendAction,
        ),
    )


def _usage() -> str:
    lines = ["usage: textgym COMMAND [FLAGS]", ""]
    lines += [f"  {name:<10} {what}" for name, what in _COMMANDS.items()]
    lines += ["", "textgym COMMAND --help shows the flags that matter most, --help-all every one."]
    return "\n".join(lines)


def _complain(message: str, code: int) -> int:
    print(f"textgym: error: {escape(message, keep=_LINE_END)}", file=sys.stderr, flush=True)
    return code
