"""Trade time for memory in training: each transformer block keeps its input alone and is run again in `backward`.

Transformers' own gradient checkpointing acts only in training mode, where dropout makes the scored distribution
another than the sampled one; this does not ask for the mode.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_activations(model: PreTrainedModel) -> PreTrainedModel:
    """Let every block of a model compute its activations again in `backward` rather than keep them.

    Blocks run as before where gradients are disabled, and where they are given a key-value cache, which a second run
    would extend again: call the model with `use_cache=False`. Values, gradients, weights and their names stay the same.

    Args:
        model: changed in place; a second call changes nothing.

    Returns:
        The same model.

    Raises:
        ValueError: the model has no blocks that can be run again by themselves.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no blocks that transformers can checkpoint; train it without recomputing"
        )
    for block in blocks:
        if not isinstance(block, _Recomputed):
            block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]  # classes are hashable
    return model


class _Recomputed(nn.Module):
    """In front of a block's class. A class, as a copy of the model must run its own weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(super().forward, **kwargs)
        cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
        if cached or not torch.is_grad_enabled():
            return run(*args)
        # The second run must drop what the first one did, where anything is dropped at all.
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=self.training)


@functools.cache
def _recomputed(kind: type) -> type:
    # Of the same name: whoever shards or prints a model goes by the names of its blocks' classes.
    return type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
