"""What stable-baselines3 gives a policy: spaces and observations, as TransformerPolicy takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from agents.lora import is_lora
from agents.policy import TransformerPolicy
from agents.small_model import make_small_model
from textgym.escape import shown


def tokens_space(observation_space: spaces.Space) -> spaces.Box:
    """The box of the histories, the space itself or its part `tokens`.

    Raises:
        ValueError: another space than that of TextGen-v0.
    """
    space = observation_space
    if isinstance(space, spaces.Dict) and "tokens" in space.spaces:
        space = space["tokens"]
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.integer):
        raise ValueError(
            f"the observation space is {shown(observation_space)}; this policy reads the token histories of "
            "TextGen-v0: a Box [L], or a Dict with one as 'tokens'"
        )
    return space


def as_arrays(obs: Any) -> Any:
    """Observations as integer arrays on the CPU, a dict of arrays where they are a dict."""
    if isinstance(obs, Mapping):
        return {name: as_arrays(value) for name, value in obs.items()}
    array = obs.detach().cpu().numpy() if isinstance(obs, Tensor) else np.asarray(obs)
    whole = array.astype(np.int64)  # stable-baselines3 makes floats of some, exact below 2^24
    if not np.array_equal(whole, array):
        raise ValueError(
            "the observations are no whole numbers; token ids are names: VecNormalize takes norm_obs=False"
        )
    return whole


def make_policy(
    observation_space: spaces.Space, action_space: spaces.Space, settings: dict[str, Any]
) -> TransformerPolicy:
    """The policy of a folder, or a small one for these spaces; with a value head.

    Args:
        observation_space: of TextGen-v0.
        action_space: see there.
        settings: `model`, a Hugging Face folder or None, `d_model`, `num_layers`, `temperature`, `seed`.

    Raises:
        ValueError: other spaces, or a model of another number of tokens.
    """
    box = tokens_space(observation_space)
    if not isinstance(action_space, spaces.Discrete) or int(box.high.max()) != action_space.n:
        raise ValueError(
            f"the action space is {shown(action_space)} for histories with PAD = {int(box.high.max())}; give the "
            "spaces of TextGen-v0, where both are V"
        )
    size, temperature, model = int(action_space.n), settings["temperature"], settings["model"]
    if model is not None:
        policy = TransformerPolicy.from_pretrained(model, temperature=temperature, seed=settings["seed"])
        if policy.size != size:
            raise ValueError(f"the model {model!r} has {policy.size} tokens and the environment {size}")
    else:
        length, seed = box.shape[0], settings["seed"]
        network = make_small_model(size, settings["d_model"], settings["num_layers"], length, (), seed)
        policy = TransformerPolicy(
            network, size, bos_id=size, temperature=1.0 if temperature is None else temperature, seed=seed
        )
    if policy.truncation:
        raise ValueError(
            "the policy cuts tokens off (top_k, top_p or min_p); what is cut off moves with the weights, and an update "
            "would meet actions that cannot be sampled any more: leave them out"
        )
    if is_lora(policy.model):
        raise ValueError("the model has LoRA adapters; save_pretrained it, which merges them, and give that folder")
    if policy.max_length is not None and policy.max_length < box.shape[0]:
        raise ValueError(f"the model takes {policy.max_length} tokens and histories have up to {box.shape[0]}")
    policy.add_value_head()
    return policy
