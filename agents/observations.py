"""What a policy reads of an observation: the histories, and which actions are legal."""

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
