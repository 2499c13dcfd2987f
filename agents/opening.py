"""What a command opens: the model's folder as a policy, the keywords as an environment, or one message why not."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from transformers.utils.logging import disable_progress_bar

from agents.env_settings import ModelSettings
from agents.models import check_model_folder
from agents.policy import TransformerPolicy
from textgym.errors import did_you_mean
from textgym.escape import excerpt
from textgym.problem import Problem
from textgym.vector_env import TextGenVectorEnv
from textgym.vocabulary import Vocabulary

_MOST_ROWS, _MOST_TOKENS = 256, 16_384  # of a wave of episodes


class SetupError(RuntimeError):
    """The environment, the model or the reward cannot be built from the settings; the message says why."""


@contextlib.contextmanager
def setup_errors() -> Iterator[None]:
    """Turn what building raises into a `SetupError`."""
    try:
        yield
    except (ImportError, AttributeError, TypeError, ValueError, MemoryError, RuntimeError) as error:
        raise SetupError(str(error)) from error


def prepare(settings: ModelSettings) -> None:
    """Set torch's threads; refuse a folder without a model, and a device that is not here, before any work.

    Raises:
        FileNotFoundError, SetupError: no model there, or no such device here.
    """
    torch.set_num_threads(settings.advanced.num_threads)
    disable_progress_bar()  # a bar for each file would tear the live table
    if settings.model is not None:
        check_model_folder(settings.model)
    devices = available_devices()
    if settings.device not in devices and not (settings.device == "cuda" and torch.cuda.device_count()):
        raise SetupError(
            f"--device {excerpt(settings.device)} is not available; here are {', '.join(devices)}."
            f"{did_you_mean(settings.device, devices)}"
        )


def available_devices() -> list[str]:
    """The names of the devices that a model can run on here, the CPU first.

    >>> available_devices()[0]
    'cpu'
    """
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *mps, *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def make_envs(keywords: dict[str, Any]) -> TextGenVectorEnv:
    """The vector environment of one row that `keywords` describe; what is played in has as many rows as it needs."""
    envs = gym.make_vec("textgym:TextGen-v0", **keywords)
    assert isinstance(envs, TextGenVectorEnv)
    return envs


def wave_envs(problem: Problem, episodes: int, in_order: bool) -> TextGenVectorEnv:
    """What `collect` plays so many episodes in: no more rows than one forward pass should take.

    Args:
        problem: what is played.
        episodes: how many will be.
        in_order: whether prompts are taken in order, or drawn.
    """
    rows = max(1, min(episodes, _MOST_ROWS, _MOST_TOKENS // problem.max_length))
    order = "sequential" if in_order else "random"
    return TextGenVectorEnv(rows, autoreset_mode=AutoresetMode.DISABLED, problem=replace(problem, prompt_order=order))


def open_policy(
    settings: ModelSettings, vocabulary: Vocabulary | None, seed: int, **keywords: Any
) -> TransformerPolicy:
    """The policy of the folder `settings.model` over an environment's vocabulary.

    Args:
        settings: of the command.
        vocabulary: the environment's; None takes the folder's.
        seed: of the policy's generator.
        keywords: further ones of `TransformerPolicy`.

    Raises:
        FileNotFoundError, TypeError, ValueError: no model there, or one that does not fit the vocabulary or the flags.
    """
    assert settings.model is not None
    keywords |= {"dtype": getattr(torch, settings.advanced.dtype), "device": settings.device}
    return TransformerPolicy.from_pretrained(
        settings.model, vocabulary, seed=seed, **sampling_keywords(settings), **keywords
    )


def check_length(policy: TransformerPolicy, problem: Problem) -> None:
    """Refuse texts that may outgrow the model, which would otherwise fail where chance has them be long.

    Raises:
        SetupError: they may.
    """
    most = policy.max_length
    if most is not None and problem.max_length - 1 > most:  # the last token is never read
        raise SetupError(
            f"prompts of up to {problem.max_prompt_tokens:,} tokens and {problem.max_new_tokens:,} new ones are more "
            f"than the {most:,} that the model takes; lower --max-new-tokens, or give shorter prompts"
        )


def sampling_keywords(settings: ModelSettings) -> dict[str, Any]:
    """The flags that change the policy's distribution, where they are given; the saved policy's hold otherwise."""
    flags = {name: getattr(settings.advanced, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return {name: value for name, value in flags.items() if value is not None}


def described(problem: Problem) -> str:
    """What is played, in a few words.

    >>> described(make_envs({"task": "sort"}).problem)
    'task sort, level 1'
    """
    if problem.task is not None:
        return f"task {problem.task.name}, level {problem.task.level}"
    return f"{len(problem.prompts)} prompts" if problem.prompts.sized else "prompts from a function"
