"""The folder of a run: what it is made of and how it is written.

`metrics.jsonl` and `trajectories.jsonl` hold nothing that depends on the clock, so that the same seed writes the same
bytes; times go to `timings.jsonl`. Does not decide what is logged when, nor show anything.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from agents.learner import Update
from agents.policy import TransformerPolicy
from agents.rollout import Rollout, spaced_rows

_MARK = "textgym"  # the key of config.json that makes a folder a run; its value is the version
_FILES = ("config.json", "env.txt", "metrics.jsonl", "timings.jsonl", "trajectories.jsonl")
_FOLDERS = ("tensorboard", "policy", "learner-reference")
_PACKAGES = (
    "textgym",
    "gymnasium",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
    "safetensors",
    "tensorboard",
    "peft",
)


def check_run_dir(run_dir: Path | None, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse a folder that a run would mix with something else.

    Args:
        run_dir: the folder, which need not exist.
        overwrite: whether a run that it holds may be removed; anything else never is.
        inputs: what the training reads, which must not lie in a folder that is removed.

    Raises:
        FileExistsError: the folder holds a run and `overwrite` is not set, or other files, or an input.
    """
    if run_dir is None or not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise FileExistsError(f"the run folder {str(run_dir)!r} is a file; give another --run-dir")
    if not any(run_dir.iterdir()):
        return
    if not _holds_run(run_dir):
        raise FileExistsError(f"the folder {str(run_dir)!r} holds files that are not of a run; give another --run-dir")
    if not overwrite:
        raise FileExistsError(f"the run folder {str(run_dir)!r} holds a run; give another --run-dir, or --overwrite")
    for path in inputs:
        if path.resolve().is_relative_to(run_dir.resolve()):
            raise FileExistsError(f"{str(path)!r} lies in the run that --overwrite removes; give another --run-dir")


def choose_run_dir(run_dir: Path | None, name: str, overwrite: bool) -> Path:
    """Make the folder of a run.

    Args:
        run_dir: where; None takes runs/NAME under the current folder, numbered where that holds a run already.
        name: NAME.
        overwrite: whether a run that the folder holds is removed; files that are not of a run stay.

    Raises:
        FileExistsError: see `check_run_dir`.
    """
    if run_dir is None:
        return _next_free(Path("runs"), name, overwrite)
    check_run_dir(run_dir, overwrite)
    run_dir.mkdir(parents=True, exist_ok=True)
    _clear(run_dir)
    return run_dir


class RunFolder:
    """Writes a run, update by update.

    Args:
        folder: an empty folder.
        config: all settings.
        trajectory_interval: updates between two entries of trajectories.jsonl.
    """

    def __init__(self, folder: Path, config: dict[str, Any], trajectory_interval: int) -> None:
        self.folder, self.trajectory_interval = folder, trajectory_interval
        _write_json(folder / "config.json", {_MARK: _version("textgym")} | config)
        (folder / "env.txt").write_text(describe_machine(), encoding="utf-8")
        self._metrics = _open(folder / "metrics.jsonl")
        self._timings = _open(folder / "timings.jsonl")
        self._trajectories = _open(folder / "trajectories.jsonl")
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._begun = self._last = time.perf_counter()

    def write(self, update: Update) -> None:
        """Append an update to every file."""
        now = time.perf_counter()
        _append(self._metrics, {"step": update.step, **update.metrics})
        _append(self._timings, {"step": update.step, "step_time": now - self._last, "elapsed": now - self._begun})
        for name, value in update.metrics.items():
            self._board.add_scalar(name, value, update.num_timesteps)
        if (update.step - 1) % self.trajectory_interval == 0:
            for row in spaced_rows(update.rollout, 2):
                _append(self._trajectories, {"step": update.step, **trajectory_entry(update, row)})
        self._last = now

    def save_policy(self, policy: TransformerPolicy) -> Path:
        """Write `policy/`, whole or not at all, and return its path."""
        target, unfinished = self.folder / "policy", self.folder / ".policy-unfinished"
        _remove(unfinished)
        try:
            policy.save_pretrained(unfinished)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(f"the policy cannot be saved in {str(target)!r}: {error}") from error
        _remove(target)
        unfinished.rename(target)
        return target

    def close(self) -> None:
        """Flush and close every file."""
        for file in (self._metrics, self._timings, self._trajectories):
            file.close()
        self._board.close()


def trajectory_entry(update: Update, row: int) -> dict[str, Any]:
    """An episode as JSON holds it: texts, ids, and per token the log-prob, reward and advantage."""
    rollout: Rollout = update.rollout
    true_score = {} if rollout.true_score is None else {"true_score": float(rollout.true_score[row])}
    prompt, completion = rollout.texts(row)
    start, length = int(rollout.prompt_length[row]), int(rollout.length[row])
    steps = length - start
    return {
        "prompt": prompt,
        "completion": completion,
        "prompt_ids": rollout.tokens[row, :start].tolist(),
        "completion_ids": rollout.tokens[row, start:length].tolist(),
        "log_probs": rollout.log_probs[row, :steps].tolist(),
        "rewards": rollout.rewards[row, :steps].tolist(),
        "advantages": update.advantages[row, :steps].tolist(),
        "score": float(rollout.score[row]),
        **true_score,
        "valid": bool(rollout.valid[row]),
        "finish_reason": int(rollout.finish_reason[row]),
    }


def describe_machine() -> str:
    """Versions and threads, one fact a line."""
    lines = [f"python {platform.python_version()}", f"system {platform.system()} {platform.machine()}"]
    lines += [f"{package} {_version(package)}" for package in _PACKAGES]
    lines += [f"torch threads {torch.get_num_threads()}", f"cpu count {os.cpu_count()}"]
    return "\n".join(lines) + "\n"


def _next_free(parent: Path, name: str, overwrite: bool) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    if overwrite:
        check_run_dir(parent / name, overwrite)
        (parent / name).mkdir(exist_ok=True)
        _clear(parent / name)
        return parent / name
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()  # fails where another process was first
        except FileExistsError:
            number += 1
        else:
            return folder


def _clear(folder: Path) -> None:
    for name in (*_FILES, *_FOLDERS):
        _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _holds_run(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and _MARK in config and (folder / "metrics.jsonl").is_file()


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", newline="\n")


def _append(file: IO[str], entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, allow_nan=False) + "\n")
    file.flush()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
