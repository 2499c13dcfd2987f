"""A TransformerPolicy as the model that skrl's actor-critic agents ask for, in the roles of policy and value.

skrl takes the native vector environment as it is, `wrap_env` of `gym.make_vec("TextGen-v0", ...)` in SAME_STEP mode: it
never resets one, and would take the resets of NEXT_STEP for steps of an episode. It has no action masks. Needs skrl 2.
"""

from typing import Any

import torch
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache


class SharedModel(CategoricalMixin, DeterministicMixin, Model):
    """One pass for policy and value: `PPO(models={"policy": model, "value": model}, ...)`.

    Where no gradient is asked for, a history that grew by a token costs one token.

    Args:
        policy: with a value head; trained in place.
        env: what `wrap_env` returned.

    Raises:
        TypeError, ValueError: no TransformerPolicy, or one without a value head.
    """

    def __init__(self, policy: TransformerPolicy, env: Any) -> None:
        if not isinstance(policy, TransformerPolicy):
            raise TypeError(f"policy is of type {type(policy).__name__}; give an agents.TransformerPolicy")
        if policy.value_head is None:
            raise ValueError("the policy has no value head; make it with value_head=True, or call its add_value_head()")
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        CategoricalMixin.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self.policy = policy
        self._cache = PrefixCache(policy.model, checksum=True)  # nobody says when the weights change
        self._judged: tuple[Tensor, Tensor] | None = None  # observations, V(s): of the pass for the policy

    def act(self, inputs: dict[str, Any], *, role: str) -> tuple[Tensor, dict[str, Any]]:
        """What skrl's mixin of the role makes of `compute`."""
        return (CategoricalMixin if role == "policy" else DeterministicMixin).act(self, inputs, role=role)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        """Log π(· | s) [N, V] or V(s) [N, 1] of `inputs["observations"]` [N, L]."""
        observations, judged, self._judged = inputs["observations"], self._judged, None
        if role == "value" and judged is not None and judged[0] is observations:
            return judged[1][:, None], {}  # skrl asks the policy first, of the same tensor
        tokens = observations.long().cpu().numpy()  # skrl makes floats of them, exact below 2^24
        cache = None if torch.is_grad_enabled() else self._cache
        distribution, values = self.policy.distribution_and_values(tokens, cache=cache)
        if role == "value":
            return values[:, None], {}
        self._judged = observations, values
        return distribution.log_probs, {}
