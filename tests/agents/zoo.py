"""A zoo of small Hugging Face folders: the architectures and the odd settings that users bring.

Each row is a config; its weights are drawn from a seed, large enough that the next-token distributions are far from
uniform and turn on the whole history. Folders are written as transformers writes them: nothing of `agents` or
`textgym` is used here. `tests/agents/conftest.py` has the fixture that writes each at most once a session.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

WORDS = ("red", "green", "blue", "cat", "dog", "one", "two")
SENTENCES = ("red green blue", "one red cat two green dog", "the dog saw the blue cat", "two cats and one dog")
BOS, STOP, END, PAD = "<s>", "</s>", "<end>", "<pad>"
WINDOW = 8  # tokens that a sliding window holds; the histories of the tests are longer
POSITIONS = 48
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'dog ' }}{% endif %}"
)
_ROUND = 64
_SPREAD, _VECTOR_SPREAD = 0.2, 0.1  # of matrices, and of biases and the scales of norms
_LOUD = 10.0  # what the outputs of ids that are no tokens are scaled by


class Row(NamedTuple):
    """One folder.

    Attributes:
        config: makes the config of the architecture.
        settings: of the config.
        tokens: "words" or "bytes", the kind of tokenizer.
        bos: whether there is a BOS token; "front" for one that the tokenizer puts in front of a text.
        stops: the stop tokens that generation_config.json names.
        pad: the padding token, None for none.
        padded: whether the embeddings are more than the tokens, a multiple of 64, and loud where they are no tokens.
        dtype: what the weights are saved in.
        chat: whether the tokenizer has a chat template.
    """

    config: Callable[..., PreTrainedConfig]
    settings: dict[str, Any]
    tokens: str = "words"
    bos: bool | str = True
    stops: tuple[str, ...] = (STOP,)
    pad: str | None = PAD
    padded: bool = False
    dtype: torch.dtype = torch.float32
    chat: bool = False


_LLAMA = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    tie_word_embeddings=False,
)
_QWEN = _LLAMA | dict(num_key_value_heads=1)
_WIDE_HEADS = _LLAMA | dict(head_dim=16)  # 4 · 16 is not 32
_GEMMA = _WIDE_HEADS | dict(num_key_value_heads=1, tie_word_embeddings=True)
_GEMMA_WINDOW = _GEMMA | dict(
    sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16
)
_GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
_NEOX = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=POSITIONS,
    rotary_pct=0.25,
)
_OPT = dict(
    hidden_size=32,
    ffn_dim=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=POSITIONS,
    dropout=0.0,
)
_DROPOUT = dict(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)

ROWS: dict[str, Row] = {
    "llama": Row(LlamaConfig, _LLAMA, bos="front"),
    "llama-tied": Row(LlamaConfig, _LLAMA | dict(tie_word_embeddings=True), stops=(STOP, END), pad=STOP),
    "llama-padded": Row(LlamaConfig, _LLAMA, "bytes", padded=True, pad=None, dtype=torch.bfloat16),
    "qwen2": Row(Qwen2Config, _QWEN | dict(tie_word_embeddings=True), "bytes", bos=False, padded=True, chat=True),
    "qwen2-mixed-window": Row(
        Qwen2Config,
        _QWEN | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
        "bytes",
        bos=False,
        stops=(END, STOP),
    ),
    "qwen3": Row(Qwen3Config, _WIDE_HEADS, "bytes", bos=False, stops=(STOP, END), chat=True),
    "gpt2": Row(GPT2Config, _GPT2, "bytes", pad=None),
    "gpt2-dropout": Row(GPT2Config, _GPT2 | _DROPOUT, padded=True, pad=STOP),
    "gemma": Row(GemmaConfig, _GEMMA, bos="front", stops=(STOP, END), padded=True),
    "gemma2-alternating": Row(Gemma2Config, _GEMMA_WINDOW),
    "gemma3-alternating": Row(Gemma3TextConfig, _GEMMA_WINDOW, bos="front"),
    "gpt-neox": Row(GPTNeoXConfig, _NEOX | dict(use_parallel_residual=True), pad=None, padded=True),
    "gpt-neox-serial": Row(GPTNeoXConfig, _NEOX | dict(use_parallel_residual=False), pad=STOP),
    "opt": Row(OPTConfig, _OPT | dict(dropout=0.3)),
    "opt-projected": Row(OPTConfig, _OPT | dict(word_embed_proj_dim=16), padded=True),
    "opt-post-norm": Row(OPTConfig, _OPT | dict(do_layer_norm_before=False), pad=STOP),
    "mistral-window": Row(MistralConfig, _LLAMA | dict(sliding_window=WINDOW), "bytes"),
    "bloom": Row(BloomConfig, dict(hidden_size=32, n_layer=2, n_head=4), padded=True),
    "mamba": Row(MambaConfig, dict(hidden_size=32, num_hidden_layers=2, state_size=4)),
    "rwkv": Row(RwkvConfig, dict(hidden_size=32, num_hidden_layers=2, context_length=POSITIONS)),
    "lfm2": Row(Lfm2Config, _LLAMA | dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)),
    "recurrent-gemma": Row(
        RecurrentGemmaConfig,
        dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_window_size=WINDOW,
            block_types=["recurrent", "attention"],
        ),
    ),
    "qwen3-next": Row(
        Qwen3NextConfig,
        _WIDE_HEADS
        | dict(
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        bos=False,
    ),
}


def write_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the model and the tokenizer of a row."""
    row = ROWS[name]
    tokenizer = _tokenizer(row)
    tokenizer.save_pretrained(folder)
    model = _model(row, tokenizer, seed)
    model.to(row.dtype).save_pretrained(folder)
    return folder


def _model(row: Row, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    size = len(tokenizer)
    stop_ids = tokenizer.convert_tokens_to_ids(list(row.stops))
    config = row.config(
        vocab_size=-(-size // _ROUND) * _ROUND if row.padded else size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_ids[0],
        pad_token_id=tokenizer.pad_token_id,
        **row.settings,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (_SPREAD if parameter.ndim > 1 else _VECTOR_SPREAD)
        model.get_output_embeddings().weight[size:] *= _LOUD
    model.generation_config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]
    return model


def _tokenizer(row: Row) -> PreTrainedTokenizerFast:
    special = ([PAD] if row.pad == PAD else []) + ([BOS] if row.bos else []) + [STOP, END]
    backend = Tokenizer.from_str(_backend(row.tokens, tuple(special)))
    if row.bos == "front":
        ids = [(BOS, backend.token_to_id(BOS))]
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS if row.bos else None,
        eos_token=row.stops[0],
        pad_token=row.pad,
        clean_up_tokenization_spaces=False,
    )
    if row.chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def _backend(kind: str, special: tuple[str, ...]) -> str:
    """A tokenizer as JSON; the special tokens come first."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=len(special) + len(alphabet) + 12,
            special_tokens=list(special),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(SENTENCES, trainer)
    else:
        tokenizer = Tokenizer(models.WordLevel({token: id_ for id_, token in enumerate((*special, *WORDS))}))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()
