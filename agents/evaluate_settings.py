"""The settings of `textgym evaluate`: what each means, its default, and what can be said against it before any work."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from agents.env_settings import EnvSettings, check_positive, check_seed
from textgym.errors import unknown

BASELINES = ("random", "uniform-legal", "greedy-oracle", "tabular")


@dataclass(frozen=True)
class EvaluateSettings(EnvSettings):
    """Measure what the texts of a model, or of any other agent, score, with intervals."""

    model: Path | None = None
    """Hugging Face folder of a causal language model, or a policy that `textgym train` saved."""

    agent: str | None = None
    """Instead of --model: a zip that stable-baselines3 saved, file.py:object or module:object with predict() or to be
    called, or a baseline: random, uniform-legal, greedy-oracle, tabular."""

    agent_timesteps: int = 50_000
    """Tokens that the tabular agent is trained on before it is measured."""

    observation: Literal["tokens", "dict"] | None = None
    """What an object is shown; by default what its observation_space says, or tokens."""

    episodes: int | None = None
    """Most texts; with as many as prompts or more, each prompt as often; by default 256, or all of 4,096 prompts."""

    seed: int = 0
    """Seed of the tokens, and of the prompts where they are drawn."""

    greedy: bool = False
    """Measure the greedy policy alone, which takes the most probable token each time."""

    sampled: bool = False
    """Measure the sampled policy alone."""

    confidence: float = 0.95
    """Share of such intervals that hold the truth."""

    score_range: tuple[float, float] | None = None
    """What no score can lie outside of; known of the built-in tasks, and makes intervals of few texts honest."""

    fixed_prompts: bool = False
    """The prompts of the file are all that matter, not a sample of prompts like them."""

    output: Path | None = None
    """A new JSON file for the table and the settings."""

    needs_model: ClassVar[bool] = False

    @property
    def policies(self) -> tuple[str, ...]:
        """Which of "greedy" and "sampled" are asked for; none where neither flag is given."""
        return tuple(name for name in ("greedy", "sampled") if getattr(self, name))

    def resolved(self) -> "EvaluateSettings":
        """The settings with an agent that is a folder as the model that it is."""
        if self.agent is None or self.agent in BASELINES or not Path(self.agent).is_dir():
            return self
        return replace(self, model=Path(self.agent), agent=None)

    def check_usage(self) -> None:
        """As `ModelSettings.check_usage`."""
        super().check_usage()
        self._check_agent()
        check_positive("episodes", self.episodes)
        check_positive("agent_timesteps", self.agent_timesteps)
        check_seed(self.seed)
        if not 0 < self.confidence < 1:
            raise ValueError(f"--confidence {self.confidence}; give a number between 0 and 1, such as 0.95")
        if self.score_range is None:
            return
        low, high = self.score_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"--score-range {low} {high}; give two finite numbers, the lower one first")

    def _check_agent(self) -> None:
        if self.agent is None and self.model is None:
            raise ValueError(
                "which model? Give --model FOLDER: a Hugging Face folder, or RUN/policy of a training; or --agent for "
                "any other agent"
            )
        if self.agent is not None and self.model is not None:
            raise ValueError(f"--agent {self.agent} and --model {self.model}; give one of them")
        named = self.agent
        if named is not None and not Path(named).is_dir():
            advanced = self.advanced
            for flag in ("temperature", "top_k", "top_p", "min_p"):
                if getattr(advanced, flag) is not None:
                    raise ValueError(f"--{flag.replace('_', '-')} is for a --model; this agent samples as it does")
            if self.observation is not None and ":" not in named:
                raise ValueError(f"--observation {self.observation} is for an object, file.py:object or module:object")
        if named is None or named in BASELINES or named.endswith(".zip") or ":" in named or Path(named).is_dir():
            return
        raise ValueError(
            f"{unknown('--agent', named, BASELINES)} Or give a zip of stable-baselines3, a Hugging Face folder, "
            "file.py:object or module:object"
        )
