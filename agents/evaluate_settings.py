"""The settings of `textgym evaluate`: what each means, its default, and what can be said against it before any work."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from agents.env_settings import EnvSettings, check_positive, check_seed


@dataclass(frozen=True)
class EvaluateSettings(EnvSettings):
    """Measure what a model's texts score, greedy and sampled, with intervals."""

    model: Path | None = None
    """Hugging Face folder of a causal language model, or a policy that `textgym train` saved."""

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

    needs_model: ClassVar[bool] = True

    @property
    def policies(self) -> tuple[str, ...]:
        """Which are measured, "greedy" and "sampled"; both where neither flag is given."""
        chosen = tuple(name for name in ("greedy", "sampled") if getattr(self, name))
        return chosen or ("greedy", "sampled")

    def check_usage(self) -> None:
        """As `ModelSettings.check_usage`."""
        super().check_usage()
        check_positive("episodes", self.episodes)
        check_seed(self.seed)
        if not 0 < self.confidence < 1:
            raise ValueError(f"--confidence {self.confidence}; give a number between 0 and 1, such as 0.95")
        if self.score_range is None:
            return
        low, high = self.score_range
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"--score-range {low} {high}; give two finite numbers, the lower one first")
