"""Which agent libraries train on TextGen-v0: each by its own script, all of them on one meter.

A script of `benchmarks/plugins` names its `TASK`, `LEVEL` and `STEPS`, trains, and leaves an `agent`. It runs in a
process of its own, and what it leaves is measured there, as `textgym evaluate --agent` does. A new script is a row.
"""

import importlib.metadata
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.memory import output_of
from benchmarks.run_folder import RUNS_FILE
from benchmarks.tables import markdown_table
from textgym.escape import escape

SCRIPTS = Path(__file__).parent / "plugins"
EPISODES = 1024
ENOUGH = 0.9  # of the optimum
LONGEST = 180  # seconds


class Plugin(NamedTuple):
    """A script, and what the table says of it."""

    script: str  # without .py
    library: str  # distribution that is needed
    algorithm: str
    glue: str  # what stands between the library and gym.make("TextGen-v0")
    dict_observations: bool = False  # whether its agent reads those
    remark: str = ""  # why it does not get there, where it does not


HOW = f"""\
Each script of benchmarks/plugins in a process of its own; then about {EPISODES:,} fresh episodes of the agent that it
leaves, 95% intervals. Seconds are those of the whole script, imports and its own evaluation among them. met: at least
{ENOUGH:.0%} of the optimum within {LONGEST} seconds."""
_ADAPTER = "agents.adapters."
PLUGINS = tuple(
    Plugin(*row)
    for row in (
        ("textgym_rloo", "textgym", "RLOO", "none"),
        ("textgym_grpo", "textgym", "GRPO", "none"),
        ("sb3_ppo", "stable-baselines3", "PPO", f"{_ADAPTER}stable_baselines3"),
        ("sb3_a2c", "stable-baselines3", "A2C", f"{_ADAPTER}stable_baselines3"),
        ("sb3_dqn", "stable-baselines3", "DQN", f"{_ADAPTER}stable_baselines3"),
        ("sb3_maskable_ppo", "sb3-contrib", "MaskablePPO", f"{_ADAPTER}stable_baselines3"),
        ("sb3_recurrent_ppo", "sb3-contrib", "RecurrentPPO", f"{_ADAPTER}stable_baselines3"),
        ("sb3_trpo", "sb3-contrib", "TRPO", f"{_ADAPTER}stable_baselines3"),
        ("cleanrl_ppo", "torch", "PPO in one file, in CleanRL's style", "none", True),
        ("torchrl_ppo", "torchrl", "PPO", "none", True),
        ("torchrl_transformer", "torchrl", "PPO on a TransformerPolicy", f"{_ADAPTER}torchrl", True),
        ("tianshou_ppo", "tianshou", "PPO", f"{_ADAPTER}tianshou"),
        ("tianshou_ppo_masks", "tianshou", "PPO, masked", f"{_ADAPTER}tianshou", True),
        ("tianshou_dqn", "tianshou", "DQN, masked", "rename_observation(..., 'tianshou')", True),
        ("skrl_ppo", "skrl", "PPO", f"{_ADAPTER}skrl"),
        ("rllib_ppo", "ray", "PPO", f"{_ADAPTER}rllib"),
        ("rllib_masks", "ray", "PPO, masked", "rename_observation(..., 'rllib')", True),
        ("agilerl_ppo", "agilerl", "PPO", "none"),
        (
            "agilerl_masks",
            "agilerl",
            "PPO, masked",
            "none",
            True,
            "runs differ, since AgileRL draws unseeded: .67 to 1.0 seen",
        ),
        ("trl_grpo", "trl", "GRPO", f"{_ADAPTER}trl"),
    )
)


class Reached(NamedTuple):
    """What a script's agent got."""

    script: str
    task: str
    level: int
    steps: int
    seconds: float  # of the whole script, imports and its own evaluation among them
    mean: float  # return
    low: float | None  # of the 95% interval
    high: float | None
    optimum: float
    uniform: float
    versions: dict[str, str]

    @property
    def share(self) -> float:
        """Of the optimum."""
        return self.mean / self.optimum

    @property
    def verdict(self) -> str:
        """Whether that is enough, and soon enough."""
        return "met" if self.share >= ENOUGH and self.seconds <= LONGEST else "NOT MET"


def missing(plugin: Plugin) -> str:
    """Why a script cannot run here; "" where it can."""
    try:
        importlib.metadata.version(plugin.library)
    except importlib.metadata.PackageNotFoundError:
        return f"{plugin.library} is not installed"
    return ""


def measure(plugin: Plugin) -> Reached:
    """Run a script in a process of its own, and measure the agent that it leaves.

    Raises:
        RuntimeError: the script failed; the message says how.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reached.json"  # a script may print what it likes
        output_of("benchmarks.compatibility", plugin.script, str(file))
        return Reached(**json.loads(file.read_text(encoding="utf-8")))


def read(folder: Path) -> dict[str, Reached]:
    """What runs of a folder reached, the last one of each script.

    Raises:
        ValueError: its runs.jsonl holds something else.
    """
    file = folder / RUNS_FILE
    if not file.is_file():
        return {}
    try:
        records = [Reached(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} holds other runs than those of `textgym-bench agents`: {error}") from error
    return {reached.script: reached for reached in records}


def table(found: Mapping[str, Reached]) -> str:
    """A line for each script; those that were not run are missing, not left out."""
    rows = [_row(plugin, found.get(plugin.script)) for plugin in PLUGINS]
    header = ["library", "version", "algorithm", "task", "return", "optimum", "uniform", "verdict"]
    return markdown_table([*header, "seconds", "steps", "steps a second", "glue"], rows)


def remarks(found: Mapping[str, Reached]) -> str:
    """Why scripts that do not get there do not."""
    short = [plugin for plugin in PLUGINS if plugin.script in found and found[plugin.script].verdict != "met"]
    return "".join(f"{plugin.script}: {plugin.remark or 'not known'}.\n" for plugin in short)


def _row(plugin: Plugin, reached: Reached | None) -> list[str]:
    if reached is None:
        return [plugin.library, "missing", plugin.algorithm, *[""] * 8, plugin.glue]
    interval = "" if reached.low is None else f" ({reached.low:.3f}-{reached.high:.3f})"
    return [
        plugin.library,
        escape(str(reached.versions.get(plugin.library, "unknown"))),
        plugin.algorithm,
        escape(f"{reached.task} {reached.level}"),
        f"{reached.mean:.3f}{interval}",
        f"{reached.optimum:g}",
        f"{reached.uniform:.3g}",
        reached.verdict,
        f"{reached.seconds:.0f}",
        f"{reached.steps:,}",
        f"{reached.steps / reached.seconds:,.0f}",
        plugin.glue,
    ]


def _versions(plugin: Plugin) -> dict[str, str]:
    names = dict.fromkeys((plugin.library, "torch", "gymnasium", "numpy"))
    return {name: importlib.metadata.version(name) for name in names}


def _main(arguments: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
    script, file = arguments
    [plugin] = (one for one in PLUGINS if one.script == script)
    start = clock()
    left = runpy.run_path(str(SCRIPTS / f"{script}.py"))
    seconds = clock() - start
    Path(file).write_text(json.dumps(_measured(plugin, left, seconds)._asdict()), encoding="utf-8")


def _measured(plugin: Plugin, left: Mapping[str, Any], seconds: float) -> Reached:
    import numpy as np

    from agents.called_agent import CalledAgent
    from agents.evaluation import interval_of, make_plan
    from agents.opening import make_envs, wave_envs
    from agents.rollout import collect

    problem = make_envs({"task": left["TASK"], "level": left["LEVEL"]}).problem
    plan = make_plan(len(problem.prompts), EPISODES, deterministic=False, fixed=True)
    as_dict = True if plugin.dict_observations else None  # otherwise what its observation_space says
    agent = CalledAgent(left["agent"], problem.vocabulary.size, plugin.script, dict_observations=as_dict)
    envs = wave_envs(problem, plan.episodes, in_order=plan.basis != "drawn")
    rollout = collect(agent, envs, plan.episodes, np.random.default_rng(0), group_size=plan.repeats)
    interval = interval_of(rollout.returns, rollout.group, plan.basis, 0.95, (0.0, 1.0))
    assert problem.optimum is not None and problem.uniform is not None
    return Reached(
        script=plugin.script,
        task=left["TASK"],
        level=left["LEVEL"],
        steps=left["STEPS"],
        seconds=seconds,
        mean=float(rollout.returns.mean()),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        optimum=problem.optimum,
        uniform=problem.uniform,
        versions=_versions(plugin),
    )


if __name__ == "__main__":
    _main(sys.argv[1:])
