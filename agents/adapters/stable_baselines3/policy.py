"""TextGenPolicy: a TransformerPolicy as stable-baselines3's actor and critic.

Rollouts go through the prefix cache; an update runs the states of one episode that a minibatch holds once for all of
them; what samples is what scores. Action masks are read from dict observations.
"""

import operator
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from agents.adapters.stable_baselines3.spaces import as_arrays, make_policy, tokens_space
from agents.description import packed
from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache
from agents.sampling import TokenDistribution
from textgym.vocabulary import Vocabulary


class TransformerActorCritic:
    """What the policies of stable-baselines3 and sb3-contrib are asked for, of one TransformerPolicy with a value head.

    A base beside theirs, which keep everything else. Actions are drawn by a generator of the policy's own.

    Args:
        observation_space: given by stable-baselines3, as the next two.
        action_space: see there.
        lr_schedule: see there.
        model: Hugging Face folder of the policy to begin with; None makes a small one.
        d_model: width of a small one.
        num_layers: transformer blocks of a small one.
        temperature: logits are divided by it; by default 1, or what the folder says.
        seed: of a small one's weights, and of the draws; by default the seed of the algorithm.
        optimizer_class: as stable-baselines3 has it.
        optimizer_kwargs: see there.
        use_sde: refused where true.

    Attributes:
        transformer: the TransformerPolicy.

    Raises:
        FileNotFoundError, ValueError: spaces of another environment, or a model that does not fit them.
    """

    transformer: TransformerPolicy

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        model: str | Path | None = None,
        d_model: int = 64,
        num_layers: int = 2,
        temperature: float | None = None,
        seed: int | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde=True is for continuous actions; leave it out")
        tokens_space(observation_space)  # before stable-baselines3 looks at it
        if seed is None:  # stable-baselines3 seeds torch's generator with its own seed
            seed = int(torch.randint(2**31 - 1, ()))
        seed = operator.index(seed)
        self.settings: dict[str, Any] = {
            "model": None if model is None else str(model),
            "d_model": d_model,
            "num_layers": num_layers,
            "temperature": temperature,
            "seed": seed,
        }
        others = {"optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], **others)  # type: ignore[call-arg]

    def _build(self, lr_schedule: Any) -> None:
        """Called by the constructor of theirs, in place of the networks that it would make."""
        policy: Any = self
        policy.transformer = make_policy(policy.observation_space, policy.action_space, self.settings)
        # With a checksum: weights may be written without a trace between two rollouts.
        self.cache = PrefixCache(policy.transformer.model, checksum=True)
        self.generator = torch.Generator().manual_seed(self.settings["seed"])
        policy.optimizer = policy.optimizer_class(policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)

    def named_parameters(self, *arguments: Any, **keywords: Any) -> Iterator[tuple[str, Parameter]]:
        """As every module's; `value` stands in the names of the value head alone.

        sb3-contrib's TRPO takes whatever is called so for the critic's, and some models have a `query_key_value`.
        """
        for name, parameter in super().named_parameters(*arguments, **keywords):  # type: ignore[misc]
            yield (name if ".value_head." in name else name.replace("value", "v")), parameter

    def _get_constructor_parameters(self) -> dict[str, Any]:
        theirs = super()._get_constructor_parameters()  # type: ignore[misc]
        ours = ("observation_space", "action_space", "lr_schedule", "optimizer_class", "optimizer_kwargs")
        return {name: theirs[name] for name in ours} | self.settings

    def distribution_and_values(self, obs: Any, action_masks: Any = None) -> tuple[TokenDistribution, Tensor]:
        """π and V [N] of observations; with a gradient where that is wanted, otherwise through the cache."""
        cache = None if torch.is_grad_enabled() else self.cache
        masks = None if action_masks is None else _masks(action_masks, self.transformer.size)
        return self.transformer.distribution_and_values(as_arrays(obs), masks, cache)

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions int64 [N], values [N, 1] and log-probs [N] in the states of the observations."""
        distribution, values = self.distribution_and_values(obs, action_masks)
        actions = self._chosen(distribution, deterministic)
        return actions, values[:, None], distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B, 1], log-probs [B] and entropies [B] in nats, with gradient."""
        distribution, values = self.distribution_and_values(obs, action_masks)
        return values[:, None], distribution.log_prob(actions.long().flatten()), distribution.entropy()

    def predict_values(self, obs: Any) -> Tensor:
        """Values [N, 1]."""
        return self.distribution_and_values(obs)[1][:, None]

    def log_probs(self, obs: Any, action_masks: Any = None) -> Tensor:
        """Log π(· | s) [N, V], finite: the least number where a token is illegal, which takes its probability to 0.

        TRPO differentiates the gradient again, which torch's fused attention does not allow.
        """
        twice = sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext()
        with twice:
            found = self.distribution_and_values(obs, action_masks)[0].log_probs
        return found.clamp(min=torch.finfo(found.dtype).min)

    def predicted(self, obs: Any, deterministic: bool, action_masks: Any = None) -> Tensor:
        """Actions int64 [N]."""
        return self._chosen(self.distribution_and_values(obs, action_masks)[0], deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """Called when rollouts (False) and updates (True) begin; dropout stays off, and updates change the weights."""
        if mode:
            self.cache.forget()

    def get_extra_state(self) -> Tensor:
        """The architecture, for whoever loads the weights."""
        return packed(self.transformer)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to do: the weights that stand beside it fit the architecture or do not load."""

    def save_pretrained(self, folder: str | Path, vocabulary: Vocabulary | None = None) -> None:
        """Write the Hugging Face folder that `TransformerPolicy.from_pretrained` and `AutoModelForCausalLM` open.

        Args:
            folder: made where it does not exist.
            vocabulary: the environment's tokens, `vec_env.get_attr("vocabulary")[0]`; those of the policy by default.
        """
        if vocabulary is not None:
            self.transformer.vocabulary = vocabulary
        self.transformer.save_pretrained(folder)

    def _chosen(self, distribution: TokenDistribution, deterministic: bool) -> Tensor:
        return distribution.mode() if deterministic else distribution.sample(self.generator)


class TextGenPolicy(TransformerActorCritic, ActorCriticPolicy):
    """For PPO, A2C and TRPO: `PPO(TextGenPolicy, envs, policy_kwargs={"d_model": 128})`; see the base for arguments."""

    def get_distribution(self, obs: Any) -> CategoricalDistribution:
        """π(· | s) as stable-baselines3's distribution."""
        return CategoricalDistribution(self.transformer.size).proba_distribution(self.log_probs(obs))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.predicted(observation, deterministic)


def _masks(action_masks: Any, size: int) -> np.ndarray:
    masks = action_masks.cpu().numpy() if isinstance(action_masks, Tensor) else np.asarray(action_masks)
    return masks.reshape(-1, size).astype(bool)
