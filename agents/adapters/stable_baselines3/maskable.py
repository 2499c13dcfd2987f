"""MaskableTextGenPolicy: the same for sb3-contrib's MaskablePPO, which asks the environment itself for its masks."""

from typing import Any

from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch import Tensor

from agents.adapters.stable_baselines3.policy import TransformerActorCritic


class MaskableTextGenPolicy(TransformerActorCritic, MaskableActorCriticPolicy):
    """For MaskablePPO: `MaskablePPO(MaskableTextGenPolicy, envs)`; arguments as `TextGenPolicy`'s."""

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableCategoricalDistribution:
        """π(· | s) as sb3-contrib's distribution."""
        distribution = MaskableCategoricalDistribution(self.transformer.size)
        return distribution.proba_distribution(self.log_probs(obs, action_masks))

    def _predict(self, observation: Any, deterministic: bool = False, action_masks: Any = None) -> Tensor:
        return self.predicted(observation, deterministic, action_masks)
