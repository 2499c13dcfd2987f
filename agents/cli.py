"""The `textgym` command: reads flags, calls the command, turns errors into one clear message and an exit code.

Imports nothing heavy until it knows what to do; a base install without the `agents` extra is told how to get it.
"""

import functools
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from textgym.errors import did_you_mean
from textgym.escape import escape

if TYPE_CHECKING:
    from agents.env_settings import ModelSettings

_NEEDED = ("torch", "transformers", "safetensors", "tyro", "rich", "tensorboard")
_LINE_END = "\n"
_DONE, _FAILED, _WRONG_USAGE, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 130 and 143 after SIGINT and SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console that lacks a character ends no training
    warnings.showwarning = _warn  # a line, without the place in our code
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
    return _COMMANDS[command].run(rest)


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


def _with_settings(name: str, settings_class: str, runner: str, arguments: list[str]) -> int:
    """Run a command whose flags are the fields of a settings class.

    Args:
        name: of the command.
        settings_class: "module:class" of settings with a method `check_usage`.
        runner: "module:function" that takes the settings and returns the exit code.
        arguments: the flags.
    """
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        needed = f"{', '.join(missing)} not installed; the command needs the extra 'agents'"
        return _complain(
            f"{needed}: pip install 'textgym[agents]', or pip install -e '.[agents]' in a checkout", _FAILED
        )
    settings: ModelSettings = _parse(name, _load(settings_class), arguments)
    try:
        settings.check_usage()
    except (TypeError, ValueError) as error:
        return _complain(str(error), _WRONG_USAGE)
    run_command = _load(runner)
    from agents.opening import SetupError
    from textgym.errors import RewardError

    try:
        return run_command(settings)
    except (SetupError, RewardError, FloatingPointError, OSError, ValueError) as error:
        return _complain(str(error), _FAILED)


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _parse(name: str, settings_class: type, arguments: list[str]) -> Any:
    """The settings that the flags name; ends the process with 2 at a flag that is not one, with 0 after the help."""
    import tyro

    # What is suppressed is not parsed either, so the short form serves the help alone.
    short = any(flag in arguments for flag in ("-h", "--help"))
    if "--help-all" in arguments:
        arguments = ["--help"]
    return tyro.cli(
        _without_advanced(settings_class) if short else settings_class,
        prog=f"textgym {name}",
        description=settings_class.__doc__,
        args=arguments,
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.UseAppendAction,
        ),
    )


def _without_advanced(settings_class: type) -> type:
    """The settings class with its field `advanced` hidden."""
    import tyro

    advanced = get_type_hints(settings_class)["advanced"]
    hidden = tyro.conf.Suppress[tyro.conf.OmitArgPrefixes[advanced]]  # type: ignore[valid-type]
    return type("Short", (settings_class,), {"__annotations__": {"advanced": hidden}})


class _Command(NamedTuple):
    """A command: what `textgym --help` says of it, and what takes its flags and returns the exit code."""

    help: str
    run: Callable[[list[str]], int]


def _command(name: str, help_line: str, settings_class: str, runner: str) -> tuple[str, _Command]:
    """The row of a command with a settings class; see `_with_settings`."""
    return name, _Command(help_line, functools.partial(_with_settings, name, settings_class, runner))


_COMMANDS: dict[str, _Command] = dict(
    [
        _command(
            "train", "train a policy with policy gradients", "agents.settings:TrainSettings", "agents.train:train"
        ),
        _command("sample", "show what a model writes", "agents.sample_settings:SampleSettings", "agents.sample:sample"),
        _command(
            "evaluate",
            "measure what a model's texts score",
            "agents.evaluate_settings:EvaluateSettings",
            "agents.evaluate:evaluate",
        ),
        _command(
            "doctor",
            "show what is installed, and check a model: padding, batch, cache, ratio, stop tokens",
            "agents.doctor:DoctorSettings",
            "agents.doctor:doctor",
        ),
        ("tasks", _Command("list the built-in tasks", _tasks)),
        ("check", _Command("check a prompt file, and try a reward function on it", _check)),
    ]
)
_LATER = ("report", "pretrain", "train-reward", "lint-reward", "replay")


def _usage() -> str:
    lines = ["usage: textgym COMMAND [FLAGS]", ""]
    lines += [f"  {name:<10} {command.help}" for name, command in _COMMANDS.items()]
    lines += ["", "textgym COMMAND --help shows the flags that matter most, --help-all every one."]
    return "\n".join(lines)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"textgym: warning: {escape(str(message), keep=_LINE_END)}", file=sys.stderr, flush=True)


def _complain(message: str, code: int) -> int:
    print(f"textgym: error: {escape(message, keep=_LINE_END)}", file=sys.stderr, flush=True)
    return code
