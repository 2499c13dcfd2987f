"""Runs a script of `benchmarks/plugins` in a process of its own, and has the agent that it leaves act."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PLAY = """
import gymnasium as gym, numpy as np
from benchmarks.plugins import {name} as script
envs = gym.make_vec("TextGen-v0", num_envs=400, task=script.TASK, level=script.LEVEL, **{settings})
observations, _ = envs.reset(seed=7)
total, ended = np.zeros(400), np.zeros(400, dtype=bool)
while not ended.all():
    actions = script.agent(observations)
    assert (actions.dtype, actions.shape) == (np.int64, (400,)), actions
    observations, rewards, terminated, truncated, _ = envs.step(actions)
    total[~ended] += rewards[~ended]
    ended |= terminated | truncated
print(script.TASK, total.mean())
"""


def play(name: str, **settings: object) -> tuple[str, float, float]:
    """The task of a script, the mean return that it prints, and that of its agent in 400 fresh episodes here.

    Args:
        name: of the script.
        settings: of the environment that the agent acts in.
    """
    code = _PLAY.format(name=name, settings=settings)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert result.returncode == 0, result.stderr
    printed, played = result.stdout.splitlines()[-2:]
    assert printed.startswith("mean return of "), printed
    return played.split()[0], float(printed.split()[-1]), float(played.split()[-1])
