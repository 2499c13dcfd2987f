"""Hugging Face causal language models: opened from a folder, asked for logits, and saved again.

Nothing is downloaded, no code of a folder is run, and no pickle is read.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from textgym.escape import told


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, or adapters, which transformers would load by itself, pickles too.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: there is an adapter_config.json.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"model {str(folder)!r} holds LoRA adapters (adapter_config.json); give a folder of the whole model, with "
            "the adapters merged into it (peft's merge_and_unload), or their base"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model {str(folder)!r}: there is no file {str(folder / 'config.json')!r}")


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a folder, its weights in `dtype`.

    Raises:
        FileNotFoundError, ValueError: no model there, or one that does not load whole.
    """
    check_model_folder(folder)
    name = f"model {str(folder)!r}"
    config = read_json(folder / "config.json")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            # Others do not take the masks of a prefix cache, or this machine.
            attn_implementation=None if config.get("attn_implementation") in (None, "sdpa", "eager") else "sdpa",
        )
    except Exception as error:  # wrong settings raise whatever they lead to
        if "auto_map" in config:
            raise ValueError(f"{name} needs code of its own (auto_map), which is never run") from error
        raise ValueError(f"{name} does not load as a causal language model: {told(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{name} lacks the weights {', '.join(missing[:5])} ({len(missing)} in all); save it again")
    # In a file tensors lie where they fall; products of weights that are not aligned end in other digits.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0  # RWKV would divide its weights in place, and be saved divided
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and configuration, without the sampling settings that the model came with."""
    # They are not the policy's, and contradictory ones refuse to be saved.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    model.save_pretrained(folder)
    open_to_readers(folder)


def open_to_readers(folder: Path) -> None:
    """Give safetensors files, which are made readable by their owner alone, the usual permissions."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def bos_id_of(model: PreTrainedModel) -> int | None:
    """The id of the model's BOS token, or None where it has none that it could be fed."""
    rows = model.get_input_embeddings().weight.shape[0]
    bos_id = model.config.get_text_config().bos_token_id
    return bos_id if isinstance(bos_id, int) and 0 <= bos_id < rows else None


def max_length_of(model: PreTrainedModel) -> int | None:
    """Tokens of the longest history that the model was made for, or None where it sets no limit.

    Of a model with two sets of rotary frequencies (longrope) it is the length of the first: the longest history of a
    batch chooses the set for all, so that past it what is said of a history would depend on the others.
    """
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return rope.get("original_max_position_embeddings") or longest
    return longest


_PARAMETERS: dict[type, frozenset[str]] = {}  # which take longer to find out than a small model's step


def forward_parameters(kind: type[PreTrainedModel]) -> frozenset[str]:
    """The names of the arguments that models of a class take."""
    if kind not in _PARAMETERS:
        _PARAMETERS[kind] = frozenset(inspect.signature(kind.forward).parameters)
    return _PARAMETERS[kind]


def logits_at(model: PreTrainedModel, tokens: Tensor, places: Tensor, **inputs: Any) -> Tensor:
    """Next-token logits after the tokens at some places.

    Args:
        model: the language model.
        tokens: int64 [B, T], ids that the model has embeddings for.
        places: int64 [B, K], columns of `tokens`.
        inputs: further inputs of the model; without a cache among them, none is kept.

    Returns:
        [B, K, V'].
    """
    inputs.setdefault("use_cache", False)
    if "logits_to_keep" in forward_parameters(type(model)):
        # The other places are not projected on the vocabulary at all.
        return model(input_ids=tokens, logits_to_keep=places, **inputs).logits
    logits = model(input_ids=tokens, **inputs).logits
    return torch.take_along_dim(logits, places[:, :, None], dim=1)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} does not load: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object")
    return content
