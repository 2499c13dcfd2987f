"""TransformerFeatures: what a transformer makes of a history, for stable-baselines3's own networks."""

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.adapters.stable_baselines3.spaces import as_arrays, make_policy, tokens_space
from agents.description import packed


class TransformerFeatures(BaseFeaturesExtractor):
    """A features extractor: `DQN("MlpPolicy", envs, policy_kwargs={"features_extractor_class": TransformerFeatures})`.

    The features are what the model's output layer reads after the last token, [N, d]. A grown history costs one token
    where no gradient is asked for. Dict observations go with "MultiInputPolicy".

    Args:
        observation_space: given by stable-baselines3.
        model: Hugging Face folder to begin with; None makes a small one.
        d_model: width of a small one.
        num_layers: transformer blocks of a small one.
        seed: of its weights; by default the seed of the algorithm.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        model: str | Path | None = None,
        d_model: int = 64,
        num_layers: int = 2,
        seed: int | None = None,
    ) -> None:
        size = int(tokens_space(observation_space).high.max())
        if seed is None:  # stable-baselines3 seeds torch's generator with its own seed
            seed = int(torch.randint(2**31 - 1, ()))
        settings = {"model": model, "d_model": d_model, "num_layers": num_layers, "seed": seed, "temperature": None}
        transformer = make_policy(observation_space, spaces.Discrete(size), settings)
        transformer.value_head = None
        super().__init__(observation_space, transformer.model.get_output_embeddings().weight.shape[1])
        self.transformer = transformer

    def apply(self, fn: Any) -> "TransformerFeatures":
        """Nothing: stable-baselines3's `ortho_init` would replace the model's weights, a given folder's too."""
        return self

    def forward(self, observations: Any) -> Tensor:
        """Features [N, d] of histories [N, L], which may have become floats on the way."""
        return self.transformer.features(as_arrays(observations), cached=not torch.is_grad_enabled())

    def get_extra_state(self) -> Tensor:
        """As `TextGenPolicy.get_extra_state`."""
        return packed(self.transformer)

    def set_extra_state(self, state: Tensor) -> None:
        """As `TextGenPolicy.set_extra_state`."""
