"""The small untrained model that is made where a user brings none."""

from collections.abc import Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel

_HEAD_SIZE = 32
_MAX_POSITIONS = 1024  # where no environment asks for more
# Wide enough that a small untrained model tells positions and tokens apart from the first update on.
_INITIALIZER_RANGE = 0.1


def make_small_model(
    size: int, d_model: int, num_layers: int, max_length: int, stop_ids: Sequence[int], seed: int
) -> GPT2LMHeadModel:
    """A GPT-2-architecture model of V tokens and one more, id V, which stands for the beginning.

    Args:
        size: V.
        d_model: width; a multiple of 32, or less than 32 for one narrower head.
        num_layers: transformer blocks.
        max_length: tokens of the longest history that it must take.
        stop_ids: noted in its configuration.
        seed: of the weights; the global generator stays as it is.
    """
    if d_model < 1 or (d_model > _HEAD_SIZE and d_model % _HEAD_SIZE):
        raise ValueError(f"d_model={d_model}; give a multiple of {_HEAD_SIZE}, or a number below it")
    if num_layers < 1:
        raise ValueError(f"num_layers={num_layers}; give at least 1")
    config = GPT2Config(
        vocab_size=size + 1,
        n_embd=d_model,
        n_layer=num_layers,
        n_head=max(1, d_model // _HEAD_SIZE),
        n_positions=max(_MAX_POSITIONS, max_length),
        initializer_range=_INITIALIZER_RANGE,
        activation_function="gelu_pytorch_tanh",  # GPT-2's, in one pass over memory rather than eight
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=size,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of other devices' generators nothing is drawn
        return GPT2LMHeadModel(config)
