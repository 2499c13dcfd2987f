"""The settings that several commands share: how the model is opened, and what the environment is made of.

Each class checks what can be said against the flags before a file is read. What a command adds of its own stands in a
class derived from these.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from textgym.schemes import SCHEMES, make_scheme
from textgym.stops import checked_stop_strings
from textgym.tasks import DEFAULT_TASK, make_task

MOST_SEED = 2**63
_MOST_THREADS = 1024


@dataclass(frozen=True)
class AdvancedModelSettings:
    """Settings that rarely need a change."""

    temperature: float | None = None
    """Temperature of the policy, in sampling and in scoring; the saved policy's, or 1."""

    top_k: int | None = None
    """The policy keeps the K most probable tokens; the saved policy's, or all."""

    top_p: float | None = None
    """The policy keeps the most probable tokens that reach this share together; the saved policy's, or all."""

    min_p: float | None = None
    """The policy keeps tokens of at least this share of the most probable one's; the saved policy's, or all."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""

    num_threads: int = 1
    """Threads of torch; one is faster than two on small models."""


@dataclass(frozen=True)
class ModelSettings:
    """How the model is opened."""

    model: Path | None = None
    """Hugging Face folder of a causal language model; without it a small one is made."""

    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""

    advanced: AdvancedModelSettings = field(default_factory=AdvancedModelSettings)

    needs_model: ClassVar[bool] = False  # whether nothing can be done without one

    def as_json(self) -> dict[str, Any]:
        """All settings, the advanced ones among them, as JSON holds them."""
        flat = {**asdict(self), **asdict(self.advanced)}
        del flat["advanced"]
        return {name: str(value) if isinstance(value, Path) else value for name, value in flat.items()}

    def check_usage(self) -> None:
        """Refuse what is wrong with the command itself, before a file is read.

        Raises:
            TypeError, ValueError: a name or number outside what is allowed, or flags that do not go together.
        """
        advanced = self.advanced
        if self.model is None and self.needs_model:
            raise ValueError("which model? Give --model FOLDER: a Hugging Face folder, or RUN/policy of a training")
        check_positive("num_threads", advanced.num_threads)
        if advanced.num_threads > _MOST_THREADS:
            raise ValueError(f"--num-threads {advanced.num_threads}; give 1 to {_MOST_THREADS}")
        check_positive("temperature", advanced.temperature)
        check_positive("top_k", advanced.top_k)
        if advanced.top_p is not None and not 0 < advanced.top_p <= 1:
            raise ValueError(f"--top-p {advanced.top_p}; give a number above 0, at most 1")
        if advanced.min_p is not None and not 0 <= advanced.min_p <= 1:
            raise ValueError(f"--min-p {advanced.min_p}; give a number from 0 to 1")


@dataclass(frozen=True)
class AdvancedEnvSettings(AdvancedModelSettings):
    """Settings that rarely need a change."""

    stop_ids: tuple[int, ...] = ()
    """Id of a token that ends the text, instead of the tokenizer's; may be given several times."""

    max_prompt_tokens: int | None = None
    """Longest prompt allowed, in tokens; by default the longest of the prompts."""

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


@dataclass(frozen=True)
class EnvSettings(ModelSettings):
    """What the environment of a model is made of."""

    task: str | None = None
    """A built-in task; `textgym tasks` lists them. By default sort."""

    level: int | None = None
    """Difficulty of the task, 1 the easiest."""

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

    max_new_tokens: int | None = None
    """Horizon in tokens, the stop token included; the task's, or 32."""

    advanced: AdvancedEnvSettings = field(default_factory=AdvancedEnvSettings)

    needs_reward: ClassVar[bool] = True  # whether prompts of one's own are of no use without one

    def env_keywords(self) -> dict[str, Any]:
        """The keywords of the environment."""
        source, advanced = self.tokenizer or self.model, self.advanced  # with a model and no tokenizer, the model's
        given = {
            "task": self.task,
            "level": self.level,
            "prompts": None if self.prompts is None else str(self.prompts),
            "tokenizer": None if source is None else str(source),
            "stop_ids": list(advanced.stop_ids) or None,
            "reward": self.reward,
            "scheme": self.scheme,
            "stop": list(self.stop),
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": advanced.max_prompt_tokens,
            "on_limit": advanced.on_limit,
            "on_illegal_action": advanced.on_illegal_action,
            "on_reward_error": advanced.on_reward_error,
            "reward_timeout": advanced.reward_timeout,
            "isolate_reward": advanced.isolate_reward,
        }
        return {name: value for name, value in given.items() if value is not None}

    def check_usage(self) -> None:
        """As `ModelSettings.check_usage`."""
        super().check_usage()
        check_positive("max_new_tokens", self.max_new_tokens)
        check_positive("reward_timeout", self.advanced.reward_timeout)
        for stop_id in self.advanced.stop_ids:
            if stop_id < 0:
                raise ValueError(f"--stop-ids {stop_id}; ids are numbers from 0")
        _check_scheme(self.scheme)
        checked_stop_strings(self.stop)
        if self.task is not None or self.level is not None:
            make_task(self.task or DEFAULT_TASK, self.level)
        self._check_own_prompts()

    def _check_own_prompts(self) -> None:
        if self.prompts is None or self.task is not None:
            return
        if self.level is not None:
            raise ValueError(f"--level {self.level} needs a --task")
        if self.tokenizer is None and self.model is None:
            raise ValueError("--prompts needs a --model, or a --tokenizer for the small model that is made without one")
        if self.reward is None and self.needs_reward:
            raise ValueError("--prompts needs a --reward: file.py:function or module:function")


def check_positive(flag: str, value: float | None) -> None:
    """Refuse a number that is given and not above 0, under the name of its flag."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"--{flag.replace('_', '-')} {value}; give a finite number above 0")


def check_seed(seed: int) -> None:
    """Refuse a seed that torch's generators do not take."""
    if not 0 <= seed < MOST_SEED:
        raise ValueError(f"--seed {seed}; give 0 to {MOST_SEED - 1}")


def _check_scheme(scheme: str) -> None:
    try:
        make_scheme(scheme)
    except ValueError as error:
        if scheme not in SCHEMES:
            raise
        raise ValueError(
            f"--scheme {scheme} is for Python alone: {error}. A flag takes terminal or prefix_delta"
        ) from error
