"""A policy's architecture as plain JSON: what has to stand beside weights so that they are a policy again.

Describes and builds; files are left to others. Nothing of a description is run: it holds the settings of a model class
that transformers knows, and numbers.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agents.policy import TransformerPolicy
from textgym.escape import told

# Settings by which transformers would look for code elsewhere.
_CODE = frozenset(
    "_attn_implementation attn_implementation _experts_implementation quantization_config auto_map".split()
)
_NUMBERS = ("size", "bos_id", "temperature", "top_k", "top_p", "min_p")


def described(policy: TransformerPolicy) -> dict[str, Any]:
    """The description of a policy without adapters."""
    truncation = policy.truncation
    return {
        "config": policy.model.config.to_dict(),
        "size": policy.size,
        "bos_id": policy.bos_id,
        "temperature": policy.temperature,
        "top_k": truncation.top_k,
        "top_p": truncation.top_p,
        "min_p": truncation.min_p,
        "value_head": policy.value_head is not None,
    }


def packed(policy: TransformerPolicy) -> Tensor:
    """The description as JSON in uint8, which stands among weights and is read by `weights_only`."""
    return torch.frombuffer(bytearray(json.dumps(described(policy)), "utf-8"), dtype=torch.uint8)


def policy_from(
    description: Mapping[str, Any], weights: Mapping[str, Tensor], name: str, seed: int = 0
) -> TransformerPolicy:
    """The policy of a description and the weights of its `state_dict`.

    Args:
        description: what `described` returned.
        weights: by the names of the policy's `state_dict`.
        name: what errors call it.
        seed: of the policy's own generator.

    Raises:
        ValueError: no description, or weights that do not fit it.
    """
    try:
        settings = {name: value for name, value in dict(description["config"]).items() if name not in _CODE}
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        layers = config.get_text_config().num_hidden_layers
        if layers > len(weights):  # before time is taken for making them
            raise ValueError(f"the model has {layers:,} layers and {len(weights):,} weights are there")
        with torch.device("meta"):
            _check(
                AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="sdpa"), weights
            )
        with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="sdpa")
        numbers = {key: description[key] for key in _NUMBERS}
        policy = TransformerPolicy(model, seed=seed, **numbers, value_head=bool(description["value_head"]))
        policy.load_state_dict(dict(weights))
    except Exception as error:  # wrong settings raise whatever they lead to
        raise ValueError(f"{name} holds no policy of this version: {told(error)}") from error
    return policy


def _check(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Refuse a model that has more weights than were given, before memory is taken for it."""
    needed = sum(math.prod(parameter.shape) for parameter in model.parameters())
    given = sum(tensor.numel() for tensor in weights.values())
    if needed > given:
        raise ValueError(f"the model has {needed:,} weights and {given:,} are there")
