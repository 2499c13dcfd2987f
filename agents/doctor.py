"""`textgym doctor`: what is installed here, and whether a model can be trained rightly, with the figures."""

import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from agents.display import say
from agents.env_settings import ModelSettings
from textgym.escape import escape

_EXTRAS = {
    "peft": "lora",
    "jinja2": "chat",
    "pyarrow": "data",
    "pillow": "render",
    "stable-baselines3": "sb3",
    "scipy": "benchmarks",
    "ray": "ray",
}


@dataclass(frozen=True)
class DoctorSettings(ModelSettings):
    """Show versions and threads, and check a model: padding, batch, prefix cache, ratio, stop tokens."""

    model: Path | None = None
    """Hugging Face folder of the causal language model to check."""

    tokenizer: Path | None = None
    """A tokenizer.json or a Hugging Face folder; by default the model's."""


def doctor(settings: DoctorSettings) -> int:
    """Print what is found; returns the exit code.

    Raises:
        SetupError, OSError: the model cannot be opened.
        SelfCheckError: the model fails; all figures have been printed.
    """
    from agents.opening import available_devices, prepare
    from agents.run_folder import describe_machine

    say(describe_machine().rstrip())
    say(f"devices {', '.join(available_devices())}")
    say(f"disk free here {shutil.disk_usage('.').free / 1e9:.1f} GB")
    for package, extra in _EXTRAS.items():
        say(f"extra {extra}: {package} {_version(package)}")
    if settings.model is None:
        say("no model was checked: give --model FOLDER")
        return 0
    prepare(settings)
    return _check_model(settings)


def _check_model(settings: DoctorSettings) -> int:
    from agents.opening import open_policy, setup_errors
    from agents.self_check import refuse_failed, self_check
    from textgym.vocabulary import make_vocabulary

    with setup_errors():
        vocabulary = make_vocabulary(settings.tokenizer or settings.model)
        policy = open_policy(settings, vocabulary, seed=0)
    weights = sum(parameter.numel() for parameter in policy.parameters())
    longest = "any length" if policy.max_length is None else f"up to {policy.max_length} tokens"
    say(
        f"model {escape(str(settings.model))}: {type(policy.model).__name__}, {weights:,} weights in "
        f"{settings.advanced.dtype} on {policy.device}, {policy.size} tokens, histories of {longest}"
    )
    checks = self_check(policy, vocabulary)
    for check in checks:
        say(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    refuse_failed(checks)
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
