"""Decoding steps written out for architectures that are used most: one token a row, over keys and values that are kept.

On a small model most of a step's time goes to what stands around its products: modules in modules, with checks and
records at every level. What is written out here computes the same from the same weights. A model that is anything but
plain, with hooks, adapters or settings of its own, runs as its own code says.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._dynamo.exc import BackendCompilerFailed
from torch.fx.experimental import _config as shapes
from torch.nn import Embedding, LayerNorm, Linear
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block
from transformers.pytorch_utils import Conv1D

from agents.grouped_attention import Stored, View, one_token, takes_parts, write
from agents.plain_modules import is_watched

Step = Callable[..., tuple[Tensor, Tensor]]
_MOST_PROGRAMS = 64  # torch's own 8 are used up by one model with and without shared prompts


def step_of(model: PreTrainedModel) -> Step | None:
    """What runs one token a row through a model, or None where its own code has to.

    It is called as step(model, stored, view, places, tokens, positions, visible): what is stored of each layer; which
    part of it the rows look at; where their keys and values go, see `agents.grouped_attention.write`; tokens int64
    [b], positions int64 [b], and what each row sees, bool [b, 1, P + C]. It returns logits [b, V'] and what the
    output layer made them from, [b, d].
    """
    for kind, plain, step in _STEPS:
        if type(model) is kind and plain(model) and takes_parts(model) and not is_watched(model, model.device):
            return step
    return None


@functools.cache
def compiled(step: Step) -> Step:
    """A step as `torch.compile` makes it, for any number of rows and positions.

    It makes several programs, each when it is first needed: another one where there is one row or one position, or a
    trunk that rows share, and for every architecture.

    Raises:
        RuntimeError: from a call for which a program cannot be made here.
    """
    run = torch.compile(step, dynamic=True)

    def compiled_step(model: PreTrainedModel, stored: list[Stored], view: View, *given: Any) -> tuple[Tensor, Tensor]:
        # Sizes that are equal by chance would be a program of their own, and so would rows that are all alike.
        many = dynamo.patch(recompile_limit=_MOST_PROGRAMS)
        by_chance = shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]
        try:
            with many, by_chance:
                return run(model, stored, view._replace(uniform=False), *given)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise RuntimeError(
                f"decoding cannot be compiled here: {reason}. Leave compile_decoding out, or install what "
                "torch.compile asks for: a C++ compiler, on a GPU Triton"
            ) from error

    return compiled_step


def _plain_gpt2(model: PreTrainedModel) -> bool:
    config, body = model.config, model.transformer
    usual = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx and not config.add_cross_attention
    kinds = [(model.lm_head, Linear), (body.wte, Embedding), (body.wpe, Embedding), (body.ln_f, LayerNorm)]
    for block in body.h:
        attention, mlp = block.attn, block.mlp
        kinds += [(block, GPT2Block), (attention, GPT2Attention), (mlp, GPT2MLP)]
        kinds += [(norm, LayerNorm) for norm in (block.ln_1, block.ln_2)]
        kinds += [(layer, Conv1D) for layer in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)]
    return usual and not model.training and all(type(part) is kind for part, kind in kinds)


def _gpt2(
    model: PreTrainedModel,
    stored: list[Stored],
    view: View,
    places: Tensor,
    tokens: Tensor,
    positions: Tensor,
    visible: Tensor,
) -> tuple[Tensor, Tensor]:
    """A step of GPT-2 (Radford et al., 2019): learned positions, each part normalised first, one product for qkv."""
    body = model.transformer
    hidden = F.embedding(tokens, body.wte.weight) + F.embedding(positions, body.wpe.weight)  # [b, d]
    for block, layer in zip(body.h, stored, strict=True):
        attention, mlp = block.attn, block.mlp
        states = _product(_norm(hidden, block.ln_1), attention.c_attn)
        query, key, value = states.view(view.num_rows, 3, attention.num_heads, attention.head_dim).unbind(dim=1)
        write(layer.keys, key[:, :, None], places)
        write(layer.values, value[:, :, None], places)
        seen = one_token(query, visible, view.parts(layer), attention.head_dim**-0.5)  # [b, heads, d / heads]
        hidden = hidden + _product(seen.flatten(start_dim=1), attention.c_proj)
        hidden = hidden + _product(mlp.act(_product(_norm(hidden, block.ln_2), mlp.c_fc)), mlp.c_proj)
    features = _norm(hidden, body.ln_f)
    return F.linear(features, model.lm_head.weight, model.lm_head.bias), features


def _norm(hidden: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _product(hidden: Tensor, layer: Conv1D) -> Tensor:
    return torch.addmm(layer.bias, hidden, layer.weight)


_STEPS: tuple[tuple[type[PreTrainedModel], Callable[[PreTrainedModel], bool], Step], ...] = (
    (GPT2LMHeadModel, _plain_gpt2, _gpt2),
)
