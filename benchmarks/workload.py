"""The workload of the parts of `speed` that run a model: untrained policies, random prompts, lengths that vary.

The weights are set so that the stop token has almost the same probability in every state: the lengths of completions
are then geometric, with a mean near 24 at the usual horizon of 64. What is timed is left to others.
"""

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

import textgym  # noqa: F401  (registers the environment)
from agents.policy import TransformerPolicy
from agents.small_model import make_small_model

EPISODES, HORIZON, VOCABULARY_SIZE, GROUP_SIZE = 256, 64, 1024, 8
STOP_ID = 0
_STOP_PROBABILITY = 1 / 26  # (1 - (1 - p)^64) / p is a mean of 23.9
_SPREAD = 0.5  # standard deviation of the other tokens' logits
_SEED = 0


class Size(NamedTuple):
    """A model's width and depth."""

    d_model: int
    num_layers: int


SIZES = {"S": Size(64, 2), "M": Size(128, 4), "L": Size(256, 6)}


def likely_lengths(episodes: int) -> np.ndarray:
    """Lengths of completions at evenly spaced quantiles of their distribution, int64 [episodes]."""
    left = (np.arange(episodes) + 0.5) / episodes
    lengths = np.ceil(np.log(left) / math.log(1 - _STOP_PROBABILITY)).astype(np.int64)
    return np.clip(lengths, 1, HORIZON)


def score(completion_ids: list[list[int]]) -> list[float]:
    """The share of odd ids: a reward that costs next to nothing."""
    return [sum(token % 2 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def symbols(size: int = VOCABULARY_SIZE) -> list[str]:
    """A tokenizer as a list of symbols, the stop token first."""
    return ["<eos>", *(f"t{token} " for token in range(1, size))]


def prompts(count: int, tokens: int, size: int = VOCABULARY_SIZE) -> list[str]:
    """Random prompts, all of the same number of tokens; the same ones every time."""
    ids = np.random.default_rng(_SEED).integers(1, size, size=(count, tokens))
    return ["".join(f"t{token} " for token in row) for row in ids]


def make_envs(
    num_envs: int,
    prompt_tokens: int,
    num_prompts: int = EPISODES,
    horizon: int = HORIZON,
    size: int = VOCABULARY_SIZE,
    **keywords: Any,
) -> VectorEnv:
    """The environment: random prompts, a stop token, a cheap reward."""
    own: dict[str, Any] = {
        "prompts": prompts(num_prompts, prompt_tokens, size),
        "tokenizer": symbols(size),
        "reward": score,
        "max_new_tokens": horizon,
        "rng": "shared",
    }
    return gym.make_vec("TextGen-v0", num_envs=num_envs, **own | keywords)


def make_policy(
    envs: VectorEnv,
    size: Size,
    stop_probability: float = _STOP_PROBABILITY,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> TransformerPolicy:
    """An untrained policy that stops with nearly the given probability in every state.

    Args:
        envs: whose tokens it has.
        size: of the model.
        stop_probability: of the stop token.
        dtype: of the weights.
        settings: further arguments of `TransformerPolicy`.
    """
    problem = envs.unwrapped.problem  # type: ignore[attr-defined]
    vocabulary = problem.vocabulary
    model = make_small_model(vocabulary.size, *size, problem.max_length, vocabulary.stop_ids, _SEED)
    _stop_at_a_constant_rate(model, vocabulary.size, stop_probability)
    return TransformerPolicy(model.to(dtype), vocabulary.size, vocabulary, bos_id=vocabulary.size, **settings)


@torch.no_grad()
def _stop_at_a_constant_rate(model: Any, size: int, probability: float) -> None:
    """Let the last normalisation add 1 to its first output, which the stop token's row alone reads."""
    weight, norm = model.lm_head.weight, model.transformer.ln_f
    spread = float(weight[1:size, 1:].std()) * math.sqrt(weight.shape[1] - 1)
    norm.weight.mul_(_SPREAD / spread)
    norm.weight[0], norm.bias[0] = 0.0, 1.0
    weight[:, 0] = 0.0
    weight[STOP_ID] = 0.0
    # The other logits are nearly normal: log Σ exp is log(V - 1) + σ²/2.
    others = math.log(size - 1) + _SPREAD**2 / 2
    weight[STOP_ID, 0] = others + math.log(probability / (1 - probability))
