"""The settings of `textgym train`: what each means, its default, and what can be said against it before any work."""

import math
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from agents.algorithms import check_kl, make_algorithm
from agents.axes import AXES, Algorithm
from agents.env_settings import AdvancedEnvSettings, EnvSettings, check_positive, check_seed
from textgym.errors import NotBuiltError
from textgym.tasks import DEFAULT_TASK

_POSITIVE = (
    "episodes_per_update",
    "max_grad_norm",
    "tokens_per_microbatch",
    "d_model",
    "num_layers",
    "lora_rank",
    "trajectory_interval",
)

# What the next command leaves out: the policy is the model, and holds its shape and how it samples; a run has a folder
# of its own.
_NOT_CARRIED_ON = frozenset(
    "model advanced temperature top_k top_p min_p run_dir resume overwrite d_model num_layers seed".split()
)


@dataclass(frozen=True)
class AxisSettings:
    """Choices instead of those of the algorithm's row."""

    advantages: str | None = None
    """Instead of the algorithm's own: return, to_go, batch_leave_one_out, leave_one_out, group_mean, gae."""

    scale: str | None = None
    """What advantages are divided by: none, group_std, whiten."""

    objective: str | None = None
    """policy_gradient, clip, cispo."""

    importance: str | None = None
    """Level of the ratio to the policy that sampled: token, sequence."""

    aggregation: str | None = None
    """How tokens are summed up: constant, sequence_mean, token_mean."""

    kl: str | None = None
    """Where the KL to the reference stands: none, k1_reward, k1, k2, k2_sequence, k3, frozen."""

    clip_epsilon: float | None = None
    """Ratios count from 1 minus this, up to 1 plus this."""

    clip_epsilon_high: float | None = None
    """Ratios count up to 1 plus this."""

    num_epochs: int | None = None
    """How often an update goes over its episodes."""

    num_minibatches: int | None = None
    """Steps of the optimizer in each epoch."""

    gamma: float | None = None
    """Discount of to_go and gae."""

    gae_lambda: float | None = None
    """Lambda of gae; 0 trusts the critic alone, 1 the returns alone."""

    value_coef: float | None = None
    """Weight of the critic's squared error."""

    sampling_rounds: int | None = None
    """Most times that groups of equal returns are sampled again, for one update; 1 keeps them."""

    overlong_buffer: float | None = None
    """Share of the horizon, at its end, over which a penalty of up to 1 grows."""

    @property
    def axes(self) -> dict[str, Any]:
        """The choices that were made."""
        return {axis: getattr(self, axis) for axis in AXES if getattr(self, axis, None) is not None}


@dataclass(frozen=True)
class AdvancedSettings(AxisSettings, AdvancedEnvSettings):
    """Settings that rarely need a change."""

    prompt_order: Literal["random", "sequential"] = "random"
    """Whether each group of episodes draws its prompt, or they take them in order."""

    episodes_per_update: int | None = None
    """Episodes of one update, a multiple of the group size; by default 16 to 256, about 2,048 tokens in all."""

    decay_share: float = 0.3
    """Share of the tokens, at the end, over which the step size falls to a tenth; 0 leaves it as it is."""

    entropy_coef: float = 0.05
    """Weight of the mean entropy per token, in units of reward per nat."""

    kl_coef: float = 0.0
    """Weight of the KL to the reference policy; 0 for none."""

    kl_target: float | None = None
    """KL to the reference that the weight is adapted to, in nats per token; by default the weight stays as it is."""

    reference: Path | None = None
    """Hugging Face folder of the reference; by default the policy as it begins, or the model without its adapters."""

    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm."""

    tokens_per_microbatch: int = 16_384
    """Most tokens in one forward pass of an update; changes memory and speed, not the result."""

    d_model: int = 64
    """Width of the small policy that is made without --model."""

    num_layers: int = 2
    """Transformer blocks of the small policy that is made without --model."""

    lora_rank: int | None = None
    """Train LoRA adapters of this rank alone, and save them merged; needs the extra "lora"."""

    gradient_checkpointing: bool = False
    """Compute activations again for the gradient rather than keep them: less memory, more time."""

    compile_decoding: bool = False
    """Compile the steps of sampling with torch.compile as they are first needed; takes a C++ compiler, or Triton."""

    trajectory_interval: int = 10
    """Updates between two entries of trajectories.jsonl."""


@dataclass(frozen=True)
class TrainSettings(EnvSettings):
    """Train a policy with policy gradients; with no flags, a small one on the task `sort`."""

    algorithm: str = "rloo"
    """One of rloo, reinforce, reinforce_baseline, reinforce_to_go, grpo, dr_grpo, dapo, gspo, cispo, reinforce_pp,
    a2c, ppo."""

    group_size: int = 8
    """Episodes that share a prompt."""

    total_timesteps: int | None = None
    """Tokens to generate; by default those of about two minutes on one core, 10,000 to 200,000 (to 1,200,000 without a
    baseline)."""

    learning_rate: float | None = None
    """Step size of Adam; by default 0.128 over the model's width, and the root of an update's steps; half of that where
    it does not decay."""

    seed: int = 0
    """Seed of weights, prompts and actions."""

    run_dir: Path | None = None
    """Where the run goes; runs/NAME under the current folder by default."""

    resume: Path | None = None
    """Not built yet."""

    overwrite: bool = False
    """Replace the run that the folder holds."""

    advanced: AdvancedSettings = field(default_factory=AdvancedSettings)

    @property
    def on_own_prompts(self) -> bool:
        """Whether the texts or their reward are the user's own."""
        return self.prompts is not None or self.reward is not None

    def inputs(self) -> list[Path]:
        """The files and folders that the training reads."""
        paths = (self.model, self.prompts, self.tokenizer, self.advanced.reference)
        return [path for path in paths if path is not None]

    def row(self) -> Algorithm:
        """The algorithm, with the choices that were made instead of its own."""
        return make_algorithm(self.algorithm, **self.advanced.axes)

    def env_keywords(self) -> dict[str, Any]:
        """The keywords of the environment."""
        return super().env_keywords() | {"prompt_order": self.advanced.prompt_order}

    def name(self) -> str:
        """A name for the run: what is trained on, and how."""
        source = self.prompts.stem if self.prompts is not None else self.task or DEFAULT_TASK
        return f"{source}-{self.algorithm}"

    def as_json(self) -> dict[str, Any]:
        """All settings that a run is made with, as JSON holds them."""
        return {name: value for name, value in super().as_json().items() if name not in ("resume", "overwrite")}

    def next_command(self, policy: Path, stopped: bool = False, **reached: Any) -> str:
        """The command that evaluates a saved policy where it was trained, or trains on, where it was stopped.

        Args:
            policy: where it was saved.
            stopped: whether to train on.
            reached: settings that have other values by now.
        """
        words = ["textgym", "train" if stopped else "evaluate", "--model", str(policy)]
        shared = (type(self), type(self.advanced)) if stopped else (EnvSettings, AdvancedEnvSettings)
        for part, settings in zip((self, self.advanced), shared, strict=True):
            for setting in fields(settings):
                value = reached.get(setting.name, getattr(part, setting.name))
                if setting.name not in _NOT_CARRIED_ON and value != setting.default:
                    words += _words(f"--{setting.name.replace('_', '-')}", value)
        if self.task is None and self.prompts is None:
            words += ["--task", DEFAULT_TASK]
        return shlex.join(words)

    def check_usage(self) -> None:
        """As `ModelSettings.check_usage`."""
        if self.resume is not None:
            raise NotBuiltError("--resume is not built yet; start a new run, or train on from a policy with --model")
        for flag in ("group_size", "total_timesteps", "learning_rate"):
            check_positive(flag, getattr(self, flag))
        advanced = self.advanced
        for flag in _POSITIVE:
            check_positive(flag, getattr(advanced, flag))
        if not 0 <= advanced.entropy_coef < math.inf:
            raise ValueError(f"--entropy-coef {advanced.entropy_coef}; give a finite number of at least 0")
        if not 0 <= advanced.decay_share <= 1:
            raise ValueError(f"--decay-share {advanced.decay_share}; give a number from 0 to 1")
        check_seed(self.seed)
        super().check_usage()
        algorithm = self.row()
        check_kl(algorithm, advanced.kl_coef, advanced.kl_target, advanced.reference is not None)
        episodes = advanced.episodes_per_update or self.group_size
        if advanced.episodes_per_update is not None and advanced.episodes_per_update < algorithm.min_episodes:
            raise ValueError(
                f"--episodes-per-update {advanced.episodes_per_update}; {algorithm.name} compares at least "
                f"{algorithm.min_episodes} episodes"
            )
        if episodes % self.group_size or self.group_size < algorithm.min_group_size:
            raise ValueError(
                f"--group-size {self.group_size} with {episodes} episodes per update: the group size must divide the "
                f"episodes and be at least {algorithm.min_group_size} for {algorithm.name}"
            )


def _words(flag: str, value: Any) -> list[str]:
    """A flag and its value as the command line takes them: a switch alone, one of several values once for each."""
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [f"{flag}={one}" for one in value]  # one that begins with a dash would be taken for a flag
    return [flag, str(value)]
