"""Untrained models of the architectures that a policy may be, small enough to run by the dozen."""

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY_SIZE = 17
_ROTARY: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4
)
_CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _ROTARY),
    "llama tied": (LlamaConfig, _ROTARY | dict(tie_word_embeddings=True)),
    "mistral": (MistralConfig, _ROTARY),
    "qwen2": (Qwen2Config, _ROTARY),
    "qwen3": (Qwen3Config, _ROTARY),
    "gemma": (GemmaConfig, _ROTARY),  # its output head is its embedding, as GPT-2's and OPT's
    "gpt2": (GPT2Config, dict(n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "gpt_neox": (
        GPTNeoXConfig,
        dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2),
    ),
    "opt": (
        OPTConfig,
        dict(hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=12),
    ),
}
ARCHITECTURES = tuple(_CONFIGS)


def make_model(
    architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """A model in evaluation mode; weights are large enough that every one of them matters to the logits."""
    config_type, own = _CONFIGS[architecture]
    common = dict(vocab_size=VOCABULARY_SIZE, pad_token_id=None, bos_token_id=0, eos_token_id=1)
    config = config_type(**(common | own | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


def token_ids(rows: int = 3, length: int = 7, seed: int = 0) -> torch.Tensor:
    """Int64 [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY_SIZE, (rows, length), generator=generator)


def logits_of(model: PreTrainedModel, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Detached logits [rows, length, V]."""
    with torch.no_grad():
        return model(input_ids=token_ids() if tokens is None else tokens, use_cache=False).logits
