"""The actor and the critic that Tianshou's policy-gradient algorithms ask for, on one TransformerPolicy.

Tianshou keeps observations as they are, integers, and hands its networks an array or a `Batch` of them. What is
sampled is the policy's own distribution, with its temperature and action masks. For PPO, A2C and Reinforce; NPG and
TRPO update actor and critic apart, which shared weights do not allow. Environments, buffers and the algorithm are left
to Tianshou.
"""

from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor, nn

from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache
from agents.weights import weights_mark

# As `observation="dict"` names them, and as the preset "tianshou" of `textgym.wrappers.rename_observation` does.
_NAMES = (("tokens", "action_mask"), ("obs", "mask"))


class Actor(nn.Module):
    """Log π(· | s), for `tianshou.algorithm.modelfree.reinforce.DiscreteActorPolicy`.

    In evaluation mode, in which a collector samples, there is no gradient and a history that grew by a token costs one
    token; in training mode, in which Tianshou updates, it carries one.

    Args:
        policy: trained in place.
    """

    def __init__(self, policy: TransformerPolicy) -> None:
        super().__init__()
        if not isinstance(policy, TransformerPolicy):
            raise TypeError(f"policy is of type {type(policy).__name__}; give a TransformerPolicy")
        self.policy = policy
        self._cache = PrefixCache(policy.model, checksum=True)
        self._judged: tuple[Any, tuple[Any, ...], Tensor] | None = None  # observations, weights, V(s)

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        """Log π(· | s) [N, V], and the state as it came: a history holds all there is to remember.

        The log-probs are finite, as torch's distributions want them: the least number where a token is illegal, which
        takes its probability to 0.

        Args:
            obs: int [N, L], or a `Batch` of `tokens` and `action_mask` or of `obs` and `mask`.
            state: returned as it is.
            info: not read.

        Raises:
            ValueError: as `TransformerPolicy.act`; or a `Batch` with other names.
        """
        policy, observations, self._judged = self.policy, _observations(obs), None
        if self.training and torch.is_grad_enabled() and policy.value_head is not None:
            distribution, values = policy.distribution_and_values(observations)
            self._judged = obs, weights_mark(policy.model, checksum=True), values
        else:
            distribution = policy.distribution(observations, cache=None if self.training else self._cache)
        log_probs = distribution.log_probs
        return log_probs.clamp(min=torch.finfo(log_probs.dtype).min), state

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last pass said, which has a graph that cannot be copied."""
        return self.__dict__ | {"_judged": None}

    def values(self, obs: Any) -> Tensor:
        """V(s) [N] of the policy's value head, with gradient; see `forward` for the argument.

        Asked for right after `forward`, of the same observations and weights, they are those of that pass.
        """
        judged, self._judged = self._judged, None  # once: its graph is gone after the gradient
        if judged is not None and judged[0] is obs and torch.is_grad_enabled():
            if judged[1] == weights_mark(self.policy.model, checksum=True):
                return judged[2]
        return self.policy.distribution_and_values(_observations(obs))[1]


class Critic(nn.Module):
    """V(s) of the value head of an actor's policy; an algorithm that updates both runs the model once for them.

    Args:
        actor: one whose policy has a value head.
    """

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        if not isinstance(actor, Actor):
            raise TypeError(f"actor is of type {type(actor).__name__}; give an Actor of this module")
        if actor.policy.value_head is None:
            raise ValueError("the policy has no value head; make it with value_head=True")
        self.actor = actor

    def forward(self, obs: Any) -> Tensor:
        """V(s) [N], with gradient; see `Actor.forward` for the argument."""
        return self.actor.values(obs)


def _observations(obs: Any) -> Any:
    """Observations as a policy takes them."""
    if not isinstance(obs, Batch):
        return obs
    keys = list(obs.get_keys())
    for tokens, mask in _NAMES:
        if tokens in keys:
            return {"tokens": obs[tokens]} | ({"action_mask": obs[mask]} if mask in keys else {})
    raise ValueError(
        f"the observations are a Batch with the keys {sorted(map(str, keys))}; give one with 'tokens' or 'obs', as "
        "observation='dict' or the preset 'tianshou' has it"
    )
