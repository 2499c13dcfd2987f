"""Run a user's script of `benchmarks/plugins` in a process of its own, in an empty folder, with sockets blocked."""

import subprocess
import sys

from tests.stories.run import ROOT, offline_environment


def printed_return(name, folder):
    """The number at the end of what a script prints."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "plugins" / f"{name}.py")],
        cwd=folder,
        env=offline_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return float(result.stdout.splitlines()[-1])
