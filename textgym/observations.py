"""What the agent sees of the rows: the history alone, or a dict with its length and masks."""

from typing import Any

import gymnasium as gym
import numpy as np

from textgym.episodes import Episodes
from textgym.problem import Problem


def observation_space(problem: Problem) -> gym.Space[Any]:
    """The space of one row's observation, as the keyword `observation` says."""
    length, size = problem.max_length, problem.vocabulary.size
    tokens = gym.spaces.Box(0, size, (length,), np.int64)
    if problem.observation == "tokens":
        return tokens
    return gym.spaces.Dict(
        {
            "tokens": tokens,
            "length": gym.spaces.Box(0, length, (1,), np.int64),
            "attention_mask": gym.spaces.Box(0, 1, (length,), np.int8),
            "action_mask": gym.spaces.Box(0, 1, (size,), np.int8),
        }
    )


def observe(episodes: Episodes, rows: np.ndarray | None = None) -> Any:
    """The observations of all rows, or of `rows`, int64 [n].

    Returns:
        int64 [N, L], or a dict of `tokens` int64 [N, L], `length` int64 [N, 1], `attention_mask` int8 [N, L] (1 on
        tokens, 0 on PAD) and `action_mask` int8 [N, V] (1 where a token is legal). Copies, save that with `copy=False`
        all rows together are the episodes' own tokens, which the next step changes.
    """
    problem = episodes.problem
    if rows is None:
        tokens, length = episodes.tokens.copy() if problem.copy else read_only(episodes.tokens), episodes.length
    else:
        tokens, length = episodes.tokens[rows], episodes.length[rows]
    if problem.observation == "tokens":
        return tokens
    masks = episodes.action_masks()
    return {
        "tokens": tokens,
        "length": length[:, None].copy(),
        "attention_mask": (np.arange(problem.max_length) < length[:, None]).view(np.int8),
        "action_mask": (masks if rows is None else masks[rows]).view(np.int8),
    }


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written through: who replaces PAD in it must not change the episode."""
    view = array.view()
    view.flags.writeable = False
    return view


def row_of(observations: Any, row: int) -> Any:
    """The observation of one row out of those of all."""
    if isinstance(observations, dict):
        return {name: values[row] for name, values in observations.items()}
    return observations[row]
