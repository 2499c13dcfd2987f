"""The folder of a benchmark's results: made anew for every command, so that nothing is ever overwritten."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

RUNS_FILE = "runs.jsonl"


def new_folder(wanted: Path) -> Path:
    """Make the folder `wanted`, or with -2, -3, ... behind its name the first that is not there yet.

    Raises:
        OSError: it cannot be made.
    """
    wanted = wanted.absolute()  # "." and ".." have no name of their own to put a number behind
    wanted.parent.mkdir(parents=True, exist_ok=True)
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))
    for folder in itertools.chain([wanted], numbered):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # fails where it exists: two commands at once get two folders
            return folder
    raise AssertionError("the numbers never end")


def append_run(folder: Path, record: dict[str, Any]) -> None:
    """Add one line to runs.jsonl; a command that is killed leaves the runs that it finished."""
    with (folder / RUNS_FILE).open("a", encoding="utf-8") as file:
        file.write(_dump(record) + "\n")


def write_summary(folder: Path, summary: dict[str, Any], table: str) -> None:
    """Write summary.json and table.md."""
    (folder / "summary.json").write_text(_dump(summary, indent=2) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table, encoding="utf-8")


def _dump(record: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(record, indent=indent, allow_nan=False)
