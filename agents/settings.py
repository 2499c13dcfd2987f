"""The settings of `textgym train`: what each means, its default, and what can be said against it before any work."""

import math
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from agents.algorithms import make_algorithm
from textgym.errors import NotBuiltError
from textgym.schemes import SCHEMES, make_scheme
from textgym.stops import checked_stop_strings
from textgym.tasks import DEFAULT_TASK, make_task

_MOST_SEED, _MOST_THREADS = 2**63, 1024

_POSITIVE = (
    "episodes_per_update",
    "max_grad_norm",
    "tokens_per_microbatch",
    "temperature",
    "d_model",
    "num_layers",
    "num_threads",
    "trajectory_interval",
    "reward_timeout",
)

# What the next command leaves out: the policy holds its shape and temperature, and a run has a folder of its own.
_NOT_CARRIED_ON = frozenset(
    {"model", "run_dir", "resume", "overwrite", "advanced", "d_model", "num_layers", "temperature", "seed"}
)


@dataclass(frozen=True)
class AdvancedSettings:
    """Settings that rarely need a change."""

    episodes_per_update: int | None = None
    """Episodes of one update, a multiple of the group size; by default 16 to 256, about 2,048 tokens in all."""

    entropy_coef: float = 0.05
    """Weight of the mean entropy per token, in units of reward per nat."""

    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""

    tokens_per_microbatch: int = 16_384
    """Most tokens in one forward pass of an update; changes memory and speed, not the result."""

    temperature: float | None = None
    """Temperature of the policy, in sampling and in scoring; the saved policy's, or 1."""

    d_model: int = 64
    """Width of the small policy that is made without --model."""

    num_layers: int = 2
    """Transformer blocks of the small policy that is made without --model."""

    max_prompt_tokens: int | None = None
    """Longest prompt allowed, in tokens; by default the longest of the prompts."""

    prompt_order: Literal["random", "sequential"] = "random"
    """Whether each group of episodes draws its prompt, or they take them in order."""

    on_limit: Literal["terminate", "truncate"] = "terminate"
    """How an episode ends at the horizon; the reward is paid either way."""

    on_illegal_action: Literal["raise", "terminate"] = "raise"
    """What a token that the task forbids leads to; the policy itself never chooses one."""

    on_reward_error: Literal["raise", "drop"] = "raise"
    """Whether a reward function that fails ends the run, or its episode is dropped, and nothing learned from it."""

    reward_timeout: float | None = None
    """Seconds that a call of a reward function may take; by default any time."""

    isolate_reward: bool = False
    """Run each reward function in a process of its own."""

    num_threads: int = 1
    """Threads of torch; one is faster than two on small models."""

    trajectory_interval: int = 10
    """Updates between two entries of trajectories.jsonl."""


@dataclass(frozen=True)
class TrainSettings:
    """Train a policy with policy gradients; with no flags, a small one on the task `sort`."""

    task: str | None = None
    """A built-in task; `textgym tasks` lists them. By default sort."""

    level: int | None = None
    """Difficulty of the task, 1 the easiest."""

    model: Path | None = None
    """Hugging Face folder of a causal language model; without it a small one is made."""

    prompts: Path | None = None
    """A .txt, .jsonl, .csv or .parquet file with a "prompt" in each row; other columns reach the reward function."""

    tokenizer: Path | None = None
    """A tokenizer.json or a Hugging Face folder; by default the model's."""

    reward: str | None = None
    """The function that scores texts: file.py:function or module:function."""

    scheme: str = "terminal"
    """When a score is paid: terminal, prefix_delta."""

    stop: tuple[str, ...] = ()
    """A string that ends the text; may be given several times."""

    algorithm: str = "rloo"
    """reinforce, reinforce_baseline, reinforce_to_go, rloo."""

    group_size: int = 8
    """Episodes that share a prompt."""

    max_new_tokens: int | None = None
    """Horizon in tokens, the stop token included; the task's, or 32."""

    total_timesteps: int | None = None
    """Tokens to generate; by default those of about two minutes on one core, 10,000 to 200,000."""

    learning_rate: float | None = None
    """Step size of Adam; by default 0.064 over the model's width."""

    seed: int = 0
    """Seed of weights, prompts and actions."""

    run_dir: Path | None = None
    """Where the run goes; runs/NAME under the current folder by default."""

    resume: Path | None = None
    """Not built yet."""

    overwrite: bool = False
    """Replace the run that the folder holds."""

    device: Literal["cpu"] = "cpu"
    """Where the model runs."""

    advanced: AdvancedSettings = field(default_factory=AdvancedSettings)

    @property
    def on_own_prompts(self) -> bool:
        """Whether the texts or their reward are the user's own."""
        return self.prompts is not None or self.reward is not None

    def inputs(self) -> list[Path]:
        """The files and folders that the training reads."""
        return [path for path in (self.model, self.prompts, self.tokenizer) if path is not None]

    def env_keywords(self) -> dict[str, Any]:
        """The keywords of the environment."""
        source, advanced = self.tokenizer or self.model, self.advanced  # with a model and no tokenizer, the model's
        given = {
            "task": self.task,
            "level": self.level,
            "prompts": None if self.prompts is None else str(self.prompts),
            "tokenizer": None if source is None else str(source),
            "reward": self.reward,
            "scheme": self.scheme,
            "stop": list(self.stop),
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": advanced.max_prompt_tokens,
            "prompt_order": advanced.prompt_order,
            "on_limit": advanced.on_limit,
            "on_illegal_action": advanced.on_illegal_action,
            "on_reward_error": advanced.on_reward_error,
            "reward_timeout": advanced.reward_timeout,
            "isolate_reward": advanced.isolate_reward,
        }
        return {name: value for name, value in given.items() if value is not None}

    def name(self) -> str:
        """A name for the run: what is trained on, and how."""
        source = self.prompts.stem if self.prompts is not None else self.task or DEFAULT_TASK
        return f"{source}-{self.algorithm}"

    def as_json(self) -> dict[str, Any]:
        """All settings, as JSON holds them."""
        flat = {**asdict(self), **asdict(self.advanced)}
        del flat["advanced"], flat["resume"], flat["overwrite"]
        return {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}

    def next_command(self, policy: Path) -> str:
        """The command that trains on from a saved policy."""
        words = ["textgym", "train", "--model", str(policy)]
        for part in (self, self.advanced):
            for setting in fields(part):
                value = getattr(part, setting.name)
                if setting.name not in _NOT_CARRIED_ON and value != setting.default:
                    words += _words(f"--{setting.name.replace('_', '-')}", value)
        if self.task is None and self.prompts is None:
            words += ["--task", DEFAULT_TASK]
        return shlex.join(words)


def check_usage(settings: TrainSettings) -> None:
    """Refuse what is wrong with the command itself, before a file is read.

    Raises:
        TypeError, ValueError: a name or number outside what is allowed, or flags that do not go together.
    """
    if settings.resume is not None:
        raise NotBuiltError("--resume is not built yet; start a new run, or train on from a policy with --model")
    for flag in ("group_size", "max_new_tokens", "total_timesteps", "learning_rate"):
        _positive(flag, getattr(settings, flag))
    advanced = settings.advanced
    for flag in _POSITIVE:
        _positive(flag, getattr(advanced, flag))
    if not 0 <= advanced.entropy_coef < math.inf:
        raise ValueError(f"--entropy-coef {advanced.entropy_coef}; give a finite number of at least 0")
    if not 0 <= settings.seed < _MOST_SEED:
        raise ValueError(f"--seed {settings.seed}; give 0 to {_MOST_SEED - 1}")
    if advanced.num_threads > _MOST_THREADS:
        raise ValueError(f"--num-threads {advanced.num_threads}; give 1 to {_MOST_THREADS}")
    _check_scheme(settings.scheme)
    checked_stop_strings(settings.stop)
    algorithm = make_algorithm(settings.algorithm)
    if settings.task is not None or settings.level is not None:
        make_task(settings.task or DEFAULT_TASK, settings.level)
    _check_own_prompts(settings)
    episodes = advanced.episodes_per_update or settings.group_size
    if episodes % settings.group_size or settings.group_size < algorithm.min_group_size:
        raise ValueError(
            f"--group-size {settings.group_size} with {episodes} episodes per update: the group size must divide the "
            f"episodes and be at least {algorithm.min_group_size} for {algorithm.name}"
        )


def _check_scheme(scheme: str) -> None:
    try:
        make_scheme(scheme)
    except ValueError as error:
        if scheme not in SCHEMES:
            raise
        raise ValueError(
            f"--scheme {scheme} is for Python alone: {error}. A flag takes terminal or prefix_delta"
        ) from error


def _check_own_prompts(settings: TrainSettings) -> None:
    if settings.prompts is None or settings.task is not None:
        return
    if settings.level is not None:
        raise ValueError(f"--level {settings.level} needs a --task")
    if settings.tokenizer is None and settings.model is None:
        raise ValueError("--prompts needs a --model, or a --tokenizer for the small model that is made without one")
    if settings.reward is None:
        raise ValueError("--prompts needs a --reward: file.py:function or module:function")


def _words(flag: str, value: Any) -> list[str]:
    """A flag and its value as the command line takes them: a switch alone, one of several values once for each."""
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [f"{flag}={one}" for one in value]  # one that begins with a dash would be taken for a flag
    return [flag, str(value)]


def _positive(flag: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--{flag.replace('_', '-')} {value}; give a finite number above 0")
