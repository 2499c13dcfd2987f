"""Run a stranger's script or the command in a process of its own, in an empty folder, with sockets blocked."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def offline_environment(**extra):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    path = os.pathsep.join(map(str, (HERE / "offline", ROOT)))  # this checkout, whichever is installed
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | extra


def run(*arguments, cwd, **extra):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=offline_environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def textgym(*arguments, cwd, **extra):
    return run("-c", "from agents.cli import main; main()", *arguments, cwd=cwd, **extra)
