"""The options of the commands, as dataclasses that `tyro` makes flags of; what they mean is left to the commands."""

from dataclasses import dataclass
from pathlib import Path

from textgym.tasks import DEFAULT_TASK

GROUP_SIZES = range(2, 9)  # of `estimators`: larger ones have too many compositions to enumerate


@dataclass(frozen=True)
class SchemesOptions:
    """Train under the reward schemes terminal and prefix_delta, and compare them seed by seed.

    Both schemes see the same weights, prompts, random numbers and settings. The table goes to standard output, the
    files to results/NAME under the current folder; nothing is overwritten.
    """

    task: str = DEFAULT_TASK
    """Built-in task: bandit, reverse or sort."""
    level: int = 1
    """Difficulty of the task, 1 the easiest."""
    algorithm: str = "reinforce_to_go"
    """What trains: reinforce, reinforce_baseline, reinforce_to_go or rloo."""
    seeds: int = 3
    """Number of seeds, at least 2; fewer than 5 are too few for a finding."""
    total_timesteps: int | None = None
    """Generated tokens that each run trains on; 160000, or 40000 with --quick."""
    quick: bool = False
    """Shorter runs: half a minute or so in all."""
    output: Path | None = None
    """Folder of the files instead of results/NAME; where it exists, -2 goes behind its name."""


@dataclass(frozen=True)
class EstimatorsOptions:
    """Measure bias and variance of every algorithm's gradient, and of every form of the KL term, without sampling.

    On a task that is small enough to enumerate all numbers are exact. It takes a quarter of a minute; the tables go to
    standard output, the files to results/estimators under the current folder; nothing is overwritten.
    """

    group_size: int = 4
    """Episodes that share a prompt, 2 to 8, for the algorithms that compare them."""
    output: Path | None = None
    """Folder of the files instead of results/estimators; where it exists, -2 goes behind its name."""


@dataclass(frozen=True)
class AgentsOptions:
    """Train agents of other libraries, each by its own script of benchmarks/plugins, and measure them on one meter.

    A library that is not installed is missing. Libraries whose pins conflict are run from environments of their own,
    with --add-to the same folder. The table goes to standard output, the files to results/agents under the current
    folder.
    """

    only: tuple[str, ...] = ()
    """Scripts to run, sb3_ppo or the like; all that can run here by default."""
    add_to: Path | None = None
    """Folder of earlier runs that these are added to; its table is made anew, with the last run of each script."""
    output: Path | None = None
    """Folder of the files instead of results/agents; where it exists, -2 goes behind its name."""


@dataclass(frozen=True)
class SpeedOptions:
    """Measure how fast the environment, sampling and training are, beside what one would use instead.

    Leave the machine alone meanwhile: a part takes two to ten minutes, all of them with --quick four in all. The tables
    go to standard output, the files to results/speed-PART under the current folder; nothing is overwritten.
    """

    threads: int = 1
    """Threads that torch and the tokenizer may use; the environment itself uses one."""
    quick: bool = False
    """Fewer repeats, and fewer and smaller cases."""
    output: Path | None = None
    """Folder of the files instead of results/speed-PART; where it exists, -2 goes behind its name."""
