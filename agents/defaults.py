"""Defaults that depend on the size of the model, as pure functions."""

import math
from collections.abc import Sequence

from agents.policy import TransformerPolicy

# 1e-3 at the width of 64, where a small policy solves the default task.
_LEARNING_RATE_TIMES_WIDTH = 0.064
_LEAST_LEFT = 0.1  # of the learning rate, so that no update changes nothing
# About two minutes on one core, where models of medium size were measured at 2.5e10 operations a second.
_OPERATIONS = 2.5e12
_MOST_TIMESTEPS, _LEAST_TIMESTEPS = 200_000, 10_000
# An update sees about as many tokens at every horizon, and a run has at least forty updates.
_TOKENS_PER_UPDATE, _LEAST_UPDATES = 2048, 40
_MOST_EPISODES, _LEAST_EPISODES = 256, 16


def default_learning_rate(policy: TransformerPolicy, num_steps: int = 1, decays: bool = False) -> float:
    """Adam's step size, in inverse proportion to the model's width, and to the root of an update's steps.

    A weight moves by about the step size whatever its gradient, and what a layer puts out moves by width times that:
    the proportion keeps it the same (Yang and Hu, 2011.14522). Several steps on the same episodes share their noise,
    and each takes less of it. One that decays in the end may be larger before: what it overshoots is made good then.

    Args:
        policy: the model.
        num_steps: steps of the optimizer in an update.
        decays: whether it falls at the end of the training.

    >>> default_learning_rate(TransformerPolicy.small(4, d_model=64))
    0.001
    """
    times_width = _LEARNING_RATE_TIMES_WIDTH * (2 if decays else 1)
    return times_width / policy.model.config.get_text_config().hidden_size / math.sqrt(num_steps)


def decayed(num_timesteps: int, decay_timesteps: Sequence[int] | None) -> float:
    """The share of the learning rate that is left: 1, then falling linearly to a tenth, at which it stays.

    Args:
        num_timesteps: tokens generated so far.
        decay_timesteps: between which it falls; None where it does not.

    >>> [decayed(now, (100, 200)) for now in (0, 100, 150, 200, 300)]
    [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    if decay_timesteps is None:
        return 1.0
    start, end = decay_timesteps
    left = min(1.0, max(0.0, (end - num_timesteps) / (end - start)))
    return _LEAST_LEFT + (1 - _LEAST_LEFT) * left


def default_timesteps(
    policy: TransformerPolicy, prompt_tokens: int, max_new_tokens: int, batch_multiple: int = 1
) -> int:
    """Tokens to generate in about two minutes on one core, 10,000 to 200,000, or to a multiple of that.

    Every generated token costs its share of three passes over the episode, each token once: in sampling, and forward
    and backward in the update. A pass takes two operations a weight and token, a backward pass four; the vocabulary is
    projected on for generated tokens alone.

    Args:
        policy: the model.
        prompt_tokens: of the longest prompt.
        max_new_tokens: the horizon.
        batch_multiple: of the algorithm.

    >>> default_timesteps(TransformerPolicy.small(8), prompt_tokens=4, max_new_tokens=4)
    200000
    """
    tables = {policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight}
    body = sum(weights.numel() for weights in policy.parameters()) - sum(table.numel() for table in tables)
    head = policy.model.get_output_embeddings().weight.numel()
    episode = (prompt_tokens + max_new_tokens) / max_new_tokens
    operations = 8 * (body * episode + head)
    return int(min(_MOST_TIMESTEPS * batch_multiple, max(_LEAST_TIMESTEPS, _OPERATIONS / operations)))


def default_episodes(timesteps: int, max_new_tokens: int, group_size: int, batch_multiple: int = 1) -> int:
    """Episodes of one update: 16 to 256, a multiple of the group size, of about 2,048 tokens or a fortieth of the run.

    Of an algorithm with a `batch_multiple`, up to that many times as many.

    Args:
        timesteps: what `default_timesteps` says of the model.
        max_new_tokens: the horizon.
        group_size: episodes that share a prompt.
        batch_multiple: of the algorithm.

    >>> default_episodes(200_000, max_new_tokens=32, group_size=8)
    64
    """
    tokens = min(_TOKENS_PER_UPDATE * batch_multiple, timesteps // _LEAST_UPDATES)
    episodes = min(_MOST_EPISODES * batch_multiple, max(_LEAST_EPISODES, tokens // max_new_tokens))
    return max(1, episodes // group_size) * group_size
