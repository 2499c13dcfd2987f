"""A TransformerPolicy as TorchRL's modules: an actor, a value operator, and what they share, for its losses.

Environments need nothing of the kind: TorchRL's `GymWrapper` takes the native vector environment, made with
`autoreset_mode="Disabled"`. Needs TorchRL 0.14 (`pip install torchrl`). Does not sample, score or train by itself.
"""

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.modules import ActorValueOperator, ProbabilisticActor

from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache


def actor_value_operator(
    policy: TransformerPolicy,
    tokens: str = "tokens",
    action_mask: str | None = "action_mask",
    seed: int = 0,
) -> ActorValueOperator:
    """The policy and its value head as an `ActorValueOperator`, whose parts share the policy's weights.

    Its `get_policy_operator()` is what collectors and losses take as the actor, `get_value_operator()` what GAE takes,
    with `shifted=True` or `deactivate_vmap=True`, and `get_value_head()` what `ClipPPOLoss` and its kin take as the
    critic: actor and critic are one pass through the model then, in which states of one episode that lie in the same
    batch cost no more than the longest of them. While episodes are collected, without gradient, a prefix cache makes a
    step cost one token.

    Args:
        policy: with a value head.
        tokens: the key of the histories, int64 [..., L]; "observation" where the environment's are no dict.
        action_mask: the key of the masks [..., V], 1 where a token is legal; None where the observations hold none.
        seed: of the generator that draws the actions.

    Returns:
        It writes "logits" [..., V], which are log π(a | s) and -inf where a token is illegal, "value" [..., 1], and of
        the actor "action" [...] and "action_log_prob", of the value head "state_value" [..., 1].

    Raises:
        TypeError: no TransformerPolicy.
        ValueError: it has no value head, or cuts tokens off (top_k, top_p, min_p): what is cut off moves with the
            weights, and a loss would meet actions that cannot be sampled any more.
    """
    if not isinstance(policy, TransformerPolicy):
        raise TypeError(f"policy is of type {type(policy).__name__}; give an agents.TransformerPolicy")
    if policy.value_head is None:
        raise ValueError("the policy has no value head; make it with value_head=True, or call its add_value_head()")
    if policy.truncation:
        raise ValueError(f"the policy cuts tokens off ({policy.truncation}); leave top_k, top_p and min_p out")
    keys = [tokens] if action_mask is None else [tokens, action_mask]
    common = TensorDictModule(_Common(policy), in_keys=keys, out_keys=["logits", "value"])
    actor = ProbabilisticActor(
        TensorDictModule(nn.Identity(), in_keys=["logits"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
        generator=torch.Generator(policy.device).manual_seed(seed),
    )

    def checked(value: Tensor) -> Tensor:
        # The parameters are held out, and not the value cut off, where GAE asks.
        trained = any(parameter.requires_grad for parameter in policy.parameters())
        if torch.is_grad_enabled() and trained and not value.requires_grad:
            raise ValueError(
                "the value carries no gradient: the value head is run with the rest of the policy, so that a loss must "
                "not be told separate_losses=True; leave that out"
            )
        return value

    return ActorValueOperator(common, actor, TensorDictModule(checked, in_keys=["value"], out_keys=["state_value"]))


class _Common(nn.Module):
    """What actor and value operator share: log-probabilities [..., V] and values [..., 1] of histories [..., L]."""

    def __init__(self, policy: TransformerPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._cache = PrefixCache(policy.model, checksum=True)  # nobody says when the weights change

    def forward(self, tokens: Tensor, action_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if torch._C._functorch.is_batchedtensor(tokens):
            raise ValueError("the policy cannot be run within vmap; give GAE shifted=True or deactivate_vmap=True")
        batch, size = tokens.shape[:-1], self.policy.size
        histories = tokens.reshape(-1, tokens.shape[-1])
        mask = None if action_mask is None else action_mask.reshape(-1, size).cpu().numpy()
        # A batch of episodes would fill the cache with states that nothing goes on from.
        collecting = not torch.is_grad_enabled() and tokens.ndim == 2
        cache = self._cache if collecting else None
        distribution, values = self.policy.distribution_and_values(histories.cpu().numpy(), mask, cache)
        return distribution.log_probs.reshape(*batch, size), values.reshape(*batch, 1)
