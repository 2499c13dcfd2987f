"""The settings of `textgym sample`: what each means, its default, and what can be said against it before any work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from agents.env_settings import EnvSettings, check_positive, check_seed

NUM_TASK_PROMPTS = 4  # of a task, which may have any number of them


def _no_reward(completions: list[str]) -> list[float]:
    """Stands where the environment needs a reward and nobody asked for one; its scores are not shown."""
    return [0.0] * len(completions)


@dataclass(frozen=True)
class SampleSettings(EnvSettings):
    """Show what a model writes after prompts; without any, after an empty one."""

    model: Path | None = None
    """Hugging Face folder of a causal language model, or a policy that `textgym train` saved."""

    task: str | None = None
    """A built-in task, which brings prompts and a reward; `textgym tasks` lists them."""

    prompt: tuple[str, ...] = ()
    """A text to go on from; may be given several times."""

    chat: tuple[str, ...] = ()
    """What a user says, written as the model's chat template has it; may be given several times."""

    num: int = 1
    """Samples of each prompt."""

    num_prompts: int | None = None
    """How many prompts of a file, from its first, or of a task, drawn; by default all of a file, 4 of a task."""

    seed: int = 0
    """Seed of the tokens, and of the prompts that are drawn."""

    greedy: bool = False
    """Take the most probable token each time instead of drawing one."""

    json: bool = False
    """Print one JSON object a line: prompt, completion, completion_ids, log_probs, finish_reason, score."""

    needs_model: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = False

    @property
    def draws_prompts(self) -> bool:
        """Whether the prompts are drawn: those of a task, which its list holds in order."""
        return self.task is not None and self.prompts is None and not self._rows()

    @property
    def is_scored(self) -> bool:
        """Whether there is a reward to show."""
        return self.reward is not None or self.task is not None

    def env_keywords(self) -> dict[str, Any]:
        """The keywords of the environment."""
        keywords = super().env_keywords()
        if self._rows():
            keywords["prompts"] = self._rows()
        elif self.prompts is None and self.task is None:
            keywords["prompts"] = [""]
        return keywords if self.is_scored else keywords | {"reward": _no_reward}

    def check_usage(self) -> None:
        """As `ModelSettings.check_usage`."""
        super().check_usage()
        check_positive("num", self.num)
        check_positive("num_prompts", self.num_prompts)
        check_seed(self.seed)
        if self._rows() and self.prompts is not None:
            raise ValueError("--prompts names a file, and --prompt or --chat gives texts; give one of them")
        if self.num_prompts is not None and self.prompts is None and not self.draws_prompts:
            raise ValueError(f"--num-prompts {self.num_prompts} is for the prompts of a file or a task")
        if self.level is not None and self.task is None:
            raise ValueError(f"--level {self.level} needs a --task")
        if self.greedy and self.num > 1:
            raise ValueError(f"--greedy writes the same every time; leave out --num {self.num}")

    def _rows(self) -> list[dict[str, Any]]:
        texts: list[dict[str, Any]] = [{"prompt": text} for text in self.prompt]
        return texts + [{"prompt": [{"role": "user", "content": text}]} for text in self.chat]
