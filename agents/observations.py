"""What a policy reads of an observation, and checks: the histories, and which actions are legal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from textgym.escape import shown


def tokens_of(observations: Any) -> np.ndarray:
    """The histories of observations, or of one: the array itself, or the `tokens` of a dict.

    Raises:
        ValueError: a dict without `tokens`.

    >>> tokens_of({"tokens": np.array([3, 1]), "length": np.array([2])})
    array([3, 1])
    """
    if not isinstance(observations, Mapping):
        return observations
    if "tokens" not in observations:
        raise ValueError(
            f"the observation is a dict with the keys {shown(list(observations))}; give one with 'tokens', as "
            "observation='dict' has it, or the histories themselves"
        )
    return observations["tokens"]


def action_mask_of(observations: Any) -> np.ndarray | None:
    """The `action_mask` of a dict observation, 1 where a token is legal; None where there is none.

    >>> action_mask_of(np.array([3, 1])) is None
    True
    """
    return observations.get("action_mask") if isinstance(observations, Mapping) else None


def histories_of(observations: Any, size: int) -> np.ndarray:
    """The histories of observations, int64 [N, L], padded on the right with PAD = V.

    Args:
        observations: integers [N, L], or a dict whose `tokens` are.
        size: V.

    Raises:
        ValueError: another shape or type, ids outside 0..V, or PAD before a token.
    """
    array = np.asarray(tokens_of(observations))
    if array.ndim == 2 and array.shape[1] == 0:
        array = np.full((len(array), 1), size)  # empty histories, with nothing to pad
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"observations are {array.dtype} {array.shape}; give integers of shape [N, L]")
    if array.size and (array.min() < 0 or array.max() > size):
        raise ValueError(
            f"observations hold ids from {array.min()} to {array.max()}; this policy has tokens 0 to {size - 1} and "
            f"PAD = {size}: make the policy for this environment's vocabulary"
        )
    padding = array == size
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        raise ValueError(f"observations hold PAD = {size} before a token; histories are padded on the right")
    return array.astype(np.int64)


def checked_mask(action_mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An action mask as bool, one value a state and token.

    Raises:
        ValueError: another shape.
    """
    mask = np.asarray(action_mask, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"action_mask has the shape {mask.shape}; give {shape}, one value a state and token")
    return mask
