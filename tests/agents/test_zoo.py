"""The zoo has what its rows promise, so that a test over it is a test over all of that."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.agents.zoo import PAD, ROWS, STOP, WINDOW, write_folder


@pytest.fixture(scope="module", params=ROWS)
def name(request) -> str:
    return request.param


def opened(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def size_of(folder: Path) -> int:
    """V."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def next_logits(model: PreTrainedModel, history: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([history])).logits[0, -1].double()


def test_distributions_are_far_from_uniform_and_turn_on_the_whole_history(zoo_folder, name):
    model, size = opened(zoo_folder(name)), size_of(zoo_folder(name))
    generator = np.random.default_rng(0)
    entropies, moved = [], []
    for _ in range(6):
        history = generator.choice(size, WINDOW, replace=False).tolist()  # all of it inside every window
        first = [(history[0] + 1) % size, *history[1:]]
        swapped = [*history[:2], history[3], history[2], *history[4:]]
        probs, *others = (next_logits(model, h)[:size].softmax(-1) for h in (history, first, swapped))
        entropies.append(-(probs * probs.log()).sum().item() / math.log(size))
        moved += [(probs - other).abs().sum().item() / 2 for other in others]
    assert 0.05 < min(entropies) and 0.3 < np.mean(entropies) < 0.92
    assert min(moved) > 1e-3 and np.median(moved) > 0.03  # in total variation


def test_folders_follow_from_the_row_and_the_seed(zoo_folder, name, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, other = write_folder(name, tmp_path / "again"), write_folder(name, tmp_path / "other", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (zoo_folder(name), again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_tokens_that_are_none_are_loud(zoo_folder, name):
    if ROWS[name].padded:
        model, size = opened(zoo_folder(name)), size_of(zoo_folder(name))
        assert model.get_output_embeddings().weight.shape[0] % 64 == 0
        assert max(next_logits(model, [id_, 0]).softmax(-1)[:size].sum() for id_ in range(8)) < 0.5


class Saved(NamedTuple):
    """What the files of a folder say."""

    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: dict[str, Any]
    files: set[str]
    size: int  # V


def saved(folder: Path) -> Saved:
    names = ("config.json", "generation_config.json", "tokenizer_config.json")
    content = [json.loads((folder / name).read_text(encoding="utf-8")) for name in names]
    return Saved(*content, {file.name for file in folder.iterdir()}, size_of(folder))


def mixed(config: dict[str, Any]) -> bool:
    return {"sliding_attention", "full_attention"} <= set(config.get("layer_types") or ())


def grouped(config: dict[str, Any], groups: int) -> bool:
    return (config.get("num_attention_heads"), config.get("num_key_value_heads")) == (4, groups)


def heads_are_wide(config: dict[str, Any]) -> bool:
    return "head_dim" in config and config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]


ODDITIES: dict[str, Callable[[Saved], bool]] = {
    "several stop tokens": lambda s: isinstance(s.generation["eos_token_id"], list),
    "pad is a stop token": lambda s: s.tokenizer["pad_token"] is not None and s.tokenizer["pad_token"] == STOP,
    "pad is a token of its own": lambda s: s.tokenizer["pad_token"] == PAD,
    "no pad": lambda s: s.tokenizer.get("pad_token") is None and s.config.get("pad_token_id") is None,
    "no BOS": lambda s: s.tokenizer.get("bos_token") is None and s.config.get("bos_token_id") is None,
    "padded, tied": lambda s: s.config["vocab_size"] > s.size and s.config["tie_word_embeddings"],
    "padded, untied": lambda s: s.config["vocab_size"] > s.size and not s.config["tie_word_embeddings"],
    "two groups of heads": lambda s: grouped(s.config, 2),
    "one group of heads": lambda s: grouped(s.config, 1),
    "wide heads of Qwen3": lambda s: s.config["model_type"] == "qwen3" and heads_are_wide(s.config),
    "wide heads of Gemma": lambda s: s.config["model_type"] == "gemma" and heads_are_wide(s.config),
    "narrow embeddings": lambda s: s.config.get("word_embed_proj_dim", 32) != s.config.get("hidden_size", 32),
    "norm after the layer": lambda s: s.config.get("do_layer_norm_before") is False,
    "parallel residual": lambda s: s.config.get("use_parallel_residual") is True,
    "serial residual": lambda s: s.config.get("use_parallel_residual") is False,
    "partial rotary": lambda s: (s.config.get("rope_parameters") or {}).get("partial_rotary_factor") == 0.25,
    "sliding window": lambda s: s.config["model_type"] == "mistral" and s.config["sliding_window"] == WINDOW,
    "mixed windows of Qwen2": lambda s: s.config["model_type"] == "qwen2" and mixed(s.config),
    "mixed windows of Gemma": lambda s: s.config["model_type"].startswith("gemma") and mixed(s.config),
    "bfloat16": lambda s: s.config["dtype"] == "bfloat16",
    "dropout of GPT-2": lambda s: s.config.get("resid_pdrop", 0) > 0,
    "dropout of OPT": lambda s: s.config.get("dropout", 0) > 0,
    "a chat template": lambda s: "chat_template.jinja" in s.files,
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_every_oddity_is_in_a_folder(zoo_folder, oddity):
    assert any(ODDITIES[oddity](saved(zoo_folder(name))) for name in ROWS)


def test_every_architecture_is_there(zoo_folder):
    attention = {"llama", "qwen2", "qwen3", "gpt2", "gemma", "gpt_neox", "opt", "mistral"}
    recurrent = {"mamba", "rwkv", "recurrent_gemma", "qwen3_next", "lfm2"}
    assert {saved(zoo_folder(name)).config["model_type"] for name in ROWS} >= attention | recurrent
