"""What stable-baselines3's PPO needs to act through a TransformerPolicy on the native vector environment.

No more than collecting takes: nothing here is trained.
"""

from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.prefix_cache import PrefixCache


class NativeVecEnv(VecEnv):
    """The native vector environment, in SAME_STEP mode, behind stable-baselines3's interface.

    Args:
        envs: `gym.make_vec("TextGen-v0", ..., autoreset_mode=AutoresetMode.SAME_STEP)`.
    """

    def __init__(self, envs: VectorEnv) -> None:
        self.envs = envs
        self.actions: np.ndarray | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Observations int64 [N, L]."""
        return self.envs.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Note what `step_wait` is to do."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards, whether episodes have ended, and a dict a row."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self.actions)
        ended = terminated | truncated
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(ended):
            cut = bool(truncated[row] and not terminated[row])
            rows[row] = {"terminal_observation": infos["final_obs"][row], "TimeLimit.truncated": cut}
        return observations, rewards.astype(np.float32), ended, rows

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The environment's attribute, once for each row."""
        return [getattr(self.envs.unwrapped, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Rows have no attributes of their own."""
        raise NotImplementedError("the rows of a native environment have no attributes of their own")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Rows have no methods of their own."""
        raise NotImplementedError("the rows of a native environment have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No row is wrapped."""
        return [False] * len(list(self._get_indices(indices)))


class LanguageModelPolicy(ActorCriticPolicy):
    """An actor that is a TransformerPolicy, and a critic that is linear in its logits.

    Args:
        transformer: π_θ.
        cached: whether it acts through a prefix cache.
        seed: of its draws.
    """

    def __init__(self, *arguments: Any, transformer: TransformerPolicy, cached: bool, seed: int, **rest: Any) -> None:
        super().__init__(*arguments, net_arch=[], **rest)
        self.transformer = transformer
        self.cache: PrefixCache | None = transformer.prefix_cache() if cached else None
        self.critic = torch.nn.utils.skip_init(torch.nn.Linear, transformer.size, 1)
        torch.nn.init.zeros_(self.critic.weight)
        torch.nn.init.zeros_(self.critic.bias)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions int64 [N], values [N, 1] and log-probs [N] in the states of int64 [N, L]."""
        distribution = self.transformer.distribution(obs.numpy(), cache=self.cache)
        actions = distribution.mode() if deterministic else distribution.sample(self.generator)
        return actions, self.critic(distribution.log_probs), distribution.log_prob(actions)

    @torch.no_grad()
    def predict_values(self, obs: Tensor) -> Tensor:
        """Values [N, 1]."""
        return self.critic(self.transformer.distribution(obs.numpy(), cache=self.cache).log_probs)
