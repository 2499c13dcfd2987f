"""stable-baselines3 and sb3-contrib on TextGen-v0: `PPO(TextGenPolicy, make_vec_env(n_envs=64)).learn(100_000)`."""

from typing import TYPE_CHECKING, Any

from agents.adapters.stable_baselines3.features import TransformerFeatures
from agents.adapters.stable_baselines3.policy import TextGenPolicy
from agents.adapters.stable_baselines3.vec_env import TextGenVecEnv, make_vec_env

if TYPE_CHECKING:
    from agents.adapters.stable_baselines3.maskable import MaskableTextGenPolicy

__all__ = ["MaskableTextGenPolicy", "TextGenPolicy", "TextGenVecEnv", "TransformerFeatures", "make_vec_env"]


def __getattr__(name: str) -> Any:
    if name == "MaskableTextGenPolicy":  # needs sb3-contrib, and nothing else here does
        from agents.adapters.stable_baselines3.maskable import MaskableTextGenPolicy

        return MaskableTextGenPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
