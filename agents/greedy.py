"""The greedy policy of a policy: the most probable token in each state."""

from typing import TYPE_CHECKING, Any

import numpy as np

from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache

if TYPE_CHECKING:
    import torch


class Greedy:
    """Acts as `collect` asks, and takes the most probable token instead of drawing one.

    Args:
        policy: says how probable each token is.
    """

    def __init__(self, policy: TransformerPolicy) -> None:
        self.policy = policy

    def prefix_cache(self) -> PrefixCache:
        """As the policy's."""
        return self.policy.prefix_cache()

    def act(
        self, observations: np.ndarray, generator: "torch.Generator | None" = None, **keywords: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The most probable tokens int64 [N] and their log π(a | s), float32 [N]; see `TransformerPolicy.act`."""
        return self.policy.act(observations, generator, deterministic=True, **keywords)
