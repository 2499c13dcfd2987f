"""TransformerModule: a TransformerPolicy as an RLModule, for RLlib's PPO and its relatives on the new API stack.

One pass through the model gives logits and values. On env runners a grown history costs one token; on learners the
states of one episode that share a minibatch cost no more than the longest of them. Losses, collecting and the
environment are left to RLlib, which takes the native vector environment as it is:

    config = (
        PPOConfig()
        .environment("textgym:TextGen-v0", env_config={"task": "sort"})
        .env_runners(gym_env_vectorize_mode="vector_entry_point", num_envs_per_env_runner=64)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TransformerModule, model_config={"policy": {"seed": 1}}))
    )
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from agents.policy import TransformerPolicy


class TransformerModule(TorchRLModule, ValueFunctionAPI):
    """A TransformerPolicy with a value head, made from the spaces and from `model_config["policy"]`.

    That holds the arguments of `TransformerPolicy.small` by keyword; or a "folder", beside arguments of
    `TransformerPolicy.from_pretrained`. Each env runner builds it anew, so it must be plain data, and a folder must be
    within their reach. RLlib adds keys of its own beside "policy", which play no part. Observations are those of the
    environment, tokens or dict; the `action_mask` of the latter is obeyed.

    Attributes:
        policy: the policy; `algorithm.get_module().policy` is the trained one.

    Raises:
        ValueError: spaces that are not the environment's, settings that the policy does not have or that cut tokens
            off, or a model that has another number of tokens or cannot read the longest history.
    """

    policy: TransformerPolicy

    def setup(self) -> None:
        """Make the policy."""
        size, length = _size_and_length(self.observation_space, self.action_space)
        given = (self.model_config or {}).get("policy", {})
        if not isinstance(given, Mapping):
            raise ValueError(f"model_config['policy'] is a {type(given).__name__}; give a dict of settings")
        settings: dict[str, Any] = {**given, "value_head": True}
        try:
            if "folder" in settings:
                self.policy = TransformerPolicy.from_pretrained(**settings)
            else:
                self.policy = TransformerPolicy.small(size, **settings)
        except TypeError as error:
            raise ValueError(f"model_config['policy'] is {dict(given)}, which makes no policy: {error}") from error
        if self.policy.size != size:
            raise ValueError(f"the model of {given['folder']} has {self.policy.size} tokens, the environment {size}")
        longest = self.policy.max_length
        if longest is not None and longest < length:
            raise ValueError(
                f"the environment's histories have up to {length} tokens, the model reads {longest}; give the folder "
                "of one that reads more"
            )
        if self.policy.truncation:
            raise ValueError(
                "the policy cuts tokens off (top_k, top_p or min_p), and RLlib does not store which: after an update "
                "it would cut off others, and its log-probs would be those of another distribution; leave them None"
            )
        self._cache = self.policy.prefix_cache()

    def set_state(self, state: Any) -> None:
        """Load weights, of which nothing that was kept for the old ones is true."""
        super().set_state(state)
        self._cache.clear()

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        distribution = self.policy.distribution(_observations(batch), cache=self._cache)
        return {Columns.ACTION_DIST_INPUTS: distribution.log_probs}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        self._cache.clear()  # what follows is a step of an optimizer
        distribution, values = self.policy.distribution_and_values(_observations(batch))
        return {Columns.ACTION_DIST_INPUTS: distribution.log_probs, Columns.EMBEDDINGS: values}

    def compute_values(self, batch: dict[str, Any], embeddings: Any | None = None) -> Tensor:
        """V(s) [N].

        Args:
            batch: holds the observations.
            embeddings: what the training pass has found, which carries the gradient. Without it there is none: RLlib
                asks so for the values of a whole train batch, before its first update.
        """
        if embeddings is not None:
            return embeddings
        with torch.no_grad():
            return self.policy.distribution_and_values(_observations(batch))[1]


def _size_and_length(observation_space: gym.Space, action_space: gym.Space) -> tuple[int, int]:
    """V and L.

    Raises:
        ValueError: spaces that are not the environment's.
    """
    space: gym.Space | None = observation_space
    if isinstance(space, gym.spaces.Dict):
        space = space.spaces.get("tokens")
    if (
        not isinstance(action_space, gym.spaces.Discrete)
        or not isinstance(space, gym.spaces.Box)
        or len(space.shape) != 1
        or not np.issubdtype(space.dtype, np.integer)
    ):
        raise ValueError(
            f"the observation space is {observation_space} and the action space {action_space}; a TransformerModule "
            "takes the observations of TextGen-v0, tokens or dict, as they are, without wrappers or connectors that "
            "flatten, rename or cast them"
        )
    return int(action_space.n), space.shape[0]


def _observations(batch: dict[str, Any]) -> Any:
    """The observations of a batch as a policy reads them."""
    observations = batch[Columns.OBS]
    if isinstance(observations, Mapping):
        return {key: observations[key].cpu().numpy() for key in ("tokens", "action_mask") if key in observations}
    return observations.cpu().numpy()
